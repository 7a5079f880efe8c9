"""Train the guardrail's heads from labelled text on disk: `make train-guards DATA=folder`. Same files, same weights.

The folder holds a `sources.toml` that names each file's role and whether it may be trained on. What is trained on, and
what came of it, goes to the card beside the weights. A text of bench/held_out is refused wherever it turns up.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import attacks
import dropout
import held_out
import numpy as np
import planted
import sklearn
from benign import families
from linear import OUT, ROLES_BENIGN, evened, fit, folded, matrix, save
from sklearn.linear_model import LogisticRegression
from sources import Source, read
from threadpoolctl import threadpool_limits

from aibox.guardrails.features import windows

EMPHASIS = {"family": 4.0, "whole": 2.0}
"""How much more a family of harmless sentences, and an author's whole texts in a language, weigh than a source of
their size.

At 8 and 4 for the patterns too, the many groups of ours drown the sources: left out, 39 % of S-Labs, 25 % of
NeurAlchemy and 65 % of the collected jailbreaks were found; at 1 and 1 57 %, 25 % and 71 %. With families at 1, 8 % of
NotInject's trigger words were flagged, at 4 5.3 %. Whole texts at 10 are worth a little more of another author of ours
who is left out (AUC 0.915 for 0.911 at 4), and less of the sources: S-Labs, NeurAlchemy, yanismiraoui and the collected
jailbreaks 0.904, 0.836, 0.905 and 0.967, at 2 0.913, 0.839, 0.914 and 0.971."""
STRENGTH = 8.0
RARE = 0.0
"""At 1 as many attacks of the authors left out are found (32 of 100), at 2 fewer (27)."""


@dataclass(frozen=True, slots=True)
class Part:
    """A window of a text, and what may be left out together with it."""

    words: list[str]
    label: int
    source: str
    language: str = ""
    intent: str = ""

    @property
    def group(self) -> str:
        return f"{self.source}{self.language}/{self.label}"


def parts_of(sources: list[Source]) -> Iterator[Part]:
    """What the head for users' texts is trained on: attacks against harmless texts, harmful requests and documents."""
    for source in sources:
        if source.train:
            for row in source.rows:
                label = 0 if source.role in ROLES_BENIGN else row["label"]
                if source.role != "indirect" or label == 0:
                    for words in windows_of(row["text"]):
                        yield Part(words, label, source.name, row.get("lang", ""))
    for number, family in enumerate(families()):
        held_out.refuse(family, f"family {number} of training/benign")
        for sentence in family:
            for words in windows_of(sentence):
                yield Part(words, 0, f"family {number}")
    made = list(attacks.direct())
    held_out.refuse((each.text for each in made), "training/attacks")
    for each in made:
        for words in windows_of(each.text):
            yield Part(words, each.label, each.author, each.language, each.intent)


def windows_of(text: str) -> list[list[str]]:
    return [words for _, _, words in windows(folded(text))]


OURS = attacks.authors()
"""Of the patterns, and of texts that were written whole."""
FOLDS = 4


