"""How pseudonyms look, which can never be turned back, and who may look behind the others: as a policy describes it."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, StringConstraints

from aibox.policy.egress import universe
from aibox.policy.fields import Part

EntityType = Annotated[str, StringConstraints(pattern=r"^(?:[A-Z]{2,16}|\*)$")]

FormType = Literal["CARD", "EMAIL", "IBAN", "IP", "PHONE", "URL", "*"]
"""Entity types with a form that others check, and with a space of values that are nobody's."""


def _every(types: frozenset[FormType]) -> frozenset[FormType]:
    """`"*"` is written out: one set, one way to write it."""
    return frozenset(get_args(FormType)) - {"*"} if "*" in types else types


class PseudonymRules(Part):
    """By default all are tokens that are restored to whoever gave the value, and nobody may look behind another's."""

    irreversible: Annotated[frozenset[EntityType], AfterValidator(universe)] = frozenset()
    """Entity types (PERSON, CARD, ...; `"*"` is all) whose values are not kept. Lists of several levels unite."""
    unmask: Annotated[frozenset[str], AfterValidator(universe)] = frozenset()
    """Users who may ask what a pseudonym of their tenant stands for; each answer is recorded. Lists intersect."""
    format_preserving: Annotated[frozenset[FormType], AfterValidator(_every)] = frozenset()
    """Entity types whose pseudonyms look like a value (`email-482139@pseudonym.example`), or `"*"`, so that they pass
    where a form is checked. Lists of several levels intersect: a token cannot be taken for somebody's."""

    def __and__(self, other: PseudonymRules) -> PseudonymRules:
        mine, theirs = self.unmask, other.unmask
        return PseudonymRules(
            irreversible=self.irreversible | other.irreversible,
            unmask=theirs if "*" in mine else mine if "*" in theirs else mine & theirs,
            format_preserving=self.format_preserving & other.format_preserving,
        )

    def reversible(self, type_: str) -> bool:
        return type_ not in self.irreversible and "*" not in self.irreversible

    def keeps_form(self, type_: str) -> bool:
        return type_ in self.format_preserving

    def may_unmask(self, user: str) -> bool:
        return user in self.unmask or "*" in self.unmask
