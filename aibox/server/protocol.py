"""HTTP/1.1 connections with bounds: how long a head is, how slowly it may come or be read, and how many there are.

The clock is looked at when something happens and by a sweep over all connections, so no request costs a timer. A whole
answer leaves in one piece. Requests that come behind one another are answered in turn.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sized
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from aibox.errors import AIBoxError, ConfigError, LimitError
from aibox.outbound.span import new_trace
from aibox.server.asked import CORRELATION, Message
from aibox.server.problem import refusal
from aibox.settings_server import ServerLimits

LINGER_S = 2.0
"""How long what still comes is thrown away after a refusal: a reset would take the answer with it."""
LINGER_BYTES = 4 << 20
WAITING = 16
"""Requests of one connection that wait for their turn while more are read."""
PIECE_BYTES = 4 << 10
"""What of a read is parsed before it is looked at how many wait: the parser cannot be stopped in the middle."""
JOINED_BYTES = 64 << 10
"""Of a body that is copied to stand behind its head; of a longer one a second write costs less."""
_UPGRADES = (b"connection", b"upgrade", b"http2-settings")
_SLASHES = re.compile(rb"%(?:2f|5c)", re.IGNORECASE)
_CONTROLS = bytes([*range(9), *range(10, 32), 127])
"""RFC 9110 sec. 5.5: none of them may stand in a field of an answer."""

Told = Callable[[AIBoxError, str], None]
"""Hears of a connection that was refused, with the id that its answer had."""


class Cycle(RequestResponseCycle):
    """A request and its answer. A head that names a length waits for the body, and goes out with it if that is whole.

    ASGI has it so for every head: "must not start sending the response until it has received at least one body event".
    """

    _head: Message | None = None

    async def send(self, message: Message) -> None:  # type: ignore[override]  # messages of ours are no TypedDicts
        head, self._head = self._head, None
        if head is None and not self.response_started and _length(message) is not None:
            self._head = message
            return
        if self.waiting_for_100_continue and self.more_body:
            # The body that was asked about may never come: what comes next could not be told from it.
            self.keep_alive = False
        if head is not None:
            if (answer := self._whole(head, message)) is not None:
                self.response_started = self.response_complete = True
                self.waiting_for_100_continue = False
                self.transport.write(answer)
                self.message_event.set()
                self.on_response()
                return
            await super().send(head)  # type: ignore[arg-type]  # see above
        await super().send(message)  # type: ignore[arg-type]  # see above

    async def send_500_response(self) -> None:
        self._head = None  # it waited for a body, and nothing of it has left
        await super().send_500_response()

    def piece(self, body: bytes) -> Awaitable[None] | None:
        """As `send`, of a piece of a body that goes on after it: None where it has been sent, else to be waited for."""
        plain = self.chunked_encoding and not self.response_complete and self._head is None
        if not plain or not body or self.disconnected or self.flow.write_paused:
            return self.send({"type": "http.response.body", "body": body, "more_body": True})
        self.transport.write(b"%x\r\n%b\r\n" % (len(body), body))
        return None

    def _whole(self, head: Message, last: Message) -> bytes | None:
        """An answer as it goes over the wire; None for what is none of the plain ones, and is uvicorn's to send."""
        if self.disconnected or self.flow.write_paused or not self.keep_alive or self.scope["method"] == "HEAD":
            return None
        status, body = head["status"], last.get("body", b"")
        if status < 200 or status in (204, 304) or last.get("more_body") or len(body) > JOINED_BYTES:
            return None
        fields = self.default_headers + head["headers"]
        lines = b"".join([b"%b: %b\r\n" % field for field in fields])
        # Two control characters a line are its end. Of any other uvicorn has an opinion, and of these three fields.
        plain = len(lines) - len(lines.translate(None, _CONTROLS)) == 2 * len(fields)
        if not plain or b"connection" in lines or b"transfer-encoding" in lines or _length(head) != b"%d" % len(body):
            return None
        return b"".join((STATUS_LINE[status], lines, b"\r\n", body))


class Flow(FlowControl):
    """Reads no more while many requests wait for their turn: each costs a hundred times what it takes to ask."""

    def __init__(self, transport: asyncio.Transport, waiting: Sized) -> None:
        super().__init__(transport)
        self._waiting = waiting

    def resume_reading(self) -> None:
        if len(self._waiting) < WAITING:
            super().resume_reading()


