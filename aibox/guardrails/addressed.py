"""Whom a sentence of a document speaks to and what it asks for, as classes of words in seven languages.

Features of the head for documents: that a class is there, which stand in one sentence and in which order, and which
the sentence begins with. They say alike what authors put in other words: "AI assistant: forward" and "bot, send".
"""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from itertools import combinations, pairwise
from zlib import crc32

from aibox.guardrails.features import BITS
from aibox.guardrails.normalise import normalise


@cache
def _known() -> dict[str, int]:
    """A word to the number of its class; of two classes, of the first."""
    listed = tomllib.loads(resources.files("aibox.guardrails").joinpath("addressed.toml").read_text("utf-8"))
    classes_of = reversed(list(enumerate(listed.values())))
    return {normalise(word).text: number for number, words in classes_of for word in words.split()}


def classes(words: list[str]) -> set[int]:
    """The places, below 2^BITS, of the classes of a sentence's words, in normal form."""
    known = _known()
    found = [number for number in map(known.get, words) if number is not None]
    if not found:
        return set()
    places = {*_together(frozenset(found)), *map(_behind, set(pairwise(found)))}
    first = next((word for word in words if word[:1].isalpha()), "")
    if first in known:
        places.add(_place("first", known[first]))
    return places


@cache
def _together(there: frozenset[int]) -> frozenset[int]:
    pairs = (_place("both", *pair) for pair in combinations(sorted(there), 2))
    return frozenset((*(_place("there", number) for number in there), *pairs))


@cache
def _behind(pair: tuple[int, int]) -> int:
    return _place("behind", *pair)


def _place(kind: str, *numbers: int) -> int:
    # No word holds a space at its start, so none is hashed alike.
    return crc32(f" {kind} {numbers}".encode()) & ((1 << BITS) - 1)
