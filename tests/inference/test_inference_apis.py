"""Completions, embeddings and responses through the Router, and an upstream that misbehaves in every way we know."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal

import pytest
from aiohttp import web
from inference_parts import Upstream
from waiting import until

from aibox.chat import ChatRequest, assemble
from aibox.errors import BackendError, ConfigError
from aibox.inference.configured import make_backend
from aibox.inference.embeddings import Embeddings
from aibox.inference.openai_compatible import OpenAICompatible
from aibox.inference.router import Router
from aibox.inference.vllm import VLLM
from aibox.settings import BackendSettings
from aibox.testing.scripted import ScriptedBackend
from aibox.types import Scope

pytestmark = [pytest.mark.anyio, pytest.mark.loopback]
HI: list[Any] = [{"role": "user", "content": "Hi"}]
CHUNK = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
DONE = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


@pytest.fixture
async def router(upstream: Upstream) -> AsyncIterator[Router]:
    router = Router(OpenAICompatible(upstream.url, name="server", timeout_s=10))
    yield router
    await router.close()


# APIs.

ANSWERS: dict[str, Any] = {
    "/v1/completions": {"id": "c", "object": "text_completion", "created": 1, "model": "m",
                        "choices": [{"index": 0, "text": "Paris", "finish_reason": "stop", "logprobs": None}],
                        "usage": {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}},
    "/v1/embeddings": {"object": "list", "model": "m",
                       "data": [{"object": "embedding", "index": 0, "embedding": [1.0]}],
                       "usage": {"prompt_tokens": 2, "total_tokens": 2}},
    "/v1/responses": {"id": "r", "object": "response", "created_at": 1, "model": "m", "status": "completed",
                      "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
                      "output": [{"type": "message", "id": "x", "role": "assistant", "status": "completed",
                                  "content": [{"type": "output_text", "text": "Paris", "annotations": []}]}],
                      "usage": {"input_tokens": 2, "output_tokens": 1, "total_tokens": 3,
                                "input_tokens_details": {"cached_tokens": 1},
                                "output_tokens_details": {"reasoning_tokens": 0}}},
}  # fmt: skip


async def test_the_openai_client_has_the_other_apis_too(upstream: Upstream, scope: Scope) -> None:
    """The client's own objects come back, unknown fields reach the server, and each call is counted."""
    calls: list[Any] = []
    router = Router(OpenAICompatible(upstream.url, name="server"), on_call=calls.append)
    client = router.openai(scope=scope)
    upstream.other = ANSWERS
    assert (await client.completions.create(model="m", prompt="France?")).choices[0].text == "Paris"
    assert (await client.embeddings.create(model="m", input="x", encoding_format="float")).data[0].embedding == [1.0]
    answer = await client.responses.create(model="m", input="France?", extra_body={"top_k": 3})
    assert answer.output_text == "Paris"
    assert json.loads(upstream.bodies[-1])["top_k"] == 3
    assert [(call.usage.input_tokens, call.usage.output_tokens) for call in calls] == [(2, 1), (2, 0), (2, 1)]
    assert calls[2].usage.cached_tokens == 1
    await router.close()


