"""A case that the caller names: one mapping of pseudonyms through turns, tools, memory, pauses and the door."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field

import aibox
from aibox.agents.state import AgentState
from aibox.guardrails.outgoing import Outgoing
from aibox.guardrails.pii import PII
from aibox.guardrails.pseudonyms import Pseudonyms
from aibox.policy.policy import Policy
from aibox.testing import ScriptedBackend, call
from aibox.types import Scope

pytestmark = pytest.mark.anyio
POLICY = Policy.read({"checks": {"pii": dict.fromkeys(("input", "tool_result", "retrieved"), "redact")}})
SAID = "My e-mail address is eva@example.org."
TOKEN = re.compile(r"<EMAIL_[0-9]{6}>")


@aibox.tool
def look_up(name: str) -> str:
    """Look a customer up."""
    return f"{name}: eva@example.org"


def seen(model: ScriptedBackend) -> list[set[str]]:
    """The tokens of each call that the model got."""
    return [set(TOKEN.findall(str(request.messages))) for request in model.requests]


async def test_a_value_keeps_its_token_through_the_turns_and_tools_of_a_case(scope: Scope, tmp_path: Path) -> None:
    """Two sessions of one case and a tool's result show the model one token; a third session's case shows another."""
    pseudonyms = Pseudonyms()
    guardrail = aibox.Guardrail(POLICY, pseudonyms=pseudonyms)
    model = ScriptedBackend(call("look_up", {"name": "Eva"}), "Found.", "Noted.", "Noted.")
    agent = aibox.Agent("Books.", router=model, tools=[look_up], guardrail=guardrail)
    case = replace(scope, case="17/2026")
    await agent.run("Look Eva up.", scope=case)
    await agent.run(SAID, scope=case.narrow(session="s2"))
    await agent.run(SAID, scope=replace(scope, session="s3", case="18/2026"))
    _, result, said, other = seen(model)
    assert len(result) == len(said) == len(other) == 1
    assert result == said != other


@aibox.tool
def write_to(address: Annotated[str, Field(pattern=r"^[a-z.]+@[a-z.]+$")]) -> str:
    """Write to a customer."""
    return f"Written, {len(address)} letters."


async def test_where_a_tool_checks_a_format_it_checks_the_value(scope: Scope) -> None:
    """The model writes the token, which no address looks like; the tool's schema and the tool see the address."""

    def write(request: Any) -> Any:
        return call("write_to", {"address": TOKEN.findall(str(request.messages))[0]})

    model = ScriptedBackend(write, "Done.", call("write_to", {"address": "nobody"}), "Not done.")
    agent = aibox.Agent("Books.", router=model, tools=[write_to], guardrail=aibox.Guardrail(POLICY))
    reply = await agent.run(f"{SAID} Write to me.", scope=scope)
    assert [tool.text for tool in reply.tool_calls] == ["Written, 15 letters."]
    refused = await agent.run("Write to nobody.", scope=scope)
    assert "Written" not in refused.tool_calls[0].text


async def test_what_leaves_has_the_tokens_of_the_case(scope: Scope) -> None:
    """A text for an external model is given the tokens that the case's turns have."""
    pseudonyms = Pseudonyms()
    case = replace(scope, case="17/2026")
    inside = await aibox.Guardrail(POLICY, pseudonyms=pseudonyms).check(SAID, scope=case)
    outside = await Outgoing(PII(), pseudonyms=pseudonyms).conceal(SAID, scope=case, policy=POLICY)
    assert TOKEN.findall(inside.text) == TOKEN.findall(outside) != []


async def test_a_note_of_a_case_comes_back_to_it(scope: Scope, tmp_path: Path) -> None:
    """What memory kept in a case is recalled with its token, and that is the one a new message of the case gets."""
    guardrail = aibox.Guardrail(POLICY)
    case = replace(scope, case="17/2026")
    async with aibox.Memory(tmp_path / "memory", embedder=Letters()) as memory:
        kept = await guardrail.check(SAID, scope=case)
        await memory.remember(kept.text, scope=case)
        model = ScriptedBackend("Yes.")
        agent = aibox.Agent("Books.", router=model, guardrail=guardrail, memory=memory)
        await agent.run("Is my e-mail address eva@example.org?", scope=case)
    assert [len(tokens) for tokens in seen(model)] == [1]
    assert str(model.requests[0].messages).count(TOKEN.findall(kept.text)[0]) == 2


class Letters:
    """How often each letter comes: enough for texts that share words to be near."""

    name, dimensions = "letters", 26

    async def embed(self, texts: Any, *, kind: Any) -> list[list[float]]:
        rows = [[text.lower().count(chr(97 + at)) + 0.01 for at in range(26)] for text in texts]
        return [[value / sum(x * x for x in row) ** 0.5 for value in row] for row in rows]


async def test_a_run_that_waited_goes_on_in_its_case(scope: Scope, tmp_path: Path) -> None:
    """Who agrees need not name the case: what a tool gives after the yes has the case's token."""
    guardrail = aibox.Guardrail(POLICY)

    @aibox.tool(approve=True)
    def fetch() -> str:
        """Fetch it."""
        return "eva@example.org"

    async with aibox.AuditChain(tmp_path / "audit.db") as chain:
        state = AgentState(tmp_path / "agents.db", key=bytes(32), audit=chain)
        model = ScriptedBackend(call("fetch", {}), "Done.")
        agent = aibox.Agent("Books.", router=model, tools=[fetch], guardrail=guardrail, state=state)
        case = replace(scope, case="17/2026")
        reply = await agent.run(SAID, scope=case)
        (asked,) = reply.pending
        boss = Scope(tenant=scope.tenant, user="boss")
        await state.approvals.approve(asked.id, digest=asked.digest, scope=boss)
        assert (await agent.resume(reply.run, scope=scope)).text == "Done."
        await state.close()
    first, last = seen(model)
    assert len(first) == 1
    assert last == first
