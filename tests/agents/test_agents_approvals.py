"""Approvals that outlive the process: what they are bound to, who may answer, and that a call runs at most once."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import aibox
from aibox.agents.events import ApprovalAsked
from aibox.agents.state import AgentState
from aibox.agents.subagents import SubagentSpec
from aibox.errors import AccessError, BackendError, ConfigError, IntegrityError
from aibox.policy.policy import Policy
from aibox.policy.tools import ToolRules
from aibox.testing import ScriptedBackend, call
from aibox.types import Label, Scope

pytestmark = pytest.mark.anyio

KEY = bytes(range(32))
PAY = call("pay", {"to": "Acme", "eur": 12.5})


class Bank:
    """What must not happen twice."""

    def __init__(self) -> None:
        self.paid: list[tuple[str, float]] = []

    @property
    def tool(self) -> Any:
        @aibox.tool(approve=True, side_effects=True)
        def pay(to: str, eur: float) -> str:
            """Pay somebody."""
            self.paid.append((to, eur))
            return f"paid {eur} to {to}"

        return pay


@pytest.fixture
def bank() -> Bank:
    return Bank()


@pytest.fixture
async def chain(tmp_path: Path) -> AsyncIterator[aibox.AuditChain]:
    async with aibox.AuditChain(tmp_path / "audit.db") as chain:
        yield chain


@pytest.fixture
async def state(tmp_path: Path, chain: aibox.AuditChain) -> AsyncIterator[AgentState]:
    state = AgentState(tmp_path / "agents.db", key=KEY, audit=chain)
    yield state
    await state.close()


def made(*answers: Any, bank: Bank, state: AgentState, **options: Any) -> aibox.Agent:
    return aibox.Agent("Books.", router=ScriptedBackend(*answers), tools=[bank.tool], state=state, **options)


BOSS = Scope(tenant="acme", user="boss")


async def test_a_run_pauses_and_goes_on_after_a_yes(
    scope: Scope, bank: Bank, state: AgentState, chain: aibox.AuditChain
) -> None:
    """Nothing runs before the yes; then the call runs as it was shown, once, and each step is an entry."""
    events = [e async for e in made(PAY, bank=bank, state=state, audit=chain).stream("pay Acme", scope=scope)]
    reply = events[-1]
    assert isinstance(reply, aibox.Reply)
    assert [e.tool for e in events if isinstance(e, ApprovalAsked)] == ["pay"]
    assert reply.receipt is not None
    assert not bank.paid
    (asked,) = await state.approvals.pending(scope=BOSS)
    assert asked == reply.pending[0]
    assert (asked.arguments, asked.asked_by) == ({"to": "Acme", "eur": 12.5}, "eva")
    await state.approvals.approve(asked.id, digest=asked.digest, scope=BOSS)
    later = made("Paid.", bank=bank, state=state, audit=chain)
    done = await later.resume(reply.run, scope=scope)
    assert (done.text, bank.paid) == ("Paid.", [("Acme", 12.5)])
    assert done.receipt is not None
    kinds = [entry.kind async for entry in chain.entries(scope.tenant)]
    assert [k for k in kinds if k.startswith(("approval.", "turn."))] == [
        "turn.started", "approval.asked", "turn.sealed", "approval.given", "turn.started", "turn.sealed",
    ]  # fmt: skip
    called = [e.detail async for e in chain.entries(scope.tenant) if e.kind == "tool.called"]
    assert called[-1]["approved_by"] == ["boss"]
    for refused in (scope, BOSS):
        with pytest.raises(AccessError):
            await later.resume(reply.run, scope=refused)
    assert len(bank.paid) == 1


async def test_a_no_is_told_to_the_model_with_its_reason(scope: Scope, bank: Bank, state: AgentState) -> None:
    """The call does not run, and the model reads why."""
    reply = await made(PAY, bank=bank, state=state).run("pay", scope=scope)
    await state.approvals.reject(reply.pending[0].id, "too much", scope=BOSS)
    done = await made("I did not pay.", bank=bank, state=state).resume(reply.run, scope=scope)
    assert not bank.paid
    assert "too much" in done.tool_calls[0].text


async def test_what_is_refused(scope: Scope, other_scope: Scope, bank: Bank, state: AgentState) -> None:
    """Twice, from another tenant, to something else than was shown, and going on before the answer."""
    reply = await made(PAY, bank=bank, state=state).run("pay", scope=scope)
    asked = reply.pending[0]
    with pytest.raises(AccessError, match="no such question"):
        await state.approvals.approve(asked.id, digest=asked.digest, scope=other_scope)
    with pytest.raises(AccessError, match="not what is asked"):
        await state.approvals.approve(asked.id, digest="sha256:" + "0" * 64, scope=BOSS)
    with pytest.raises(AccessError, match="still waits"):
        await made("x", bank=bank, state=state).resume(reply.run, scope=scope)
    await state.approvals.approve(asked.id, digest=asked.digest, scope=BOSS)
    with pytest.raises(AccessError, match="closed"):
        await state.approvals.approve(asked.id, digest=asked.digest, scope=BOSS)
    with pytest.raises(AccessError, match="no such run"):
        await made("x", bank=bank, state=state).resume(reply.run, scope=other_scope)
    assert not bank.paid


@pytest.mark.parametrize("change", ["instructions", "policy", "name"])
async def test_another_version_of_the_agent_does_not_go_on(
    change: str, scope: Scope, bank: Bank, state: AgentState
) -> None:
    """Who agreed agreed to this agent under this policy; the one that was shown still can go on."""
    reply = await made(PAY, bank=bank, state=state).run("pay", scope=scope)
    await state.approvals.approve(reply.pending[0].id, digest=reply.pending[0].digest, scope=BOSS)
    other: dict[str, Any] = {
        "policy": {"policy": Policy(tools=ToolRules(deny=frozenset({"x"})))},
        "name": {"name": "other"},
    }.get(change, {})
    agent = aibox.Agent(
        "Evil." if change == "instructions" else "Books.",
        router=ScriptedBackend("x"),
        tools=[bank.tool],
        state=state,
        **other,
    )
    with pytest.raises(AccessError, match="another"):
        await agent.resume(reply.run, scope=scope)
    assert not bank.paid
    assert (await made("ok", bank=bank, state=state).resume(reply.run, scope=scope)).text == "ok"


@pytest.mark.parametrize("label", ["internal", "confidential", "confidential/PHI", "restricted"])
async def test_a_label_can_need_a_person(label: str, scope: Scope, state: AgentState, bank: Bank) -> None:
    """Where the policy says from which label on, calls with effects wait and are told why; others do not."""
    looked: list[str] = []

    @aibox.tool
    def look() -> str:
        """Look."""
        looked.append("x")
        return "seen"

    @aibox.tool(side_effects=True)
    def pay(to: str, eur: float) -> str:
        """Pay somebody."""
        bank.paid.append((to, eur))
        return "paid"

    policy = Policy(tools=ToolRules(approve_from=Label.parse("confidential")))
    model = ScriptedBackend(call("look", {}), PAY, "done")
    agent = aibox.Agent("x", router=model, tools=[look, pay], policy=policy, state=state)
    reply = await agent.run("go", scope=scope, label=label)
    assert looked == ["x"]
    if label == "internal":
        assert (reply.pending, len(bank.paid)) == ((), 1)
        return
    (asked,) = reply.pending
    assert (f"marked {label}" in asked.reason, bank.paid) == (True, [])
    await state.approvals.approve(asked.id, digest=asked.digest, scope=BOSS)
    again = aibox.Agent("x", router=ScriptedBackend("done"), tools=[look, pay], policy=policy, state=state)
    assert (await again.resume(reply.run, scope=scope)).text == "done"
    assert len(bank.paid) == 1


async def test_two_people_must_be_two_and_not_who_asked(scope: Scope, bank: Bank, state: AgentState) -> None:
    """One yes leaves it waiting; a second of the same person and one of the asker are refused."""
    policy = Policy(tools=ToolRules(two_people=frozenset({"pay"})))
    reply = await made(PAY, bank=bank, state=state, policy=policy).run("pay", scope=scope)
    asked = reply.pending[0]
    with pytest.raises(AccessError, match="you are the one who asked"):
        await state.approvals.approve(asked.id, digest=asked.digest, scope=scope)
    first = await state.approvals.approve(asked.id, digest=asked.digest, scope=BOSS)
    assert first.status == "waiting"
    with pytest.raises(AccessError, match="answered already"):
        await state.approvals.approve(asked.id, digest=asked.digest, scope=BOSS)
    second = await state.approvals.approve(asked.id, digest=asked.digest, scope=Scope(tenant="acme", user="cfo"))
    assert (second.status, second.approved_by) == ("approved", ("boss", "cfo"))
    await made("ok", bank=bank, state=state, policy=policy).resume(reply.run, scope=scope)
    assert len(bank.paid) == 1


async def test_a_question_expires(scope: Scope, bank: Bank, state: AgentState) -> None:
    """After its time nobody can agree, and going on tells the model so."""
    policy = Policy(tools=ToolRules(approval_s=0.000001))
    reply = await made(PAY, bank=bank, state=state, policy=policy).run("pay", scope=scope)
    with pytest.raises(AccessError, match="expired"):
        await state.approvals.approve(reply.pending[0].id, digest=reply.pending[0].digest, scope=BOSS)
    done = await made("ok", bank=bank, state=state, policy=policy).resume(reply.run, scope=scope)
    assert "in time" in done.tool_calls[0].text
    assert not bank.paid


async def test_when_going_on_fails_it_can_be_tried_again_and_nothing_runs_twice(
    scope: Scope, bank: Bank, state: AgentState
) -> None:
    """The model is gone after the payment: the next try finds the payment done and only answers."""
    reply = await made(PAY, bank=bank, state=state).run("pay", scope=scope)
    await state.approvals.approve(reply.pending[0].id, digest=reply.pending[0].digest, scope=BOSS)
    with pytest.raises(BackendError):
        await made(BackendError("gone"), bank=bank, state=state).resume(reply.run, scope=scope)
    assert len(bank.paid) == 1
    done = await made("Paid.", bank=bank, state=state).resume(reply.run, scope=scope)
    assert done.text == "Paid."
    assert "paid 12.5" in done.tool_calls[0].text
    assert len(bank.paid) == 1


async def test_calls_beside_a_waiting_one_run_and_are_not_run_again(
    scope: Scope, bank: Bank, state: AgentState
) -> None:
    """Of several calls only those that wait are left for later; results keep their places."""
    looked: list[str] = []

    @aibox.tool
    def look(what: str) -> str:
        """Look."""
        looked.append(what)
        return f"saw {what}"

    first = ScriptedBackend([call("look", {"what": "a"}), PAY, call("look", {"what": "b"})])
    agent = aibox.Agent("Books.", router=first, tools=[bank.tool, look], state=state)
    reply = await agent.run("go", scope=scope)
    await state.approvals.approve(reply.pending[0].id, digest=reply.pending[0].digest, scope=BOSS)
    second = ScriptedBackend("ok")
    await aibox.Agent("Books.", router=second, tools=[bank.tool, look], state=state).resume(reply.run, scope=scope)
    assert sorted(looked) == ["a", "b"]
    told = [m["content"] for m in second.requests[0].messages if m["role"] == "tool"]
    assert told == ["saw a", "paid 12.5 to Acme", "saw b"]


async def test_a_subagents_call_waits_too(scope: Scope, bank: Bank, state: AgentState) -> None:
    """The child is taken up where it stood: it is not begun again, and its parent gets its answer."""
    clerk = SubagentSpec.read("---\nname: clerk\ndescription: x\n---\nYou pay.", source="clerk.md")
    hand = call("delegate", {"description": "x", "subagent_type": "clerk", "prompt": "pay Acme"})
    reply = await made(hand, PAY, bank=bank, state=state, subagents=[clerk]).run("go", scope=scope)
    assert reply.pending[0].agent == "default.clerk"
    await state.approvals.approve(reply.pending[0].id, digest=reply.pending[0].digest, scope=BOSS)
    later = made("The clerk paid.", "All done.", bank=bank, state=state, subagents=[clerk])
    done = await later.resume(reply.run, scope=scope)
    assert done.text == "All done."
    assert bank.paid == [("Acme", 12.5)]


async def test_the_file_shows_nothing_and_takes_nothing(scope: Scope, bank: Bank, state: AgentState) -> None:
    """No argument or message lies in it readably; a row that was moved or changed does not open."""
    reply = await made(PAY, bank=bank, state=state).run("pay the Quokka invoice", scope=scope)
    assert state.store.path is not None
    await state.close()
    everything = b"".join(path.read_bytes() for path in state.store.path.parent.glob("agents.db*"))
    assert b"Quokka" not in everything
    assert b"Acme" not in everything
    with sqlite3.connect(state.store.path) as db:
        db.execute("UPDATE approvals SET tenant='rival'")
        db.execute("UPDATE runs SET tenant='rival', user='eva'")
    again = AgentState(state.store.path, key=KEY)
    with pytest.raises(IntegrityError):
        await again.approvals.pending(scope=Scope(tenant="rival", user="x"))
    with pytest.raises(IntegrityError):
        await again.runs.take(reply.run, scope=Scope(tenant="rival", user="eva"), turn="t", lease_s=1)
    await again.close()


async def test_without_a_key_nothing_can_wait(scope: Scope, bank: Bank, tmp_path: Path) -> None:
    """A state in clear never gets arguments: the call is refused, as where nobody can be asked."""
    state = AgentState(tmp_path / "clear.db")
    reply = await made(PAY, "no", bank=bank, state=state).run("pay", scope=scope)
    assert "nobody can be asked" in reply.tool_calls[0].text
    with pytest.raises(ConfigError):
        await aibox.Agent("x", router=ScriptedBackend()).resume("r", scope=scope)
    await state.close()


AGENT = """
import asyncio, sys, os
import aibox
from aibox.agents.state import AgentState
from aibox.testing import ScriptedBackend, call
from aibox.types import Scope

