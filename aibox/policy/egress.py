"""The door out, as a policy describes it."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from aibox.policy.fields import LabelField, Part
from aibox.types import Label, Level


def universe(names: frozenset[str]) -> frozenset[str]:
    """`"*"` beside other names is `"*"`: one set, one way to write it."""
    return frozenset({"*"}) if "*" in names else names


class EgressRules(Part):
    """The door out. Shut unless every level opens it, for models by name and for text up to a label."""

    models: Annotated[frozenset[str], AfterValidator(universe)] = frozenset()
    """`backend/model` as the router names them, or `"*"`. Lists of several levels intersect; empty is shut."""
    ceiling: LabelField = Label(Level.PUBLIC)
    """The highest label that may leave. Of several levels the lowest holds."""

    def __and__(self, other: EgressRules) -> EgressRules:
        if "*" in self.models:
            models = other.models
        elif "*" in other.models:
            models = self.models
        else:
            models = self.models & other.models
        return EgressRules(models=models, ceiling=self.ceiling & other.ceiling)

    @property
    def open(self) -> bool:
        return bool(self.models)

    def allows(self, model: str) -> bool:
        return "*" in self.models or model in self.models
