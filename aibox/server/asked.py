"""One request as the gateway sees it: its correlation id, who asks, and what became of it. Never what it says."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from aibox.errors import AIBoxError, StoreError
from aibox.outbound.span import UNTRACED, Place, new_trace
from aibox.server.auth import Callers
from aibox.server.principal import Principal
from aibox.server.problem import is_kept_back, status_of

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

KEY = "aibox.asked"
"""Where it stands in the ASGI scope."""
CORRELATION = b"x-correlation-id"
TRACEPARENT = b"traceparent"
CASE = b"x-aibox-case"
"""The case, or matter, that a request belongs to: what pseudonyms are one mapping in."""
OTHER = "other"
"""The route of what has none: a path that somebody made up must not become a name in logs and metrics."""
_SAFE = re.compile(rb"[A-Za-z0-9_-]{8,64}")


def piecemeal(send: Send) -> Callable[[bytes], Awaitable[None] | None]:
    """How a piece of a body leaves that goes on after it: None, it has been sent; else what is to be waited for.

    Where `send` is a method of what has a `piece` itself, as a connection has, no task is needed; else by `send`.
    """
    at_once: Callable[[bytes], Awaitable[None] | None] | None
    at_once = getattr(getattr(send, "__self__", None), "piece", None)
    return at_once or (lambda body: send({"type": "http.response.body", "body": body, "more_body": True}))


class Asked:
    """A request under way. `headers` are added to its answer; `ending` words the event that cuts its stream off."""

    __slots__ = (
        *("authorization", "code", "correlation", "detail", "ended_by", "ending", "fault", "given", "headers"),
        *("idempotency", "input_tokens", "matter", "method", "output_tokens", "path", "place", "principal", "route"),
        *("started", "status", "task", "traceparent"),
    )

    def __init__(self, scope: Scope) -> None:
        self.method: str = scope["method"]
        self.path = _within(scope)
        self.route = OTHER
        told: dict[bytes, bytes] = dict(scope["headers"])
        # Two are one list (RFC 9110 sec. 5.3), which is no token: somebody else might read the other of them.
        proofs = [value for name, value in scope["headers"] if name == b"authorization"]
        self.authorization = b", ".join(proofs).decode("latin-1")
        self.idempotency = told.get(b"idempotency-key", b"").decode("latin-1")
        self.given, self.traceparent = told.get(CORRELATION, b""), told.get(TRACEPARENT, b"")
        matter = told.get(CASE)
        self.matter = None if matter is None else matter.decode("latin-1")
        # Somebody else's id is taken over where it can do no harm in a log, an entry or a header.
        kept = _SAFE.fullmatch(self.given)
        self.correlation = self.given.decode() if kept else new_trace()
        self.headers: list[tuple[bytes, bytes]] = [(CORRELATION, self.correlation.encode())]
        self.principal: Principal | None = None
        self.place: Place | None = None
        """Where it stands in a trace, if it is traced."""
        self.status = 0
        self.code = ""
        """Of the error that it ended with."""
        self.fault = 0
        """The status that this error has, also where a stream that had begun with another was what told it."""
        self.detail = ""
        """What is said of this error in the log, and to no caller."""
        self.started = time.perf_counter()
        self.input_tokens = self.output_tokens = 0
        self.task: asyncio.Task[Any] | None = None
        self.ended_by: AIBoxError | None = None
        """Why the server broke it off, which is what its caller is told and its entry says."""
        self.ending: Callable[[AIBoxError], bytes] | None = None

    def failed(self, error: AIBoxError) -> None:
        """It ends with this error."""
        self.code, self.fault = error.code, status_of(error)
        if is_kept_back(error):
            # Of a database's answer the first line: those behind it quote what was sent to it.
            said = error.message.partition("\n")[0]
            self.detail = said if isinstance(error, StoreError) or not error.hint else f"{said} ({error.hint})"

    @property
    def took_s(self) -> float:
        return time.perf_counter() - self.started

    @property
    def tenant(self) -> str:
        return "" if self.principal is None else self.principal.scope.tenant


def _within(scope: Scope) -> str:
    """The path within this application: it may be mounted in another, under a `root_path` that the path begins with."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    if root and path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/"):
        return path[len(root) :]
    return path


def asked(scope: Scope) -> Asked:
    """The request that an ASGI scope is of."""
    found: Asked = scope[KEY]
    return found


def route_of(scope: Scope) -> str:
    """The route that answers, as it is known by now: of one with names in it the route, never the names.

    As the document writes it, without what a part is matched by.
    """
    found = scope.get("route")
    return asked(scope).route if found is None else str(found.path_format)


async def proved(scope: Scope, callers: Callers) -> Principal:
    """Who asks, as proved by the `Authorization` header; looked at once a request. Raises as `Callers.principal`.

    The principal's scope carries the request's correlation id, and the case that it names.
    """
    request = asked(scope)
    if request.principal is None:
        principal = await callers.principal(request.authorization, correlation=request.correlation)
        place = request.place
        trace = UNTRACED if place is None else place.within
        request.principal = principal.under(request.correlation, trace, case=request.matter)
    return request.principal
