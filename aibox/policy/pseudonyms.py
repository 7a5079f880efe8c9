"""Which pseudonyms can never be turned back, and who may look behind those that can, as a policy describes it."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, StringConstraints

from aibox.policy.egress import universe
from aibox.policy.fields import Part

EntityType = Annotated[str, StringConstraints(pattern=r"^(?:[A-Z]{2,16}|\*)$")]


class PseudonymRules(Part):
    """By default all can be restored to whoever gave the value, and nobody may look behind anybody else's."""

    irreversible: Annotated[frozenset[EntityType], AfterValidator(universe)] = frozenset()
    """Entity types (PERSON, CARD, ...; `"*"` is all) whose values are not kept. Lists of several levels unite."""
    unmask: Annotated[frozenset[str], AfterValidator(universe)] = frozenset()
    """Users who may ask what a pseudonym of their tenant stands for; each answer is recorded. Lists intersect."""

    def __and__(self, other: PseudonymRules) -> PseudonymRules:
        mine, theirs = self.unmask, other.unmask
        return PseudonymRules(
            irreversible=self.irreversible | other.irreversible,
            unmask=theirs if "*" in mine else mine if "*" in theirs else mine & theirs,
        )

    def reversible(self, type_: str) -> bool:
        return type_ not in self.irreversible and "*" not in self.irreversible

    def may_unmask(self, user: str) -> bool:
        return user in self.unmask or "*" in self.unmask
