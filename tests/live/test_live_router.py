"""One Router in front of two real vLLM servers of one model, the second started and stopped by aibox itself."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

import aibox
from aibox.errors import BackendError
from aibox.inference.accounts import Call
from aibox.inference.launch import LaunchedVLLM, launch
from aibox.inference.router import Router
from aibox.types import Scope

pytestmark = [pytest.mark.anyio, pytest.mark.live, pytest.mark.loopback]
SCOPE = Scope(tenant="live", user="eva")
MODEL = "smollm2"


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def second(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LaunchedVLLM]:
    """A server of our own, by `launch`."""
    backend = await launch(
        os.environ["AIBOX_TEST_VLLM_MODEL"],
        name="second",
        served_name=MODEL,
        python=os.environ["AIBOX_TEST_VLLM_PYTHON"],
        log=tmp_path_factory.mktemp("second") / "log",
        env={"VLLM_CPU_KVCACHE_SPACE": "1"},
        options={"max_model_len": 2048, "enforce_eager": True},
        ready_s=600,
    )
    yield backend
    await backend.close()


async def metric(backend: aibox.VLLM, name: str) -> float:
    text = await backend._wire.ask(backend._root() + "/metrics")
    return sum(float(v) for v in re.findall(rf"^{name}(?:{{[^}}]*}})? ([0-9.e+-]+)$", text, re.MULTILINE))


async def until(backend: aibox.VLLM, running: float) -> None:
    for _ in range(100):
        if await metric(backend, "vllm:num_requests_running") == running:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"never {running} running")


async def test_two_servers_share_the_calls_and_a_conversation_stays(vllm: str, second: LaunchedVLLM) -> None:
    """Many conversations reach both; the turns of one reach the same, and its prefix is found in the cache there."""
    calls: list[Call] = []
    first = aibox.VLLM(vllm, name="first")
    router = Router(first, second, on_call=calls.append)
    asked = [f"Tell me about the number {number}." for number in range(12)]
    await asyncio.gather(*(router.complete(q, model=MODEL, scope=SCOPE, max_tokens=4) for q in asked))
    spread = Counter(call.backend for call in calls)
    assert set(spread) == {"first", "second"}
    calls.clear()
    # Another router, which has not seen the crowd: affinity gives way to load, and its view of load is seconds old.
    router = Router(first, second, on_call=calls.append)
    talk: list[dict[str, Any]] = [{"role": "user", "content": "Remember this list: " + ", ".join(map(str, range(150)))}]
    before = {b.name: await metric(b, "vllm:prefix_cache_hits_total") for b in (first, second)}
    for _ in range(3):
        answer = await router.complete(talk, model=MODEL, scope=SCOPE, max_tokens=8)
        talk += [{"role": "assistant", "content": answer.text}, {"role": "user", "content": "Go on."}]
    (home,) = {call.backend for call in calls}
    backend = {"first": first, "second": second}[home]
    assert await metric(backend, "vllm:prefix_cache_hits_total") > before[home] + 500
    await first.close()


async def test_another_tenant_does_not_share_the_cache(second: LaunchedVLLM) -> None:
    """The very same prompt is a hit for its own tenant and a miss for another: `cache_salt` holds."""
    router = Router(second)
    prompt = "A secret prompt: " + " ".join(f"word{n}" for n in range(200))

    async def hits(tenant: str) -> float:
        before = await metric(second, "vllm:prefix_cache_hits_total")
        await router.complete(prompt, model=MODEL, scope=Scope(tenant=tenant, user="x"), max_tokens=1)
        return await metric(second, "vllm:prefix_cache_hits_total") - before

    assert await hits("one") == 0
    assert await hits("one") > 300
    assert await hits("two") < 64


@pytest.mark.parametrize("how", ["cancel", "leave"])
async def test_cancelling_stops_the_server(second: LaunchedVLLM, how: str) -> None:
    """vLLM's count of running requests goes back to zero as soon as nobody waits for the answer."""
    router = Router(second)
    if how == "cancel":
        asked = router.complete("Count to a thousand.", model=MODEL, scope=SCOPE, max_tokens=1900, ignore_eos=True)
        task = asyncio.create_task(asked)
        await until(second, 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    else:
        stream: Any = router.stream("Count.", model=MODEL, scope=SCOPE, max_tokens=1900, ignore_eos=True)
        await anext(stream)
        await until(second, 1)
        await stream.aclose()
    await until(second, 0)


async def test_a_server_that_pauses_in_the_middle_of_a_stream(second: LaunchedVLLM) -> None:
    """Stopped as a whole nothing comes and nothing breaks; when it goes on, so does the stream, to its end."""
    stream: Any = Router(second).stream("Count.", model=MODEL, scope=SCOPE, max_tokens=300, ignore_eos=True)
    got = [await anext(stream)]

    async def read() -> None:
        got.extend([piece async for piece in stream])

    pid = second._server.pid
    assert pid is not None
    reading = asyncio.create_task(read())
    os.killpg(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(3)
        assert not reading.done()
    finally:
        os.killpg(pid, signal.SIGCONT)
    await reading
    assert len(got) > 100
    await until(second, 0)


async def test_the_other_apis_are_served(second: LaunchedVLLM) -> None:
    """Completions and Responses, whole and streamed, by the client, and each is counted."""
    calls: list[Call] = []
    client = Router(second, on_call=calls.append).openai(scope=SCOPE)
    text = await client.completions.create(model=MODEL, prompt="The capital of France is", max_tokens=4, temperature=0)
    assert "Paris" in text.choices[0].text
    answer = await client.responses.create(
        model=MODEL, input="What is the capital of France?", max_output_tokens=32, temperature=0
    )
    assert "Paris" in answer.output_text
    streamed = ""
    async for event in await client.responses.create(
        model=MODEL, input="What is the capital of France?", max_output_tokens=32, temperature=0, stream=True
    ):
        streamed += event.delta if event.type == "response.output_text.delta" else ""
    assert "Paris" in streamed
    assert all(call.counted and call.usage.output_tokens for call in calls)


async def test_a_request_for_too_much_is_the_servers_own_error(second: LaunchedVLLM) -> None:
    """A prompt longer than the context is not retried, and says so."""
    with pytest.raises(BackendError, match="answered 400") as caught:
        await Router(second).complete("word " * 3000, model=MODEL, scope=SCOPE, max_tokens=4)
    assert not caught.value.retryable


async def test_a_dead_server_loses_no_call_and_comes_back_by_itself(vllm: str, second: LaunchedVLLM) -> None:
    """Killed with calls under way: those that had not begun go to the other; it is started again and gets traffic."""
    first = aibox.VLLM(vllm, name="first")
    calls: list[Call] = []
    router = Router(first, second, on_call=calls.append, check_s=1.0)
    await router.models()
    pid = second._server.pid
    assert pid is not None
    stream: Any = Router(second).stream("Count.", model=MODEL, scope=SCOPE, max_tokens=1900, ignore_eos=True)
    await anext(stream)
    os.killpg(pid, signal.SIGKILL)
    with pytest.raises(BackendError):
        _ = [piece async for piece in stream]
    asked = [f"Say the number {number}." for number in range(10)]
    answers = await asyncio.gather(*(router.complete(q, model=MODEL, scope=SCOPE, max_tokens=4) for q in asked))
    assert {answer.backend for answer in answers} == {"first"}
    # Nothing is asked meanwhile: a worker of vLLM that has just answered spins on its core, which both have, and one
    # that starts beside it can be given next to nothing of it for minutes.
    for _ in range(300):
        if (await second.health()).ok:
            break
        await asyncio.sleep(1)
    for number in range(100):
        await router.complete(f"Say {number}.", model=MODEL, scope=SCOPE, max_tokens=1)
        if number % 5 == 0 and any(call.backend == "second" and call.outcome == "answered" for call in calls):
            break
        await asyncio.sleep(1)
    assert any(call.backend == "second" and call.outcome == "answered" for call in calls)
    assert second._server.restarts == 1
    await first.close()
