"""Chunks that are given from below: at once, no faster than they are taken, and each error to whom it belongs."""

from __future__ import annotations

import asyncio
import gc
import json
import warnings
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import pytest
from aiohttp import web
from growth import cpu_s
from inference_parts import Upstream
from waiting import until

import aibox
from aibox.agents.bare import BareCall
from aibox.chat import ChatRequest, Chunk, assemble
from aibox.errors import BackendError, LimitError
from aibox.guardrails.guardrail import Guardrail
from aibox.guardrails.outgoing import Outgoing
from aibox.guardrails.pii import PII
from aibox.guardrails.pseudonyms import Pseudonyms
from aibox.inference import connection, full
from aibox.inference.accounts import Call
from aibox.inference.connection import AFTER_END_S
from aibox.inference.disguise import Disguise
from aibox.inference.openai_compatible import OpenAICompatible
from aibox.inference.replica import Circuit
from aibox.inference.streams import Take, iterated, pushed
from aibox.policy.policy import Policy
from aibox.testing import ScriptedBackend
from aibox.types import Scope

pytestmark = pytest.mark.anyio

REQUEST = ChatRequest({"model": "m", "messages": [{"role": "user", "content": "Hi"}]})
CHUNK = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
LAST = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'

ENDED = Chunk({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})


def chunk(number: int) -> Chunk:
    return Chunk({"choices": [{"index": 0, "delta": {"content": str(number)}}]})


@pytest.fixture
async def server(upstream: Upstream) -> AsyncIterator[OpenAICompatible]:
    backend = OpenAICompatible(upstream.url, name="server", models=["m"])
    yield backend
    await backend.close()


async def test_an_iterator_is_given_nothing_while_it_is_at_a_chunk() -> None:
    """Who pushes waits for who reads: one read upstream for one time that the reader comes back."""
    given: list[int] = []

    async def stream_to(take: Take) -> None:
        for number in range(3):
            given.append(number)
            busy = take([chunk(number), chunk(number)])
            assert busy is not None
            await busy

    read = iterated(stream_to)
    for number in range(3):
        for _ in range(2):
            assert (await anext(read)).text == str(number)
            await asyncio.sleep(0)
            assert given == list(range(number + 1))
    assert await anext(read, None) is None


async def test_an_iterator_raises_what_ended_it_after_what_was_said() -> None:
    """The chunks first, then the error, which is the one that was raised."""

    async def stream_to(take: Take) -> None:
        busy = take([chunk(1)])
        assert busy is not None
        await busy
        raise LimitError("enough")

    read = iterated(stream_to)
    assert (await anext(read)).text == "1"
    with pytest.raises(LimitError, match="enough"):
        await anext(read)


@pytest.mark.parametrize("how", ["closed", "cancelled"])
async def test_leaving_an_iterator_ends_what_it_is_given_by(how: str) -> None:
    """It has ended when the reader goes on, and has heard why the reader was cancelled."""
    heard: list[tuple[Any, ...]] = []

    async def stream_to(take: Take) -> None:
        take([chunk(1)])
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as left:
            await asyncio.sleep(0)
            heard.append(left.args)
            raise

    read = iterated(stream_to)
    assert await anext(read)
    if how == "closed":
        await read.aclose()
        assert heard == [()]
        return
    why = LimitError("suspended")
    reading = asyncio.ensure_future(anext(read))
    await asyncio.sleep(0)
    reading.cancel(why)
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert heard == [(why,)]


@pytest.mark.parametrize("fails", [False, True])
async def test_an_iterator_that_is_pushed_is_closed(fails: bool) -> None:
    """Also when whoever takes what it gives fails."""
    closed = False

    async def chunks() -> AsyncIterator[int]:
        nonlocal closed
        try:
            yield 1
            yield 2
        finally:
            closed = True

    def take(number: int) -> None:
        if fails:
            raise LimitError("enough")

    if fails:
        with pytest.raises(LimitError):
            await pushed(chunks(), take)
    else:
        await pushed(chunks(), take)
    assert closed


@pytest.mark.loopback
async def test_a_piece_is_taken_when_it_comes_and_no_task_has_to_run(
    upstream: Upstream, server: OpenAICompatible, scope: Scope
) -> None:
    """The task that asked waits for the end alone: what takes the pieces runs outside of it."""
    upstream.answer = upstream.sends(CHUNK, CHUNK, LAST)
    tasks: list[asyncio.Task[Any] | None] = []
    texts: list[str] = []

    def take(batch: list[Chunk]) -> None:
        texts.extend(one.text for one in batch)
        tasks.append(asyncio.current_task())

    await server.stream_to("chat", REQUEST, take, scope=scope)
    assert "".join(texts) == "aa"
    assert None in tasks


