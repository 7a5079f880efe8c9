# ruff: noqa: SLF001 - a guardrail looks into the one beside it, which is in shadow
"""Decides about a text: allow, flag, redact, require approval, block. The policy decides; the checks only look.

All checks see the text as it came; changes are made once, at the end, so that no redaction can hide a reason to refuse.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import anyio

from aibox.errors import BackendError, ConfigError, GuardrailError, IntegrityError, PolicyError
from aibox.guardrails.asking import judgement, look, weighed
from aibox.guardrails.catalogue import OF_POLICY, checks_of, waits
from aibox.guardrails.constitution import ATTACKS, Constitution
from aibox.guardrails.grounding import Grounding, Sources
from aibox.guardrails.leak import PromptLeak
from aibox.guardrails.once import once
from aibox.guardrails.pseudonyms import Pseudonyms, Restorer, Unknown, placeholder
from aibox.guardrails.reading import LONG_CHARS, take_turns
from aibox.guardrails.rewriting import restored_json, rewritten
from aibox.guardrails.stream import CheckedStream, Decided, Judged, OutputFilter
from aibox.policy.policy import Policy
from aibox.protocols import Check, Embedder, Recorder
from aibox.types import PLACES, Decision, Finding, Label, Scope, Verdict, Where

TOGETHER = 4
TOGETHER_CHARS = 4_000
"""How many of a user's messages are read as one text, and how much of them."""
PROMPT_LEAK, GROUNDING = "prompt_leak", "grounding"