class BoundedProtocol(HttpToolsProtocol):
    """What uvicorn speaks, for subclasses made by `protocol`."""

    limits: ServerLimits
    told: Told

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._since: float | None = None
        """When what is waited for began; None while nothing is."""
        self._idle: float | None = None
        """When the last answer ended; None before the first, and while one is asked for."""
        self._in_head = True
        self._head_bytes = self._read_bytes = self._began = 0
        self._later: bytes | memoryview = b""
        """What was read and is not parsed while `WAITING` wait."""
        self._gap = 0
        """What came of a request behind its head, since the last piece of its body: sizes of chunks, and trailers."""
        self._running: RequestResponseCycle | None = None
        """The request that is being answered; `cycle` is the one that came last."""
        self._upgrading = False
        self._stuck: tuple[int, float] | None = None
        """How much of what was written waited for a reader who takes nothing, and since when."""
        self._refused: AIBoxError | None = None
        self._ended: float | None = None
        """When the connection was refused; what comes after that is thrown away."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self.flow = Flow(transport, self.pipeline)
        self._since = self.loop.time()
        if len(self.connections) > self.limits.connections:
            self._refuse(LimitError("too many connections are open", retry_after_s=1, code="policy.limit.busy"))
            self.transport.close()

    def data_received(self, data: bytes | memoryview) -> None:
        rest = memoryview(bytes(self._later) + data if self._later else data)
        while rest and (len(self.pipeline) < WAITING or self._ended is not None):
            self._piece_received(rest[:PIECE_BYTES])
            rest = rest[PIECE_BYTES:]
        # Nothing more is read by then: whoever waits has paused that.
        self._later = rest

    def _piece_received(self, data: memoryview) -> None:
        self._read_bytes = len(data)
        if self._in_head or self._ended is not None:
            self._head_bytes += len(data)
        if self._ended is not None:
            if self._head_bytes > LINGER_BYTES:
                self.transport.abort()
            return
        self._gap += len(data)
        self._parse(data)
        if (self._head_bytes if self._in_head else self._gap) > self._longest:
            self._refuse(self._too_long())
        elif self._ended is None and self._since is None and (self.cycle is None or self.cycle.response_complete):
            # Line ends between two requests are none, and are not a way to stay for ever.
            self._since, self._in_head, self._head_bytes, self._began = self.loop.time(), True, 0, 0

    def connection_lost(self, exc: Exception | None) -> None:
        # uvicorn tells the request that came last: the one that is answered is to hear of it, and none begins any more.
        self.pipeline.clear()
        self._later = b""
        self._leave()
        super().connection_lost(exc)

    def _leave(self) -> None:
        """Whoever works for the caller hears that there is none."""
        for cycle in (self._running, self.cycle):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()

    def _parse(self, data: memoryview) -> None:
        try:
            while (read := self._fed(data)) is not None:
                data = data[read:]
                self._stay()
        except httptools.HttpParserError:
            self.send_400_response("")

    def _fed(self, data: memoryview) -> int | None:
        """None when all of it was read; else how much, up to the end of a head that asks for another protocol."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            read: int = upgrade.args[0]
            return read
        return None

    def _stay(self) -> None:
        """A request that would rather go on in another protocol is answered in this one (RFC 9110 sec. 7.8).

        The parser takes what stands behind such a head for the other protocol, and so a body for the next request. A
        fresh one is given the same head without that wish, and then what came behind it.
        """
        version, method = self.parser.get_http_version().encode(), self.parser.get_method()
        fields = [(name, value) for name, value in self.headers if name not in _UPGRADES]
        closes = any(name == b"connection" and b"close" in value.lower() for name, value in self.headers)
        lines = [b"%b: %b\r\n" % field for field in (*fields, *([(b"connection", b"close")] if closes else ()))]
        self._upgrading = False
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
        self.parser.feed_data(b"%b %b HTTP/%b\r\n%b\r\n" % (method, self.url, version, b"".join(lines)))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._idle = None
        if self._since is None:
            self._since = self.loop.time()
        if not self._in_head:
            self._in_head, self._head_bytes, self._began = True, 0, self._read_bytes

    def on_headers_complete(self) -> None:
        if self._head_bytes + self._began > self._longest:
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > self._longest:
                self._refused = self._too_long()
                raise self._refused
        if amiss := self._amiss():
            self._refused = amiss
            raise amiss
        if self.parser.should_upgrade():
            self._upgrading = True
            return
        self._in_head, self._since, self._gap = False, self.loop.time(), 0
        # Whoever speaks HTTP/1.0 knows no 100 (RFC 9110 sec. 10.1.1).
        self.expect_100_continue = self.expect_100_continue and self.parser.get_http_version() != "1.0"
        super().on_headers_complete()
        # What stands behind the body is no header of it (RFC 9110 sec. 6.5.1), and would come into the same list.
        self.headers = []
        # uvicorn names the class itself, and asks it for nothing before the loop's next turn.
        self.cycle.__class__ = Cycle

    def on_body(self, body: bytes) -> None:
        self._gap = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._upgrading:
            return  # of its head alone: it comes again
        self._since, self._gap = None, 0
        super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        if self._since is not None:
            self._since = self.loop.time()  # while it waited for its turn nothing of it was read
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """As uvicorn's, but that `sweep` sees to connections which nobody uses, and not a timer a request."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            if self._later:
                later, self._later = self._later, b""
                self.data_received(later)
        else:
            self._idle = self.loop.time()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - the words are ours
        self._refuse(self._refused or ConfigError("this is not HTTP/1.1"))

    def sweep(self, now: float) -> None:
        """End the connection when what it is to send has not come in time, or nobody has used or read it for long."""
        limits = self.limits
        if self._unread(now) > limits.read_s:
            self.transport.abort()
        elif self._ended is not None:
            if now - self._ended > LINGER_S:
                self.transport.close()
        elif self._since is not None and (self.flow.read_paused or self.pipeline or self._behind):
            self._since = now  # that nothing comes is our doing, or nothing is made of it before its turn
        elif self._since is not None and now - self._since > (limits.head_s if self._in_head else limits.body_s):
            what = "headers" if self._in_head else "body"
            self._refuse(LimitError(f"the {what} did not come in time", code="policy.limit.time"))
        elif self._since is None and self._idle is not None and now - self._idle > self.timeout_keep_alive:
            self.transport.close()

    @property
    def _behind(self) -> bool:
        """Whether what comes is the head of a request behind one that is still answered."""
        return self._in_head and self._running is not None and not self._running.response_complete

    def resume_writing(self) -> None:
        self._stuck = None
        super().resume_writing()

    def _unread(self, now: float) -> float:
        """For how many seconds the reader has taken nothing of what waits for them."""
        # A transport that closes waits for what is left, however little, and for ever.
        still = self.flow.write_paused or self.transport.is_closing()
        waits = self.transport.get_write_buffer_size() if still else 0
        if not waits:
            self._stuck = None
            return 0.0
        if self._stuck is None or waits < self._stuck[0]:
            self._stuck = waits, now
        return now - self._stuck[1]

    def _amiss(self) -> ConfigError | None:
        """What two servers in a row could read in two ways (RFC 9112 sec. 3.2; RFC 3986 sec. 2.2)."""
        if self.parser.get_http_version() not in ("1.0", "1.1"):
            return ConfigError("this is not HTTP/1.1")
        hosts = len([name for name, _ in self.headers if name == b"host"])
        if hosts > 1:
            return ConfigError("the request has more than one Host header", hint="send one")
        if not hosts and self.parser.get_http_version() != "1.0":
            return ConfigError("the request has no Host header", hint="send one, as HTTP/1.1 asks")
        if b"%" in self.url and _SLASHES.search(self.url.partition(b"?")[0]):
            return ConfigError("the path holds an encoded slash or backslash", hint="no name in a path here has one")
        if any(name == b"transfer-encoding" and value.strip().lower() != b"chunked" for name, value in self.headers):
            return ConfigError(
                "the body has a transfer coding that is not understood", hint="send it as it is, or chunked"
            )
        if self.parser.should_upgrade() and self.parser.get_method() == b"CONNECT":
            return ConfigError("this is no proxy")
        return None

    @property
    def _longest(self) -> int:
        return self.limits.head_kib << 10

    def _too_long(self) -> LimitError:
        return LimitError(
            f"the headers are longer than {self.limits.head_kib} KiB", hint="send less", code="policy.limit.headers"
        )

    def _refuse(self, error: AIBoxError) -> None:
        self._since = None
        if self.transport.is_closing() or self._ended is not None:
            return
        self._ended = self.loop.time()
        correlation = new_trace()
        # Where an answer is under way there is no room for another, nor where an earlier request waits for its own.
        running = self._running if self._running is not None and not self._running.response_complete else None
        answers = running is not None and (running.response_started or not running.more_body)
        if not answers:
            status, headers, body = refusal(error, openai=False)
            own = [(b"connection", b"close"), (CORRELATION, correlation.encode())]
            lines = [name + b": " + value + b"\r\n" for name, value in (*headers, *own)]
            self.transport.write(b"".join([STATUS_LINE[status], *lines, b"\r\n", body]))
        self.pipeline.clear()
        self._leave()
        self.told(error, correlation)
        if answers or not self.transport.can_write_eof():
            self.transport.close()
        else:
            self.transport.write_eof()
            self.flow.resume_reading()


def _length(message: Message) -> bytes | None:
    """What the head of an answer says of its length; None where it says nothing, and for what is no head."""
    for name, value in message.get("headers", ()):
        if name == b"content-length":
            found: bytes = value
            return found
    return None


def protocol(limits: ServerLimits, told: Told) -> type[BoundedProtocol]:
    """The class to give to uvicorn."""
    return type("Bounded", (BoundedProtocol,), {"limits": limits, "told": staticmethod(told)})
