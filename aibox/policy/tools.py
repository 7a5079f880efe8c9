"""Which tools an agent may call, and which need a person."""

from __future__ import annotations

from aibox.policy.fields import Part


class ToolRules(Part):
    """Which tools an agent may call. `allow = None` is every tool; an empty list is none."""

    allow: frozenset[str] | None = None
    """Names of tools. Lists of several levels intersect."""
    deny: frozenset[str] = frozenset()
    """Names of tools. Lists of several levels unite, and win over `allow`."""
    approve: frozenset[str] = frozenset()
    """Names of tools that need a person's yes; `"*"` is every tool."""

    def __and__(self, other: ToolRules) -> ToolRules:
        allow = other.allow if self.allow is None else self.allow if other.allow is None else self.allow & other.allow
        return ToolRules(allow=allow, deny=self.deny | other.deny, approve=self.approve | other.approve)

    def allows(self, name: str) -> bool:
        return name not in self.deny and (self.allow is None or name in self.allow)

    def needs_approval(self, name: str) -> bool:
        return name in self.approve or "*" in self.approve
