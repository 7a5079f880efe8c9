"""Vectors drawn by a seed, spread as an embedder spreads texts, so that embedding costs a bench next to nothing.

As those of multilingual-e5-small on docstrings, measured: all share a part of length 0.7, and what is left has the
variances below in its main directions. A normal draw of that is harder for an index than texts, which lie in groups.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Any

DIMENSIONS = 384
COMMON = 0.7
# Direction, counted from 1, and its share of the variance; between them on a straight line of logarithms.
SHARES = {
    1: 0.0398,
    2: 0.0324,
    3: 0.03,
    5: 0.0212,
    9: 0.0173,
    17: 0.0112,
    33: 0.0075,
    65: 0.0043,
    129: 0.002,
    257: 5e-4,
}


class Seeded:
    """An embedder whose vectors are drawn from the text's hash."""

    name = "seeded"
    dimensions = DIMENSIONS
    floor = -1.0

    async def embed(self, texts: Sequence[str], *, kind: str) -> list[list[float]]:
        del kind
        return [vector(text) for text in texts]


def vector(seed: object, *, alike: bool = True) -> list[float]:
    """Of length 1. `alike` False is a draw without any structure, in which nothing is near anything."""
    import numpy as np

    digest = hashlib.sha256(str(seed).encode()).digest()
    drawn = np.random.default_rng(int.from_bytes(digest[:8], "big")).standard_normal(DIMENSIONS)
    if alike:
        common, directions = _spread()
        drawn = common + drawn @ directions
    vector: list[float] = (drawn / np.linalg.norm(drawn)).tolist()
    return vector


def matrix(size: int, *, alike: bool = True) -> Any:
    """The vectors of 0, 1, 2 and so on, as the rows of a matrix."""
    import numpy as np

    return np.stack([np.asarray(vector(number, alike=alike), np.float32) for number in range(size)])


@cache
def _spread() -> tuple[Any, Any]:
    """What all vectors share, and the main directions as rows, each as long as it varies."""
    import numpy as np

    draw = np.random.default_rng(0)
    turned, _ = np.linalg.qr(draw.standard_normal((DIMENSIONS, DIMENSIONS)))
    shares = np.exp(np.interp(np.log(range(1, DIMENSIONS + 1)), np.log([*SHARES]), np.log([*SHARES.values()])))
    lengths = np.sqrt((1 - COMMON**2) * shares / shares.sum())
    common = draw.standard_normal(DIMENSIONS)
    return COMMON * common / np.linalg.norm(common), lengths[:, None] * turned
