"""When a language model is asked about a text, and what follows: in the grey band of the other checks only."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from aibox.policy.fields import DecisionField, Part
from aibox.types import Decision, Where

Principle = Annotated[str, StringConstraints(strip_whitespace=True, min_length=8, max_length=500)]


class JudgeRules(Part):
    """Nobody is asked, unless a level names a place and a band."""

    places: frozenset[Where] = frozenset()
    """Where texts are judged. Of several levels all; in an answer that streams nobody is asked."""
    from_score: float = Field(default=1.0, ge=0, le=1)
    """The band begins at this score of `jailbreak` or `injection`, the lowest of several levels."""
    below_score: float = Field(default=0.0, ge=0, le=1)
    """And ends below this one, the highest of several levels."""
    decision: DecisionField = Decision.FLAG
    """What follows for a text that breaks a principle. Of several levels the strictest."""
    rewrite: bool = True
    """With the decision `redact`: the judge may write a text anew, after its critique, before all of it is taken out.
    What it wrote is judged and checked again. Of several levels all must allow it."""
    principles: frozenset[Principle] = frozenset()
    """What a text must keep to. Of several levels all; none is the shipped ones."""

    def __and__(self, other: JudgeRules) -> JudgeRules:
        return JudgeRules(
            places=self.places | other.places,
            from_score=min(self.from_score, other.from_score),
            below_score=max(self.below_score, other.below_score),
            decision=max(self.decision, other.decision),
            rewrite=self.rewrite and other.rewrite,
            principles=self.principles | other.principles,
        )

    def grey(self, where: Where, score: float) -> bool:
        return where in self.places and self.from_score <= score < self.below_score
