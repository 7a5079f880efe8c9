"""The same agent against a real vLLM server on this machine's CPU: chat, stream, and a required tool call."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import aibox
from aibox.agents.events import Reply, TextDelta
from aibox.types import Scope

pytestmark = [pytest.mark.anyio, pytest.mark.live, pytest.mark.loopback]

PORT = 8190
START_S = 600
SCOPE = Scope(tenant="live", user="eva")


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One server for all. `vllm serve` asks for metadata that this wheel lacks; the module entry does not."""
    log = tmp_path_factory.mktemp("vllm") / "server.log"
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    command = [
        os.environ["AIBOX_TEST_VLLM_PYTHON"], "-m", "vllm.entrypoints.openai.api_server",
        "--model", os.environ["AIBOX_TEST_VLLM_MODEL"], "--served-model-name", "smollm2",
        "--host", "127.0.0.1", "--port", str(PORT), "--max-model-len", "2048",
        "--enable-auto-tool-choice", "--tool-call-parser", "hermes",
    ]  # fmt: skip
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out, env=env) as server:
        try:
            _wait(server, log)
            yield f"http://127.0.0.1:{PORT}/v1"
        finally:
            server.terminate()
            try:
                server.wait(timeout=30)
            except subprocess.TimeoutExpired:
                server.kill()


def _wait(server: subprocess.Popen[bytes], log: Path) -> None:
    backend = aibox.VLLM(f"http://127.0.0.1:{PORT}/v1")
    deadline = time.monotonic() + START_S
    while not aibox.run_sync(backend.health()).ok:
        tail = log.read_text(errors="replace")[-2000:]
        assert server.poll() is None, f"vLLM ended: {tail}"
        assert time.monotonic() < deadline, f"vLLM is not ready after {START_S} s: {tail}"
        time.sleep(1)
    aibox.run_sync(backend.close())


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
