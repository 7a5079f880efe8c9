"""HTTP/1.1 without TLS to a model server in one's own network: what aiohttp does there at twice the cost.

Strict where a peer could confuse us (RFC 9112): a message is framed by one length or by chunks, never by both; what
comes unasked, or after the end, closes the connection; heads are bounded. The parser is llhttp, by way of httptools.
"""

from __future__ import annotations

import asyncio
import re
import select
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from urllib.parse import urlsplit

try:
    import httptools
except ImportError:  # an extra: without it everything goes through aiohttp
    httptools = None  # type: ignore[assignment]

MAX_HEAD_BYTES = 64 << 10
"""Of a head, of the trailers, and of what may stand between two pieces of a body."""
HIGH_WATER_BYTES = 256 << 10
"""What may wait to be read before the server is made to wait."""
_TARGET = re.compile(r"/[!-~]*")
_FIELD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+: [!-~]?[ -~]*")
_OURS = frozenset({"host", "connection", "content-length", "transfer-encoding", "te", "trailer", "upgrade", "expect"})


class UnreachableError(OSError):
    """No connection could be made."""


class BrokenError(OSError):
    """The connection ended too early, or what came over it is no answer."""


Address = tuple[int, str]
"""The family of an address, and the address."""
Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]
"""The addresses of a host, each of them allowed; raises OSError for none."""


class Response:
    """The head of an answer, and its body as it comes. Used by one task; `close` unless all was read."""

    __slots__ = ("_connection", "headers", "reason", "status")

    def __init__(self, connection: _Connection) -> None:
        self._connection: _Connection | None = connection
        self.status = connection.status
        self.reason = connection.reason.decode("latin-1")
        self.headers: Mapping[str, str] = connection.headers

    async def readany(self) -> bytes:
        """What has come and was not read yet, as soon as there is any; empty at the end. Raises as `Pool.ask`."""
        if self._connection is None:
            raise BrokenError("the answer was closed")
        return await self._connection.readany()

    def close(self) -> None:
        """Give the connection back when all was read, and end it otherwise. Again is harmless."""
        # From then on it may be somebody else's.
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.leave()


