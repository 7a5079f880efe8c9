"""Bodies go when the policy says so, and never otherwise: on record, bit by bit, and a legal hold outlasts it."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from audit_parts import ACME, RIVAL, by_hand, log_of, sealed_turns
from hypothesis import given
from hypothesis import strategies as st

import aibox
from aibox.audit import kinds, retention
from aibox.audit.chain import AuditChain
from aibox.audit.record import MAX_BODY_BYTES, bits_of, pruned_by
from aibox.audit.report import BrokenEvidenceError
from aibox.errors import ConfigError
from aibox.policy.policy import Policy
from aibox.policy.retention import DAY_US, Retention
from aibox.testing import ScriptedBackend
from aibox.types import Scope

pytestmark = pytest.mark.anyio
KINDS = ["model.called", "model.answered", "tool.called", "turn.sealed", "modelled.x"]
RULES = st.builds(
    Retention, bodies_days=st.dictionaries(st.sampled_from(["*", "model", "tool.called", "turn"]), st.integers(1, 99))
)


@given(RULES, RULES, RULES)
def test_joined_retention_is_the_shorter_of_both_for_every_kind(a: Retention, b: Retention, c: Retention) -> None:
    """Only ever stricter: order, grouping and repetition change nothing, and no level lengthens another's time."""
    for kind in KINDS:
        both = [days for days in (a.days(kind), b.days(kind)) if days is not None]
        assert (a & b).days(kind) == min(both, default=None)
    assert a & b == b & a
    assert (a & b) & c == a & (b & c)
    assert a & a == a
    assert a & Retention() == a


def test_a_kind_matches_itself_and_what_begins_with_it() -> None:
    """`model` is for model.called and not for modelled.x; of several lines that fit the shortest holds."""
    rules = Policy.read({"retention": {"bodies_days": {"*": 300, "model": 30, "model.called": 60}}}).retention
    assert [rules.days(kind) for kind in KINDS] == [30, 30, 300, 300, 300]
    assert Retention().days("model.called") is None


@pytest.mark.parametrize("days", [{"": 1}, {"Model": 1}, {"model.*": 1}, {"model": 0}, {"model": -1}, {"model": "x"}])
def test_a_rule_that_means_nothing_is_refused(days: dict[str, object]) -> None:
    """A mistyped kind or no time at all is an error of the policy, not a rule that never applies."""
    with pytest.raises(ConfigError, match="bodies_days"):
        Policy.read({"retention": {"bodies_days": days}})


@given(st.sets(st.integers(0, 5000), min_size=1))
def test_what_an_act_removed_can_be_read_back(seqs: set[int]) -> None:
    """The bits name exactly the entries that were put in, and fit into an entry for the longest slice."""
    ordered = sorted(seqs)
    detail = {"first": ordered[0], "last": ordered[-1], "bits": bits_of(ordered)}
    assert pruned_by(detail) == ordered
    assert len(bits_of([0, retention.SLICE - 1])) < MAX_BODY_BYTES // 2


@pytest.fixture
def years_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """For retention alone: what is written now is 100 days old."""
    for module in (retention, aibox.audit.chain):
        monkeypatch.setattr(module, "time", Later)


@pytest.fixture
def by_hand_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The chain does not begin a round by itself."""
    monkeypatch.setattr(retention.Sweeper, "due", False)


class Later:
    """A clock that is 100 days ahead."""

    @staticmethod
    def time_ns() -> int:
        return time.time_ns() + 100 * DAY_US * 1000

    monotonic = staticmethod(time.monotonic)


RULE = Retention(bodies_days={"model": 30, "turn": 365})


async def read(chain: AuditChain, tenant: str = "acme") -> list[str]:
    """The kinds of a log's entries; empty where the body is gone."""
    return [entry.kind if entry.open else "" async for entry in chain.entries(tenant)]


