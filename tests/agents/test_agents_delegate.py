"""Subagents: what a file may say, what a child gets, and that nothing of it is wider than its parent's."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import aibox
from aibox.agents.events import Subagent
from aibox.agents.subagents import LIBRARY, SubagentSpec, specs
from aibox.errors import ConfigError
from aibox.policy.limits import TurnLimits
from aibox.policy.policy import Policy
from aibox.policy.tools import ToolRules
from aibox.testing import ScriptedBackend, call
from aibox.types import Scope

pytestmark = pytest.mark.anyio

READER = "---\nname: reader\ndescription: Reads.\ntools: read\nmaxTurns: 3\n---\nYou read."


def delegate(prompt: str = "read it", kind: str = "reader") -> Any:
    return call("delegate", {"description": "x", "subagent_type": kind, "prompt": prompt})


@aibox.tool(label="confidential/PHI")
def read(page: str) -> str:
    """Read a page."""
    return f"page {page}"


@aibox.tool
def write(text: str) -> str:
    """Write."""
    return f"wrote {text}"


def reader(text: str = READER) -> SubagentSpec:
    return SubagentSpec.read(text, source="reader.md")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("tools: read", "tool: read"), "unknown field 'tool'; did you mean 'tools'"),
        (("maxTurns: 3", "max_turns: 3"), "did you mean 'maxTurns'"),
        (("maxTurns: 3", "maxTurns: many"), "whole number"),
        (("maxTurns: 3", "maxTurns: 1000"), "1 to 64"),
        (("name: reader", "name: The Reader"), "lower case"),
        (("description: Reads.", "description:"), "description"),
        (("You read.", ""), "no instructions"),
        (("tools: read", "permissionMode: bypassPermissions"), "unknown field"),
    ],
)
def test_a_file_that_says_something_else_is_refused(change: tuple[str, str], says: str) -> None:
    """An unknown or wrong field is an error that names the file and the likely field; none is ignored."""
    with pytest.raises(ConfigError, match=says) as caught:
        reader(READER.replace(*change))
    assert "reader.md" in str(caught.value)


def test_the_library_and_folders_load(tmp_path: Path) -> None:
    """Three ship; files and folders of files load beside them; a name that comes twice is refused."""
    (tmp_path / "reader.md").write_text(READER)
    assert [spec.name for spec in specs([*LIBRARY, tmp_path])] == [*LIBRARY, "reader"]
    with pytest.raises(ConfigError, match="two subagents"):
        specs([tmp_path, tmp_path / "reader.md"])


def test_a_tool_that_its_agent_has_not_is_an_error() -> None:
    """A child is never quietly smaller than its file says."""
    with pytest.raises(ConfigError, match="has not: read"):
        aibox.Agent("x", router=ScriptedBackend(), subagents=[reader()], tools=[write])
    with pytest.raises(ConfigError, match="web_search"):
        aibox.Agent("x", router=ScriptedBackend(), subagents=["researcher"])


async def test_a_child_gets_its_prompt_and_its_tools_and_nothing_else(scope: Scope, tmp_path: Path) -> None:
    """No message of the parent, no other tool, no way to delegate; one text comes back, and its entries with it."""
    model = ScriptedBackend(delegate("read page 7"), call("read", {"page": "7"}), "It says 7.", "The reader says 7.")
    async with aibox.AuditChain(tmp_path / "a.db") as chain:
        agent = aibox.Agent("Boss.", router=model, tools=[read, write], subagents=[reader()], audit=chain)
        events = [event async for event in agent.stream("my secret question", scope=scope, label="public")]
        kinds = [entry.kind async for entry in chain.entries(scope.tenant)]
    child = model.requests[1]
    assert [m["content"] for m in child.messages] == ["You read.", "read page 7"]
    assert [t["function"]["name"] for t in child.body["tools"]] == ["read"]
    assert model.requests[3].messages[-1]["content"] == "It says 7."
    assert any(isinstance(event, Subagent) and event.name == "reader" for event in events)
    reply = events[-1]
    assert isinstance(reply, aibox.Reply)
    assert str(reply.label) == "confidential/PHI"
    assert str(model.requests[1].label) == "public"
    assert str(model.requests[3].label) == "confidential/PHI"
    assert reply.usage.input_tokens == sum(
        len(str(m.get("content") or "").split()) for request in model.requests for m in request.messages
    )
    assert kinds.count("turn.sealed") == 1
    assert kinds.index("subagent.started") < kinds.index("subagent.returned") < kinds.index("turn.sealed")
    assert model.scopes[1].agent == "default.reader"
    assert model.scopes[1].session == ""


async def test_a_child_begins_under_its_parents_label(scope: Scope) -> None:
    """What the parent had touched marks the child's first call; the prompt may hold it."""
    model = ScriptedBackend(call("read", {"page": "1"}), delegate(), "fine", "done")
    await aibox.Agent("x", router=model, tools=[read], subagents=[reader()]).run("go", scope=scope, label="public")
    assert [str(request.label) for request in model.requests] == ["public", *["confidential/PHI"] * 3]


