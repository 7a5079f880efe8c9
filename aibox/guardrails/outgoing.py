"""Personal data on its way out of the box: found by format and phrase, replaced by the tenant's pseudonyms."""

from __future__ import annotations

from aibox.guardrails.pseudonyms import Pseudonyms, Restorer
from aibox.policy.pseudonyms import PseudonymRules
from aibox.protocols import Check
from aibox.types import Scope


class Outgoing:
    """What the door asks to conceal a text and to restore an answer. `check` finds what is personal."""

    def __init__(self, check: Check, pseudonyms: Pseudonyms, *, rules: PseudonymRules | None = None) -> None:
        self._check = check
        self._pseudonyms = pseudonyms
        self._rules = rules or PseudonymRules()

    async def conceal(self, text: str, *, scope: Scope) -> str:
        """The text with a pseudonym for each finding. Raises what the check or the pseudonyms raise."""
        verdict = await self._check.check(text, where="input", scope=scope)
        return await self._pseudonyms.replace(text, verdict.findings, scope=scope, rules=self._rules)

    async def restore(self, text: str, *, scope: Scope) -> str:
        """The text with the values that the scope's user owns."""
        return await self._pseudonyms.restore(text, scope=scope)

    def restorer(self, *, scope: Scope) -> Restorer:
        """For an answer that comes in pieces."""
        return Restorer(self._pseudonyms, scope=scope)
