"""HTTP/1.1 connections with bounds: how long a head is, how slowly it may come, and how many there are.

The clock is looked at when something happens and by a sweep over all connections, so no request costs a timer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from aibox.errors import AIBoxError, ConfigError, LimitError
from aibox.outbound.span import new_trace
from aibox.server.asked import CORRELATION
from aibox.server.problem import refusal
from aibox.settings_server import ServerLimits

LINGER_S = 2.0
"""How long what still comes is thrown away after a refusal: a reset would take the answer with it."""
LINGER_BYTES = 4 << 20

Told = Callable[[AIBoxError, str], None]
"""Hears of a connection that was refused, with the id that its answer had."""


class BoundedProtocol(HttpToolsProtocol):
    """What uvicorn speaks, for subclasses made by `protocol`."""

    limits: ServerLimits
    told: Told

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._since: float | None = None
        """When what is waited for began; None while nothing is."""
        self._in_head = True
        self._head_bytes = self._read_bytes = 0
        self._refused: AIBoxError | None = None
        self._ended: float | None = None
        """When the connection was refused; what comes after that is thrown away."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._since = self.loop.time()
        if len(self.connections) > self.limits.connections:
            self._refuse(LimitError("too many connections are open", retry_after_s=1, code="policy.limit.busy"))
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        self._read_bytes = len(data)
        if self._in_head or self._ended is not None:
            self._head_bytes += len(data)
        if self._ended is not None:
            if self._head_bytes > LINGER_BYTES:
                self.transport.abort()
            return
        super().data_received(data)
        if self._in_head and self._head_bytes > self._longest:
            self._refuse(self._too_long())
        elif self._ended is None and self._since is None and (self.cycle is None or self.cycle.response_complete):
            # Line ends between two requests are none, and are not a way to stay for ever.
            self._since, self._in_head, self._head_bytes = self.loop.time(), True, 0

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._since is None:
            self._since = self.loop.time()
        if not self._in_head:
            self._in_head, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        if max(self._read_bytes, self._head_bytes) > self._longest:
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > self._longest:
                self._refused = self._too_long()
                raise self._refused
        self._in_head, self._since = False, self.loop.time()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._since = None
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - the words are ours
        self._refuse(self._refused or ConfigError("this is not HTTP/1.1"))

    def sweep(self, now: float) -> None:
        """End the connection when what it is to send has not come in time."""
        limits = self.limits
        if self._ended is not None:
            if now - self._ended > LINGER_S:
                self.transport.close()
        elif self._since is not None and now - self._since > (limits.head_s if self._in_head else limits.body_s):
            what = "headers" if self._in_head else "body"
            self._refuse(LimitError(f"the {what} did not come in time", code="policy.limit.time"))

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
        cycle = self.cycle
        # Where an answer is under way there is no room for another.
        answers = cycle is not None and cycle.response_started and not cycle.response_complete
        if not answers:
            status, headers, body = refusal(error, openai=False)
            own = [(b"connection", b"close"), (CORRELATION, correlation.encode())]
            lines = [name + b": " + value + b"\r\n" for name, value in (*headers, *own)]
            self.transport.write(b"".join([STATUS_LINE[status], *lines, b"\r\n", body]))
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        self.told(error, correlation)
        if answers or not self.transport.can_write_eof():
            self.transport.close()
        else:
            self.transport.write_eof()
            self.flow.resume_reading()


def protocol(limits: ServerLimits, told: Told) -> type[BoundedProtocol]:
    """The class to give to uvicorn."""
    return type("Bounded", (BoundedProtocol,), {"limits": limits, "told": staticmethod(told)})
