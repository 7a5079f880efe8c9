"""A model that makes up a pseudonym reaches neither a tool nor a reader with it."""

from __future__ import annotations

import pytest

import aibox
from aibox.policy.policy import Policy
from aibox.testing.scripted import ScriptedBackend, call
from aibox.types import Scope

pytestmark = pytest.mark.anyio


async def test_a_tool_is_not_called_with_a_made_up_pseudonym(scope: Scope) -> None:
    """The call is refused in words that the model can act on, and the function is not entered."""
    sent: list[str] = []

    @aibox.tool
    def send(to: str) -> str:
        """Send."""
        sent.append(to)
        return "sent"

    model = ScriptedBackend(call("send", {"to": "<EMAIL_000000>"}), "I could not reach <EMAIL_000000>.")
    guardrail = aibox.Guardrail(Policy.profile("balanced"))
    agent = aibox.Agent("x", router=model, tools=[send], guardrail=guardrail)
    reply = await agent.run("write to eva@example.org", scope=scope)
    assert not sent
    assert "stands for nothing here" in reply.tool_calls[0].text
    assert reply.text == "I could not reach [unknown e-mail address]."
