"""The gate around every route: an id for each request, a line about it, limits, and an orderly end.

What asks nobody who they are (`/healthz` and its like) passes; all of `/v1/` has to prove who asks first.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextvars import ContextVar

import msgspec

from aibox.errors import OPERATORS, AIBoxError, BackendError, IntegrityError, LimitError, UpstreamError
from aibox.inference.accounts import Call
from aibox.outbound.traces import Traces
from aibox.policy.policy import Policy
from aibox.server.asked import KEY, App, Asked, Message, Receive, Scope, Send, piecemeal, proved, route_of
from aibox.server.auth import Callers
from aibox.server.hot import ROUTES, HotPath, too_long
from aibox.server.log import Log, failure
from aibox.server.once import METHODS, Once
from aibox.server.principal import Principal
from aibox.server.problem import problem, refusal
from aibox.server.rates import RateLimits
from aibox.settings_server import ServerLimits
from aibox.types import Scope as Whose

GUARDED = "/v1/"
OPEN = ("/v1/openapi.json",)
"""What says nothing about this installation and asks nobody who they are."""
CUT_S = 2.0
"""How long the last words of a stream that is cut off may take to be sent."""
OUR_FAULT = "this went wrong, and it is our fault"
_STREAM = b"text/event-stream"
_EVENTS = {
    OPERATORS: "config.failed", IntegrityError.code: "integrity.failed", BackendError.code: "backend.failed",
}  # fmt: skip
# What is done for a request is done in its task, or in one that began there: no id that somebody chose is asked.
_ASKED: ContextVar[Asked | None] = ContextVar("asked", default=None)


class Gate:
    """Around an application. `log` None says nothing. `rates` holds what `rules`, the policy of a tenant, says.

    `on_end` hears of each request that is over; `once` does what has an `Idempotency-Key`; `traces` says which requests
    are traced, and is told of those when they are over.
    """

    def __init__(
        self,
        inner: HotPath,
        *,
        callers: Callers,
        limits: ServerLimits | None = None,
        log: Log | None = None,
        rates: RateLimits | None = None,
        rules: Callable[[str], Policy] | None = None,
        once: Once | None = None,
        on_end: Callable[[Asked], None] | None = None,
        traces: Traces | None = None,
    ) -> None:
        self._inner = inner
        self._callers = callers
        self._limits = limits or ServerLimits()
        self._log = log
        self._rates = rates
        self._rules = rules
        self._once = once
        self._on_end = on_end
        self._traces = traces
        self._live: set[Asked] = set()
        self._running: Counter[str] = Counter()
        self._guarded = 0
        self._stopping = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        scope[KEY] = request = Asked(scope)
        request.task = asyncio.current_task()
        if self._traces is not None:
            request.place = self._traces.begin(request.traceparent, request.correlation)
        tell = _Telling(request, send).send
        self._live.add(request)
        before = _ASKED.set(request)
        try:
            await self._pass(request, scope, receive, tell)
        except AIBoxError as error:
            await _refuse(error, request, tell)
        except asyncio.CancelledError:
            assert request.task is not None
            if request.ended_by is None or request.task.uncancel():
                raise
            await _cut_off(request, request.ended_by, tell)
        except Exception as error:
            # A bug of ours. The caller gets a number to name it by; the line says where, and quotes nothing.
            if self._log is not None:
                self._log.say("bug", level="error", correlation=request.correlation, **failure(error))
            if request.status:
                raise
            await _refuse(AIBoxError(OUR_FAULT), request, tell)
        finally:
            # It knows its task, whose context would know it: such a ring would wait for the collector.
            _ASKED.reset(before)
            self._live.discard(request)
            self._ended(request, scope)

    @property
    def rest(self) -> App:
        """The application behind the hot path, which has the table of routes."""
        return self._inner.rest

    @property
    def live(self) -> int:
        """How many requests are under way."""
        return len(self._live)

    @property
    def under_way(self) -> list[Asked]:
        """The requests under way of those who have proved who they are."""
        return [request for request in self._live if request.principal is not None]

    def end(self, request: Asked, error: AIBoxError) -> None:
        """Break a request off. Its caller is told the error, as the last event of a stream; its entry has the code."""
        if request.ended_by is None and request.task is not None:
            request.ended_by = error
            request.task.cancel(error)

    def called(self, call: Call) -> None:
        """A model call has ended: its tokens are its request's, and are taken from the rates of whoever sent that."""
        request, who = _ASKED.get(), None
        # What goes on with something that another request began has that one's scope: it is its user's, and no key's.
        if request is not None and request.principal is not None and _same(request.principal.scope, call.scope):
            who = request.principal
            request.input_tokens += call.usage.input_tokens
            request.output_tokens += call.usage.output_tokens
        if self._rates is not None and self._rules is not None:
            tokens = call.usage.input_tokens + call.usage.output_tokens
            self._rates.used(who or Principal(call.scope), self._rules(call.scope.tenant).rates, tokens)

    def drain(self) -> None:
        """Take no more requests; those under way go on."""
        self._stopping = True

    async def stop(self) -> None:
        """End what is still under way, each stream with an event that says so; returns when all have ended."""
        self._stopping = True
        while self._live:
            for request in self._live:
                self.end(request, _stopping())
            await asyncio.sleep(0.01)
        if self._once is not None:
            await self._once.settle()

    async def _pass(self, request: Asked, scope: Scope, receive: Receive, tell: Send) -> None:
        if self._stopping:
            raise _stopping()
        if not request.path.startswith(GUARDED) or request.path in OPEN:
            await self._inner(scope, receive, tell)
            return
        # What is open to everybody does not count: whoever takes none of its answers would shut out all others.
        if self._guarded >= self._limits.requests:
            raise LimitError("the server has too much to do", retry_after_s=1, code="policy.limit.busy")
        self._guarded += 1
        try:
            await self._admit(request, scope)
            try:
                receive = self._bounded(request, receive)
                if request.idempotency and self._once is not None and request.method in METHODS:
                    await self._once(self._inner, request, scope, receive, tell)
                else:
                    await self._inner(scope, receive, tell)
            finally:
                self._release(request)
        finally:
            self._guarded -= 1

    async def _admit(self, request: Asked, scope: Scope) -> None:
        """The request counts for its tenant from now on. Raises AuthError, AccessError, LimitError."""
        limits = self._limits
        tenant = (await proved(scope, self._callers)).scope.tenant
        if self._running[tenant] >= limits.requests_per_tenant:
            raise LimitError(
                f"{limits.requests_per_tenant} requests of this tenant are under way, and no more may be",
                hint="wait until one has ended",
                retry_after_s=1,
                code="policy.limit.concurrent",
            )
        # Counted before the rates are asked for, which may be elsewhere: else a thousand pass while one is answered.
        self._running[tenant] += 1
        if self._rates is not None and self._rules is not None:
            try:
                await self._rates.admit(request, self._rules(tenant).rates)
            except BaseException:
                self._release(request)
                raise

    def _release(self, request: Asked) -> None:
        assert request.principal is not None
        tenant = request.principal.scope.tenant
        self._running[tenant] -= 1
        if not self._running[tenant]:
            del self._running[tenant]

    def _bounded(self, request: Asked, receive: Receive) -> Receive:
        """The body, refused as soon as it is too long. The hot path counts by itself."""
        hot = request.path in ROUTES
        if hot and not request.idempotency:
            return receive
        longest, seen = (self._limits.body_mib if hot else self._limits.upload_mib) << 20, 0

        async def read() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > longest:
                raise too_long(longest)
            return message

        return read

    def _ended(self, request: Asked, scope: Scope) -> None:
        request.route = route_of(scope)
        if self._on_end is not None:
            self._on_end(request)
        if self._traces is not None and request.place is not None and request.principal is not None:
            self._traces.request(
                request.place,
                tenant=request.tenant,
                correlation=request.correlation,
                route=request.route,
                method=request.method,
                status=request.status or 499,
                took_s=request.took_s,
            )
        if self._log is None:
            return
        if request.detail:
            event = _EVENTS.get(request.code, "store.failed")
            self._log.say(event, level="error", correlation=request.correlation, message=request.detail)
        self._log.put(
            {
                "ts": time.time(),
                "level": "info",
                "event": "request",
                "correlation": request.correlation,
                "tenant": request.tenant,
                "method": request.method,
                "route": request.route,
                "status": request.status or 499,
                "code": request.code,
                "ms": round(request.took_s * 1e3, 2),
                "input_tokens": request.input_tokens,
                "output_tokens": request.output_tokens,
            }
        )