class Guardrail:
    """Runs the checks that its policy asks for at a place and joins what follows. A Guardrail is a Check itself.

    Built in are `jailbreak`, `injection`, `content`, `pii`, `secrets`, `links`, `topics`, `tokens`, `form`,
    `prompt_leak`, `grounding` and, where their models are installed, `entities` and `meaning`; installed packages bring
    others, and `checks` adds others by name, or takes their place.
    `tenant_policies` narrow `policy`, each for its tenant, as they stand when something begins. On its way to a model
    personal data to be redacted becomes tokens of `pseudonyms` (None: kept in memory only) that `restore` turns back;
    anything else to be redacted becomes `[removed: ...]`. A policy in `shadow` decides nothing; what it would have
    decided is in each verdict. A `judge` is asked where `policy.judge` says so. An `embedder` finds topics by the
    policy's examples, and `meaning` needs one. Raises ConfigError when the policy names a check that is not there,
    MissingExtraError where its model is missing.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        checks: Mapping[str, Check] | None = None,
        pseudonyms: Pseudonyms | None = None,
        tenant_policies: Mapping[str, Policy] | None = None,
        shadow: Policy | None = None,
        judge: Constitution | None = None,
        embedder: Embedder | None = None,
    ) -> None:
        if judge is None and policy.judge.places:
            raise ConfigError(
                f"the policy {policy.name!r} has texts judged by a model, and there is none",
                hint="Guardrail(policy, judge=Constitution(router))",
            )
        self._checks = checks_of(policy, given=checks or {}, embedder=embedder)
        self._policy = policy
        self._given = dict(checks or {})
        self._judge = judge
        self._constitution = judge if policy.judge.places else None
        self._embedder = embedder
        self._pseudonyms = pseudonyms or Pseudonyms()
        self._shadow = None if shadow is None else self._alike(shadow)
        self._share()
        self._looks = frozenset(
            where for where in PLACES if any(p is not None and p.checks_for(where) for p in (policy, shadow))
        )
        self._wholes = frozenset(
            where
            for where in PLACES
            if any(getattr(self._checks[name], "whole", False) for name in policy.checks_for(where))
        )
        self._own: Mapping[str, Policy] = tenant_policies if tenant_policies is not None else {}
        self._known: dict[str, Check] = {}
        self._made: dict[str, tuple[Policy | None, Guardrail]] = {"": (None, self)} if tenant_policies is None else {}
        for tenant in self._own:
            self.for_tenant(tenant)  # what does not hold is refused now, and not at a tenant's first request

    def _alike(self, policy: Policy, **more: Any) -> Guardrail:
        """Another policy with the same checks and parts."""
        parts: dict[str, Any] = {
            "pseudonyms": self._pseudonyms,
            "judge": self._judge,
            "embedder": self._embedder,
        }
        return Guardrail(policy, checks=self._given, **parts, **more)

    def _share(self) -> None:
        """What both policies ask is asked once; only what the policy itself parametrises is there twice."""
        if self._shadow is not None:
            same = {name: check for name, check in self._checks.items() if name not in OF_POLICY}
            self._shadow._checks = {**self._shadow._checks, **same}

    def for_tenant(self, tenant: str) -> Guardrail:
        """What holds for a tenant now: everybody's rules, or those under its own policy too. Every check goes here.

        It stays as it is: what has begun with it ends with it.
        """
        own = self._own.get(tenant)
        if own is None:
            self._made.pop(tenant, None)
        return self.for_own(own, tenant=tenant)

    def for_own(self, own: Policy | None, *, tenant: str = "") -> Guardrail:
        """What holds under a policy of somebody's own. Raises ConfigError as Guardrail itself does."""
        key = tenant if own is not None else ""
        kept = self._made.get(key)
        if kept is not None and kept[0] is own:
            return kept[1]
        if own is None:
            fresh = copy.copy(self)
        else:
            fresh = self._alike(self._policy & own, shadow=None if self.shadow is None else self.shadow & own)
            fresh = fresh._knowing(self._known) if self._known else fresh
        fresh._own, fresh._made = {}, {"": (None, fresh)}
        if own is None or self._own.get(tenant) is own:
            self._made[key] = own, fresh
        return fresh

    def own(self, tenant: str) -> Policy | None:
        """The policy that a tenant has of its own now."""
        return self._own.get(tenant)

    def under(self, policy: Policy) -> Guardrail:
        """The same checks and pseudonyms under the join of both policies: never weaker than either."""
        shadow = None if self.shadow is None else self.shadow & policy
        made = self._alike(self._policy & policy, shadow=shadow)
        # Held to be good already: each is made when its tenant first comes.
        made._own, made._made = self._own, {}
        return made

    def about(self, *, prompt: str | None = None, canary: str = "", sources: Sources | None = None) -> Guardrail:
        """The same guardrail, which knows the instructions not to be given away, or what an answer may rest on."""
        known: dict[str, Check] = {}
        if prompt is not None and self._asks(PROMPT_LEAK):
            known[PROMPT_LEAK] = PromptLeak(prompt, canary=canary)
        if sources is not None and self._asks(GROUNDING):
            known[GROUNDING] = Grounding(sources)
        return self._knowing(known) if known else self

    def _asks(self, name: str) -> bool:
        """Whether any of the policies names a check of ours. One that was given in its place knows what it is about."""
        policies = (self._policy, self.shadow, *self._own.values())
        return name not in self._given and any(one is not None and name in one.checks for one in policies)

    def _knowing(self, known: Mapping[str, Check]) -> Guardrail:
        made = copy.copy(self)
        made._checks = {**self._checks, **known}
        made._shadow = copy.copy(self._shadow)
        made._share()
        made._known = {**self._known, **known}
        made._made = {} if self._own else {"": (None, made)}
        return made

    @property
    def name(self) -> str:
        return "guardrail"

    @property
    def policy(self) -> Policy:
        return self._policy

    @property
    def shadow(self) -> Policy | None:
        """The policy that runs beside the one in force and only reports."""
        return None if self._shadow is None else self._shadow.policy

    async def check(self, text: str, *, where: Where = "input", scope: Scope, label: Label | None = None) -> Verdict:
        """The verdict about a text. Its `text` is what may be used further on; it is empty when blocked.

        A check that raises or takes longer than `policy.limits.check_s` counts as `policy.on_check_failure`, and a
        finding says so. Raises StoreError when pseudonyms cannot be kept, IntegrityError as it comes.
        """
        if (own := self.for_tenant(scope.tenant)) is not self:
            return await own.check(text, where=where, scope=scope, label=label)
        if self._constitution is None and self._shadow is None and where not in self._looks:
            # Nothing is looked for: what only looks like a pseudonym is made safe all the same.
            text = await self.rewrite(text, (), where=where, scope=scope)
            return Verdict(Decision.ALLOW, text, (), self._policy.digest, where)
        judged = await self.judge(text, where=where, scope=scope, label=label)
        under: dict[str, Any] = {"policy": self._policy, "where": where, "scope": scope, "label": label}
        added, critique = await judgement(self._constitution, text, judged.decided, **under)
        decided = judged.decided + added
        decision = max((d for _, d in decided), default=Decision.ALLOW)
        rewritten = ""
        if decision == Decision.REDACT:
            rewritten = await self._anew(text, critique, where=where, scope=scope, label=label)
        if not rewritten and decision < Decision.BLOCK:
            rewritten = await self.rewrite(text, decided, where=where, scope=scope)
        shadow = None
        if judged.shadow is not None and self.shadow is not None:
            would = max((d for _, d in judged.shadow), default=Decision.ALLOW)
            shadow = Verdict(would, "", tuple(finding for finding, _ in judged.shadow), self.shadow.digest, where)
        findings = tuple(finding for finding, _ in decided)
        return Verdict(decision, rewritten, findings, self._policy.digest, where, shadow)

    async def _anew(self, text: str, critique: str, *, where: Where, scope: Scope, label: Label | None) -> str:
        """The text as the judge wrote it anew, checked as any text; empty where the old one is to be taken out."""
        rules = self._policy.judge
        if self._constitution is None or not rules.rewrite or not critique:
            return ""
        try:
            with anyio.fail_after(self._policy.limits.check_s):
                better = await self._constitution.rewrite(
                    text, critique, principles=rules.principles, scope=scope, label=label
                )
        except (TimeoutError, BackendError, PolicyError):
            return ""  # then it is taken out, and the finding says why
        again = (await self.judge(better, where=where, scope=scope, label=label)).decided
        attacks = any(found.check in ATTACKS for found, _ in again)
        if not better or attacks or max((what for _, what in again), default=Decision.ALLOW) > Decision.REDACT:
            return ""
        return await self.rewrite(better, again, where=where, scope=scope)

    async def together(self, texts: Sequence[str], *, scope: Scope, label: Label | None = None) -> Verdict:
        """The verdict about a user's last messages as one text: an attack may come in parts, each of them harmless.

        Only attacks are looked for, and only a refusal counts: it was said who wrote what, and nothing is rewritten.
        """
        if (own := self.for_tenant(scope.tenant)) is not self:
            return await own.together(texts, scope=scope, label=label)
        last = list(texts)[-TOGETHER:]
        text = "\n".join(last)[-TOGETHER_CHARS:]
        asked = {name: check for name, check in self._asked("input").items() if name in ATTACKS}
        decided: tuple[Decided, ...] = ()
        under: dict[str, Any] = {"policy": self._policy, "where": "input", "scope": scope, "label": label}
        if len(last) > 1 and asked:
            with once():
                seen = {id(check): await look(check, text, name=name, **under) for name, check in asked.items()}
            decided = self._decide(asked, seen, text, "input")
        strict = tuple((found, what) for found, what in decided if what >= Decision.REQUIRE_APPROVAL)
        decision = max((what for _, what in strict), default=Decision.ALLOW)
        findings = tuple(found for found, _ in strict)
        return Verdict(decision, "" if strict else text, findings, self._policy.digest, "input")

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

    async def unmask(self, text: str, *, scope: Scope, reason: str, audit: Recorder) -> str:
        """The text with what its pseudonyms stand for, other users' too; see `Pseudonyms`. Raises AccessError."""
        rules = self.for_tenant(scope.tenant).policy.pseudonyms
        return await self._pseudonyms.unmask(text, scope=scope, reason=reason, rules=rules, audit=audit)

    async def restore_arguments(self, text: str, *, scope: Scope, unknown: Unknown = placeholder) -> str:
        """As `restore` for a JSON text: what is put in is put in as JSON. A text that is none is restored as it is."""
        return await restored_json(text, lambda part: self.restore(part, scope=scope, unknown=unknown))

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

    def looks(self, where: Where) -> bool:
        """Whether anything is looked for at this place, by the policy in force or by one in shadow."""
        return where in self._looks

    @property
    def idle(self) -> bool:
        """Whether nothing is looked for anywhere, by a check or a judge."""
        return self._constitution is None and self._shadow is None and not self._looks

    def whole(self, where: Where) -> bool:
        """Whether a check that the policy asks for at this place can judge a whole text only."""
        return where in self._wholes

    async def judge(
        self, text: str, *, where: Where, scope: Scope, label: Label | None = None, piece: bool = False
    ) -> Judged:
        """The findings that the policy cares about, in order, each with what it decides. Nothing is changed.

        A policy in shadow is told what the same checks found; of a `piece` it is not asked what needs the whole.
        """
        if (own := self.for_tenant(scope.tenant)) is not self:
            return await own.judge(text, where=where, scope=scope, label=label, piece=piece)
        mine = self._asked(where)
        beside = self._shadow._asked(where, piece=piece) if self._shadow is not None else {}
        checks = {id(check): (name, check) for name, check in (*mine.items(), *beside.items())}
        seen: dict[int, Verdict | Finding] = {}
        broken: list[IntegrityError] = []
        under: dict[str, Any] = {"policy": self._policy, "where": where, "scope": scope, "label": label}

        async def run(key: int, name: str, check: Check) -> None:
            try:
                seen[key] = await look(check, text, name=name, **under)
            except IntegrityError as error:
                broken.append(error)

        waiting = {key: named for key, named in checks.items() if waits(named[1], text)}
        # Of what does not wait, and of one that waits alone, a task of its own would only cost more.
        apart = waiting if len(waiting) > 1 else {}
        with once(remember=len(text) < LONG_CHARS):
            for key, named in checks.items():
                if key not in apart:
                    await run(key, *named)
            if apart:
                async with anyio.create_task_group() as group:
                    for key, named in apart.items():
                        group.start_soon(run, key, *named)
        await take_turns()
        if broken:
            raise broken[0]
        decided = self._decide(mine, seen, text, where)
        if self._shadow is None:
            return Judged(decided)
        return Judged(decided, self._shadow._decide(beside, seen, text, where))

    def _asked(self, where: Where, *, piece: bool = False) -> dict[str, Check]:
        asked = {name: self._checks[name] for name in self._policy.checks_for(where)}
        return {name: check for name, check in asked.items() if not (piece and getattr(check, "whole", False))}

    def _decide(
        self, asked: Mapping[str, Check], seen: Mapping[int, Verdict | Finding], text: str, where: Where
    ) -> tuple[Decided, ...]:
        pairs = (
            pair for name, check in asked.items() for pair in weighed(self._policy, name, seen[id(check)], text, where)
        )
        return tuple(sorted(pairs, key=lambda pair: pair[0].span))

    async def rewrite(self, text: str, decided: Sequence[Decided], *, where: Where, scope: Scope) -> str:
        """The text with what is to be redacted taken out, and with what only looks like a pseudonym made safe."""
        rules = self._policy.pseudonyms
        return await rewritten(text, decided, where=where, scope=scope, pseudonyms=self._pseudonyms, rules=rules)

    def restorer(self, *, scope: Scope) -> Restorer:
        """Restores a text that arrives in pieces."""
        return Restorer(self._pseudonyms, scope=scope, unknown=placeholder)

    def __repr__(self) -> str:
        if not any(self._policy.checks.values()):
            return "Guardrail(a policy without checks: allows everything)"
        checks = ", ".join(f"{name} at {'/'.join(rules)}" for name, rules in self._policy.checks.items())
        return f"Guardrail({self._policy.name or 'unnamed'}: {checks}; {self._pseudonyms})"
