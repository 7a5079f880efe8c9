"""Linear heads over hashed features: the weights that `make train-guards` wrote, checked against their card.

A score says how rare it is among benign text: on the card's calibration sources 5 in 100 lie above 0.5, 1 in 100 above
0.8 and 1 in 1,000 above 0.95 (where there were enough texts to tell).
"""

from __future__ import annotations

import hashlib
import json
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from math import sqrt
from operator import itemgetter
from typing import Any, Literal

from aibox.errors import IntegrityError
from aibox.guardrails.addressed import classes
from aibox.guardrails.features import BITS, Places, features, matches_of, runs

APART = 0.3
"""How much of what a document's sentences usually weigh is taken off each of them; see `standing_out`."""

HeadName = Literal["direct", "indirect"]
_FOLDER = resources.files("aibox.guardrails").joinpath("weights")
Curve = tuple[tuple[float, float], ...]
"""From margins to scores, both rising."""


@dataclass(frozen=True, slots=True)
class Head:
    """`weights` are 2^BITS signed bytes, to be multiplied by `scale`."""

    name: str
    weights: array[int]
    scale: float
    bias: float
    curve: Curve
    addressed: bool = False
    """Whether the classes of `addressed` are features too."""

    def margin(self, words: list[str], parts: dict[bytes, list[int]] | None = None) -> float:
        """The raw decision value; of no words the lowest of the curve."""
        return self._margin(words, features(words, parts, apart=True))

    def margins(self, text: str, parts: dict[bytes, list[int]] | None = None) -> Iterator[tuple[int, int, float]]:
        """(start, end, margin) of the overlapping windows of a text in normal form; see `windows` and `Places`."""
        found = matches_of(text)
        words = [match[0] for match in found]
        places = Places(words, parts, apart=True)
        for first, last in runs(len(found)):
            margin = self._margin(words[first:last], places.of(first, last))
            yield found[first].start(), found[last - 1].end(), margin

    def _margin(self, words: list[str], found: set[int]) -> float:
        if self.addressed:
            found |= classes(words)
        if not found:
            return self.curve[0][0]
        return self.bias + self.scale * summed(self.weights, found) / sqrt(len(found))

    def calibrated(self, margin: float) -> float:
        """The score of a margin."""
        return on_curve(self.curve, margin)


def summed(weights: array[int], places: set[int]) -> int:
    """The sum of the weights at these places; `itemgetter` is the quickest way to many, and gives one bare."""
    return sum(itemgetter(*places)(weights)) if len(places) > 1 else sum(weights[place] for place in places)


def standing_out(margins: list[float]) -> list[float]:
    """The margins of a document's sentences, raised where the others are plain: an order in a text that gives none.

    Never lowered, so that a document full of orders hides none of them. Of one or two sentences nothing is usual.
    """
    usual = sorted(margins)[(len(margins) - 1) // 2] if len(margins) > 2 else 0.0
    return [margin - APART * min(0.0, usual) for margin in margins]


def on_curve(curve: Curve, margin: float) -> float:
    """The score of a margin: straight lines between the points of the curve."""
    at = bisect_right(curve, (margin, 2.0))
    if at == 0:
        return curve[0][1]
    if at == len(curve):
        return curve[-1][1]
    (x0, y0), (x1, y1) = curve[at - 1], curve[at]
    return y0 + (y1 - y0) * (margin - x0) / (x1 - x0)


def curve_of(card: Mapping[str, Any]) -> Curve:
    """The curve that a head's card holds."""
    return tuple((float(x), float(y)) for x, y in card["curve"])


def card_of(name: str) -> Any:
    """The card of that name: what was trained on, and what it takes to read the weights."""
    return json.loads(_FOLDER.joinpath(f"{name}.json").read_text("utf-8"))


def rows_of(name: str, *, rows: int, size: int, sha256: str) -> tuple[array[int], ...]:
    """The signed bytes of NAME.bin, in so many rows of that size. Raises IntegrityError for others than its card's."""
    data = _FOLDER.joinpath(f"{name}.bin").read_bytes()
    if len(data) != rows * size or hashlib.sha256(data).hexdigest() != sha256:
        raise IntegrityError(
            f"the weights of the guardrail head {name} are not those on its card",
            hint="install aibox anew, or run make train-guards",
        )
    return tuple(array("b", data[at * size : (at + 1) * size]) for at in range(rows))


@cache
def head(name: HeadName) -> Head:
    """A head by its name. Raises IntegrityError when weights and card do not belong together."""
    card: dict[str, Any] = card_of("card")["heads"][name]
    (weights,) = rows_of(name, rows=1, size=1 << BITS, sha256=card["sha256"])
    return Head(name, weights, card["scale"], card["bias"], curve_of(card), "addressed" in card)
