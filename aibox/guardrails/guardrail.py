"""Decides about a text: allow, flag, redact, require approval, block. The policy decides; the checks only look.

All checks see the text as it came; changes are made once, at the end, so that no redaction can hide a reason to refuse.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

import anyio

from aibox.errors import ConfigError, GuardrailError, IntegrityError
from aibox.guardrails.catalogue import brought, built_in, offered
from aibox.guardrails.leak import PromptLeak
from aibox.guardrails.pseudonyms import Pseudonyms, Restorer, Unknown, placeholder, splice, with_look_alikes
from aibox.guardrails.stream import CheckedStream, Decided, OutputFilter
from aibox.policy.policy import Policy
from aibox.protocols import Check
from aibox.types import Decision, Finding, Label, Scope, Verdict, Where

# On its way to a model a text gets pseudonyms, which are restored later. A model's own text does not: what is taken out
# of it stays out, or restoring would put it back.
_TO_MODEL: tuple[Where, ...] = ("input", "tool_result", "retrieved")
# Retrieved text is memory's own, and rightly holds pseudonyms; from elsewhere nothing may pass for one.
_FOREIGN: tuple[Where, ...] = ("input", "tool_result")


class Guardrail:
    """Runs the checks that its policy asks for at a place and joins what follows. A Guardrail is a Check itself.

    Built in are `jailbreak`, `injection`, `pii`, `secrets`, `links`, `topics`, `tokens`, `form` and `prompt_leak`;
    installed packages bring others, and `checks` adds others by name, or takes their place. `tenant_policies` narrow
    `policy`, each for its tenant. On its way to a model
    personal data to be redacted becomes tokens of `pseudonyms` (None: kept in memory only) that `restore` turns back;
    anything else to be redacted becomes `[removed: ...]`.
    Raises ConfigError when the policy names a check that is not there.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        checks: Mapping[str, Check] | None = None,
        pseudonyms: Pseudonyms | None = None,
        tenant_policies: Mapping[str, Policy] | None = None,
    ) -> None:
        given = {**built_in(policy), **(checks or {})}
        # What is installed is looked at only for a name that is not there otherwise.
        self._checks: dict[str, Check] = {**given, **brought(sorted(set(policy.checks) - set(given)))}
        unknown = sorted(set(policy.checks) - set(self._checks))
        if unknown:
            known = ", ".join(sorted({*self._checks, *offered()}))
            raise ConfigError(
                f"the policy {policy.name!r} asks for checks that are not there: {', '.join(unknown)}",
                hint=f"known are {known}; give others as checks={{name: check}}",
            )
        self._policy = policy
        self._given = dict(checks or {})
        self._pseudonyms = pseudonyms or Pseudonyms()
        self._own = dict(tenant_policies or {})
        self._tenants = {
            tenant: Guardrail(policy & own, checks=checks, pseudonyms=self._pseudonyms)
            for tenant, own in self._own.items()
        }

    def for_tenant(self, tenant: str) -> Guardrail:
        """What holds for a tenant: this one, or the one under its own policy too. Every check takes this way."""
        return self._tenants.get(tenant, self)

    def under(self, policy: Policy) -> Guardrail:
        """The same checks and pseudonyms under the join of both policies: never weaker than either."""
        joined = self._policy & policy
        return Guardrail(joined, checks=self._given, pseudonyms=self._pseudonyms, tenant_policies=self._own)

    def about(self, *, prompt: str, canary: str = "") -> Guardrail:
        """The same guardrail, which knows the instructions that an answer must not give away."""
        known = copy.copy(self)
        # One that somebody gave in its place knows best what it is about.
        if "prompt_leak" not in self._given:
            known._checks = {  # noqa: SLF001 - a copy of ourselves
                **self._checks,
                "prompt_leak": PromptLeak(prompt, canary=canary),
            }
        known._tenants = {name: own.about(prompt=prompt, canary=canary) for name, own in self._tenants.items()}  # noqa: SLF001
        return known

    @property
    def name(self) -> str:
        return "guardrail"

    @property
    def policy(self) -> Policy:
        return self._policy

    async def check(self, text: str, *, where: Where = "input", scope: Scope, label: Label | None = None) -> Verdict:
        """The verdict about a text. Its `text` is what may be used further on; it is empty when blocked.

        A check that raises or takes longer than `policy.limits.check_s` counts as `policy.on_check_failure`, and a
        finding says so. Raises StoreError when pseudonyms cannot be kept, IntegrityError as it comes.
        """
        if (own := self.for_tenant(scope.tenant)) is not self:
            return await own.check(text, where=where, scope=scope, label=label)
        decided = await self.judge(text, where=where, scope=scope, label=label)
        decision = max((d for _, d in decided), default=Decision.ALLOW)
        rewritten = "" if decision == Decision.BLOCK else await self.rewrite(text, decided, where=where, scope=scope)
        findings = tuple(finding for finding, _ in decided)
        return Verdict(decision, rewritten, findings, self._policy.digest, where)

    async def enforce(self, text: str, *, where: Where = "input", scope: Scope, label: Label | None = None) -> str:
        """The text as it may be used further on. Raises GuardrailError when it may not be used."""
        verdict = await self.check(text, where=where, scope=scope, label=label)
        if verdict.blocked:
            raise GuardrailError(
                f"the text was refused ({verdict.decision}): {'; '.join(verdict.reasons())}",
                hint="change the text, or the policy's rules for its checks",
            )
        return verdict.text

    async def restore(self, text: str, *, scope: Scope, unknown: Unknown = placeholder) -> str:
        """The text with the originals of the pseudonyms that stand for the user's own values.

        What only looks like one, because a model made it up or somebody else gave the value, becomes what `unknown`
        makes of it: by default words such as `[unknown name]`.
        """
        return await self._pseudonyms.restore(text, scope=scope, unknown=unknown)

    def stream(
        self,
        chunks: AsyncIterator[str],
        *,
        scope: Scope,
        where: Where = "output",
        label: Label | None = None,
        restore: bool = True,
    ) -> CheckedStream:
        """The text of a model as it is written: checked sentence by sentence, pseudonyms restored last.

        When a check refuses, the stream ends before the sentence at fault; its `verdict` tells.
        """
        through = OutputFilter(self, scope=scope, label=label, where=where, restore=restore)
        return CheckedStream(chunks, through=through)

    def whole(self, where: Where) -> bool:
        """Whether a check that the policy asks for at this place can judge a whole text only."""
        return any(getattr(self._checks[name], "whole", False) for name in self._policy.checks_for(where))

    async def judge(self, text: str, *, where: Where, scope: Scope, label: Label | None = None) -> tuple[Decided, ...]:
        """The findings that the policy cares about, in order, each with what it decides. Nothing is changed."""
        if (own := self.for_tenant(scope.tenant)) is not self:
            return await own.judge(text, where=where, scope=scope, label=label)
        names = self._policy.checks_for(where)
        results: dict[str, tuple[Decided, ...]] = {}
        broken: list[IntegrityError] = []

        async def run(name: str) -> None:
            try:
                results[name] = await self._look(name, text, where=where, scope=scope, label=label)
            except IntegrityError as error:
                broken.append(error)

        if len(names) == 1:
            await run(names[0])
        elif names:
            async with anyio.create_task_group() as group:
                for name in names:
                    group.start_soon(run, name)
        if broken:
            raise broken[0]
        return tuple(sorted((pair for name in names for pair in results[name]), key=lambda pair: pair[0].span))

    async def _look(
        self, name: str, text: str, *, where: Where, scope: Scope, label: Label | None
    ) -> tuple[Decided, ...]:
        limit_s = self._policy.limits.check_s
        try:
            with anyio.fail_after(limit_s):
                verdict = await self._checks[name].check(text, where=where, scope=scope, label=label)
        except IntegrityError:
            raise
        except TimeoutError:
            return self._failed(name, "too-slow", text, f"the check {name} took longer than {limit_s:g} s")
        except Exception as error:  # noqa: BLE001 - whatever a check raises counts as the policy says, and is reported
            return self._failed(name, "failed", text, f"the check {name} failed: {type(error).__name__}")
        return tuple(self._decided(name, verdict, text, where))

    def _failed(self, name: str, rule: str, text: str, reason: str) -> tuple[Decided, ...]:
        return ((Finding(name, rule, (0, len(text)), 1.0, reason), self._policy.on_check_failure),)

    def _decided(self, name: str, verdict: Verdict, text: str, where: Where) -> Iterable[Decided]:
        # Above FLAG a check insists; that it found something is what FLAG says.
        insisted = verdict.decision if verdict.decision > Decision.FLAG else Decision.ALLOW
        findings = verdict.findings
        if insisted and not findings:
            findings = (Finding(name, "insists", (0, len(text)), 1.0, f"the check {name} decided {verdict.decision}"),)
        for finding in findings:
            decision = max(self._policy.decide(name, where=where, score=finding.score), insisted)
            if decision > Decision.ALLOW:
                yield finding, decision

    async def rewrite(self, text: str, decided: Sequence[Decided], *, where: Where, scope: Scope) -> str:
        """The text with what is to be redacted taken out, and with what only looks like a pseudonym made safe."""
        reversible = where in _TO_MODEL
        spans: list[tuple[int, int, str]] = []
        removed: dict[int, str] = {}
        for start, end, findings in _united(decided):
            if reversible and all(finding.check == "pii" for finding in findings):
                spans.append((start, end, findings[0].rule))
            else:
                removed[start] = f"[removed: {_reason(findings)}]"
                spans.append((start, end, "REMOVED"))
        if where in _FOREIGN:
            spans = with_look_alikes(text, spans)
        values = [(type_, text[start:end]) for start, end, type_ in spans if start not in removed]
        tokens = iter(await self._pseudonyms.tokens(values, scope=scope))
        return splice(text, [(start, end, removed.get(start) or next(tokens)) for start, end, _ in spans])

    def restorer(self, *, scope: Scope) -> Restorer:
        """Restores a text that arrives in pieces."""
        return Restorer(self._pseudonyms, scope=scope, unknown=placeholder)

    def __repr__(self) -> str:
        if not any(self._policy.checks.values()):
            return "Guardrail(a policy without checks: allows everything)"
        checks = ", ".join(f"{name} at {'/'.join(rules)}" for name, rules in self._policy.checks.items())
        return f"Guardrail({self._policy.name or 'unnamed'}: {checks}; {self._pseudonyms})"


def _united(decided: Iterable[Decided]) -> list[tuple[int, int, list[Finding]]]:
    """What is to be redacted: spans in order, those that overlap as one, each with its findings."""
    united: list[tuple[int, int, list[Finding]]] = []
    redacted = (f for f, decision in decided if decision >= Decision.REDACT and f.span[0] < f.span[1])
    for finding in sorted(redacted, key=lambda f: f.span):
        start, end = finding.span
        if united and start < united[-1][1]:
            first, last, findings = united[-1]
            united[-1] = (first, max(last, end), [*findings, finding])
        else:
            united.append((start, end, [finding]))
    return united


def _reason(findings: Sequence[Finding]) -> str:
    strongest = max(findings, key=lambda finding: finding.score)
    return strongest.reason or strongest.rule