SCOPE = Scope(tenant="acme", user="eva")

@aibox.tool(approve={approve}, side_effects=True)
def pay(to: str) -> str:
    "Pay."
    with open("paid", "a") as file:
        file.write(to + "\\n")
    if {crash}:
        os.kill(os.getpid(), 9)
    return "paid"

async def main():
    state = AgentState("agents.db", key=bytes(range(32)))
    async with aibox.AuditChain("audit.db") as chain:
        agent = aibox.Agent("x", router=ScriptedBackend(*{answers}), tools=[pay], state=state, audit=chain)
        print({do})
        await state.close()

asyncio.run(main())
"""


def process(
    folder: Path, *, do: str, answers: str = "[]", approve: bool = False, crash: bool = False
) -> tuple[int, str]:
    code = textwrap.dedent(AGENT).format(do=do, answers=answers, approve=approve, crash=crash)
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode in (0, -9), done.stderr
    return done.returncode, done.stdout.strip()


def test_three_processes(tmp_path: Path) -> None:
    """One asks, another approves, a third goes on: nothing but the files is shared."""
    _, run = process(
        tmp_path, approve=True, answers="[call('pay', {'to': 'Acme'})]", do="(await agent.run('go', scope=SCOPE)).run"
    )
    boss = "Scope(tenant='acme', user='boss')"
    pending = f"(await state.approvals.pending(scope={boss}))[0]"
    process(
        tmp_path, approve=True, do=f"await state.approvals.approve({pending}.id, digest={pending}.digest, scope={boss})"
    )
    _, text = process(
        tmp_path, approve=True, answers="['Done.']", do=f"(await agent.resume({run!r}, scope=SCOPE)).text"
    )
    assert text == "Done."
    assert (tmp_path / "paid").read_text() == "Acme\n"


@pytest.mark.parametrize("where", ["in the call", "after the call"])
async def test_a_killed_process_never_runs_a_call_twice(where: str, tmp_path: Path) -> None:
    """kill -9 inside the tool, or while the model reads its result: recovery ends the run, and the call ran once."""
    answers = "[call('pay', {'to': 'Acme'}), lambda _: os.kill(os.getpid(), 9)]"
    code, _ = process(tmp_path, crash=where == "in the call", answers=answers, do="await agent.run('go', scope=SCOPE)")
    assert code == -9
    assert (tmp_path / "paid").read_text() == "Acme\n"

    @aibox.tool(approve=False, side_effects=True)
    def pay(to: str) -> str:
        "Pay."
        raise AssertionError("a second time")

    scope = Scope(tenant="acme", user="eva")
    state = AgentState(tmp_path / "agents.db", key=KEY)
    async with aibox.AuditChain(tmp_path / "audit.db") as chain:
        agent = aibox.Agent("x", router=ScriptedBackend("I cannot tell."), tools=[pay], state=state, audit=chain)
        # Its process is gone, which the kernel knows: nobody has to say so, and no time has to pass.
        (reply,) = await agent.recover(scope=scope)
        assert isinstance(reply, aibox.Reply)
        assert reply.text == "I cannot tell."
        assert ("not known" in reply.tool_calls[0].text) == (where == "in the call")
        assert (reply.tool_calls[0].text == "paid") == (where == "after the call")
        assert await agent.recover(scope=scope, now=True) == []
        kinds = [entry.kind async for entry in chain.entries("acme")]
    await state.close()
    assert (kinds.count("turn.failed"), kinds.count("turn.sealed")) == (1, 1)
