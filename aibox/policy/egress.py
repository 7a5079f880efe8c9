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
    hosts: Annotated[frozenset[str], AfterValidator(universe)] = frozenset()
    """Hosts that tools may reach (web, MCP servers, workflows), or `"*"`. Lists of several levels intersect."""
    tenants: Annotated[frozenset[str], AfterValidator(universe)] = frozenset({"*"})
    """Tenants for whom the door is open, or `"*"`. Lists of several levels intersect."""
    ceiling: LabelField = Label(Level.PUBLIC)
    """The highest label that may leave. Of several levels the lowest holds."""
    pseudonymise: bool = False
    """Personal data leaves as pseudonyms, which are restored in the answer. True when any level asks for it."""

    approve: Annotated[frozenset[str], AfterValidator(universe)] = frozenset()
    """Those of the models that need a person's yes before an agent's turn sends to them, or `"*"`. Lists unite."""

    def __and__(self, other: EgressRules) -> EgressRules:
        return EgressRules(
            models=meet(self.models, other.models),
            hosts=meet(self.hosts, other.hosts),
            tenants=meet(self.tenants, other.tenants),
            ceiling=self.ceiling & other.ceiling,
            pseudonymise=self.pseudonymise or other.pseudonymise,
            approve=universe(self.approve | other.approve),
        )

    @property
    def open(self) -> bool:
        return bool(self.models)

    def allows(self, model: str) -> bool:
        return "*" in self.models or model in self.models

    def asks(self, model: str) -> bool:
        return "*" in self.approve or model in self.approve

    def allows_host(self, host: str) -> bool:
        return "*" in self.hosts or host in self.hosts

    def serves(self, tenant: str) -> bool:
        return "*" in self.tenants or tenant in self.tenants


def meet(a: frozenset[str], b: frozenset[str]) -> frozenset[str]:
    """What both lists allow, where `"*"` is everything."""
    return b if "*" in a else a if "*" in b else a & b
