"""The same agent against a real vLLM server on this machine's CPU: chat, stream, and a required tool call."""

from __future__ import annotations

from pathlib import Path

import pytest

import aibox
from aibox.agents.events import Reply, TextDelta
from aibox.types import Scope

pytestmark = [pytest.mark.anyio, pytest.mark.live, pytest.mark.loopback]

SCOPE = Scope(tenant="live", user="eva")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@aibox.tool
def capital(country: str) -> str:
    """The capital of a country."""
    return {"france": "Paris"}.get(country.strip('"').lower(), "unknown")


async def test_models_say_what_the_server_says(vllm: str) -> None:
    """The id, the context length and where the weights' name comes from are the server's own words."""
    router = aibox.Router(aibox.VLLM(vllm))
    (info,) = await router.models()
    assert (info.id.removeprefix("vllm/"), info.context_tokens, info.weights.known) == ("smollm2", 2048, "declared")
    await router.close()


async def test_an_agent_chats(vllm: str, tmp_path: Path) -> None:
    """A turn through every part gives a real answer and a receipt that holds."""
    async with aibox.AuditChain(tmp_path / "audit.db") as chain:
        router = aibox.Router(aibox.VLLM(vllm), audit=chain)
        guardrail = aibox.Guardrail(aibox.Policy.profile("balanced"))
        agent = aibox.Agent("Answer in one sentence.", router=router, guardrail=guardrail, audit=chain,
                            settings={"temperature": 0, "max_tokens": 32})  # fmt: skip
        reply = await agent.run("What is the capital of France?", scope=SCOPE)
        await router.close()
    assert "Paris" in reply.text
    assert reply.usage.output_tokens > 0
    assert reply.receipt is not None
    reply.receipt.verify()


async def test_an_agent_streams(vllm: str) -> None:
    """The pieces add up to the reply, and usage is known although it was streamed."""
    router = aibox.Router(aibox.VLLM(vllm))
    agent = aibox.Agent("Answer briefly.", router=router, settings={"temperature": 0, "max_tokens": 48})
    events = [event async for event in agent.stream("Name three rivers.", scope=SCOPE)]
    await router.close()
    reply = events[-1]
    assert isinstance(reply, Reply)
    assert "".join(e.text for e in events if isinstance(e, TextDelta)) == reply.text != ""
    assert reply.usage.output_tokens > 0


@pytest.mark.parametrize("native", [False, True], ids=["emulated", "native"])
async def test_a_required_tool_is_called(native: bool, vllm: str) -> None:
    """A required call comes, by the server's own constrained decoding and by the envelope that emulates it."""
    router = aibox.Router(aibox.VLLM(vllm, tools=native))
    agent = aibox.Agent("Use the tool.", router=router, tools=[capital], settings={"temperature": 0, "max_tokens": 64})
    reply = await agent.run("What is the capital of France?", scope=SCOPE, tool_choice="required")
    await router.close()
    assert [call.name for call in reply.tool_calls] == ["capital"]
    if not native:
        assert reply.tool_calls[0].ok