class From(Protocol):
    """What is known of where a text of training is from."""

    @property
    def source(self) -> str: ...

    @property
    def language(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Calm:
    """A harmless text, and what is left out with it: a source, or a quarter of the languages and families of ours."""

    text: str
    fold: str


def calm_texts(sources: list[Source]) -> Iterator[Calm]:
    """As many of each source, of each language and of each family, however large they are."""
    for source in sources:
        if source.train:
            texts = [row["text"] for row in source.rows if source.role in ROLES_BENIGN or not row["label"]]
            yield from (Calm(text, source.name) for text in spread(texts, 100))
    ours: dict[str, list[str]] = {}
    every = list(attacks.direct())
    # What was written to look like an attack teaches; how often people write so it does not say.
    likened = {made.intent for made in every if made.label and made.author != "own"}
    for made in every:
        if not made.label and (made.author == "own" or made.intent not in likened):
            ours.setdefault(made.language, []).append(made.text)
    folds = folds_of_ours()
    for language, texts in ours.items():
        yield from (Calm(text, folds[language]) for text in spread(texts, 25))
    for number, family in enumerate(families()):
        yield from (Calm(text, fold_of(number)) for text in spread(list(family), 12))


def folds_of_ours() -> dict[str, str]:
    """A language, or the name of a family, to its fold."""
    of_families = [f"family {number}" for number, _ in enumerate(families())]
    return {name: fold_of(number) for names in (attacks.languages(), of_families) for number, name in enumerate(names)}


def folds_of(rows: Iterable[From]) -> list[str]:
    """What each is left out with: a source, or a quarter of ours."""
    ours = folds_of_ours()
    return [ours.get(row.language if row.source in OURS else row.source, row.source) for row in rows]


def fold_of(number: int) -> str:
    return f"ours {number % FOLDS}"


def spread(texts: list[str], most: int) -> list[str]:
    return texts[:: max(1, len(texts) // most)][:most]


def unseen(sources: list[Source], parts: list[Part], rows: Any) -> list[float]:
    """Margins of harmless texts, each by a model that had seen nothing of its kind."""
    folds = np.array(folds_of(parts))
    calm = list(calm_texts(sources))
    margins = []
    for fold in sorted({each.fold for each in calm}):
        seen = np.flatnonzero(folds != fold)
        model = trained(rows, parts, seen)
        margins += [highest(model, each.text) for each in calm if each.fold == fold]
    return margins


def trained(rows: Any, parts: list[Part], some: Any) -> LogisticRegression:
    """The mean of two heads: all features restrained alike, and most of them hidden at a time (`dropout`).

    With an author left out, in the mean of six: AUC against the author's own honest texts 0.949, the first alone 0.937,
    the second 0.945; found at the score that 1 % of those exceed 52, 43 and 55 %, and at that of calm texts of
    kinds that were left out 42, 42 and 39 %.
    """
    labels, weights = [parts[at].label for at in some], evened([parts[at].group for at in some], EMPHASIS)
    model = fit(rows[some], labels, weights, strength=STRENGTH, rare=RARE)
    head, bias = dropout.learned(rows[some], labels, weights)
    model.coef_, model.intercept_ = (model.coef_ + head) / 2, (model.intercept_ + bias) / 2
    return model


def highest(model: LogisticRegression, text: str) -> float:
    return float(max(model.decision_function(matrix(windows_of(text)))))


def direct(sources: list[Source], card: dict[str, Any]) -> None:
    parts = list(parts_of(sources))
    rows = matrix([part.words for part in parts])
    model = trained(rows, parts, np.arange(len(parts)))
    # No file that is for measuring calibrates: it could no longer say how often harmless text is flagged.
    benign = np.array(unseen(sources, parts, rows))
    card["heads"]["direct"] = {
        "windows": len(parts),
        "calibrated_on": [
            "harmless texts of training, each by a model that had not seen its source, language or family"
        ],
        "texts": len(benign),
        "families_made": len({part.source for part in parts if part.source.startswith("family")}),
        "languages_made": sorted({part.language for part in parts if part.source in OURS}),
        "windows_made": dict(Counter("attack" if part.label else "harmless" for part in parts if part.source in OURS)),
    }
    save("direct", model, benign, card)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a folder with sources.toml and the files it names")
    options = parser.parse_args()
    sources = read(options.data)
    # Sums in several threads come out otherwise with another number of processors.
    threadpool_limits(1)
    card: dict[str, Any] = {
        "made_by": f"training/guards.py with scikit-learn {sklearn.__version__}",
        "score": "5 in 100 benign texts lie above 0.5, 1 in 100 above 0.8, 1 in 1,000 above 0.95",
        "trained_on": {s.name: {"rows": len(s.rows), "role": s.role, "sha256": s.sha256} for s in sources if s.train},
        "heads": {},
    }
    direct(sources, card)
    planted.indirect(sources, card, options.data.parent / "pii" / "presidio_templates.txt")
    (OUT / "card.json").write_text(json.dumps(card, indent=1) + "\n", "utf-8")
    for name, head in card["heads"].items():
        print(f"{name}: {head['sha256'][:16]}", {key: head[key] for key in head if key != "sha256"})
    return 0


if __name__ == "__main__":
    sys.exit(main())