async def swept(chain: AuditChain, tenant: str = "acme") -> list[str]:
    """The log once an act of pruning stands in it."""
    while kinds.PRUNED not in (found := await read(chain, tenant)):
        await asyncio.sleep(0.05)
    return found


async def test_the_chain_applies_the_policy_by_itself(tmp_path: Path, years_later: None) -> None:
    """A running chain removes what is past its time in every log, records it with the rule, and leaves no bytes."""
    path = tmp_path / "audit.db"
    async with AuditChain(path) as chain:
        await chain.append("model.called", scope=ACME, detail={"model": "findable-model"})
        for scope in (ACME, RIVAL):
            await sealed_turns(chain, scope, 1)
        assert kinds.PRUNED not in await read(chain)
    async with AuditChain(path, retention=RULE) as chain:
        assert await swept(chain) == ["", "turn.started", "", "turn.sealed", kinds.PRUNED]
        assert await swept(chain, "rival") == ["turn.started", "", "turn.sealed", kinds.PRUNED]
        act = [entry async for entry in chain.entries("acme")][-1]
        assert {"count": 2, "rules": RULE.bodies_days, "by": "operator"}.items() <= act.detail.items()
        with pytest.raises(ConfigError, match="past its retention"):
            await chain.receipt("acme-0", scope=ACME)
    assert aibox.verify(path).pruned == 3
    left = b"".join(file.read_bytes() for file in tmp_path.glob("audit.db*"))
    assert b"findable-model" not in left


async def test_what_a_hold_stands_on_stays_until_it_is_released(
    tmp_path: Path, years_later: None, by_hand_only: None
) -> None:
    """A person's hold keeps theirs alone, a tenant's keeps all; released, the rule applies again."""
    tom = Scope(tenant="acme", user="tom")
    async with AuditChain(tmp_path / "audit.db", retention=RULE) as chain:
        for scope in (ACME, tom):
            await chain.append("model.called", scope=scope, detail={})
        held = await chain.hold(scope=ACME, subject="eva", reason="case 7")
        assert await chain.prune(scope=ACME, reason="by hand") == 1
        whole = await chain.hold(scope=ACME, reason="case 8")
        await chain.append("model.called", scope=tom, detail={})
        assert await chain.prune(scope=ACME, reason="by hand") == 0
        await chain.release(whole.seq, scope=ACME, reason="settled")
        assert await chain.prune(scope=ACME, reason="by hand") == 1
        await chain.release(held.seq, scope=ACME, reason="settled")
        assert await chain.prune(scope=ACME, reason="by hand") == 1
        assert await chain.prune(scope=ACME, reason="by hand") == 0
    assert aibox.verify(tmp_path / "audit.db").pruned == 3


async def test_a_turn_under_way_keeps_its_bodies(tmp_path: Path, years_later: None, by_hand_only: None) -> None:
    """What a turn will seal is there when it ends, whatever its age, and its receipt holds."""
    async with AuditChain(tmp_path / "audit.db", retention=RULE) as chain:
        await chain.append("model.called", scope=ACME, turn="long", detail={})
        assert await chain.prune(scope=ACME, reason="") == 0
        receipt = await chain.seal("long", scope=ACME, detail={"outcome": "answered"})
        receipt.verify()
        assert await chain.prune(scope=ACME, reason="") == 1
        assert (await read(chain))[:2] == ["", "turn.sealed"]


async def test_a_body_beside_those_that_were_pruned_is_removed_by_hand(
    tmp_path: Path, years_later: None, by_hand_only: None
) -> None:
    """Attack: between two bodies that retention removed stands one that it kept; it is removed too, and found out."""
    path = tmp_path / "audit.db"
    async with AuditChain(path, retention=RULE) as chain:
        for kind in ("model.called", "tool.called", "model.called"):
            await chain.append(kind, scope=ACME, detail={})
        assert await chain.prune(scope=ACME, reason="") == 2
    assert aibox.verify(path).pruned == 2
    with by_hand(path) as db:
        db.execute("UPDATE entries SET open = NULL, sealed = NULL WHERE log = ? AND seq = 1", (log_of(db, "acme"),))
    with pytest.raises(BrokenEvidenceError, match="entry 1 of tenant acme: its body is missing"):
        aibox.verify(path)


