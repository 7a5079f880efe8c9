"""Personal data on its way out of the box: found by one check or more, replaced by the tenant's pseudonyms."""

from __future__ import annotations

from aibox.guardrails.entities import Entities
from aibox.guardrails.pii import PII
from aibox.guardrails.pseudonyms import Pseudonyms, Restorer
from aibox.guardrails.rewriting import rewritten
from aibox.policy.policy import Policy
from aibox.protocols import Check
from aibox.types import Decision, Scope

FROM_SCORE = 0.7
"""What scores less may leave: a city by itself tells nothing about anybody."""


def personal(*policies: Policy) -> list[Check]:
    """What looks for personal data on its way out: the named-entity model too, where a policy asks for it."""
    return [PII(), *([Entities()] if any("entities" in policy.checks for policy in policies) else [])]


class Outgoing:
    """What the door asks to conceal a text and to restore an answer. The checks find what is personal."""

    def __init__(self, *checks: Check, pseudonyms: Pseudonyms) -> None:
        self._checks = checks
        self._names = None if any(isinstance(check, Entities) for check in checks) else Entities()
        self._pseudonyms = pseudonyms

    async def conceal(self, text: str, *, scope: Scope, policy: Policy) -> str:
        """The text with a pseudonym for each finding, as the policy has them; the named-entity model looks too where it
        asks for that. Raises what the check or the pseudonyms raise."""
        names = [self._names] if self._names is not None and "entities" in policy.checks else []
        found = [
            (finding, Decision.REDACT)
            for check in (*self._checks, *names)
            for finding in (await check.check(text, where="input", scope=scope)).findings
            if finding.score >= FROM_SCORE
        ]
        rules = policy.pseudonyms
        return await rewritten(text, found, where="input", scope=scope, pseudonyms=self._pseudonyms, rules=rules)

    async def restore(self, text: str, *, scope: Scope) -> str:
        """The text with the values that the scope's user owns."""
        return await self._pseudonyms.restore(text, scope=scope)

    def restorer(self, *, scope: Scope) -> Restorer:
        """For an answer that comes in pieces."""
        return Restorer(self._pseudonyms, scope=scope)