@pytest.mark.loopback
async def test_an_error_of_who_takes_the_pieces_ends_the_call_upstream(
    upstream: Upstream, server: OpenAICompatible, scope: Scope
) -> None:
    """It comes out as it is, also one that looks like the server's own, and the server is no worse for it."""
    for error in (BackendError("mine", retryable=True), OSError("mine"), ValueError("mine")):
        upstream.answer = upstream.sends(CHUNK, *[CHUNK] * 20, then="wait")
        router = aibox.Router(server)
        taken = 0

        def take(_: list[Chunk], error: Exception = error) -> None:
            nonlocal taken
            taken += 1
            raise error

        with pytest.raises(type(error), match="mine") as caught:
            await router.stream_to("chat", REQUEST, take, scope=scope)
        assert caught.value is error
        assert taken == 1
        assert router._registry.replicas[0].circuit is Circuit.CLOSED
        assert not router._registry.replicas[0].outstanding


@pytest.mark.loopback
async def test_what_is_waited_for_holds_the_next_piece_back(
    upstream: Upstream, server: OpenAICompatible, scope: Scope
) -> None:
    """While a reader is busy it is given nothing more, and then all that has come, in order."""
    pieces = [CHUNK.replace(b'"a"', b'"%d "' % number) for number in range(50)]
    upstream.answer = upstream.sends(*pieces, LAST)
    ready = asyncio.Event()
    texts: list[str] = []
    inside = 0

    async def wait() -> None:
        nonlocal inside
        assert not inside
        inside += 1
        await ready.wait()
        inside -= 1

    def take(batch: list[Chunk]) -> Awaitable[None]:
        assert not inside
        texts.extend(one.text for one in batch)
        return wait()

    running = asyncio.ensure_future(server.stream_to("chat", REQUEST, take, scope=scope))
    await until(lambda: inside)
    before = list(texts)
    await asyncio.sleep(0.05)
    assert texts == before
    ready.set()
    await running
    assert "".join(texts) == "".join(f"{number} " for number in range(50))


async def test_a_stream_that_has_spoken_keeps_no_other_backend_from_being_closed(scope: Scope) -> None:
    """Up to its first word a call wants all that it has found; from then on the one that answers."""
    held, spoken = asyncio.Event(), asyncio.Event()

    class Slow(ScriptedBackend):
        async def stream(self, request: ChatRequest, *, scope: Scope) -> AsyncIterator[Chunk]:
            await held.wait()
            yield chunk(1)
            await asyncio.Event().wait()

    router = aibox.Router(Slow(name="a"), Slow(name="b"))
    running = asyncio.ensure_future(
        router.stream_to("chat", REQUEST.with_fields(model="default"), lambda _: spoken.set(), scope=scope)
    )
    replicas = router._registry.replicas
    await until(lambda: any(replica.wanted for replica in replicas))
    held.set()
    await spoken.wait()
    assert [replica.wanted for replica in replicas] == [0, 0]
    assert sorted(replica.outstanding for replica in replicas) == [0, 1]
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert all(replica.idle for replica in replicas)


@pytest.mark.loopback
@pytest.mark.parametrize("when", ["while it takes", "just after"])
async def test_a_reader_that_is_left_in_the_moment_of_a_piece_leaves_nothing_undone(
    upstream: Upstream, server: OpenAICompatible, scope: Scope, when: str
) -> None:
    """What was to be waited for is ended too: no coroutine is forgotten, which Python would complain of."""
    upstream.answer = upstream.sends(CHUNK, CHUNK, then="wait")
    router = aibox.Router(server)
    begun = False

    async def wait() -> None:
        nonlocal begun
        begun = True

    def take(_: list[Chunk]) -> Awaitable[None] | None:
        if asyncio.current_task() is not None:
            return None  # came with the head
        if when == "just after":
            asyncio.get_running_loop().call_soon(running.cancel)
        else:
            running.cancel()
        return wait()

    running = asyncio.ensure_future(router.stream_to("chat", REQUEST, take, scope=scope))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(asyncio.CancelledError):
            await running
        gc.collect()
    assert not begun
    await until(upstream.gone.is_set)


