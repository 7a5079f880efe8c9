"""Where a model is held to a schema and a tool checks what it is given, pseudonyms with a form get through."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

import aibox
from aibox.agents.mcp import McpServer, connect
from aibox.guardrails.marks import find_tokens
from aibox.policy.policy import Policy
from aibox.testing import ScriptedBackend, call
from aibox.types import Scope

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

BANK = str(Path(__file__).with_name("mcp_bank.py"))
IBAN, CARD = "DE89370400440532013000", "4111111111111111"
CHECKS = {"pii": dict.fromkeys(("input", "tool_result", "retrieved", "output"), "redact")}


def policy(*types: str, **more: Any) -> Policy:
    return Policy.read({"checks": CHECKS, "pseudonyms": {"format_preserving": types, **more}})


def held(request: Any) -> Any:
    """A model that a server holds to the tool's schema: of what it was told it writes what fits, or something else."""
    (tool,) = request.body["tools"]
    said = re.findall(r"[^\s,]+", str(request.messages[-1]["content"]))
    written = {
        name: next((word for word in said if Draft202012Validator(field).is_valid(word)), "0" * 16)
        for name, field in tool["function"]["parameters"]["properties"].items()
    }
    return call(tool["function"]["name"], written)


async def test_a_tool_behind_mcp_gets_the_values_that_it_checks(scope: Scope) -> None:
    """The model never saw account or card, its arguments fit the schema, and the bank's check digits are right."""
    model = ScriptedBackend(held, "Done.")
    async with connect(McpServer(name="bank", command=sys.executable, args=(BANK,), trusted=True, sends=False)) as mcp:
        guardrail = aibox.Guardrail(policy("*"))
        agent = aibox.Agent("Books.", router=model, tools=mcp.tools, guardrail=guardrail)
        reply = await agent.run(f"Pay to {IBAN} by {CARD} please.", scope=scope)
    assert reply.tool_calls[0].text.startswith("paid to DE")
    assert reply.tool_calls[0].ok
    sent = json.dumps([request.body for request in model.requests])
    assert IBAN not in sent
    assert CARD not in sent
    assert len(set(find_tokens(sent))) == 2, "the result of the tool has the pseudonyms of the question"


async def test_with_tokens_such_a_model_has_to_make_something_up(scope: Scope) -> None:
    """Which is what the other form is for: what it writes instead is nobody's, and the tool refuses it."""
    model = ScriptedBackend(held, "Not done.")
    async with connect(McpServer(name="bank", command=sys.executable, args=(BANK,), trusted=True, sends=False)) as mcp:
        agent = aibox.Agent("Books.", router=model, tools=mcp.tools, guardrail=aibox.Guardrail(policy()))
        reply = await agent.run(f"Pay to {IBAN} by {CARD} please.", scope=scope)
    assert "paid" not in reply.tool_calls[0].text


async def test_a_tool_is_not_called_with_a_shape_that_stands_for_nothing(scope: Scope) -> None:
    """Made up, damaged, another user's or for good: the call is refused, and a reader sees what is missing."""
    sent: list[str] = []

    @aibox.tool
    def send(to: str) -> str:
        """Send."""
        sent.append(to)
        return "sent"

    guardrail = aibox.Guardrail(policy("*", irreversible=["CARD"]))
    theirs = (await guardrail.check("bob@example.org", scope=Scope(tenant=scope.tenant, user="bob"))).text
    for_good = (await guardrail.check(CARD, scope=scope)).text
    for shape in ("email-000000@pseudonym.example", "999028539795312", theirs, for_good):
        model = ScriptedBackend(call("send", {"to": shape}), f"I could not reach {shape}.")
        agent = aibox.Agent("x", router=model, tools=[send], guardrail=guardrail)
        reply = await agent.run("Write to eva@example.org.", scope=scope)
        assert "stands for nothing here" in reply.tool_calls[0].text
        assert re.fullmatch(r"I could not reach \[(unknown|withheld) [a-z -]+\].", reply.text)
    assert not sent


async def test_memory_keeps_the_shape_and_gives_it_back(scope: Scope, tmp_path: Path) -> None:
    """What a turn told is recalled in another session as the model saw it, and its reader sees the value."""

    class Letters:
        name, dimensions = "letters", 26

        async def embed(self, texts: Any, *, kind: Any) -> list[list[float]]:
            rows = [[text.lower().count(chr(97 + at)) + 0.01 for at in range(26)] for text in texts]
            return [[value / sum(x * x for x in row) ** 0.5 for value in row] for row in rows]

    def echo(request: Any) -> str:
        return f"You said {find_shape(request.messages)}."

    def find_shape(messages: Any) -> str:
        return re.findall(r"email-[0-9]+@pseudonym\.example", str(messages))[0]

    guardrail = aibox.Guardrail(policy("EMAIL"))
    async with aibox.Memory(tmp_path / "memory", embedder=Letters()) as memory:
        kept = await guardrail.check("My e-mail address is eva@example.org.", scope=scope)
        await memory.remember(kept.text, scope=scope)
        model = ScriptedBackend(echo)
        agent = aibox.Agent("Books.", router=model, guardrail=guardrail, memory=memory)
        reply = await agent.run("What is my e-mail address?", scope=scope.narrow(session="s2"))
    assert find_shape(model.requests[0].messages) == find_shape(kept.text)
    assert reply.text == "You said eva@example.org."
