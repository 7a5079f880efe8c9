"""What a text holds by category: sexual, minors, hate, violence, harassment, self-harm. It says so and blocks nothing.

Words and parts of words, weighed: who writes around them is not found, and speaking about a matter reads like it. What
follows is the policy's, and a flag is what it is good for. docs/guardrails.md has the figures.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from math import sqrt

from aibox.guardrails.features import CONTENT_BITS as BITS
from aibox.guardrails.features import features, windows
from aibox.guardrails.heads import Head, card_of, curve_of, rows_of, summed
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
        total = summed(head.weights, places)
        yield head.name, head.calibrated(head.bias + head.scale * total / sqrt(max(1, len(places))))


@cache
def heads() -> tuple[Head, ...]:
    """One a category. Raises IntegrityError when weights and card do not belong together."""
    card = card_of("content")
    rows = rows_of("content", rows=len(CATEGORIES), size=1 << BITS, sha256=card["sha256"])
    told = [card["heads"][category] for category in CATEGORIES]
    return tuple(
        Head(category, weights, each["scale"], each["bias"], curve_of(each))
        for category, weights, each in zip(CATEGORIES, rows, told, strict=True)
    )
