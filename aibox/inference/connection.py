"""One connection of HTTP/1.1 to a model server: a request at a time, its framing strict, its silence bounded.

The parser is llhttp, by way of httptools.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Awaitable, Callable
from typing import Protocol

from aibox.inference.streams import forgo

try:
    import httptools
except ImportError:  # an extra: without it everything goes through aiohttp
    httptools = None  # type: ignore[assignment]

PARSED = httptools is not None
"""Whether there is a parser."""
MAX_HEAD_BYTES = 64 << 10
"""Of a head, of the trailers, and of what may stand between two pieces of a body."""
HIGH_WATER_BYTES = 256 << 10
"""What may wait to be read before the server is made to wait."""


AFTER_END_S = 2.0
"""The longest silence behind the end of what is said: who has a count and a last word to say has them at hand.

The caller waits for both, and a server that sends neither would make them wait as long as for an answer.
"""


class Reader(Protocol):
    """Takes a body in pieces, until it has `ended`."""

    ended: bool
    said: bool
    """Whether all of the answer has come. What may follow is how much it was, and that it was all."""

    def feed(self, data: bytes, /) -> Awaitable[None] | None:
        """Take a piece. What it returns, where that is something, is waited for before it is given the next."""
        ...


class UnreachableError(OSError):
    """No connection could be made."""


class BrokenError(OSError):
    """The connection ended too early, or what came over it is no answer."""


class Keeper(Protocol):
    """Has connections: those that are used, and those that are kept."""

    silence_s: float
    loop: asyncio.AbstractEventLoop

    def keep(self, connection: Connection, /) -> None: ...

    def forget(self, connection: Connection, /) -> None: ...


class Connection(asyncio.Protocol):
    """One request at a time. Also what the parser calls."""

    def __init__(self, pool: Keeper) -> None:
        self._pool = pool
        self._loop = pool.loop
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[Awaitable[None] | None] | None = None
        self._reader: Reader | None = None
        """Who waits for a piece: it is given to it in the moment in which it comes."""
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

    async def ask(self, head: bytes, body: bytes) -> None:
        """Send a request; returns when the head of its answer is whole."""
        self._begin()
        self._asked, self._heard, self._silence_s = True, self._loop.time(), self._pool.silence_s
        if self._timer is None:
            self._timer = self._loop.call_later(self._silence_s, self._look)
        self._transport.write(head + body)
        while not self._headed:
            await self._wait()

    async def readany(self) -> bytes:
        while not self._parts:
            if self._complete:
                return b""
            await self._wait()
        return self._gathered()

    async def each(self, reader: Reader) -> None:
        while not reader.ended:
            if self._parts:
                busy = reader.feed(self._gathered())
            elif self._complete:
                return
            else:
                self._reader = reader
                try:
                    busy = await self._wait()
                finally:
                    self._reader = None
            if busy is not None:
                await busy
            self._hurry(reader)

    def _hurry(self, reader: Reader) -> None:
        if not reader.said:
            self._silence_s = self._pool.silence_s
        elif not reader.ended and self._silence_s > AFTER_END_S:
            self._silence_s = AFTER_END_S
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_later(AFTER_END_S, self._look)

    def _gathered(self) -> bytes:
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

    async def _wait(self) -> Awaitable[None] | None:
        """Until something has come. What the reader was given already may have to be waited for."""
        self._hold()
        waiter: asyncio.Future[Awaitable[None] | None] = self._loop.create_future()
        self._waiter = waiter
        try:
            busy = await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                forgo(waiter.result())  # it came in the moment in which it was left
            raise
        finally:
            self._waiter = None
        if busy is None:
            self._hold()
        return busy

    def _hold(self) -> None:
        """What came before the error is still read."""
        if self._error is not None and not (self._headed and (self._parts or self._complete)):
            raise self._error

    def _hand_on(self, reader: Reader, waiter: asyncio.Future[Awaitable[None] | None]) -> None:
        """What has come to whoever waits for it, who goes on waiting unless there is something to do."""
        try:
            busy = reader.feed(self._gathered())
        except BaseException as error:  # noqa: BLE001 - of whoever waits, who is told
            if not waiter.done():
                waiter.set_exception(error)
            return
        if waiter.done():
            forgo(busy)  # who waits was made to leave by what it was given
        elif busy is not None or self._complete or reader.ended:
            waiter.set_result(busy)
        else:
            self._hurry(reader)

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
            left_s = self._silence_s - (0.0 if self._paused else now - self._heard)
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
        elif self._parts and self._reader is not None and self._waiter is not None and not self._waiter.done():
            self._hand_on(self._reader, self._waiter)
            return
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
