"""How near the sentences of a text come to example sentences, by an embedder's vectors.

It knows what is meant better than what is denied: "never buy shares" is as near to buying shares as the wish to.
"""

from __future__ import annotations

from collections.abc import Sequence

from aibox.guardrails.features import segments
from aibox.protocols import Embedder

BATCH = 32
"""Sentences in one go: whoever is cancelled leaves no more work than this behind."""


def sentences(text: str) -> list[tuple[int, int]]:
    """The sentences and lines with a letter in them, in order."""
    return [(start, end) for start, end in segments(text) if any(map(str.isalpha, text[start:end]))]


async def likeness(embedder: Embedder, texts: Sequence[str], lists: Sequence[Sequence[str]]) -> list[list[float]]:
    """For each list of examples, how near each text comes to the nearest of them: from 0, nothing to do with it, to 1.

    0 is a cosine of the embedder's `floor` (0 where it says none), 1 half-way between that and equal. Both are embedded
    as queries, which an embedder may remember, and each text once, whatever the number of lists. Raises what the
    embedder raises.
    """
    floor = float(getattr(embedder, "floor", 0.0))
    known = [await embedder.embed(examples, kind="query") for examples in lists]
    near: list[list[float]] = [[] for _ in known]
    for at in range(0, len(texts), BATCH):
        for vector in await embedder.embed(texts[at : at + BATCH], kind="query"):
            for scores, examples in zip(near, known, strict=True):
                cosine = max(sum(a * b for a, b in zip(vector, example, strict=True)) for example in examples)
                scores.append(round(min(1.0, max(0.0, 2 * (cosine - floor) / (1 - floor))), 4))
    return near
