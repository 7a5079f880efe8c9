"""Train the head of the check `grounding` from BEGIN's development set: `make train-guards DATA=folder`.

Logistic regression on eight features with weights that cannot be negative: the same file gives the same weights. Only
BEGIN (WoW) is trained on, from the folder `grounding` beside DATA; whatever else lies there is for measuring.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path

import held_out
import numpy as np

from aibox.guardrails.grounding import each_feature

OUT = Path(__file__).parent.parent / "aibox" / "guardrails" / "weights" / "grounding.json"
STRENGTH = 3.0
STEPS = 3_000


def fit(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bias and weights, none of them below 0: each feature is the more the less of a claim is there."""
    mean, spread = x.mean(0), x.std(0) + 1e-9
    full = np.hstack([np.ones((len(x), 1)), (x - mean) / spread])
    w = np.zeros(full.shape[1])
    for _ in range(STEPS):
        gradient = full.T @ (1 / (1 + np.exp(-full @ w)) - y) / len(y)
        gradient[1:] += STRENGTH * w[1:] / len(y)  # the ridge spares the bias
        w -= 0.5 * gradient
        w[1:] = np.maximum(w[1:], 0)
    return np.concatenate([[w[0] - (w[1:] * mean / spread).sum()], w[1:] / spread])


def auc(score: np.ndarray, y: np.ndarray) -> float:
    more = (score[y == 1][:, None] > score[y == 0][None]).mean()
    same = (score[y == 1][:, None] == score[y == 0][None]).mean()
    return float(more + same / 2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder beside `grounding`, as of the other heads")
    data = (parser.parse_args().data.parent / "grounding" / "begin_wow_dev.jsonl").read_bytes()
    rows = [json.loads(line) for line in data.decode().split("\n") if line.strip()]
    held_out.refuse((f"{row['claim']} {row['evidence']}" for row in rows), "begin_wow_dev.jsonl")
    x = np.array([list(each_feature(row["claim"], row["evidence"])) for row in rows])
    y = np.array([float(row["label"] != "Fully attributable") for row in rows])
    held = np.zeros(len(rows))
    for fold in range(5):
        mine = np.arange(len(rows)) % 5 == fold
        w = fit(x[~mine], y[~mine])
        held[mine] = w[0] + x[mine] @ w[1:]
    card = {
        "trained_on": {"begin_wow_dev.jsonl": {"rows": len(rows), "sha256": hashlib.sha256(data).hexdigest()}},
        "auc_of_rows_left_out": round(auc(held, y), 4),
        "weights": [round(float(value), 4) for value in fit(x, y)],
    }
    OUT.write_text(json.dumps(card, indent=1) + "\n", "utf-8")
    print(json.dumps(card))
    return 0


if __name__ == "__main__":
    sys.exit(main())
