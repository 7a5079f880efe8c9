"""Conversations that survive: whose they are, what they carry with them, and how they are kept short."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import aibox
from aibox.agents.events import Compacted
from aibox.agents.state import AgentState
from aibox.errors import AccessError, AIBoxError, BackendError, IntegrityError, StoreError
from aibox.testing import ScriptedBackend, call
from aibox.types import Scope

pytestmark = pytest.mark.anyio

KEY = bytes(range(32))


@pytest.fixture
async def state(tmp_path: Path) -> AsyncIterator[AgentState]:
    state = AgentState(tmp_path / "agents.db", key=KEY)
    yield state
    await state.close()


@pytest.fixture
def mine(scope: Scope) -> Scope:
    """The scope of eva's sessions with the agent that these tests use."""
    return scope.narrow(agent="default")


async def test_a_conversation_goes_on_in_another_process(scope: Scope, tmp_path: Path) -> None:
    """What was said is there after the store was closed and opened again, under the same key only."""
    for number, answer in enumerate(("one", "two")):
        state = AgentState(tmp_path / "s.db", key=KEY)
        model = ScriptedBackend(answer)
        await aibox.Agent("x", router=model, state=state).run(f"question {number}", scope=scope)
        await state.close()
    assert [m["content"] for m in model.requests[0].messages[1:]] == ["question 0", "one", "question 1"]
    state = AgentState(tmp_path / "s.db", key=bytes(32))
    with pytest.raises(IntegrityError):
        await aibox.Agent("x", router=ScriptedBackend("x"), state=state).run("and?", scope=scope)
    await state.close()


async def test_a_session_belongs_to_one_user_of_one_tenant_with_one_agent(
    scope: Scope, mine: Scope, state: AgentState
) -> None:
    """Another tenant, user, agent or session finds nothing, in a turn or by asking for it."""
    await aibox.Agent("x", router=ScriptedBackend("fine"), state=state).run("the word is Quokka", scope=scope)
    others = [
        Scope(tenant="rival", user="eva", session="s1"),
        Scope(tenant="acme", user="adam", session="s1"),
        Scope(tenant="acme", user="eva", session="s2"),
    ]
    for other in others:
        model = ScriptedBackend("?")
        await aibox.Agent("x", router=model, state=state).run("the word?", scope=other)
        assert "Quokka" not in str(model.requests[0].messages)
        with pytest.raises(AccessError):
            await state.sessions.export(scope=other.narrow(agent="default", session="s9"))
    model = ScriptedBackend("?")
    await aibox.Agent("x", name="other", router=model, state=state).run("the word?", scope=scope)
    assert "Quokka" not in str(model.requests[0].messages)
    assert [s.id for s in await state.sessions.list(scope=mine)] == ["s2", "s1"]


async def test_list_rename_export_delete_erase(scope: Scope, mine: Scope, state: AgentState) -> None:
    """A session has a title from its first message, can be renamed, taken along, and let go of for good."""
    agent = aibox.Agent("x", router=ScriptedBackend("A.", "B."), state=state)
    await agent.run("How  do I\nfile it?", scope=scope)
    await agent.run("And then?", scope=scope)
    (session,) = await state.sessions.list(scope=mine)
    assert (session.title, session.messages) == ("How do I file it?", 2)
    await state.sessions.rename("Filing", scope=mine)
    exported = await state.sessions.export(scope=mine)
    assert exported["title"] == "Filing"
    assert [m["content"] for m in exported["messages"]] == ["How  do I\nfile it?", "A.", "And then?", "B."]
    await state.sessions.delete(scope=mine)
    assert await state.sessions.list(scope=mine) == []
    with pytest.raises(AccessError):
        await state.sessions.delete(scope=mine)
    await aibox.Agent("x", router=ScriptedBackend("C."), state=state).run("again", scope=scope)
    assert await state.erase(scope=scope, subject="eva") == 1
    assert await state.sessions.list(scope=mine) == []