NOTHING = b'data: {"choices":[{"delta":{}}]}\n\n'
LARGE = b'data: {"choices":[{"delta":{}}],"pad":"' + b"x" * (1 << 20) + b'"}\n\n'
TOO_MUCH = [[NOTHING * 5_000] * 3, [LARGE] * 17]


@pytest.mark.loopback
@pytest.mark.parametrize("nothing", TOO_MUCH, ids=["pieces", "bytes"])
async def test_a_server_that_never_says_a_word_is_given_up(
    nothing: list[bytes], upstream: Upstream, server: OpenAICompatible, scope: Scope
) -> None:
    """What comes before the first word is kept up to a bound, which is far above what servers send there."""
    router = aibox.Router(server)
    upstream.answer = upstream.sends(*nothing)
    with pytest.raises(BackendError, match="server sent more than 10000 pieces or 16 MiB before"):
        await anext(router.stream(REQUEST, scope=scope))
    assert router._registry.replicas[0].circuit is Circuit.CLOSED
    upstream.answer = upstream.sends(*nothing[: len(nothing) // 2], CHUNK, LAST)
    assert "".join([piece.text async for piece in router.stream(REQUEST, scope=scope)]) == "a"


@pytest.mark.loopback
@pytest.mark.parametrize("policy", [Policy(), Policy.profile("balanced")], ids=["as it came", "looked at"])
@pytest.mark.parametrize("nothing", TOO_MUCH, ids=["pieces", "bytes"])
async def test_a_server_that_goes_on_after_its_answer_is_given_up(
    nothing: list[bytes], policy: Policy, upstream: Upstream, server: OpenAICompatible, scope: Scope
) -> None:
    """What comes after the end of an answer waits for the end to be on record, up to the same bound."""
    last, done = LAST.split(b"data: [DONE]")[0], b"data: [DONE]\n\n"
    router = aibox.Router(server)

    async def said() -> str:
        call = BareCall(REQUEST, router=router, guardrail=Guardrail(policy), audit=None, scope=scope)
        return "".join([piece.text async for piece in iterated(call.stream)])

    upstream.answer = upstream.sends(CHUNK, last, *nothing)
    with pytest.raises(BackendError, match="or after the last"):
        await said()
    upstream.answer = upstream.sends(CHUNK, last, *nothing[: len(nothing) // 2], done)
    assert await said() == "a"


@pytest.fixture(params=["lean", "aiohttp"])
def either_client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "aiohttp":
        monkeypatch.setattr(full, "serves", lambda *_: False)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence behind an end is short."""
    for module in (connection, full):
        monkeypatch.setattr(module, "AFTER_END_S", 0.1)


def silent(upstream: Upstream, over: asyncio.Event, *parts: bytes) -> Any:
    """Says that, and nothing more until it is over."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response: web.StreamResponse = await upstream.sends(*parts)(request)
        await over.wait()
        return response

    return answer


@pytest.mark.loopback
@pytest.mark.usefixtures("either_client")
async def test_an_answer_that_has_ended_is_not_thrown_away_by_silence(upstream: Upstream, scope: Scope) -> None:
    """A server that ends its answer and then neither says so nor closes has answered; one that stops before has not."""
    over = asyncio.Event()

    router = aibox.Router(OpenAICompatible(upstream.url, name="server", models=["m"], timeout_s=0.3))
    upstream.answer = silent(upstream, over, CHUNK, LAST.split(b"data: [DONE]")[0])
    assert "".join([piece.text async for piece in router.stream(REQUEST, scope=scope)]) == "a"
    assert router._registry.replicas[0].circuit is Circuit.CLOSED
    upstream.answer = silent(upstream, over, CHUNK)
    with pytest.raises(BackendError, match="silent for too long"):
        [_ async for _ in router.stream(REQUEST, scope=scope)]
    over.set()
    await router.close()


@pytest.mark.loopback
@pytest.mark.usefixtures("either_client")
async def test_a_caller_does_not_wait_for_what_a_server_never_says_after_its_answer(
    upstream: Upstream, scope: Scope
) -> None:
    """The end of a stream waits for usage and [DONE] some seconds, and not as long as for a word of the answer."""
    over = asyncio.Event()

    calls: list[Call] = []
    server = OpenAICompatible(upstream.url, name="server", models=["m"], timeout_s=60)
    router = aibox.Router(server, on_call=calls.append)
    upstream.answer = silent(upstream, over, CHUNK, LAST.split(b"data: [DONE]")[0])
    async with asyncio.timeout(AFTER_END_S + 5):
        assert "".join([piece.text async for piece in router.stream(REQUEST, scope=scope)]) == "a"
    assert [(call.outcome, call.counted) for call in calls] == [("answered", False)]
    over.set()
    await router.close()


@pytest.mark.loopback
@pytest.mark.usefixtures("either_client", "soon")
async def test_an_answer_may_end_long_before_another_one_of_the_same_call(
    upstream: Upstream, server: OpenAICompatible, scope: Scope
) -> None:
    """Of a call for two answers the end of one is not the end of what is said, whatever the other waits for."""
    first, second = ({"choices": [{"index": n, "delta": {"content": f"{n}"}, "finish_reason": "stop"}]} for n in (0, 1))

    async def one_after_the_other(request: web.Request) -> web.StreamResponse:
        response: web.StreamResponse = await upstream.sends(b"data: %b\n\n" % json.dumps(first).encode())(request)
        await asyncio.sleep(0.4)
        await response.write(b"data: %b\n\ndata: [DONE]\n\n" % json.dumps(second).encode())
        return response

    upstream.answer = one_after_the_other
    asked = REQUEST.with_fields(n=2)
    assert "".join([piece.text async for piece in server.stream(asked, scope=scope)]) == "01"


@pytest.mark.loopback
@pytest.mark.usefixtures("either_client", "soon")
async def test_an_end_behind_which_more_is_said_was_none(
    upstream: Upstream, server: OpenAICompatible, scope: Scope
) -> None:
    """A server that calls each piece the last is not believed again, and its answer is not cut off."""
    said = [{"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": "stop"}]} for text in "abc"]
    first, second, third = (b"data: %b\n\n" % json.dumps(one).encode() for one in said)

    async def at_last(request: web.Request) -> web.StreamResponse:
        response: web.StreamResponse = await upstream.sends(first)(request)
        await response.write(second)
        await asyncio.sleep(0.4)
        await response.write(third + b"data: [DONE]\n\n")
        return response

    upstream.answer = at_last
    assert "".join([piece.text async for piece in server.stream(REQUEST, scope=scope)]) == "abc"


@pytest.mark.loopback
@pytest.mark.usefixtures("either_client", "soon")
async def test_the_end_of_an_answer_is_waited_for_behind_a_slow_reader(upstream: Upstream, scope: Scope) -> None:
    """What came while the caller took their time is not thrown away: silence is the server's alone."""
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}}\n\n'
    last, done = LAST.split(b"data: [DONE]")[0], b"data: [DONE]\n\n"
    came = asyncio.Queue[None]()

    async def one_at_a_time(request: web.Request) -> web.StreamResponse:
        response: web.StreamResponse = await upstream.sends(CHUNK + last)(request)
        for part in (NOTHING, usage + done):
            await came.get()
            await response.write(part)
        return response

    upstream.answer = one_at_a_time
    calls: list[Call] = []
    server = OpenAICompatible(upstream.url, name="server", models=["m"], timeout_s=60)
    router = aibox.Router(server, on_call=calls.append)
    async for piece in router.stream(REQUEST, scope=scope):
        if not piece.text:
            came.put_nowait(None)
            await asyncio.sleep(0.3)
    assert [(call.outcome, call.counted, call.usage.output_tokens) for call in calls] == [("answered", True, 3)]
    await router.close()


