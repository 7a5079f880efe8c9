"""HTTP/1.1 without TLS to a model server in one's own network: what aiohttp does there at twice the cost.

Strict where a peer could confuse us (RFC 9112): a message is framed by one length or by chunks, never by both; what
comes unasked, or after the end, closes the connection; heads are bounded.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from urllib.parse import urlsplit

from aibox.inference.connection import PARSED, BrokenError, Connection, Reader, UnreachableError

_TARGET = re.compile(r"/[!-~]*")
_FIELD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+: [!-~]?[ -~]*")
_OURS = frozenset({"host", "connection", "content-length", "transfer-encoding", "te", "trailer", "upgrade", "expect"})

Address = tuple[int, str]
"""The family of an address, and the address."""
Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]
"""The addresses of a host, each of them allowed; raises OSError for none."""


async def looked_up(host: str, port: int) -> list[Address]:
    """Every address of a host. Raises OSError where it has none."""
    # The interpreter's own look-up, which `aibox.seal` watches; a C resolver of a client's would pass it by.
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    return [(family, str(place[0])) for family, _, _, _, place in found]


class Response:
    """The head of an answer, and its body as it comes. Used by one task; `close` unless all was read."""

    __slots__ = ("_connection", "headers", "reason", "status")

    def __init__(self, connection: Connection) -> None:
        self._connection: Connection | None = connection
        self.status = connection.status
        self.reason = connection.reason.decode("latin-1")
        self.headers: Mapping[str, str] = connection.headers

    async def readany(self) -> bytes:
        """What has come and was not read yet, as soon as there is any; empty at the end. Raises as `Pool.ask`."""
        if self._connection is None:
            raise BrokenError("the answer was closed")
        return await self._connection.readany()

    async def each(self, reader: Reader) -> None:
        """Give what comes to a reader, until either is at its end. Raises as `readany`, and what the reader raises."""
        if self._connection is None:
            raise BrokenError("the answer was closed")
        await self._connection.each(reader)

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
        self._idle: deque[tuple[float, Connection]] = deque()
        self._all: set[Connection] = set()
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
            await connection.ask(head, body or b"")
            return Response(connection)
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

    def keep(self, connection: Connection) -> None:
        self._idle.append((self.loop.time() + self._idle_s, connection))
        if self._sweeping is None:
            self._sweeping = self.loop.call_later(self._idle_s, self._sweep)

    def forget(self, connection: Connection) -> None:
        self._all.discard(connection)

    def _kept(self) -> Connection | None:
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

    async def _connect(self) -> Connection:
        failed: OSError | None = None
        async with asyncio.timeout(self._connect_s):
            for family, address in await self._resolve(self._host, self._port):
                try:
                    _, made = await self.loop.create_connection(
                        lambda: Connection(self), address, self._port, family=family, flags=socket.AI_NUMERICHOST
                    )
                except OSError as error:
                    failed = error
                    continue
                self._all.add(made)
                return made
        raise UnreachableError(getattr(failed, "errno", None), getattr(failed, "strerror", None) or str(failed))


def serves(origin: str, path: str, fields: Mapping[str, str]) -> bool:
    """Whether a Pool can ask this server; what is not plain is aiohttp's."""
    plain = PARSED and origin.startswith("http://") and origin.isascii() and "%" not in origin
    named = not any(name.lower() in _OURS or not _FIELD.fullmatch(f"{name}: {value}") for name, value in fields.items())
    return plain and named and _TARGET.fullmatch(f"{path}/") is not None


def _lines(fields: Mapping[str, str]) -> list[str]:
    lines = [f"{name}: {value}" for name, value in fields.items()]
    if not all(map(_FIELD.fullmatch, lines)):
        raise ValueError("a field of the request cannot be sent")
    return lines
