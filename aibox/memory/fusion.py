"""How what vectors and what words propose becomes one order, in whatever store they were found."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

from aibox.memory.reader import Candidate
from aibox.memory.record import Hit
from aibox.memory.terms import Terms

Id = TypeVar("Id", int, str)

PROPOSED = 40
"""How many passages the vectors propose, and how many the words, at least."""
MOST_PROPOSED = 640
WORDS_SHARE = 0.3
"""Of a score, what the words give; the rest is the vectors'. Set on the questions that the bench leaves out."""
WORDS_FLOOR = 0.5
"""Of the words of a question: a passage that has fewer, and no near vector, is no hit."""


def fuse(
    found: Mapping[Id, Candidate], near: Mapping[Id, float], words: Mapping[Id, float], terms: Terms, *, minimum: float
) -> list[Hit]:
    """Hits, best first: the cosine in `near`, and the BM25 score in `words` as a share of the best one.

    That share is brought to the scale of the cosines.

    A sum keeps how far apart two passages are, which ranks do not (Bruch, Gai and Ingber, "An Analysis of Fusion
    Functions for Hybrid Retrieval", 2023).
    """
    most = max(words.values(), default=0.0)
    hits = []
    scale = max([0.2, *near.values()])
    for n, candidate in found.items():
        shared = sum(1 for term in terms if term in candidate.terms) / len(terms) if terms else 0.0
        if near[n] >= minimum or shared >= WORDS_FLOOR:
            agreement = scale * words.get(n, 0.0) / most if most > 0 else 0.0
            score = (1 - WORDS_SHARE) * max(near[n], 0.0) + WORDS_SHARE * agreement
            hits.append((-score, n, Hit(candidate.passage, min(score, 1.0))))
    return [hit for _, _, hit in sorted(hits, key=lambda item: item[:2])]


def rarity(every: int, holding: int) -> float:
    """BM25's weight of a word that so many of all passages have."""
    return math.log((every - holding + 0.5) / (holding + 0.5) + 1)