@pytest.mark.parametrize("where", ["whole answer", "restored"])
def test_arguments_of_many_pieces_cost_what_they_are_long(where: str) -> None:
    """Four times as many cost about four times as much, also on their way back in through the door, and not sixteen."""

    def called(pieces: int) -> list[Chunk]:
        part = {"tool_calls": [{"index": 0, "id": "c", "function": {"arguments": "12345678" * 4}}]}
        return [*[Chunk({"choices": [{"index": 0, "delta": part}]})] * pieces, ENDED]

    async def restored(chunks: list[Chunk]) -> list[Chunk]:
        async def coming() -> AsyncIterator[Chunk]:
            for one in chunks:
                yield one

        outgoing = Outgoing(PII(), pseudonyms=Pseudonyms())
        disguise = Disguise(outgoing, scope=Scope(tenant="a", user="b"), policy=Policy.profile("balanced"))
        return [one async for one in disguise.inward_stream(coming())]

    def read(pieces: int) -> float:
        chunks = called(pieces)

        def work() -> None:
            whole = assemble(chunks if where == "whole answer" else asyncio.run(restored(chunks)))
            assert [call.arguments for call in whole.tool_calls] == ["12345678" * 4 * pieces]

        return cpu_s(work, times=2)

    assert read(60_000) < 8 * read(15_000)
