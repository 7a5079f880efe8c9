"""OpenAI's API over HTTP, for the hot path. The only file that opens sockets to model servers.

Nothing is taken from the environment, no redirect is followed, and whatever fails comes out as BackendError.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Coroutine, Mapping
from typing import Any, Protocol
from urllib.parse import urlsplit

import msgspec

from aibox.chat import Chunk, Weights
from aibox.errors import BackendError, ConfigError, EgressError
from aibox.inference.addresses import literal
from aibox.inference.connection import Reader, UnreachableError
from aibox.inference.full import Session, reaching
from aibox.inference.plain import Address, Pool, looked_up
from aibox.inference.readable import CHAT, CHOOSES, ends, is_answer
from aibox.inference.sse import Events
from aibox.inference.streams import Take, waited
from aibox.inference.transport import Rule, Transport

CONNECT_S = 5.0
KEEPALIVE_S = 4.0
"""Below the 5 s after which uvicorn, and so vLLM, closes an idle connection: the race would lose requests."""
TOTAL_S = 3600.0
"""What a whole answer may take. A server that sends a byte now and then is never silent."""
MAX_BODY_BYTES = 32 << 20
MAX_STREAM_BYTES = 128 << 20
MAX_ERROR_BYTES = 64 << 10
MAX_MESSAGE_CHARS = 300

_UNKNOWN = Weights()
_RETRYABLE = frozenset({408, 425, 429, 500, 502, 503, 504})
_HINTS = {
    401: "the server wants another api_key",
    403: "the server wants another api_key",
    404: "is the base URL right? it usually ends in /v1, and the model must be one that the server lists",
    413: "send less text",
    429: "the server has too much to do; wait a moment",
    503: "the server is starting or overloaded; wait a moment",
}


Read = tuple[dict[str, Any], bytes]
"""A JSON object, and the bytes that it was read from."""


class Answer(Protocol):
    """What both clients answer with."""

    status: int
    reason: str
    headers: Mapping[str, str]

    async def readany(self) -> bytes: ...

    async def each(self, reader: Reader) -> None: ...

    def close(self) -> None: ...


class Wire:
    """The connection to one server: a pool for each event loop that uses it, made when it is first needed.

    `timeout_s` is the longest silence of the server: before its head is whole and between two pieces. An answer that
    has taken `total_s` ends with its next piece. Errors name the server as `name`, and never show `secret` or a proxy's
    password. `rule` says which addresses the host's name may resolve to.
    """

    def __init__(
        self,
        base_url: str,
        *,
        name: str,
        headers: Mapping[str, str],
        secret: str = "",
        timeout_s: float,
        total_s: float = TOTAL_S,
        transport: Transport | None = None,
        rule: Rule | None = None,
    ) -> None:
        self.base_url = base_url
        parts = urlsplit(base_url)
        self._origin, self._path = f"{parts.scheme}://{parts.netloc}", parts.path
        self._transport = transport or Transport()
        self._rule = rule
        self.name = name
        self._headers = dict(headers)
        self._secrets = [text for text in (*self._transport.secrets, secret) if text]
        self._timeout_s = timeout_s
        self.total_s = total_s
        self._clients: dict[asyncio.AbstractEventLoop, Pool | Session] = {}

    async def complete(self, body: bytes, *, path: str = CHAT, correlation: str = "", trace: str = "") -> Read:
        """POST; a whole answer."""
        async with self._open("POST", path, data=body, correlation=correlation, trace=trace) as response:
            data = await self._read(response, MAX_BODY_BYTES)
            answer = self._decode(data)
        if path in CHOOSES and not answer.get("choices"):
            raise BackendError(f"{self.name} answered without a choice", hint=_NOT_OPENAI)
        if not is_answer(path, answer):
            raise self._misshapen()
        return answer, data

    async def stream(
        self,
        body: bytes,
        take: Take,
        *,
        path: str = CHAT,
        weights: Weights = _UNKNOWN,
        alone: bool = False,
        correlation: str = "",
        trace: str = "",
    ) -> None:
        """POST of a body that asks for a stream; the events that became whole with one read, as soon as they are.

        `alone`: there is one choice, with whose end all is said. Cancelling it, and an error of `take`, closes the
        connection, and so tells the server to stop.
        """
        reading = _Reading(self, path, weights, take, alone=alone)
        over_at = asyncio.get_running_loop().time() + self.total_s
        async with self._open("POST", path, data=body, correlation=correlation, trace=trace) as response:
            # Also while whoever reads it takes nothing, and so nothing is read here.
            try:
                async with asyncio.timeout_at(over_at) as over:
                    await response.each(reading)
            except TimeoutError:
                if over.expired():
                    raise self.late() from None
                if not reading.finished:
                    raise
        # Some servers end without [DONE], or fall silent; then what was said must at least have come to its end.
        if not reading.ended and not reading.finished:
            raise BackendError(f"{self.name} broke off in the middle of its answer", retryable=True)

    async def models(self) -> list[dict[str, Any]]:
        """GET /models; the entries that have an id."""
        async with self._open("GET", "/models") as response:
            data = self._decode(await self._read(response, MAX_BODY_BYTES)).get("data")
        if not isinstance(data, list):
            raise BackendError(f"{self.name} does not list its models", hint=_NOT_OPENAI)
        return [entry for entry in data if isinstance(entry, dict) and isinstance(entry.get("id"), str)]

    async def ask(self, url: str) -> str:
        """GET an absolute URL of the same server; its text when it says 200, raises BackendError otherwise."""
        async with self._open("GET", url) as response:
            return (await self._read(response, MAX_BODY_BYTES)).decode("utf-8", "replace")

    async def close(self) -> None:
        here = asyncio.get_running_loop()
        while self._clients:
            loop, client = self._clients.popitem()
            if loop is here:
                await client.close()
            elif loop.is_running():
                # A client belongs to its loop, which another thread runs.
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(client.close(), loop))
            else:
                client.detach()  # its loop has ended, and can close nothing any more

    def _client(self) -> Pool | Session:
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            for ended in [loop for loop in self._clients if loop.is_closed()]:
                self._clients.pop(ended).detach()
            options: dict[str, Any] = {
                "resolve": self._addresses, "silence_s": self._timeout_s, "connect_s": CONNECT_S, "idle_s": KEEPALIVE_S,
            }  # fmt: skip
            fields = {"Accept-Encoding": "identity", "User-Agent": "aibox", **self._headers}
            client = reaching(self._origin, fields, path=self._path, transport=self._transport, **options)
            self._clients[loop] = client
        return client

    async def _addresses(self, host: str, port: int) -> list[Address]:
        """Looks the host up once, and checks every address: the connection is made to one of them."""
        found = await looked_up(host, port)
        # A proxy is named by the operator, and resolves the host itself.
        rule = None if self._transport.proxy else self._rule
        for _, place in found:
            address = literal(place)
            # What is written as an address was looked at when the backend was made.
            if rule is not None and literal(host) is None and (address is None or not rule(address)):
                raise EgressError(
                    f"{host}, the host of {self.name}, is {place} now, where it must not be; nothing was sent",
                    hint="if that is right, list its network in `networks` of the backend's transport",
                )
        return found

    def _open(
        self, method: str, path: str, *, data: bytes | None = None, correlation: str = "", trace: str = ""
    ) -> _Opened:
        """A response with status 200; anything else is raised. On the way out an unread connection is closed."""
        target = path.removeprefix(self._origin) if path.startswith("http") else self._path + path
        if not target.startswith("/"):
            raise ConfigError(f"{path[:100]!r} is not of the server {self._origin}")
        more = {"Content-Type": "application/json"} if data is not None else {}
        if correlation:
            more["X-Correlation-ID"] = correlation
        if len(trace) > 1:
            more["traceparent"] = f"00-{trace}-01"  # W3C Trace Context sec. 3.2
        return _Opened(self, self._client().ask(method, target, more, data))

    async def _read(self, response: Answer, limit: int) -> bytes:
        parts, size, over_at = [], 0, time.monotonic() + self.total_s
        while data := await response.readany():
            size += len(data)
            if size > limit:
                raise BackendError(f"{self.name} sent more than {limit >> 10} KiB")
            if time.monotonic() > over_at:
                raise self.late()
            parts.append(data)
        return b"".join(parts)

    def _decode(self, data: bytes) -> dict[str, Any]:
        """A JSON object; an error in the body counts whatever the status was."""
        try:
            body = msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            body = None
        if not isinstance(body, dict):
            raise BackendError(f"{self.name} did not answer in JSON", hint=_NOT_OPENAI, retryable=True)
        if body.get("error"):
            # Some servers begin with 200 and find out later; what they would have answered is then the error's code.
            code = body["error"].get("code") if isinstance(body["error"], dict) else None
            status = code if isinstance(code, int) and 400 <= code < 600 else None
            raise BackendError(
                f"{self.name} failed: {self._short(_message(body))}",
                hint=_HINTS.get(status or 0, ""),
                retryable=status is None or status in _RETRYABLE,
                timeout=status in (408, 504),
                status=status,
            )
        return body

    async def refusal(self, response: Answer) -> BackendError:
        status = response.status
        if 300 <= status < 400:
            return BackendError(f"{self.name} wants to redirect, which is refused", hint="give the final base URL")
        try:
            data = await self._read(response, MAX_ERROR_BYTES)
        except BackendError:
            data = b""
        try:
            said = _message(msgspec.json.decode(data))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            said = data.decode("utf-8", "replace")
        return BackendError(
            f"{self.name} answered {status}: {self._short(said) or response.reason}",
            hint=_HINTS.get(status, ""),
            retryable=status in _RETRYABLE,
            timeout=status in (408, 504),
            status=status,
            retry_after_s=_retry_after(response.headers.get("retry-after", "")),
        )

    def chunk(self, event: bytes, path: str) -> tuple[dict[str, Any], bool]:
        """An event that can be read, and whether it says that the answer has come to its end."""
        chunk = self._decode(event)
        if (last := ends(path, chunk)) is None:
            raise self._misshapen()
        return chunk, last

    def _misshapen(self) -> BackendError:
        return BackendError(f"{self.name} answered in a form that cannot be read", hint=_NOT_OPENAI)

    def late(self) -> BackendError:
        return BackendError(
            f"{self.name} took longer than {self.total_s:g} s over one answer",
            hint="ask for less, or set total_s, which is how long a whole answer may take",
            retryable=True,
            timeout=True,
        )

    def _short(self, message: str) -> str:
        message = " ".join(message.split())
        for secret in self._secrets:
            message = message.replace(secret, "[key]")
        return message if len(message) <= MAX_MESSAGE_CHARS else message[:MAX_MESSAGE_CHARS] + "..."

    def told(self, error: OSError) -> BackendError:
        """What a failed connection means. A TimeoutError is one."""
        name, reason = self.name, self._short(str(error)) or type(error).__name__
        if isinstance(error, TimeoutError):
            return BackendError(
                f"{name} was silent for too long ({self._timeout_s:g} s, {CONNECT_S:g} s to connect)",
                hint="is it overloaded? timeout_s sets how long to wait",
                retryable=True,
                timeout=True,
            )
        if isinstance(error, UnreachableError):
            told = f"{name} cannot be reached at {self.base_url}: {reason}"
            outward = f"{name} cannot be reached"
            return BackendError(told, hint="is the server running?", retryable=True, outward=outward)
        return BackendError(f"the connection to {name} broke: {reason}", retryable=True)


class _Reading:
    """The events of one stream, from its bytes to chunks."""

    def __init__(self, wire: Wire, path: str, weights: Weights, take: Take, *, alone: bool) -> None:
        self.finished = self.said = self.ended = False
        """Whether a choice has come to its end, whether it was the only one, and whether the stream has."""
        self._alone = alone
        self._wire = wire
        self._path = path
        self._weights = weights
        self._take = take
        self._events = Events()
        self._received = 0

    def feed(self, data: bytes) -> Awaitable[None] | None:
        wire = self._wire
        self._received += len(data)
        if self._received > MAX_STREAM_BYTES:
            raise BackendError(f"{wire.name} sent more than {MAX_STREAM_BYTES >> 20} MiB")
        whole: list[Chunk] = []
        error: BackendError | None = None
        try:
            for event in self._events.feed(data):
                if event == b"[DONE]":
                    self.ended = True
                    break
                body, last = wire.chunk(event, self._path)
                if self.said and body.get("choices"):
                    # More is said behind the end: it was none, and no other is believed.
                    self.said = self._alone = False
                self.finished, self.said = self.finished or last, self.said or (last and self._alone)
                whole.append(Chunk(body, wire.name, self._weights, (body, event)))
        except BackendError as broken:
            error = broken
        busy = self._take(whole) if whole else None
        return busy if error is None else _after(busy, error)


async def _after(busy: Awaitable[None] | None, error: BackendError) -> None:
    """What came before an error with the same read was said."""
    await waited(busy)
    raise error


class _Opened:
    """Around one answer: what the connection raises comes out as BackendError."""

    # A class: a generator as a context costs three times as much, for every call.
    __slots__ = ("_asking", "_response", "_wire")

    def __init__(self, wire: Wire, asking: Coroutine[Any, Any, Answer]) -> None:
        self._wire = wire
        self._asking = asking
        self._response: Answer | None = None

    async def __aenter__(self) -> Answer:
        try:
            response = self._response = await self._asking
            refused = None if response.status == 200 else await self._wire.refusal(response)
        except BaseException as error:
            self._close()
            if isinstance(error, OSError):
                raise self._wire.told(error) from None
            raise
        if refused is not None:
            self._close()
            raise refused
        return response

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._close()
        if isinstance(error, OSError):
            raise self._wire.told(error) from None

    def _close(self) -> None:
        if self._response is not None:
            self._response.close()


_NOT_OPENAI = "is it an OpenAI-compatible server, and does the base URL end in /v1?"


def _message(body: Any) -> str:
    """The sentence in an error body: OpenAI's shape, FastAPI's `detail`, or a plain string."""
    error = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error
    return str(error)


def _retry_after(text: str) -> float | None:
    """RFC 9110 sec. 10.2.3, in seconds; a date counts as none, for clocks differ."""
    return float(text) if text.isdecimal() and len(text) < 7 else None
