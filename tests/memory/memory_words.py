"""An embedder that costs nothing: a vector says which words are in a text. For tests that are not about meaning."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from typing import Literal

from aibox.memory.terms import words


class WordEmbedder:
    """Texts with the same words are near, texts without a common word are far."""

    floor = 0.2

    def __init__(self, name: str = "words", dimensions: int = 64) -> None:
        self.name = name
        self.dimensions = dimensions

    async def embed(self, texts: Sequence[str], *, kind: Literal["query", "passage"]) -> list[list[float]]:
        return [self._vector(text) for text in texts]

    def _vector(self, text: str) -> list[float]:
        # A little of everything, so that no two vectors have a run of bytes in common.
        little = random.Random(f"{self.name}|{text}")
        vector = [little.uniform(-0.01, 0.01) for _ in range(self.dimensions)]
        for word in words(text):
            digest = hashlib.sha256(f"{self.name}|{word}".encode()).digest()
            vector[digest[0] % self.dimensions] += 1.0 if digest[1] % 2 else -1.0
        length = math.sqrt(sum(x * x for x in vector))
        return [x / length for x in vector]
