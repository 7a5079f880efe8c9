"""The hot path: `/v1/chat/completions` as raw ASGI, before the framework is asked.

A stream is sent on in the pieces in which it arrives. A caller who goes away ends the call, also upstream.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, TypeVar

import msgspec

from aibox.errors import AIBoxError, LimitError
from aibox.server.auth import Callers
from aibox.server.inference_api import InferenceAPI, read_request
from aibox.server.problem import openai_error, status_of

MAX_BODY_BYTES = 8 * 2**20
"""Of one request: room for a long conversation; a message alone is bounded by the policy."""
MAX_PENDING_BYTES = 256 * 2**10
"""Of a stream that its reader does not take: then the model waits too."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
T = TypeVar("T")

_JSON = (b"content-type", b"application/json")
_SSE = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]


class GoneError(Exception):
    """The caller has closed the connection."""


class HotPath:
    """Answers chat itself and hands everything else to `rest`."""

    def __init__(self, api: InferenceAPI, *, callers: Callers, rest: App) -> None:
        self._api = api
        self._callers = callers
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/v1/chat/completions" or scope["method"] != "POST":
            await self._rest(scope, receive, send)
            return
        try:
            await self._chat(scope, receive, send)
        except AIBoxError as error:
            await _refuse(error, send)
        except GoneError:
            return  # there is nobody to tell

    async def _chat(self, scope: Scope, receive: Receive, send: Send) -> None:
        # From the proof alone: no header, query or body names a tenant here.
        who = await self._callers.scope(_header(scope, b"authorization"))
        body = read_request(await _read(receive))
        if not body.get("stream"):
            answer = await _while_there(receive, self._api.complete(body, scope=who))
            await _whole(200, msgspec.json.encode(answer), send)
            return
        chunks: Any = self._api.stream(body, scope=who)
        await _while_there(receive, _stream(chunks, send))


async def _stream(chunks: AsyncGenerator[dict[str, Any], None], send: Send) -> None:
    """What fails before the first chunk is an HTTP error; after it an event, and then the stream ends."""
    try:
        first = await anext(chunks)
        await send({"type": "http.response.start", "status": 200, "headers": _SSE})
        sender = _Sender(send)
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(sender.run())
            try:
                await sender.put(first)
                async for chunk in chunks:
                    await sender.put(chunk)
                sender.end(b"data: [DONE]\n\n")
            except AIBoxError as error:
                sender.end(_event(openai_error(error)))
            await sending
    finally:
        await chunks.aclose()


class _Sender:
    """Sends what has been put since the last time in one piece: all events of one read upstream are one write here."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._parts: list[bytes] = []
        self._size = 0
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._ended = False

    async def put(self, chunk: dict[str, Any]) -> None:
        data = _event(chunk)
        self._parts.append(data)
        self._size += len(data)
        self._wake.set()
        if self._size > MAX_PENDING_BYTES:
            self._room.clear()
            await self._room.wait()

    def end(self, data: bytes) -> None:
        self._parts.append(data)
        self._ended = True
        self._wake.set()

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            data, ended = b"".join(self._parts), self._ended
            self._parts.clear()
            self._size = 0
            self._room.set()
            await self._send({"type": "http.response.body", "body": data, "more_body": not ended})
            if ended:
                return


async def _while_there(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the caller goes. Raises GoneError."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise GoneError
        return working.result()
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _read(receive: Receive) -> bytes:
    """The body, given up as soon as it is too long."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise GoneError
        if part := message.get("body", b""):
            size += len(part)
            if size > MAX_BODY_BYTES:
                hint = "send less in one request"
                raise LimitError(f"the body is longer than {MAX_BODY_BYTES >> 20} MiB", hint=hint)
            parts.append(part)
        if not message.get("more_body"):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def _header(scope: Scope, name: bytes) -> str:
    for key, value in scope["headers"]:
        if key == name:
            text: str = value.decode("latin-1")
            return text
    return ""


async def _refuse(error: AIBoxError, send: Send) -> None:
    headers = [_JSON]
    if isinstance(error, LimitError) and error.retry_after_s is not None:
        headers.append((b"retry-after", str(int(error.retry_after_s) + 1).encode()))
    await _whole(status_of(error), msgspec.json.encode(openai_error(error)), send, headers=headers)


async def _whole(status: int, body: bytes, send: Send, *, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*(headers or [_JSON]), length]})
    await send({"type": "http.response.body", "body": body})


def _event(value: Any) -> bytes:
    # JSON has no raw line ends, so that no text of a model can end an event.
    return b"data: " + msgspec.json.encode(value) + b"\n\n"