async def test_streamed_responses_and_completions_end_where_the_server_says(
    upstream: Upstream, router: Router, scope: Scope
) -> None:
    """Events of the Responses API arrive in order; one that breaks off is an error."""
    client = router.openai(scope=scope)
    events = [
        {"type": "response.output_text.delta", "delta": "Par", "item_id": "x", "output_index": 0, "content_index": 0,
         "sequence_number": 1, "logprobs": []},
        {"type": "response.completed", "response": ANSWERS["/v1/responses"], "sequence_number": 2},
    ]  # fmt: skip
    parts = [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events]
    upstream.other = {"/v1/responses": upstream.sends(*parts)}
    got = [event.type async for event in await client.responses.create(model="m", input="x", stream=True)]
    assert got == ["response.output_text.delta", "response.completed"]
    upstream.other = {"/v1/responses": upstream.sends(parts[0])}
    with pytest.raises(BackendError, match="broke off"):
        [_ async for _ in await client.responses.create(model="m", input="x", stream=True)]
    text = b'data: {"choices":[{"index":0,"text":"a","finish_reason":null}]}\n\n'
    upstream.other = {"/v1/completions": upstream.sends(text, text, b"data: [DONE]\n\n")}
    stream = await client.completions.create(model="m", prompt="x", stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "aa"


async def test_what_is_empty_or_has_no_stream_is_refused(router: Router, scope: Scope) -> None:
    """Nothing is sent for nothing."""
    with pytest.raises(ConfigError, match="`prompt` is empty"):
        await router.post("completions", ChatRequest({"prompt": ""}), scope=scope)
    with pytest.raises(ConfigError, match="no stream"):
        [_ async for _ in router.events("embeddings", ChatRequest({"input": "x"}), scope=scope)]


class Letters:
    """An embedder that counts letters."""

    name = "letters"
    dimensions = 2

    async def embed(self, texts: Sequence[str], *, kind: Literal["query", "passage"]) -> list[list[float]]:
        return [[text.count("a") + 0.5, float(kind == "query")] for text in texts]


async def test_an_embedder_of_this_process_serves_the_embeddings_api(scope: Scope) -> None:
    """By role, in the client's base64 and in floats, one vector a text; it does nothing else."""
    router = Router(ScriptedBackend("x"), Embeddings(Letters()))
    assert await router.embed(["aa", "b"], scope=scope) == [[2.5, 0.0], [0.5, 0.0]]
    client = router.openai(scope=scope)
    made = await client.embeddings.create(model="letters", input="aa", extra_body={"input_type": "query"})
    assert made.data[0].embedding == [2.5, 1.0]
    for wrong in ([1, 2], {"a": 1}):
        with pytest.raises(ConfigError, match="`input`"):
            await router.post("embeddings", ChatRequest({"model": "letters", "input": wrong}), scope=scope)
    with pytest.raises(ConfigError, match="cannot do what is asked: chat"):
        await router.complete(HI, model="letters", scope=scope)


async def test_a_backend_of_another_package_is_found_by_its_entry_point(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, scope: Scope
) -> None:
    """Its kind is the entry point's name; what nobody brings is an error that lists what there is."""
    (tmp_path / "brought_backend.py").write_text(
        "from aibox.testing import ScriptedBackend\n"
        "def make(table):\n    return ScriptedBackend(table.options['says'], name=table.name)\n"
    )
    info = tmp_path / "brought-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: brought\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[aibox.backends]\nbrought = brought_backend:make\nlost = nowhere:make\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    backend = make_backend(BackendSettings(kind="brought", name="b", options={"says": "hello"}))
    assert (await Router(backend).complete(HI, scope=scope)).text == "hello"
    with pytest.raises(ConfigError, match="cannot be loaded"):
        make_backend(BackendSettings(kind="lost"))
    with pytest.raises(ValueError, match=r"'other'.*brought"):
        BackendSettings(kind="other")


# vLLM.

METRICS = """# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 3.0
vllm:num_requests_waiting{engine="1",model_name="m"} 1.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 9.5e-01
vllm:engine_sleep_state{engine="0",sleep_state="awake"} 1.0
vllm:engine_sleep_state{engine="0",sleep_state="weights_offloaded"} 0.0
"""


async def test_vllm_says_how_busy_it_is_and_whether_it_sleeps(upstream: Upstream) -> None:
    """Waiting requests of all engines, the fullest cache; a sleeping server gets no traffic. Any number is survived."""
    backend = VLLM(upstream.url, name="v")
    upstream.other = {"/metrics": METRICS}
    health = await backend.health()
    assert (health.ok, health.waiting, health.cache_used) == (True, 4, 0.95)
    upstream.other = {"/metrics": METRICS.replace('offloaded"} 0.0', 'offloaded"} 1.0')}
    health = await backend.health()
    assert not health.ok
    assert "asleep" in health.detail
    upstream.other = {"/metrics": METRICS.replace(" 3.0", " 1e999").replace(" 1.0", " 1.2.3").replace("0.25", "-+e")}
    health = await backend.health()
    assert (health.ok, health.waiting, health.cache_used) == (True, 10**9, 0.95)
    await backend.close()


async def test_tenants_cannot_time_each_others_prompts(upstream: Upstream, scope: Scope, other_scope: Scope) -> None:
    """Every request has the salt of its tenant: equal within, different between, never the caller's own choice."""
    router = Router(VLLM(upstream.url, name="v", salt_secret=b"s" * 32))
    for who in (scope, other_scope, Scope(tenant=scope.tenant, user="other")):
        await router.complete(HI, model="m", scope=who, cache_salt="mine")
    [_ async for _ in router.stream(HI, model="m", scope=scope)]
    acme, rival, again, streamed = (json.loads(body)["cache_salt"] for body in upstream.bodies)
    assert acme == again == streamed
    assert len({acme, rival, "mine"}) == 3
    assert len(acme) == 64
    await router.close()


# Faults. In each the caller gets the right answer or the right error, and nothing is left behind.


def slow_headers(_: Upstream) -> Any:
    async def answer(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(30)
        return web.Response()

    return answer


def busy_once(upstream: Upstream) -> Any:
    async def answer(request: web.Request) -> web.StreamResponse:
        if len(upstream.bodies) == 1:
            return web.json_response({"error": {"message": "busy"}}, status=429, headers={"Retry-After": "0"})
        return await upstream.well(request)

    return answer


def stalls(upstream: Upstream) -> Any:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(CHUNK)
        await asyncio.sleep(30)
        return response

    return answer


def many_chunks(upstream: Upstream) -> Any:
    return upstream.sends(*[CHUNK * 500] * 20, DONE)


def huge(upstream: Upstream) -> Any:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(50):
            await response.write(b" " * (1 << 20))
        return response

    return answer


FAULTS: list[tuple[Any, bool, str, str]] = [
    (slow_headers, False, "", "silent for too long"),
    (slow_headers, True, "", "silent for too long"),
    (stalls, True, "a", "silent for too long"),
    (busy_once, False, "Hello there.", ""),
    (busy_once, True, "Hello thére 😀.", ""),
    (many_chunks, True, "a" * 10_000, ""),
    (huge, False, "", "more than 32768 KiB"),
    (lambda u: u.sends(CHUNK, then="reset"), True, "a", "broke"),
    (lambda u: u.sends(b'{"choices": [{"mess'), False, "", "did not answer in JSON"),
    (lambda u: u.says({"error": "no"}, status=500), False, "", "answered 500"),
    (lambda u: u.says({"error": "no"}, status=503, headers={"Retry-After": "9999"}), True, "", "answered 503"),
]


@pytest.mark.parametrize(("fault", "stream", "text", "error"), FAULTS, ids=range(len(FAULTS)))
async def test_a_fault_of_the_server_is_the_right_answer_or_the_right_error(
    upstream: Upstream, scope: Scope, fault: Any, stream: bool, text: str, error: str
) -> None:
    """What was said is whole or an error says why not; no task and no open connection is left."""
    before = asyncio.all_tasks()
    timeout_s = 0.3 if "silent" in error else 10
    router = Router(OpenAICompatible(upstream.url, name="server", timeout_s=timeout_s))
    upstream.answer = fault(upstream)
    said: list[str] = []
    failed = ""
    try:
        if stream:
            async for chunk in router.stream(HI, model="m", scope=scope):
                said.append(chunk.text)
        else:
            said.append((await router.complete(HI, model="m", scope=scope)).text)
    except BackendError as caught:
        failed = str(caught)
    assert "".join(said) == text
    assert bool(failed) == bool(error)
    assert error in failed
    await router.close()
    await until(
        lambda: not {task for task in asyncio.all_tasks() - before if "aiohttp/web" not in repr(task.get_coro())}
    )


async def test_a_stream_of_ten_thousand_chunks_adds_up(upstream: Upstream, router: Router, scope: Scope) -> None:
    """None is lost, doubled or moved, however the network cut them."""
    parts = [b'data: {"choices":[{"index":0,"delta":{"content":"%d,"}}]}\n\n' % n for n in range(10_000)]
    raw = b"".join(parts) + DONE
    size = math.ceil(len(raw) / 37)
    upstream.answer = upstream.sends(*(raw[i : i + size] for i in range(0, len(raw), size)))
    chunks = [chunk async for chunk in router.stream(HI, model="m", scope=scope)]
    assert assemble(chunks).text == "".join(f"{n}," for n in range(10_000))
