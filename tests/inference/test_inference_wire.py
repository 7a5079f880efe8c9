"""The wire against a real server on loopback: what it sends, what it understands, and how it fails."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inference_parts import Upstream
from waiting import until

from aibox.chat import ChatRequest, Chunk, Completion, ToolCall, assemble
from aibox.errors import BackendError, ConfigError
from aibox.inference.addresses import is_inside
from aibox.inference.openai_compatible import OpenAICompatible
from aibox.inference.openrouter import OpenRouter
from aibox.inference.router import Router
from aibox.inference.sse import MAX_EVENT_BYTES, Events
from aibox.inference.vllm import VLLM
from aibox.sync import run_sync
from aibox.testing.backend_contract import BackendContract
from aibox.types import Scope

REQUEST = ChatRequest({"model": "m", "messages": [{"role": "user", "content": "Hi"}]})
CHUNK = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
KEY = "sk-very-secret"


@pytest.mark.loopback
class TestOpenAICompatible(BackendContract):
    @pytest.fixture
    async def backend(self, upstream: Upstream) -> AsyncIterator[OpenAICompatible]:
        backend = OpenAICompatible(upstream.url, name="server")
        yield backend
        await backend.close()


@pytest.mark.loopback
class TestVLLM(BackendContract):
    @pytest.fixture
    async def backend(self, upstream: Upstream) -> AsyncIterator[VLLM]:
        backend = VLLM(upstream.url, name="vllm")
        yield backend
        await backend.close()


@pytest.mark.loopback
class TestOpenRouter(BackendContract):
    @pytest.fixture
    async def backend(self, upstream: Upstream) -> AsyncIterator[OpenRouter]:
        backend = OpenRouter(api_key="sk-x", models=["a/b"], base_url=upstream.url)
        yield backend
        await backend.close()


@pytest.mark.loopback
class TestRouterOfReplicas(BackendContract):
    @pytest.fixture
    async def backend(self, upstream: Upstream) -> AsyncIterator[Router]:
        router = Router(VLLM(upstream.url, name="one"), VLLM(upstream.url, name="two"))
        yield router
        await router.close()


@pytest.fixture
async def server(upstream: Upstream) -> AsyncIterator[OpenAICompatible]:
    backend = OpenAICompatible(upstream.url, name="server", api_key=KEY, timeout_s=10)
    yield backend
    await backend.close()


async def streamed(backend: OpenAICompatible, scope: Scope) -> str:
    return assemble([chunk async for chunk in backend.stream(REQUEST, scope=scope)]).text


@pytest.mark.anyio
@pytest.mark.loopback
async def test_the_body_goes_over_as_it_is_and_the_key_in_its_header(
    upstream: Upstream, server: OpenAICompatible, scope: Scope
) -> None:
    """Fields that aibox does not know reach the server, and nothing of the scope does."""
    await server.complete(REQUEST.with_fields(cache_salt="abc", top_k=3), scope=scope)
    assert json.loads(upstream.bodies[0]) == {**REQUEST.body, "cache_salt": "abc", "top_k": 3}
    assert upstream.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert not any(scope.tenant in str(pair) for pair in upstream.headers[0].items())


@pytest.mark.anyio
@pytest.mark.loopback
@pytest.mark.parametrize(
    ("status", "retryable", "timeout"),
    [(400, False, False), (401, False, False), (404, False, False), (429, True, False), (500, True, False),
     (503, True, False), (504, True, True)],
)  # fmt: skip
async def test_a_refusal_is_a_backend_error_in_the_servers_words(
    upstream: Upstream, server: OpenAICompatible, scope: Scope, status: int, retryable: bool, timeout: bool
) -> None:
    """The status decides whether to try again; the message is the server's, short, and never shows the key."""
    upstream.answer = upstream.says({"error": {"message": f"no {KEY} " + "x" * 5000}}, status=status)
    for call in (server.complete(REQUEST, scope=scope), streamed(server, scope)):
        with pytest.raises(BackendError, match=f"server answered {status}: no \\[key\\]") as caught:
            await call
        assert (caught.value.retryable, caught.value.timeout) == (retryable, timeout)
        assert KEY not in str(caught.value)
        assert len(caught.value.message) < 400


