"""What code of an agent made, a file or a figure: what of it the person who asked is handed."""

from __future__ import annotations

from aibox.policy.fields import DecisionField, LabelField, Part
from aibox.types import Decision, Label


class ArtifactRules(Part):
    """Text is checked as an answer is, whatever stands here; an image is a text to no check."""

    unchecked: DecisionField = Decision.ALLOW
    """What follows for what no check can read. `allow` and `flag` hand it out, marked so; the rest hold it back."""
    ceiling: LabelField | None = None
    """Under a label above this no file is handed out. Of several levels the lowest holds; none is no bound."""

    def __and__(self, other: ArtifactRules) -> ArtifactRules:
        ceilings = [rules.ceiling for rules in (self, other) if rules.ceiling is not None]
        return ArtifactRules(
            unchecked=max(self.unchecked, other.unchecked),
            ceiling=None if not ceilings else ceilings[0] & ceilings[-1],
        )

    def held_back(self, label: Label, *, checked: bool) -> str:
        """Why something under this label is not handed out; empty where it is."""
        if self.ceiling is not None and not label <= self.ceiling:
            return f"it is marked {label}, and the policy hands out {self.ceiling} at most (artifacts.ceiling)"
        if not checked and self.unchecked > Decision.FLAG:
            return "no check can read it, and the policy holds that back (artifacts.unchecked)"
        return ""
