"""Which tools an agent may call, and which need a person."""

from __future__ import annotations

from pydantic import Field

from aibox.policy.fields import DecisionField, LabelField, Part
from aibox.types import Decision, Label


class ToolRules(Part):
    """Which tools an agent may call. `allow = None` is every tool; an empty list is none."""

    allow: frozenset[str] | None = None
    """Names of tools. Lists of several levels intersect."""
    deny: frozenset[str] = frozenset()
    """Names of tools, `skill:NAME` and `subagent:NAME`. Lists of several levels unite, and win over `allow`."""
    approve: frozenset[str] = frozenset()
    """Names of tools that need a person's yes; `"*"` is every tool."""
    two_people: frozenset[str] = frozenset()
    """Names of tools that need the yes of two different people; `"*"` is every tool."""
    approve_from: LabelField | None = None
    """A turn that is marked so, or higher, asks a person before each call with effects. The lowest holds."""
    approval_s: float = Field(default=7 * 24 * 3600.0, gt=0)
    """Seconds after which a question that nobody answered is closed. The shortest of several levels holds."""
    lethal_three: DecisionField = Decision.REQUIRE_APPROVAL
    """What follows when a call would bring private data, untrusted content and a way out together in one turn."""

    def __and__(self, other: ToolRules) -> ToolRules:
        allow = other.allow if self.allow is None else self.allow if other.allow is None else self.allow & other.allow
        return ToolRules(
            allow=allow,
            deny=self.deny | other.deny,
            approve=self.approve | other.approve,
            two_people=self.two_people | other.two_people,
            approve_from=_lower(self.approve_from, other.approve_from),
            approval_s=min(self.approval_s, other.approval_s),
            lethal_three=max(self.lethal_three, other.lethal_three),
        )

    def allows(self, name: str) -> bool:
        return name not in self.deny and (self.allow is None or name in self.allow)

    def needs_approval(self, name: str) -> bool:
        return name in self.approve or "*" in self.approve or self.people(name) > 1

    def asks_under(self, label: Label) -> bool:
        """Whether the label of a turn alone is a reason to ask."""
        return self.approve_from is not None and self.approve_from <= label

    def people(self, name: str) -> int:
        """How many different people must say yes, when somebody must."""
        return 2 if name in self.two_people or "*" in self.two_people else 1


def _lower(a: Label | None, b: Label | None) -> Label | None:
    """Above either is above the meet of both: what one level asks about, the join asks about."""
    return b if a is None else a if b is None else a & b