@pytest.mark.anyio
@pytest.mark.loopback
@pytest.mark.parametrize(
    ("parts", "then", "says"),
    [
        ([b'{"choices": [{"mess'], "end", "did not answer in JSON"),
        ([b"\xff\xfe"], "end", "did not answer in JSON"),
        ([b"[1]"], "end", "did not answer in JSON"),
        ([b"{}"], "end", "without a choice"),
        ([b'{"error": {"message": "engine is dead"}}'], "end", "engine is dead"),
        ([b'{"choices": '], "reset", "broke"),
    ],
)
async def test_a_broken_answer_is_never_an_answer(
    upstream: Upstream, server: OpenAICompatible, scope: Scope, parts: list[bytes], then: str, says: str
) -> None:
    """Half a body, no JSON, no choice, or an error under status 200 is a BackendError."""
    upstream.answer = upstream.sends(*parts, then=then)
    with pytest.raises(BackendError, match=says):
        await server.complete(REQUEST, scope=scope)


@pytest.mark.anyio
@pytest.mark.loopback
@pytest.mark.parametrize(
    ("parts", "then", "says"),
    [
        ([CHUNK], "end", "broke off in the middle"),
        ([CHUNK], "reset", "broke"),
        ([], "end", "broke off in the middle"),
        ([CHUNK, b'data: {"error": {"message": "out of memory"}}\n\n'], "end", "out of memory"),
        ([CHUNK, b"data: {nonsense\n\n"], "end", "did not answer in JSON"),
        ([CHUNK, b"data: " + b"x" * (MAX_EVENT_BYTES + 10)], "end", "more than 4 MiB"),
    ],
)
async def test_a_stream_that_breaks_says_so(
    upstream: Upstream, server: OpenAICompatible, scope: Scope, parts: list[bytes], then: str, says: str
) -> None:
    """What did not come to its end is not taken for an answer, however it ended."""
    upstream.answer = upstream.sends(*parts, then=then)
    with pytest.raises(BackendError, match=says):
        await streamed(server, scope)


