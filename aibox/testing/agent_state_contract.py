"""What agents' state must do wherever it lies, as tests: subclass, override `place` with an empty one, run pytest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aibox.agents.approvals import Approval, digest_of
from aibox.agents.exposure import Exposure
from aibox.agents.state import AgentState
from aibox.errors import AccessError, IntegrityError, StoreError
from aibox.types import Label, Level, Scope

KEY = bytes(range(32))
EVA = Scope(tenant="acme", user="eva", agent="books", session="s1")
RIVAL = Scope(tenant="rival", user="eva", agent="books", session="s1")
"""Another tenant, with the same names inside."""
BOSS = Scope(tenant="acme", user="boss")
CFO = Scope(tenant="acme", user="cfo")


def said(number: int) -> list[dict[str, Any]]:
    return [{"role": "user", "content": f"question {number}"}, {"role": "assistant", "content": f"answer {number}"}]


async def talk(state: AgentState, number: int, *, scope: Scope = EVA, level: Level = Level.INTERNAL) -> None:
    await state.sessions.add(said(number), scope=scope, label=Label(level), exposure=Exposure(private=number == 2))


async def keep(state: AgentState, run: str, *, scope: Scope = EVA, status: str = "waiting") -> None:
    stand = {"frame": {"n": 1}}
    await state.runs.keep(run, scope=scope, version="v1", turn="t1", status=status, state=stand, lease_s=600.0)


def question(id_: str, *, people: int = 1, expires_us: int = 2**60, run: str = "r1") -> Approval:
    made = Approval(
        id=id_,
        run=run,
        call="c1",
        tool="pay",
        arguments={"to": "Quokka"},
        reason="the tool asks for it",
        label=Label(Level.CONFIDENTIAL).because("tool ledger"),
        policy="sha256:p",
        version="v1",
        agent="books",
        asked_by="eva",
        people=people,
        status="waiting",
        expires_us=expires_us,
    )
    bound: dict[str, Any] = {"tool": made.tool, "arguments": made.arguments, "policy": made.policy, "label": made.label}
    shown = digest_of(**bound, version="v1", scope=EVA, call="c1")
    return replace(made, digest=shown)


class AgentStateContract:
    """Override `place`: an empty state that this process may write, as AgentState takes it."""

    @pytest.fixture
    def place(self) -> str | Path:
        raise NotImplementedError("return a path or a URL of an empty state")

    @pytest.fixture
    async def state(self, place: str | Path) -> AsyncIterator[AgentState]:
        state = AgentState(place, key=KEY)
        yield state
        await state.close()

    @pytest.fixture
    async def other(self, place: str | Path) -> AsyncIterator[AgentState]:
        """The same state, as another process has it."""
        other = AgentState(place, key=KEY)
        yield other
        await other.close()

    @pytest.mark.anyio
    async def test_a_conversation_is_kept_in_order_with_its_label(self, state: AgentState, other: AgentState) -> None:
        """What was added is there, whole, for another process, and label and exposure only rise."""
        assert (await state.sessions.past(scope=EVA)).messages == ()
        for number, level in enumerate((Level.PUBLIC, Level.CONFIDENTIAL, Level.INTERNAL)):
            await talk(state, number, level=level)
        past = await other.sessions.past(scope=EVA)
        assert [m["content"] for m in past.messages[::2]] == ["question 0", "question 1", "question 2"]
        assert past.label is not None
        assert past.label.level == Level.CONFIDENTIAL
        assert past.exposure.private
        assert await other.sessions.past(scope=EVA) == past

    @pytest.mark.anyio
    async def test_two_processes_write_one_conversation_without_losing_a_turn(
        self, state: AgentState, other: AgentState
    ) -> None:
        """Turns that end at once are all there, each once, and both processes read the same."""
        await asyncio.gather(*(talk((state, other)[n % 2], n) for n in range(12)))
        mine, theirs = await state.sessions.past(scope=EVA), await other.sessions.past(scope=EVA)
        assert mine == theirs
        assert sorted(m["content"] for m in mine.messages[::2]) == sorted(f"question {n}" for n in range(12))

    @pytest.mark.anyio
    async def test_sessions_are_listed_titled_exported_and_let_go(self, state: AgentState) -> None:
        """The latest first; a title of one's own; every word in the export, also what was compacted; gone when told."""
        for number in range(3):
            await talk(state, number)
        await talk(state, 7, scope=EVA.narrow(session="s2"))
        found = await state.sessions.list(scope=EVA)
        assert [(s.id, s.title, s.messages) for s in found] == [("s2", "question 7", 1), ("s1", "question 0", 3)]
        await state.sessions.rename("  Accounts ", scope=EVA)
        await state.sessions.compact("they asked twice", scope=EVA, keep=1)
        past = await state.sessions.past(scope=EVA)
        assert (past.summary, [m["content"] for m in past.messages]) == ("they asked twice", ["question 2", "answer 2"])
        exported = await state.sessions.export(scope=EVA)
        assert (exported["title"], len(exported["messages"])) == ("Accounts", 6)
        await state.sessions.delete(scope=EVA)
        assert [s.id for s in await state.sessions.list(scope=EVA)] == ["s2"]
        for gone in (state.sessions.export(scope=EVA), state.sessions.delete(scope=EVA)):
            with pytest.raises(AccessError):
                await gone

    @pytest.mark.anyio
    async def test_nothing_of_another_tenant_is_there(self, state: AgentState) -> None:
        """Sessions, runs, calls and questions of the same names: none is found, changed or used up by the other."""
        await talk(state, 1)
        await keep(state, "r1")
        await state.approvals.ask(question("a1"), scope=EVA)
        assert await state.runs.begin("k", "pay", scope=EVA) is None
        assert (await state.sessions.past(scope=RIVAL)).messages == ()
        assert await state.sessions.list(scope=RIVAL) == []
        assert await state.approvals.pending(scope=RIVAL) == []
        assert await state.runs.begin("k", "pay", scope=RIVAL) is None
        assert await state.erase(scope=RIVAL) == 0
        for asked in (
            state.sessions.export(scope=RIVAL),
            state.sessions.rename("x", scope=RIVAL),
            state.sessions.delete(scope=RIVAL),
            state.runs.take("r1", scope=RIVAL, turn="t2", lease_s=1.0),
            state.runs.agent_of("r1", scope=RIVAL),
            state.approvals.get("a1", scope=RIVAL),
            state.approvals.reject("a1", scope=RIVAL),
        ):
            with pytest.raises(AccessError) as refused:
                await asked
            assert refused.value.absent
        assert (await state.runs.take("r1", scope=EVA, turn="t2", lease_s=1.0)).turn == "t1"
        assert await state.runs.begin("k", "pay", scope=EVA) is not None
        assert await state.runs.begin("k", "pay", scope=RIVAL) is None
        await state.erase(scope=EVA)
        assert await state.approvals.pending(scope=EVA) == []
        assert await state.runs.begin("k", "pay", scope=EVA) is None
        assert await state.runs.begin("k", "pay", scope=RIVAL) is not None

    @pytest.mark.anyio
    async def test_a_run_is_taken_up_by_one(self, state: AgentState, other: AgentState) -> None:
        """Of many who try at once, in two processes, one gets it; put back, it can be taken again; ended, never."""
        await keep(state, "r1")
        tries = [(state, other)[n % 2].runs.take("r1", scope=EVA, turn=f"t{n}", lease_s=60.0) for n in range(8)]
        got = await asyncio.gather(*tries, return_exceptions=True)
        assert sum(not isinstance(one, BaseException) for one in got) == 1, got
        assert all(isinstance(one, AccessError) for one in got if isinstance(one, BaseException)), got
        await other.runs.release("r1", scope=EVA, status="waiting")
        taken = await state.runs.take("r1", scope=EVA, turn="t9", lease_s=60.0)
        assert (taken.agent, taken.session, taken.version, taken.state) == ("books", "s1", "v1", {"frame": {"n": 1}})
        await state.runs.release("r1", scope=EVA, status="done")
        with pytest.raises(AccessError, match="done"):
            await state.runs.take("r1", scope=EVA, turn="t10", lease_s=60.0)

    @pytest.mark.anyio
    async def test_an_interrupted_run_is_found(self, state: AgentState, other: AgentState) -> None:
        """One that says it is under way is somebody's until its time is over, or until the operator says otherwise."""
        await keep(state, "r1", status="running")
        await keep(state, "r2")
        assert await other.runs.interrupted(scope=EVA, agent="books") == []
        assert [run.id for run in await other.runs.interrupted(scope=EVA, agent="books", now=True)] == ["r1"]
        assert await other.runs.interrupted(scope=EVA, agent="other", now=True) == []
        with pytest.raises(AccessError, match="under way"):
            await other.runs.take("r1", scope=EVA, turn="t2", lease_s=1.0)

    @pytest.mark.anyio
    async def test_a_call_begins_once(self, state: AgentState, other: AgentState) -> None:
        """Of many who begin a call at once one is the first; the others get what it gave, or that it has no end."""
        begun = await asyncio.gather(*((state, other)[n % 2].runs.begin("k", "pay", scope=EVA) for n in range(8)))
        assert sum(one is None for one in begun) == 1
        assert all(one.result is None for one in begun if one is not None)
        await state.runs.ended("k", "paid", ok=True, scope=EVA)
        again = await other.runs.begin("k", "pay", scope=EVA)
        assert again is not None
        assert (again.result, again.ok) == ("paid", True)

    @pytest.mark.anyio
    async def test_a_question_is_answered_once(self, state: AgentState, other: AgentState) -> None:
        """It comes back as it was asked; of many answers at once one counts; it is closed afterwards."""
        await state.approvals.ask(question("a1"), scope=EVA)
        (asked,) = await other.approvals.pending(scope=BOSS)
        assert asked == question("a1")
        answers = [
            (state, other)[n % 2].approvals.approve("a1", digest=asked.digest, scope=Scope(tenant="acme", user=f"p{n}"))
            for n in range(6)
        ]
        got = await asyncio.gather(*answers, return_exceptions=True)
        assert sum(not isinstance(one, BaseException) for one in got) == 1, got
        found = await other.approvals.get("a1", scope=BOSS)
        assert (found.status, len(found.approved_by)) == ("approved", 1)
        assert await state.approvals.pending(scope=BOSS) == []

    @pytest.mark.anyio
    async def test_two_people_one_no_and_an_end(self, state: AgentState, other: AgentState) -> None:
        """Two yeses of two people; the same one twice is refused; one no is enough; after its time it is expired."""
        await state.approvals.ask(question("a1", people=2), scope=EVA)
        await state.approvals.ask(question("a2", run="r2"), scope=EVA)
        await state.approvals.ask(question("a3", expires_us=1), scope=EVA)
        digest = question("a1").digest
        assert (await state.approvals.approve("a1", digest=digest, scope=BOSS)).status == "waiting"
        with pytest.raises(AccessError, match="answered already"):
            await other.approvals.approve("a1", digest=digest, scope=BOSS)
        assert (await other.approvals.approve("a1", digest=digest, scope=CFO)).approved_by == ("boss", "cfo")
        refused = await other.approvals.reject("a2", "too much", scope=BOSS)
        assert (refused.status, refused.rejected_by, refused.said) == ("rejected", "boss", "too much")
        with pytest.raises(AccessError, match="expired"):
            await state.approvals.approve("a3", digest=digest, scope=BOSS)
        assert [a.id for a in await state.approvals.of_run("r2", scope=EVA)] == ["a2"]

    @pytest.mark.anyio
    async def test_a_person_is_forgotten_and_nobody_else(self, state: AgentState) -> None:
        """Conversations, runs, questions, answers and results of one user go; another's and another tenant's stay."""
        adam = Scope(tenant="acme", user="adam", agent="books", session="s1")
        for scope, run in ((EVA, "r1"), (adam, "r2"), (RIVAL, "r1")):
            await talk(state, 1, scope=scope)
            await keep(state, run, scope=scope)
            await state.approvals.ask(question(f"a-{scope.user}", run=run), scope=scope)
            await state.runs.begin(f"{run}/c1", "pay", scope=scope)
            await state.runs.ended(f"{run}/c1", "paid", ok=True, scope=scope)
        await state.approvals.reject("a-eva", scope=BOSS)
        assert await state.erase(scope=EVA, subject="eva") == 2
        assert await state.sessions.list(scope=EVA) == []
        assert [a.id for a in await state.approvals.pending(scope=BOSS)] == ["a-adam"]
        assert await state.runs.begin("r1/c1", "pay", scope=EVA) is None
        assert await state.runs.begin("r2/c1", "pay", scope=adam) is not None
        assert len(await state.sessions.list(scope=adam)) == len(await state.sessions.list(scope=RIVAL)) == 1

    @pytest.mark.anyio
    async def test_another_key_opens_nothing_and_a_closed_state_says_so(self, place: str | Path) -> None:
        """What was sealed under one key is an integrity error under another; after `close` all is refused."""
        state, wrong = AgentState(place, key=KEY), AgentState(place, key=bytes(32))
        await talk(state, 1)
        await keep(state, "r1")
        with pytest.raises(IntegrityError):
            await wrong.sessions.past(scope=EVA)
        with pytest.raises(IntegrityError):
            await wrong.runs.take("r1", scope=EVA, turn="t2", lease_s=1.0)
        for one in (state, wrong):
            await one.close()
            await one.close()
            with pytest.raises(StoreError, match="closed"):
                await one.sessions.list(scope=EVA)
        assert KEY.hex() not in repr(state)
