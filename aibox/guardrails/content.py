"""What a text holds by category: sexual, minors, hate, violence, harassment, self-harm. It says so and blocks nothing.

Words and parts of words, weighed: who writes around them is not found, and speaking about a matter reads like it. What
follows is the policy's, and a flag is what it is good for. docs/guardrails.md has the figures.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator
from functools import cache
from importlib import resources
from math import sqrt

from aibox.errors import IntegrityError
from aibox.guardrails.features import CONTENT_BITS as BITS
from aibox.guardrails.features import features, windows
from aibox.guardrails.heads import Head, curve_of
from aibox.guardrails.normalise import normalise
from aibox.guardrails.reading import flagged
from aibox.types import Finding, Label, Scope, Verdict, Where

FLOOR = 0.5
"""Lower scores are no finding."""
_REASONS = {
    "sexual": "sexual content",
    "minors": "sexual content about minors",
    "hate": "hatred of a group",
    "violence": "violence",
    "harassment": "harassment of a person",
    "self-harm": "self-harm",
}
CATEGORIES = tuple(_REASONS)


class Content:
    """Finds content by category: a Check. `Finding.rule` is one of `CATEGORIES`; scores as in `heads`."""

    @property
    def name(self) -> str:
        return "content"

    async def check(self, text: str, *, where: Where = "input", scope: Scope, label: Label | None = None) -> Verdict:  # noqa: ARG002 - the protocol's arguments
        """FLAG with findings in order, or ALLOW. The text is never changed."""
        return await flagged(text, scan, where=where)

    def __repr__(self) -> str:
        return f"Content({', '.join(CATEGORIES)})"


def scan(text: str, *, floor: float = FLOOR) -> tuple[Finding, ...]:
    """Of each category the strongest window of 200 words that scores at least `floor`, in order."""
    normal = normalise(text)
    best: dict[str, tuple[float, int, int]] = {}
    for start, end, words in windows(normal.text):
        for category, score in _scores(words):
            best[category] = max(best.get(category, (0.0, 0, 0)), (score, start, end))
    found = [
        Finding("content", category, normal.span(start, end), score, _REASONS[category])
        for category, (score, start, end) in best.items()
        if score >= floor
    ]
    return tuple(sorted(found, key=lambda finding: finding.span))


def _scores(words: list[str]) -> Iterator[tuple[str, float]]:
    mask = (1 << BITS) - 1
    places = {place & mask for place in features(words)}
    for head in heads():
        total = sum([head.weights[place] for place in places])
        yield head.name, head.calibrated(head.bias + head.scale * total / sqrt(max(1, len(places))))


@cache
def heads() -> tuple[Head, ...]:
    """One a category. Raises IntegrityError when weights and card do not belong together."""
    folder = resources.files("aibox.guardrails").joinpath("weights")
    card = json.loads(folder.joinpath("content.json").read_text("utf-8"))
    data = folder.joinpath("content.bin").read_bytes()
    size = 1 << BITS
    if len(data) != size * len(CATEGORIES) or hashlib.sha256(data).hexdigest() != card["sha256"]:
        raise IntegrityError(
            "the weights of the check content are not those on its card",
            hint="install aibox anew, or run make train-guards",
        )
    return tuple(
        Head(
            category,
            array("b", data[number * size : (number + 1) * size]),
            card["heads"][category]["scale"],
            card["heads"][category]["bias"],
            curve_of(card["heads"][category]),
        )
        for number, category in enumerate(CATEGORIES)
    )