class Pool:
    """Connections to one server, on one event loop. `fields` are sent with each request.

    `silence_s` is what a head may take, and what the next piece of a body may; `connect_s` what a connection may,
    `idle_s` how long it is kept unused.
    """

    def __init__(
        self, origin: str, fields: Mapping[str, str], *, resolve: Resolve, silence_s: float, connect_s: float,
        idle_s: float,
    ) -> None:  # fmt: skip
        parts = urlsplit(origin)
        assert parts.hostname is not None
        self._host, self._port = parts.hostname, parts.port or 80
        self._fields = "".join(f"{line}\r\n" for line in (f"Host: {parts.netloc}", *_lines(fields))).encode("ascii")
        self._resolve = resolve
        self.silence_s = silence_s
        self._connect_s = connect_s
        self._idle_s = idle_s
        self.loop = asyncio.get_running_loop()
        self._idle: deque[tuple[float, _Connection]] = deque()
        self._all: set[_Connection] = set()
        self._sweeping: asyncio.TimerHandle | None = None

    async def ask(self, method: str, target: str, more: Mapping[str, str], body: bytes | None) -> Response:
        """Send a request; the head of its answer.

        Raises UnreachableError, BrokenError, TimeoutError; ValueError for a target or field that cannot be sent.
        """
        if not _TARGET.fullmatch(target):
            raise ValueError("not a target of a request")
        lines = "".join(f"{line}\r\n" for line in _lines(more))
        length = "" if body is None else f"Content-Length: {len(body)}\r\n"
        head = f"{method} {target} HTTP/1.1\r\n{lines}{length}".encode("ascii") + self._fields + b"\r\n"
        connection = self._kept() or await self._connect()
        try:
            return await connection.ask(head, body or b"")
        except BaseException:
            connection.leave()
            raise

    async def close(self) -> None:
        """End all connections, also those in use."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        self._idle.clear()
        for connection in tuple(self._all):
            connection.abort()
        while self._all:  # noqa: ASYNC110 - what empties it has no event
            await asyncio.sleep(0)  # the loop closes a socket in its next round

    def detach(self) -> None:
        """Forget what a loop held that has ended."""
        self._idle.clear()
        self._all.clear()

    def keep(self, connection: _Connection) -> None:
        self._idle.append((self.loop.time() + self._idle_s, connection))
        if self._sweeping is None:
            self._sweeping = self.loop.call_later(self._idle_s, self._sweep)

    def forget(self, connection: _Connection) -> None:
        self._all.discard(connection)

    def _kept(self) -> _Connection | None:
        # The one that was used last: the others may then come to their end.
        while self._idle:
            until, connection = self._idle.pop()
            if connection.usable and until > self.loop.time():
                return connection
            connection.abort()
        return None

    def _sweep(self) -> None:
        now, self._sweeping = self.loop.time(), None
        while self._idle and (self._idle[0][0] <= now or not self._idle[0][1].usable):
            self._idle.popleft()[1].abort()
        if self._idle:
            self._sweeping = self.loop.call_at(self._idle[0][0], self._sweep)

    async def _connect(self) -> _Connection:
        failed: OSError | None = None
        async with asyncio.timeout(self._connect_s):
            for family, address in await self._resolve(self._host, self._port):
                try:
                    _, made = await self.loop.create_connection(
                        lambda: _Connection(self), address, self._port, family=family, flags=socket.AI_NUMERICHOST
                    )
                except OSError as error:
                    failed = error
                    continue
                self._all.add(made)
                return made
        raise UnreachableError(getattr(failed, "errno", None), getattr(failed, "strerror", None) or str(failed))


class _Connection(asyncio.Protocol):
    """One request at a time. Also what the parser calls."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._loop = pool.loop
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._heard = 0.0
        self._asked = self._paused = False
        self._error: Exception | None = None
        self._begin()

    def _begin(self) -> None:
        self._parts: list[bytes] = []
        self._size = self._gap = self._head_bytes = 0
        self._framing = ""
        self._headed = self._complete = self._reusable = self._until_end = False
        self.status, self.reason = 0, b""
        self.headers: dict[str, str] = {}

    @property
    def usable(self) -> bool:
        """Whether it can be asked: not when anything waits in the socket that the loop has not seen.

        Nobody has asked for it. It would be taken for the next answer, or is the end of the connection.
        """
        kept = self._error is None and not self._asked and not self._transport.is_closing()
        return kept and not self._waits()

    async def ask(self, head: bytes, body: bytes) -> Response:
        self._begin()
        self._asked, self._heard = True, self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(self._pool.silence_s, self._look)
        self._transport.write(head + body)
        while not self._headed:
            await self._wait()
        return Response(self)

    async def readany(self) -> bytes:
        while not self._parts:
            if self._complete:
                return b""
            await self._wait()
        parts, self._parts, self._size = self._parts, [], 0
        if self._paused:
            self._paused, self._heard = False, self._loop.time()
            self._transport.resume_reading()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def leave(self) -> None:
        """The caller is done with the answer: the connection is kept where nothing is left of it on the way."""
        if not self._asked:
            return
        read = self._complete and not self._parts and self._error is None
        if read and self._reusable and not self._transport.get_write_buffer_size():
            self._asked = False
            self._pool.keep(self)
        else:
            self.abort()

    def abort(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._fail(BrokenError("the connection was closed"))

    async def _wait(self) -> None:
        self._hold()
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        self._hold()

    def _hold(self) -> None:
        """What came before the error is still read."""
        if self._error is not None and not (self._headed and (self._parts or self._complete)):
            raise self._error

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: Exception) -> None:
        """The first error counts; what has come before it may still be read."""
        self._error = self._error or error
        self._transport.abort()
        self._wake()

    def _look(self) -> None:
        """Silence: one timer a connection, which is set again when it was too early, and not for each piece."""
        self._timer = None
        if self._asked and not self._complete and self._error is None:
            now = self._loop.time()
            left_s = self._pool.silence_s - (0.0 if self._paused else now - self._heard)
            if left_s > 0:
                self._timer = self._loop.call_later(left_s, self._look)
            else:
                self._fail(TimeoutError())

    # The transport calls.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # of TCP
        self._transport = transport
        self._waits = waiting(transport.get_extra_info("socket").fileno())

    def data_received(self, data: bytes) -> None:
        if not self._asked or self._complete:
            # Nobody has asked: what this would be an answer to is the next request.
            self._fail(BrokenError("the server sent what nobody asked for"))
            return
        self._gap += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            cause = error.__context__ if isinstance(error.__context__, BrokenError) else None
            self._fail(cause or BrokenError("the server did not answer in HTTP/1.1"))
            return
        if self._gap > MAX_HEAD_BYTES and not self._complete:
            self._fail(BrokenError("the server sent a head that is too long"))
        elif self._size > HIGH_WATER_BYTES and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        if self._headed:
            self._wake()

    def eof_received(self) -> None:
        if self._asked and self._until_end and self._error is None:
            self._complete = True
            self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.forget(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._asked and not self._complete:
            told = "the server closed the connection too early" if exc is None else str(exc)
            self._error = self._error or BrokenError(told)
        self._error = self._error or BrokenError("the connection was closed")
        self._wake()

    # The parser calls.

    def on_message_begin(self) -> None:
        if self._complete:
            raise BrokenError("the server sent a second answer")

    def on_status(self, reason: bytes) -> None:
        self.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > MAX_HEAD_BYTES:
            raise BrokenError("the server sent a head that is too long")
        if not self._headed:
            key = name.decode("latin-1").lower()
            text = value.decode("latin-1")
            if key in ("content-length", "transfer-encoding"):
                if self._framing:
                    raise BrokenError("the server's answer has two lengths")
                self._framing = key
                if key == "transfer-encoding" and text.strip().lower() != "chunked":
                    raise BrokenError("the server's answer has a transfer coding that was not asked for")
            self.headers[key] = text

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            if status < 100 or status == 101:
                raise BrokenError("the server wants another protocol")
            # An interim answer (RFC 9110 sec. 15.2): the one that counts comes after it.
            self._framing, self.reason, self.headers = "", b"", {}
            return
        if self.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
            raise BrokenError("the server compressed its answer, although it was asked not to")
        # A whole head and a piece of a body break the silence, and not a byte of what stands between them.
        self.status, self._headed, self._heard = status, True, self._loop.time()
        self._until_end = not self._framing and status not in (204, 304)
        self._reusable = (
            self._parser.should_keep_alive() and self._parser.get_http_version() == "1.1" and not self._until_end
        )

    def on_body(self, body: bytes) -> None:
        if not self._headed:
            raise BrokenError("the server's interim answer has a body")
        self._gap, self._heard = 0, self._loop.time()
        self._parts.append(body)
        self._size += len(body)

    def on_message_complete(self) -> None:
        if self._headed:
            self._complete = True


def waiting(descriptor: int) -> Callable[[], bool]:
    """Tells whether a socket has something to be read, its end included."""
    if not hasattr(select, "poll"):  # Windows, where `select` takes descriptors of any number
        return lambda: bool(select.select([descriptor], [], [], 0)[0])
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return lambda: bool(poll.poll(0))


def serves(origin: str, path: str, fields: Mapping[str, str]) -> bool:
    """Whether a Pool can ask this server; what is not plain is aiohttp's."""
    plain = httptools is not None and origin.startswith("http://") and origin.isascii() and "%" not in origin
    named = not any(name.lower() in _OURS or not _FIELD.fullmatch(f"{name}: {value}") for name, value in fields.items())
    return plain and named and _TARGET.fullmatch(f"{path}/") is not None


def _lines(fields: Mapping[str, str]) -> list[str]:
    lines = [f"{name}: {value}" for name, value in fields.items()]
    if not all(map(_FIELD.fullmatch, lines)):
        raise ValueError("a field of the request cannot be sent")
    return lines