async def test_nothing_of_a_session_lies_readable_in_the_file(scope: Scope, state: AgentState) -> None:
    """With a key, neither messages nor titles are found in the bytes on the disk."""
    await aibox.Agent("x", router=ScriptedBackend("about Wombats"), state=state).run("about Quokkas", scope=scope)
    await state.close()
    assert state.store.path is not None
    everything = b"".join(path.read_bytes() for path in state.store.path.parent.glob("agents.db*"))
    assert b"Quokka" not in everything
    assert b"Wombat" not in everything
    with pytest.raises(StoreError, match="closed"):
        await aibox.Agent("x", router=ScriptedBackend("x"), state=state).run("x", scope=scope)


@pytest.mark.parametrize("kept", ["state", "buffer"])
async def test_a_secret_of_yesterday_is_one_today(kept: str, scope: Scope, state: AgentState) -> None:
    """The label of what an earlier turn touched marks every later turn of the conversation."""

    @aibox.tool(label="confidential/PHI")
    def chart() -> str:
        """Read the chart."""
        return "blood pressure 120/80"

    model = ScriptedBackend(call("chart", {}), "It is normal.", "As I said.")
    async with aibox.Memory() as memory:
        parts: dict[str, Any] = {"state": state} if kept == "state" else {"memory": memory}
        agent = aibox.Agent("x", router=model, tools=[chart], **parts)
        await agent.run("How is it?", scope=scope, label="public")
        reply = await agent.run("Say it again.", scope=scope, label="public")
    assert str(model.requests[2].label) == "confidential/PHI"
    assert str(reply.label) == "confidential/PHI"
    assert "tool chart" in reply.label.why


async def test_a_long_conversation_is_summed_up_by_our_model(scope: Scope, mine: Scope, state: AgentState) -> None:
    """What is old becomes a summary that the next turns begin with; the export still has every word."""
    answers = [f"answer {n} {'x' * 400}" for n in range(6)]

    def summary(request: Any) -> str:
        assert "answer 0" in request.messages[1]["content"]
        assert request.label.level.name == "INTERNAL"
        return "They talked about x."

    model = ScriptedBackend(*answers, summary, "last", "later")
    agent = aibox.Agent("x", router=model, state=state, history_chars=2500)
    for number in range(6):
        await agent.run(f"question {number}", scope=scope)
    events = [event async for event in agent.stream("now?", scope=scope)]
    (compacted,) = [event for event in events if isinstance(event, Compacted)]
    assert compacted.messages >= 4
    sent = model.requests[7].messages
    assert "They talked about x." in sent[0]["content"]
    assert "x" * 400 not in sent[0]["content"]
    assert "answer 5" in str(sent)
    await agent.run("and?", scope=scope)
    assert "They talked about x." in model.requests[8].messages[0]["content"]
    assert len((await state.sessions.export(scope=mine))["messages"]) == 16


@pytest.mark.parametrize(
    ("error", "says"),
    [(BackendError("busy"), "busy"), (StoreError("no answer of /CANARY.db"), "a store did not answer")],
)
async def test_where_a_model_cannot_sum_up_rules_do(
    scope: Scope, state: AgentState, error: AIBoxError, says: str
) -> None:
    """The turn goes on with what rules find worth keeping of the old messages, and says why; not where a store is."""
    model = ScriptedBackend(*["x" * 500] * 5, error, "still here")
    agent = aibox.Agent("x", router=model, state=state, history_chars=2500)
    for number in range(5):
        await agent.run(f"question {number}", scope=scope)
    events = [event async for event in agent.stream("now?", scope=scope)]
    assert [event.error for event in events if isinstance(event, Compacted)] == [says]
    assert isinstance(events[-1], aibox.Reply)
    assert events[-1].text == "still here"


async def test_two_processes_may_continue_one_session(scope: Scope, tmp_path: Path) -> None:
    """What the other wrote is seen, whatever this one remembers."""
    a, b = (AgentState(tmp_path / "s.db", key=KEY) for _ in range(2))
    one, two = (ScriptedBackend(*["ok"] * 3) for _ in range(2))
    await aibox.Agent("x", router=one, state=a).run("first", scope=scope)
    await aibox.Agent("x", router=two, state=b).run("second", scope=scope)
    await aibox.Agent("x", router=one, state=a).run("third", scope=scope)
    assert [m["content"] for m in one.requests[1].messages[1:]] == ["first", "ok", "second", "ok", "third"]
    await a.close()
    await b.close()