async def test_several_work_at_once(scope: Scope) -> None:
    """Two calls of one answer run side by side, and each result goes to its own call."""
    both = asyncio.Event()
    inside = 0

    async def child(request: Any) -> str:
        nonlocal inside
        inside += 1
        if inside == 2:
            both.set()
        await asyncio.wait_for(both.wait(), 60)
        return f"answer to {request.messages[-1]['content']}"

    model = ScriptedBackend([delegate("one"), delegate("two")], child, child, "both done")
    reply = await aibox.Agent("x", router=model, tools=[read], subagents=[reader()]).run("go", scope=scope)
    assert reply.text == "both done"
    assert [m["content"] for m in model.requests[3].messages[-2:]] == ["answer to one", "answer to two"]


async def test_a_childs_budget_is_part_of_its_parents(scope: Scope) -> None:
    """Its own limit ends the child and the parent goes on; the parent's ends both, with what was reached."""
    loop = [call("read", {"page": str(n)}) for n in range(9)]
    model = ScriptedBackend(delegate(), *loop[:3], "the parent goes on")
    reply = await aibox.Agent("x", router=model, tools=[read], subagents=[reader()]).run("go", scope=scope)
    assert reply.text == "the parent goes on"
    assert "used its 3 model calls" in model.requests[-1].messages[-1]["content"]
    model = ScriptedBackend(delegate(), loop[0])
    agent = aibox.Agent("x", router=model, tools=[read], subagents=[reader()], limits=TurnLimits(model_calls=2))
    assert "2 times" in (await agent.run("go", scope=scope)).stopped


async def test_a_child_writes_no_more_than_its_parents_caller_asked_for(scope: Scope) -> None:
    """`max_tokens` of a run bounds each model call of the turn, of subagents too; an agent's own stays if less."""
    for own in ({}, {"max_tokens": 9}):
        model = ScriptedBackend(delegate(), "fine", "done")
        agent = aibox.Agent("x", router=model, tools=[read], subagents=[reader()], settings=own)
        await agent.run("go", scope=scope, max_tokens=7)
        assert [request.body["max_tokens"] for request in model.requests] == [7] * 3
    model = ScriptedBackend("done")
    await aibox.Agent("x", router=model, settings={"max_completion_tokens": 5}).run("go", scope=scope, max_tokens=7)
    assert model.requests[0].body["max_completion_tokens"] == 5
    assert "max_tokens" not in model.requests[0].body


async def test_a_childs_policy_is_its_parents(scope: Scope) -> None:
    """What the policy denies the parent it denies the child; a subagent that it hides is not there."""
    model = ScriptedBackend(delegate(), call("read", {"page": "1"}), "no", "no")
    policy = Policy(tools=ToolRules(deny=frozenset({"read"})))
    await aibox.Agent("x", router=model, tools=[read], subagents=[reader()], policy=policy).run("go", scope=scope)
    assert "not allowed" in model.requests[2].messages[-1]["content"]
    hidden = Policy(tools=ToolRules(deny=frozenset({"subagent:reader"})))
    assert "delegate" not in repr(
        aibox.Agent("x", router=ScriptedBackend(), tools=[read], subagents=[reader()], policy=hidden)
    )


async def test_a_child_is_cancelled_with_its_parent(scope: Scope) -> None:
    """When the turn's time is over, nothing of a child goes on."""
    ended = asyncio.Event()

    async def forever(_: Any) -> str:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        return "late"

    model = ScriptedBackend(delegate(), forever)
    agent = aibox.Agent("x", router=model, tools=[read], subagents=[reader()], limits=TurnLimits(turn_s=0.5))
    reply = await agent.run("go", scope=scope)
    assert "0.5 s" in reply.stopped
    await asyncio.wait_for(ended.wait(), 60)


async def test_a_childs_skills_are_loaded_in_full_and_narrow(scope: Scope, tmp_path: Path) -> None:
    """The file's skills stand in the child's instructions; the parent's do not."""
    folder = tmp_path / "careful"
    folder.mkdir()
    (folder / "SKILL.md").write_text("---\nname: careful\ndescription: x\nallowed-tools: none\n---\nBe careful.")
    text = READER.replace("tools: read", "skills: careful")
    model = ScriptedBackend(delegate(), call("read", {"page": "1"}), "ok", "done")
    agent = aibox.Agent("x", router=model, tools=[read], skills=[folder], subagents=[reader(text)])
    await agent.run("go", scope=scope)
    assert "Be careful." in model.requests[1].messages[0]["content"]
    assert "Be careful." not in model.requests[0].messages[0]["content"]
    assert "not allowed" in model.requests[2].messages[-1]["content"]
