"""Cosines of packed vectors, exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aibox.errors import MissingExtraError


def cosines(vector: Sequence[float], packed: Sequence[bytes]) -> list[float]:
    """Of a vector with each of the packed ones (32-bit floats, native order); 0 where either is all zeros."""
    if not packed:
        return []
    np = _numpy()
    query = np.asarray(vector, np.float32)
    matrix = np.frombuffer(b"".join(packed), np.float32).reshape(len(packed), -1)
    lengths = np.sqrt(np.einsum("ij,ij->i", matrix, matrix)) * np.sqrt(query @ query)
    found: list[float] = (matrix @ query / np.maximum(lengths, 1e-9)).tolist()
    return found


def nearest(vector: Sequence[float], rows: Sequence[tuple[int, bytes]], limit: int) -> list[tuple[int, float]]:
    """Numbers of the rows nearest by cosine, and their cosines, best first, compared with every one of them."""
    scores = cosines(vector, [packed for _, packed in rows])
    best = sorted(range(len(rows)), key=lambda i: -scores[i])[:limit]
    return [(rows[i][0], scores[i]) for i in best]


def _numpy() -> Any:
    try:
        import numpy as np
    except ImportError:
        raise MissingExtraError("the embedded memory", extra="embedded") from None
    return np
