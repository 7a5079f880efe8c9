"""What the text of turns may be kept for beyond answering, as a policy describes it."""

from __future__ import annotations

from aibox.policy.fields import LabelField, Part
from aibox.types import Label


class ReuseRules(Part):
    """Nothing, unless every level says so."""

    evals: bool = False
    """Model calls may be kept, scrubbed, become cases of a test and be run again. Of several levels all must agree."""
    ceiling: LabelField = Label()
    """The highest label of a text that may be kept. Of several levels the lowest holds."""

    def __and__(self, other: ReuseRules) -> ReuseRules:
        return ReuseRules(evals=self.evals and other.evals, ceiling=self.ceiling & other.ceiling)
