"""Policies of several levels as one, and which level asked for what.

Joining only restricts, so the order of levels plays no part in a decision; it is kept for people.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import and_

from aibox.policy.policy import Policy
from aibox.types import Decision, Finding, Verdict, Where

FAILURES = ("failed", "too-slow")
"""Rules of findings that say that a check could not answer: `on_check_failure` decides about those."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why one finding led to a decision. `levels` are those that asked for it; none: the check itself insisted."""

    finding: Finding
    decision: Decision
    levels: tuple[str, ...]

    def __str__(self) -> str:
        who = " and ".join(self.levels) or f"the check {self.finding.check} itself"
        finding = self.finding
        what = finding.reason or finding.rule
        return f"{self.decision}: {finding.check}/{finding.rule}, score {finding.score:.2f}, by {who} ({what})"


@dataclass(frozen=True, slots=True)
class Effective:
    """The join of named levels. `policy` is what holds."""

    levels: tuple[tuple[str, Policy], ...]
    policy: Policy

    def explain(self, verdict: Verdict) -> tuple[Reason, ...]:
        """A reason for each finding of a verdict that was made under `policy`, the strictest first."""
        reasons = [self._reason(finding, verdict.where) for finding in verdict.findings]
        return tuple(sorted(reasons, key=lambda reason: -reason.decision))

    def _reason(self, finding: Finding, where: Where) -> Reason:
        asked = {name: _asked(policy, finding, where) for name, policy in self.levels}
        decision = max(asked.values(), default=Decision.ALLOW)
        levels = tuple(name for name, wanted in asked.items() if wanted == decision and wanted > Decision.ALLOW)
        return Reason(finding, decision, levels)


def effective(levels: Mapping[str, Policy]) -> Effective:
    """The policy that holds where all of these do, by name: such as platform, tenant, agent, request."""
    return Effective(tuple(levels.items()), reduce(and_, levels.values(), Policy()))


def _asked(policy: Policy, finding: Finding, where: Where) -> Decision:
    if finding.rule in FAILURES and finding.check in policy.checks:
        return policy.on_check_failure
    if finding.check == "constitution":
        return policy.judge.decision if where in policy.judge.places else Decision.ALLOW
    return policy.decide(finding.check, where=where, score=finding.score)
