"""The hot path: the inference routes as raw ASGI, before the framework is asked.

A stream is sent on in the pieces in which it arrives. A caller who goes away ends the call, also upstream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

import msgspec

from aibox.chat import Chunk
from aibox.errors import AccessError, AIBoxError, LimitError
from aibox.inference.capabilities import Api
from aibox.inference.streams import Take
from aibox.server.asked import App, Asked, Receive, Scope, Send, asked, piecemeal, proved
from aibox.server.auth import ANSWERS, Callers
from aibox.server.inference_api import AGENT, InferenceAPI, read_request
from aibox.server.problem import openai_error, refusal

MAX_BODY_BYTES = 8 * 2**20
"""Of one request: room for a long conversation; a message alone is bounded by the policy."""
WATCH_S = 0.1
"""How long a call goes on before anybody looks whether the caller is still there."""
ROUTES: Mapping[str, Api] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
    "/v1/responses": "responses",
}

_JSON = (b"content-type", b"application/json")
_SSE = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]


class GoneError(Exception):
    """The caller has closed the connection."""


class HotPath:
    """Answers the inference routes itself and hands everything else to `rest`."""

    def __init__(self, api: InferenceAPI, *, callers: Callers, rest: App, max_body: int = MAX_BODY_BYTES) -> None:
        self._api = api
        self._callers = callers
        self.rest = rest
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        under_way = asked(scope) if scope["type"] == "http" and scope["method"] == "POST" else None
        api = ROUTES.get(under_way.path) if under_way is not None else None
        if under_way is None or api is None:
            await self.rest(scope, receive, send)
            return
        under_way.route = under_way.path
        try:
            await self._answer(api, under_way, scope, receive, send)
        except AIBoxError as error:
            under_way.failed(error)
            status, headers, body = refusal(error, openai=True)
            await _whole(status, body, send, headers=headers)
        except GoneError:
            return  # there is nobody to tell

    async def _answer(self, api: Api, under_way: Asked, scope: Scope, receive: Receive, send: Send) -> None:
        # From the proof alone: no header, query or body names a tenant here.
        principal = await proved(scope, self._callers)
        who = principal.scope
        try:
            principal.require(*ANSWERS)
            request = read_request(api, await _read(receive, self._max_body))
            if principal.scopes is not None:
                agent = request.model.startswith(AGENT)
                principal.require_scope("agents" if agent else "inference")
                principal.require_model(request.model)
        except AccessError as error:
            await self._api.refused(api, principal, error)
            raise
        with while_there(receive):
            if request.body.get("stream"):
                under_way.ending = partial(_failure, api)
                await _stream(under_way, api, partial(self._api.stream, api, request, scope=who), send)
                return
            answer = await self._api.complete(api, request, scope=who)
        data = answer.encoded()
        await _whole(200, data, send, headers=[_JSON, (b"content-length", str(len(data)).encode())])


async def _stream(under_way: Asked, api: Api, stream_to: Callable[[Take], Awaitable[None]], send: Send) -> None:
    """What fails before the first chunk is an HTTP error; after it an event, and then the stream ends.

    What has arrived together is sent together. While the reader takes nothing, nothing is read upstream either.
    """
    event = _response_event if api == "responses" else _event
    piece = piecemeal(send)
    begun = False

    async def begin(body: bytes) -> None:
        nonlocal begun
        begun = True
        await send({"type": "http.response.start", "status": 200, "headers": _SSE})
        await send({"type": "http.response.body", "body": body, "more_body": True})

    def take(batch: list[Chunk]) -> Awaitable[None] | None:
        body = event(batch[0]) if len(batch) == 1 else b"".join(map(event, batch))
        return piece(body) if begun else begin(body)

    try:
        await stream_to(take)
        end = b"" if api == "responses" else b"data: [DONE]\n\n"
    except AIBoxError as error:
        if not begun:
            raise
        under_way.failed(error)
        end = _failure(api, error)
    if not begun:
        await begin(b"")
    await send({"type": "http.response.body", "body": end})


class while_there:  # noqa: N801 - used as a statement
    """Cancels what runs inside when the caller goes. Raises GoneError."""

    # A class: a generator as a context costs three times as much, for every request.
    __slots__ = ("_gone", "_later", "_leaving", "_receive", "_working")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._gone = False
        self._leaving: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        working = asyncio.current_task()
        assert working is not None
        self._working = working
        # Most calls have ended by then, and whoever has left before is noticed then.
        self._later = working.get_loop().call_later(WATCH_S, self._watch)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._later.cancel()
        if (leaving := self._leaving) is not None:
            # It knows this object, and a ring of them would wait for the collector after each request.
            self._leaving = None
            leaving.cancel()
        if self._gone and isinstance(error, asyncio.CancelledError) and not self._working.uncancel():
            raise GoneError from None

    def _watch(self) -> None:
        self._leaving = self._working.get_loop().create_task(self._leave())

    async def _leave(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        self._working.cancel()


async def _read(receive: Receive, max_body: int) -> bytes:
    """The body, given up as soon as it is too long."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise GoneError
        if part := message.get("body", b""):
            size += len(part)
            if size > max_body:
                raise too_long(max_body)
            parts.append(part)
        if not message.get("more_body"):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def too_long(max_body: int) -> LimitError:
    return LimitError(
        f"the body is longer than {max_body >> 20} MiB", hint="send less in one request", code="policy.limit.body"
    )


async def _whole(status: int, body: bytes, send: Send, *, headers: list[tuple[bytes, bytes]]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _event(chunk: Chunk) -> bytes:
    # JSON has no raw line ends, so that no text of a model can end an event. What came in several lines is one.
    data = chunk.encoded()
    return b"data: %b\n\n" % (data if data.find(b"\n") < 0 else msgspec.json.encode(chunk.body))


def _response_event(chunk: Chunk) -> bytes:
    """With the name of the event, as the Responses API has it."""
    kind = str(chunk.body.get("type", "")).encode()
    return (b"event: " + kind + b"\n" if kind.isascii() and not kind.split()[1:] else b"") + _event(chunk)


def _failure(api: Api, error: AIBoxError) -> bytes:
    """The event that ends a stream which failed in the middle."""
    body = openai_error(error)
    if api == "responses":
        told = body["error"]
        body = {"type": "error", **{name: told[name] for name in ("code", "message", "param")}, "sequence_number": 0}
        return b"event: error\ndata: " + msgspec.json.encode(body) + b"\n\n"
    return b"data: " + msgspec.json.encode(body) + b"\n\n"
