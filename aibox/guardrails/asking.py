"""One check, or the judge, asked about one text, within its time, and what a policy makes of what it says."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext

import anyio

from aibox.errors import BackendError, IntegrityError, PolicyError
from aibox.guardrails.catalogue import waits
from aibox.guardrails.constitution import Constitution, attack_score
from aibox.guardrails.stream import Decided
from aibox.policy.policy import Policy
from aibox.protocols import Check
from aibox.types import Decision, Finding, Label, Scope, Verdict, Where


async def look(
    check: Check, text: str, *, name: str, policy: Policy, where: Where, scope: Scope, label: Label | None
) -> Verdict | Finding:
    """What a check says; a finding of its own kind where it could not answer."""
    limit_s = policy.limits.check_s
    try:
        # A limit of time ends what waits, and nothing else.
        with anyio.fail_after(limit_s) if waits(check, text) else nullcontext():
            seen = await check.check(text, where=where, scope=scope, label=label)
        if _holds(seen, text):
            return seen
        rule, reason = "failed", f"the check {name} failed: it gave no verdict that can be used"
    except IntegrityError:
        raise
    except TimeoutError:
        rule, reason = "too-slow", f"the check {name} took longer than {limit_s:g} s"
    except Exception as error:  # noqa: BLE001 - whatever a check raises counts as the policy says, and is reported
        rule, reason = "failed", f"the check {name} failed: {type(error).__name__}"
    return Finding(name, rule, (0, len(text)), 1.0, reason)


def _holds(seen: object, text: str) -> bool:
    """A verdict about this text: a score that is no number, or a span beside the text, would decide nothing."""
    return (
        isinstance(seen, Verdict)
        and isinstance(seen.decision, Decision)
        and all(
            isinstance(found, Finding) and 0 <= found.score <= 1 and _within(found.span, len(text))
            for found in seen.findings
        )
    )


def _within(span: tuple[int, int], length: int) -> bool:
    start, end = span
    return isinstance(start, int) and isinstance(end, int) and (0 <= start < end <= length or (end, length) == (0, 0))


def weighed(policy: Policy, name: str, seen: Verdict | Finding, text: str, where: Where) -> Iterable[Decided]:
    """What the policy makes of what a check said, finding by finding; what it allows is passed over."""
    if isinstance(seen, Finding):
        yield seen, policy.on_check_failure
        return
    # Above FLAG a check insists; that it found something is what FLAG says.
    insisted = seen.decision if seen.decision > Decision.FLAG else Decision.ALLOW
    findings = seen.findings
    if seen.decision > Decision.ALLOW and not findings:
        findings = (Finding(name, "insists", (0, len(text)), 1.0, f"the check {name} decided {seen.decision}"),)
    for finding in findings:
        decision = max(policy.decide(name, where=where, score=finding.score), insisted)
        if decision > Decision.ALLOW:
            yield finding, decision


async def judgement(
    judge: Constitution | None,
    text: str,
    decided: tuple[Decided, ...],
    *,
    policy: Policy,
    where: Where,
    scope: Scope,
    label: Label | None,
) -> tuple[tuple[Decided, ...], str]:
    """What the judge adds, in the grey band only, and its critique of what it found fault with.

    It takes nothing away, and is not asked where all is said.
    """
    rules = policy.judge
    score = attack_score(found for found, _ in decided)
    strictest = max((what for _, what in decided), default=Decision.ALLOW)
    if judge is None or not rules.grey(where, score) or strictest >= rules.decision:
        return (), ""
    try:
        with anyio.fail_after(policy.limits.check_s):
            said = await judge.judge(text, principles=rules.principles, scope=scope, label=label)
    except TimeoutError:
        rule, reason = "too-slow", "the judge took too long"
    except (BackendError, PolicyError) as error:
        rule, reason = "failed", f"the judge could not be asked: {error.message}"
    else:
        if not said.principle:
            return (), ""
        reason = f"breaks a principle: {said.principle}"
        found = Finding("constitution", "principle", (0, len(text)), 1.0, reason)
        return ((found, rules.decision),), said.critique or reason
    return ((Finding("constitution", rule, (0, len(text)), 1.0, reason), policy.on_check_failure),), ""