def _same(one: Whose, other: Whose) -> bool:
    return (one.tenant, one.user, one.correlation) == (other.tenant, other.user, other.correlation)


class _Telling:
    """What a request is answered, with the headers that every answer has."""

    __slots__ = ("_request", "_send", "piece")

    def __init__(self, request: Asked, send: Send) -> None:
        self._request = request
        self._send = send
        self.piece = piecemeal(send)

    def send(self, message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            request = self._request
            request.status = message["status"]
            message["headers"] = headers = [*message["headers"], *request.headers]
            if request.ending is None and _STREAM in headers[0][1]:
                request.ending = _ending
        return self._send(message)


def _ending(error: AIBoxError) -> bytes:
    return b"event: error\ndata: " + msgspec.json.encode(problem(error)) + b"\n\n"


def _stopping() -> UpstreamError:
    return UpstreamError(
        "the server is stopping", hint="ask again in a moment", retryable=True, code="upstream.stopping"
    )


async def _refuse(error: AIBoxError, request: Asked, send: Send) -> None:
    request.failed(error)
    if request.status:
        raise error
    status, headers, body = refusal(error, openai=request.path in ROUTES or request.path == "/v1/models")
    if status in (413, 503):
        # What is left of the body is not read, and a server that stops keeps no connection.
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _cut_off(request: Asked, error: AIBoxError, send: Send) -> None:
    """The last words to whoever waits, where they can still be said: a reader who takes nothing is left."""
    request.failed(error)
    try:
        async with asyncio.timeout(CUT_S):
            if not request.status:
                await _refuse(error, request, send)
            elif request.ending is not None:
                await send({"type": "http.response.body", "body": request.ending(error)})
    except TimeoutError:
        return