@pytest.mark.anyio
@pytest.mark.loopback
@pytest.mark.parametrize(
    "parts",
    [
        [CHUNK, CHUNK, b"data: [DONE]\n\n"],
        [b": a comment\n\nevent: x\n" + CHUNK, CHUNK.replace(b"\n", b"\r\n"), b"data:[DONE]\r\n\r\n"],
        [*(bytes([byte]) for byte in CHUNK[:40]), CHUNK[40:], CHUNK, b"data: [DONE]\n\n"],
        [CHUNK, CHUNK, b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'],
    ],
)
async def test_a_stream_is_understood_however_it_is_cut(
    upstream: Upstream, server: OpenAICompatible, scope: Scope, parts: list[bytes]
) -> None:
    """Comments, other fields, CRLF, single bytes and a missing [DONE] after the end are all the same stream."""
    upstream.answer = upstream.sends(*parts)
    assert await streamed(server, scope) == "aa"


@pytest.mark.anyio
@pytest.mark.loopback
@pytest.mark.parametrize("proxied", [False, True], ids=["ours", "aiohttp"])
@pytest.mark.parametrize("streams", [False, True], ids=["whole", "stream"])
async def test_an_answer_that_drips_ends_when_its_time_is_over(
    upstream: Upstream, scope: Scope, monkeypatch: pytest.MonkeyPatch, proxied: bool, streams: bool
) -> None:
    """A server that is never silent and never done is left after `total_s`, and hears of it."""
    if proxied:
        monkeypatch.setattr("aibox.inference.full.serves", lambda *_: False)
    upstream.answer = upstream.sends(CHUNK, then="wait")
    backend = OpenAICompatible(upstream.url, timeout_s=30, total_s=0.3)
    with pytest.raises(BackendError, match="took longer than") as caught:
        await asyncio.wait_for(streamed(backend, scope) if streams else backend.complete(REQUEST, scope=scope), 60)
    assert caught.value.timeout
    await until(upstream.gone.is_set)
    await backend.close()


@pytest.mark.anyio
@pytest.mark.loopback
@pytest.mark.parametrize("proxied", [False, True], ids=["ours", "aiohttp"])
async def test_a_stream_that_nobody_takes_ends_when_its_time_is_over(
    upstream: Upstream, scope: Scope, monkeypatch: pytest.MonkeyPatch, proxied: bool
) -> None:
    """A reader who takes nothing does not keep a model server busy for longer than `total_s`."""
    if proxied:
        monkeypatch.setattr("aibox.inference.full.serves", lambda *_: False)
    upstream.answer = upstream.sends(CHUNK, then="wait")
    backend = OpenAICompatible(upstream.url, timeout_s=30, total_s=0.3)

    async def never(_: list[Chunk]) -> None:
        await asyncio.Event().wait()

    with pytest.raises(BackendError, match="took longer than") as caught:
        await asyncio.wait_for(backend.stream_to("chat", REQUEST, never, scope=scope), 60)
    assert caught.value.timeout
    await until(upstream.gone.is_set)
    await backend.close()


@pytest.mark.anyio
@pytest.mark.loopback
async def test_silence_ends_in_a_timeout(upstream: Upstream, scope: Scope) -> None:
    """A server that says nothing, before its first byte or in the middle, is given up."""

    async def silent(request: Any) -> Any:
        await asyncio.sleep(30)

    backend = OpenAICompatible(upstream.url, timeout_s=0.1)
    upstream.answer = silent
    with pytest.raises(BackendError, match="silent for too long") as caught:
        await backend.complete(REQUEST, scope=scope)
    assert caught.value.timeout
    assert caught.value.retryable
    await backend.close()


@pytest.mark.anyio
@pytest.mark.loopback
async def test_a_redirect_is_refused(upstream: Upstream, server: OpenAICompatible, scope: Scope) -> None:
    """A server cannot send the text on to somewhere else."""
    upstream.answer = upstream.says({}, status=307, headers={"Location": upstream.url + "/elsewhere"})
    with pytest.raises(BackendError, match="redirect"):
        await server.complete(REQUEST, scope=scope)


@pytest.mark.anyio
@pytest.mark.loopback
async def test_nobody_listening_is_said(scope: Scope) -> None:
    """A port without a server gives the address and the question whether it runs; health says it without raising."""
    backend = VLLM("http://127.0.0.1:9/v1")
    with pytest.raises(BackendError, match=r"cannot be reached at http://127\.0\.0\.1:9") as caught:
        await backend.complete(REQUEST, scope=scope)
    assert caught.value.retryable
    health = await backend.health()
    assert not health.ok
    assert "cannot be reached" in health.detail
    await backend.close()


@pytest.mark.anyio
@pytest.mark.loopback
@pytest.mark.parametrize("how", ["leave", "cancel"])
async def test_whoever_goes_closes_the_call_upstream(
    upstream: Upstream, server: OpenAICompatible, scope: Scope, how: str
) -> None:
    """The server hears at once that nobody waits for the answer any more."""
    upstream.answer = upstream.sends(CHUNK, then="wait")
    stream: Any = server.stream(REQUEST, scope=scope)
    assert (await anext(stream)).text == "a"
    if how == "leave":
        await stream.aclose()
    else:
        task = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await asyncio.wait_for(upstream.gone.wait(), 60)


@pytest.mark.anyio
@pytest.mark.loopback
async def test_nothing_is_left_behind(upstream: Upstream, scope: Scope) -> None:
    """After answers, failures and streams left early, closing leaves no task."""
    before = asyncio.all_tasks()
    backend = OpenAICompatible(upstream.url)
    await backend.complete(REQUEST, scope=scope)
    await anext(aiter(backend.stream(REQUEST, scope=scope)))
    upstream.answer = upstream.sends(CHUNK, then="reset")
    with pytest.raises(BackendError):
        await streamed(backend, scope)
    await backend.close()
    await until(
        lambda: not {task for task in asyncio.all_tasks() - before if "aiohttp/web" not in repr(task.get_coro())}
    )


@pytest.mark.anyio
@pytest.mark.loopback
async def test_one_backend_serves_several_event_loops(upstream: Upstream, scope: Scope) -> None:
    """Each loop has a pool of its own, and one close ends them all."""
    backend = OpenAICompatible(upstream.url)
    await backend.complete(REQUEST, scope=scope)
    there = await asyncio.to_thread(lambda: run_sync(backend.complete(REQUEST, scope=scope)))
    assert there.text == "Hello there."
    await backend.close()


@pytest.mark.anyio
@pytest.mark.loopback
async def test_vllm_says_how_long_its_context_is(upstream: Upstream) -> None:
    """What vLLM lists becomes ModelInfo, with weights that the server declares; its health route lies at the root."""
    backend = VLLM(upstream.url, name="v")
    (info,) = await backend.models()
    assert (info.id, info.backend, info.context_tokens, info.weights.known) == ("m", "v", 8192, "declared")
    assert (await backend.health()).ok
    await backend.close()


@pytest.mark.parametrize(
    ("host", "inside"),
    [
        ("127.0.0.1", True), ("10.1.2.3", True), ("172.31.0.1", True), ("192.168.7.7", True), ("169.254.1.1", True),
        ("::1", True), ("fd00::1", True), ("fe80::1%eth0", True), ("::ffff:10.0.0.1", True), ("localhost", True),
        ("vllm", True), ("gpu-1.lan", True), ("llm.ml.svc.cluster.local", True), ("box.home.arpa", True),
        ("8.8.8.8", False), ("172.32.0.1", False), ("::ffff:8.8.8.8", False), ("2001:4860::1", False),
        ("134744072", False), ("0x08080808", False), ("0.0.0.0", False), ("100.64.0.1", False),
        ("api.example.com", False), ("local", True), ("example.com.", False), ("evil.com/.local", False),
        ("10.0.0.1.example.com", False), ("mylan", True), ("notlocal.xlocal", False), ("", False),
    ],
)  # fmt: skip
def test_in_doubt_a_host_is_outside(host: str, inside: bool) -> None:
    """Only addresses and names that mean the operator's own network are inside, numbers in disguise are not."""
    assert is_inside(host) is inside


def test_an_operator_may_know_better() -> None:
    """An explicit answer wins over the rule, in both directions."""
    assert OpenAICompatible("https://llm.example.com/v1", external=False).external is False
    assert OpenAICompatible("http://127.0.0.1:8000/v1", external=True).external is True


@pytest.mark.parametrize(
    "url", ["", "vllm:8000", "ftp://x/v1", "http://", "http://u:p@x/v1", "http://x/v1?k=1", "http://x:99999/v1", "http://[x"]
)  # fmt: skip
def test_a_url_that_cannot_be_right_is_refused(url: str) -> None:
    """Mistakes are found when the parts are wired, not at the first call."""
    with pytest.raises(ConfigError, match="base URL"):
        OpenAICompatible(url)


def test_a_key_with_a_line_break_is_refused_and_never_shown() -> None:
    """A key cannot smuggle a header, and no repr or message holds it."""
    with pytest.raises(ConfigError, match="api_key") as caught:
        OpenAICompatible("http://x/v1", api_key=KEY + "\n")
    assert KEY not in str(caught.value)
    backend = OpenAICompatible("http://x/v1", api_key=KEY)
    assert KEY not in repr(backend) + repr(vars(backend))


@pytest.mark.anyio
async def test_text_that_is_no_unicode_is_refused_before_anything_is_sent(scope: Scope) -> None:
    """A lone surrogate is the caller's mistake, said as one."""
    backend = OpenAICompatible("http://127.0.0.1:9/v1")
    with pytest.raises(ConfigError, match="not valid Unicode"):
        await backend.complete(
            ChatRequest({"model": "m", "messages": [{"role": "user", "content": "\udcff"}]}), scope=scope
        )
    await backend.close()


events = st.lists(st.lists(st.binary(max_size=12).map(lambda b: b.translate(None, b"\r\n")), min_size=1, max_size=3))


@given(events=events, end=st.sampled_from([b"\n", b"\r\n", b"\r"]), cuts=st.lists(st.integers(0, 400), max_size=8))
def test_events_do_not_depend_on_how_bytes_arrive(events: list[list[bytes]], end: bytes, cuts: list[int]) -> None:
    """Any cut of the bytes, and any of the three line ends, gives the same events."""
    raw = b": hi" + end + b"".join(b"".join(b"data: " + line + end for line in event) + end for event in events)
    places = [0, *sorted(min(cut, len(raw)) for cut in cuts), len(raw)]
    parser = Events()
    found = [event for a, b in itertools.pairwise(places) for event in parser.feed(raw[a:b])]
    assert found == [b"\n".join(event) for event in events]


SAID = {"role": "assistant", "content": "Hello."}
NO_CHOICES: dict[str, list[Any]] = {
    "a number": [5],
    "nothing": [None],
    "a text for a message": [{"message": "x", "delta": "x"}],
    "a call that is a text": [{"message": {"tool_calls": "x"}, "delta": {"tool_calls": "x"}}],
    "a call that is a number": [{"message": {"tool_calls": [5]}, "delta": {"tool_calls": [5]}}],
    "a second choice": [{"index": 0, "message": SAID, "delta": SAID}, 5],
}


@pytest.mark.anyio
@pytest.mark.loopback
@pytest.mark.parametrize("choices", NO_CHOICES.values(), ids=NO_CHOICES)
async def test_a_choice_that_cannot_be_read_is_the_servers_fault(
    upstream: Upstream, scope: Scope, choices: list[Any]
) -> None:
    """It is a BackendError, as what is no JSON is, and no bug of ours; what came before it in a stream was said."""
    backend = OpenAICompatible(upstream.url, name="server")
    upstream.answer = upstream.says({"choices": choices})
    with pytest.raises(BackendError, match="server answered in a form that cannot be read"):
        await backend.complete(REQUEST, scope=scope)
    event = f"data: {json.dumps({'choices': choices})}\n\n".encode()
    upstream.answer = upstream.sends(CHUNK + event)
    stream = backend.stream(REQUEST, scope=scope)
    assert (await anext(stream)).text == "a"
    with pytest.raises(BackendError, match="server answered in a form that cannot be read"):
        await anext(stream)
    await backend.close()


def test_an_answer_in_parts_and_arguments_that_are_no_text_are_read() -> None:
    """Some servers write what they say as a list of parts, and what a tool is called with as an object."""
    parts = [{"type": "text", "text": "He"}, {"type": "text", "text": "llo."}, {"type": "image"}]
    call = {"id": "c", "function": {"name": "look", "arguments": {"at": 1}}}
    whole = Completion({"choices": [{"message": {"content": parts, "tool_calls": [call, {"id": "d"}]}}]})
    assert whole.text == "Hello."
    assert whole.tool_calls == (ToolCall("c", "look", '{"at":1}'), ToolCall("d", "", ""))
    streamed = assemble([Chunk({"choices": [{"delta": {"content": parts, "tool_calls": [call]}}]})])
    assert (streamed.text, streamed.tool_calls) == ("Hello.", (ToolCall("c", "look", '{"at":1}'),))
