"""Train the heads of the check `content`: `make train-guards DATA=folder`. Same files, same weights.

One source has labels by category (OpenAI's moderation set, MIT), so figures are of folds of it; false alarms are also
counted on sources of another origin, which are never trained on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from array import array
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import sklearn
from linear import OUT, ROLES_BENIGN, curve, folded
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sources import read

from aibox.guardrails.features import CONTENT_BITS as BITS
from aibox.guardrails.features import features, windows

LABELS = {
    "sexual": ("S",),
    "minors": ("S3",),
    "hate": ("H", "H2"),
    "violence": ("V", "V2"),
    "harassment": ("HR",),
    "self-harm": ("SH",),
}
SOURCE = "openai_moderation.jsonl"
FOLDS = 5
BENIGN_TRAIN = ("gsm8k_test.jsonl", "selfinstruct_seed.jsonl")
BENIGN_HELD = ("mtbench_vicuna.jsonl", "spikee_topic_fp.jsonl", "spikee_topic_pos.jsonl")
STRENGTH = 4


@cache
def hashed(words: tuple[str, ...]) -> list[int]:
    return sorted({place % (1 << BITS) for place in features(list(words))})


@cache
def parts(text: str) -> list[list[str]]:
    return [words for _, _, words in windows(folded(text))] or [[]]


def matrix(texts: list[list[str]]) -> Any:
    """One row of features a text, of unit length; features share places."""
    places: list[int] = []
    values: list[float] = []
    ends = [0]
    for words in texts:
        found = hashed(tuple(words))
        places += found
        values += [max(1, len(found)) ** -0.5] * len(found)
        ends.append(len(places))
    return scipy.sparse.csr_matrix((np.array(values), places, ends), shape=(len(texts), 1 << BITS))


def fit(texts: list[list[str]], labels: list[int], weights: list[float]) -> LogisticRegression:
    model = LogisticRegression(C=STRENGTH, solver="liblinear", random_state=0, class_weight="balanced")
    return model.fit(matrix(texts), labels, sample_weight=weights)


def margin(model: LogisticRegression, text: str) -> float:
    return float(max(model.decision_function(matrix(parts(text)))))


def label(row: dict[str, Any], names: tuple[str, ...]) -> int | None:
    """1 or 0; None where the set does not say."""
    said = [row["cats"].get(name) for name in names]
    return 1 if any(said) else None if None in said else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a folder with sources.toml and the files it names")
    options = parser.parse_args()
    sources = {source.name: source for source in read(options.data)}
    rows = sources[SOURCE].rows
    plain = [row["text"] for name in BENIGN_TRAIN for row in sources[name].rows]
    held = [row["text"] for name in BENIGN_HELD for row in sources[name].rows]
    assert all(sources[name].train for name in (SOURCE, *BENIGN_TRAIN))
    assert not any(sources[name].train for name in BENIGN_HELD)
    assert all(sources[name].role in ROLES_BENIGN for name in (*BENIGN_TRAIN, *BENIGN_HELD))
    data = bytearray()
    card: dict[str, Any] = {
        "made_by": f"training/content.py with scikit-learn {sklearn.__version__}",
        "score": "5 in 100 benign texts lie above 0.5, 1 in 100 above 0.8, 1 in 1,000 above 0.95",
        "trained_on": {
            name: {"rows": len(sources[name].rows), "sha256": sources[name].sha256} for name in (SOURCE, *BENIGN_TRAIN)
        },
        "calibrated_on": [f"{SOURCE}, rows without any category, each by a model that had not seen it", *BENIGN_HELD],
        "heads": {},
    }
    for category, names in LABELS.items():
        known = [(row, said) for row in rows if (said := label(row, names)) is not None]
        margins: list[float] = []

        def trained(some: list[tuple[dict[str, Any], int]]) -> LogisticRegression:
            texts = [(words, said, 1.0) for row, said in some for words in parts(row["text"])]
            # Plain questions weigh little: what is hard is to tell the category among texts that people reported.
            texts += [(words, 0, 0.2) for text in plain for words in parts(text)]
            return fit(*map(list, zip(*texts, strict=True)))  # type: ignore[arg-type]

        for fold in range(FOLDS):
            model = trained([pair for number, pair in enumerate(known) if number % FOLDS != fold])
            margins += (margin(model, row["text"]) for row, _ in known[fold::FOLDS])
        order = [pair for fold in range(FOLDS) for pair in known[fold::FOLDS]]
        truth = [said for _, said in order]
        final = trained(known)
        benign = [m for m, (row, _) in zip(margins, order, strict=True) if not row["label"]]
        benign += [margin(final, text) for text in held]
        steps = curve(np.array(benign))
        scale = float(np.abs(final.coef_[0]).max() / 127)
        data += array("b", [int(value) for value in np.rint(final.coef_[0] / scale)]).tobytes()
        found = {
            f"found_at_{score}": round(
                float(np.mean([m > limit for m, said in zip(margins, truth, strict=True) if said])), 3
            )
            for limit, score in steps
            if score in (0.5, 0.8, 0.95)
        }
        card["heads"][category] = {
            "rows": sum(truth),
            "auc_of_folds": round(float(roc_auc_score(truth, margins)), 3),
            **found,
            "scale": scale,
            "bias": float(final.intercept_[0]),
            "curve": steps,
        }
        print(category, {key: value for key, value in card["heads"][category].items() if key != "curve"})
    card["sha256"] = hashlib.sha256(data).hexdigest()
    (OUT / "content.bin").write_bytes(data)
    (OUT / "content.json").write_text(json.dumps(card, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