async def test_a_body_that_was_pruned_is_put_back(tmp_path: Path) -> None:
    """Attack: a removed body comes back out of a copy of the table: it was to be gone, and is reported."""
    path = tmp_path / "audit.db"
    async with AuditChain(path) as chain:
        await chain.append("model.called", scope=ACME, detail={})
        with by_hand(path) as db:
            kept = db.execute("SELECT open, sealed, log FROM entries WHERE seq = 0").fetchone()
        assert await chain.prune(scope=ACME, before_us=2**62, reason="") == 1
    with by_hand(path) as db:
        db.execute("UPDATE entries SET open = ?, sealed = ? WHERE log = ? AND seq = 0", kept)
    with pytest.raises(BrokenEvidenceError, match="entry 0 of tenant acme: its body is there again"):
        aibox.verify(path)


async def test_a_box_hands_its_policy_on(tmp_path: Path) -> None:
    """Two levels that are joined in a box: its chain keeps the shorter of both."""
    (tmp_path / "one.toml").write_text('[retention.bodies_days]\n"*" = 90\nmodel = 50\n')
    other = Policy.read({"retention": {"bodies_days": {"*": 60, "tool": 10}}})
    joined = Policy.load(tmp_path / "one.toml") & other
    async with aibox.open(tmp_path / "home", policy=joined) as box:
        assert box.audit.retentions.of("acme").bodies_days == {"*": 60, "model": 50, "tool": 10}
    assert json.loads(joined.model_dump_json())["retention"]["bodies_days"]["tool"] == 10
    assert joined.digest != Policy.load(tmp_path / "one.toml").digest


async def test_a_tenants_policy_shortens_its_own_log_and_no_other(tmp_path: Path, years_later: None) -> None:
    """Of platform and tenant the shorter time holds, for that tenant's bodies, by itself and by hand."""
    (tmp_path / "own.toml").write_text("[retention.bodies_days]\ntool = 30\n")
    (tmp_path / "all.toml").write_text("[retention.bodies_days]\nmodel = 30\ntool = 365\n")
    config = tmp_path / "aibox.toml"
    config.write_text('home = "home"\npolicy = "all.toml"\n[tenants.acme]\npolicy = "own.toml"\n')
    async with aibox.open(tmp_path / "home") as box:
        for scope in (ACME, RIVAL):
            for kind in ("tool.called", "model.called"):
                await box.audit.append(kind, scope=scope, detail={})
    async with aibox.open(config) as box:
        assert await swept(box.audit) == ["", "", kinds.PRUNED]
        assert await swept(box.audit, "rival") == ["tool.called", "", kinds.PRUNED]
        for scope in (ACME, RIVAL):
            await box.audit.append("tool.called", scope=scope, detail={})
        assert await box.audit.prune(scope=RIVAL, reason="by hand") == 0


async def test_an_agent_does_not_say_how_long_its_evidence_is_kept(tmp_path: Path) -> None:
    """A policy that would shorten it is refused where the agent is made; the box's own is no shorter, and is taken."""
    rule = Policy.read({"retention": {"bodies_days": {"*": 60}}})
    async with aibox.open(tmp_path / "home", policy=rule) as box:
        made: Any = {"router": ScriptedBackend()}
        box.agent("x", policy=box.policy, **made)
        box.agent("x", policy=Policy.read({"retention": {"bodies_days": {"*": 90, "tool": 70}}}), **made)
        with pytest.raises(ConfigError, match="which an agent does not decide"):
            box.agent("x", policy=Policy.read({"retention": {"bodies_days": {"tool": 1}}}), **made)
