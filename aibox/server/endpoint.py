"""What every route does before and after its method: who asks, may they, what was sent, what is recorded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from aibox.audit.chain import AuditChain
from aibox.errors import AccessError, AIBoxError, ConfigError, LimitError
from aibox.leaving import given as reason_of
from aibox.leaving import leave
from aibox.server.acts import ended
from aibox.server.asked import Asked, Receive, Scope, Send, asked, proved
from aibox.server.auth import Callers
from aibox.server.hot import GoneError, while_there
from aibox.server.principal import Principal
from aibox.server.problem import fields, openai_error, problem, status_of
from aibox.server.route import Route
from aibox.validation import explain_validation

HEARTBEAT_S = 15.0
"""After so much silence a stream sends a comment, so that nothing between takes it for dead."""
DONE = "done"
_ON_THE_WAY = ("guardrail.", "egress.", "pseudonym.", "sandbox.artifact")
"""Entries that are no end of what they are part of."""


class Served:
    """One route, as an ASGI application. Raises AIBoxError, which the application around it tells."""

    def __init__(self, route: Route, act: Callable[..., Any], *, callers: Callers, audit: AuditChain) -> None:
        self.route = route
        self._act = act
        self._callers = callers
        self._audit = audit
        self._parts = {name: TypeAdapter(kind) for name, kind in route.parts.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, route = Request(scope, receive), self.route
        who: Principal | None = None
        if route.roles:
            who = await proved(scope, self._callers)
            await self._allow(who)
        try:
            given = await self._given(request)
            with while_there(receive) if route.watched else nullcontext():
                async with self._recorded(who, asked(scope)) as acting:
                    answer = await (self._act(**given) if acting is None else self._act(acting, **given))
                    if route.streams:
                        asked(scope).ending = self._cut
                        await _stream(route, asked(scope), answer, send)
                if not route.streams:
                    await _response(route, answer)(scope, receive, send)
        except GoneError:
            return  # there is nobody to tell

    def _cut(self, error: AIBoxError) -> bytes:
        return b"" if self.route.cut is None else _frame(self.route.cut(error))

    async def _allow(self, who: Principal) -> None:
        try:
            who.require(*self.route.roles)
            who.require_scope(self.route.scope)
        except AccessError as error:
            await self._note(who, error.code)
            raise

    @asynccontextmanager
    async def _recorded(self, who: Principal | None, under_way: Asked) -> AsyncIterator[Principal | None]:
        """One entry for what is done inside, durable before the answer is sent.

        Work that leaves its own has none here, unless it fails before it has left one.
        """
        if who is None or not self.route.changes:
            yield who
            return
        who = under_way.principal = who.acting()
        with self._audit.following() as left:
            try:
                yield who
                outcome = under_way.code or DONE  # a stream has told what went wrong as its last event
            except AIBoxError as error:
                await self._end(who, error.code, left)
                raise
            except asyncio.CancelledError as error:
                why = reason_of(error)
                await asyncio.shield(self._end(who, "left" if why is None else why.code, left))
                raise
            except Exception:
                # A bug of ours: what it has done by then nobody knows, and that it was begun and ended badly is told.
                await self._end(who, AIBoxError.code, left)
                raise
            await self._end(who, outcome, left)

    async def _end(self, who: Principal, outcome: str, left: Sequence[str]) -> None:
        # A turn that has begun has its end from whoever runs it, or from the chain.
        if self.route.records and (outcome == DONE or not all(kind.startswith(_ON_THE_WAY) for kind in left)):
            return
        await self._note(who, outcome)

    async def _note(self, who: Principal, outcome: str) -> None:
        await ended(self._audit, who, self.route.name, outcome)

    async def _given(self, request: Request) -> dict[str, Any]:
        """The arguments of the method. Raises ConfigError for what is not what the document says."""
        route = self.route
        given = {name: _valid(kind, request.path_params[name], name) for name, kind in self._parts.items()}
        if route.query is not None:
            given["query"] = _valid(TypeAdapter(route.query), _query(request, route.query), "query", model=route.query)
        if route.matches and route.changes:
            given["match"] = request.headers.get("if-match")
        if route.body is not None:
            data = await _read(request, route.max_body_bytes)
            given["body"] = data if route.body is bytes else _body(route.body, data)
        return given


class ByMethod:
    """The routes of one path."""

    def __init__(self, served: Mapping[str, Served], *, also: Sequence[str] = ()) -> None:
        self.served = dict(served)
        self._allowed = [*served, *also, *(["HEAD"] if "GET" in served else [])]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        served = self.served.get("GET" if scope["method"] == "HEAD" else scope["method"])
        if served is None:
            raise HTTPException(405, headers={"allow": ", ".join(sorted(self._allowed))})
        scope["endpoint"] = served  # so that an error is told in the shape of this route
        await served(scope, receive, send)


async def failed(request: Request, error: Exception) -> Response:
    """An error of aibox, told in the shape that its route has."""
    assert isinstance(error, AIBoxError)
    asked(request.scope).failed(error)
    headers = fields(error)
    served = request.scope.get("endpoint")
    if isinstance(served, Served) and served.route.openai:
        return JSONResponse(openai_error(error), status_code=status_of(error), headers=headers)
    media = "application/problem+json"
    return JSONResponse(problem(error), status_code=status_of(error), headers=headers, media_type=media)


def _response(route: Route, answer: Any) -> Response:
    if answer is None:
        return Response(status_code=route.status)
    if isinstance(answer, Response):
        return answer
    content = answer.model_dump_json() if isinstance(answer, BaseModel) else answer
    headers = {"etag": f'"{answer.digest}"'} if route.matches else None
    return Response(content, status_code=route.status, media_type=route.media, headers=headers)


async def _stream(route: Route, under_way: Asked, events: AsyncIterator[BaseModel], send: Send) -> None:
    """Each event with its number and its type. While there is none, a comment from time to time.

    An error is the last event, where the route has one for it.
    """
    headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    number = 0

    async def following() -> BaseModel | None:
        try:
            return await anext(events, None)
        except AIBoxError as error:
            if route.cut is None:
                raise
            under_way.failed(error)
            return route.cut(error)

    coming: asyncio.Task[BaseModel | None] | None = None
    try:
        while True:
            coming = coming or asyncio.create_task(following())
            if not (await asyncio.wait((coming,), timeout=HEARTBEAT_S))[0]:
                await send({"type": "http.response.body", "body": b": still at work\n\n", "more_body": True})
                continue
            event, coming = coming.result(), None
            if event is None:
                break
            number += 1
            frame = b"id: %d\n" % number + _frame(event)
            await send({"type": "http.response.body", "body": frame, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    except BaseException as error:
        if coming is not None:
            coming.cancel(*error.args[:1])
            await asyncio.wait((coming,))
        if isinstance(error, asyncio.CancelledError):
            await leave(events, error)
        raise
    finally:
        if isinstance(events, AsyncGenerator):
            await events.aclose()


def _frame(event: BaseModel) -> bytes:
    # JSON has no raw line ends, so that no text of a model can end an event.
    return f"event: {getattr(event, 'type', 'message')}\ndata: {event.model_dump_json()}\n\n".encode()


async def _read(request: Request, limit: int) -> bytes:
    """The body, given up as soon as it is too long."""
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > limit:
            said = f"the body is longer than {limit >> 10} KiB"
            raise LimitError(said, hint="send less in one request", code="policy.limit.body")
    return bytes(data)


def _body(kind: type[BaseModel], data: bytes) -> BaseModel:
    try:
        return kind.model_validate_json(data or b"{}", strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            raise ConfigError(f"the body is not JSON: {first['msg']}") from None
        if not first["loc"] and first["type"] != "value_error":
            raise ConfigError("the body is a JSON object") from None
        raise ConfigError(f"the body: {explain_validation(error, kind)}") from None


def _query(request: Request, kind: type[BaseModel]) -> dict[str, Any]:
    """The query, in which only what is a list may stand more than once."""
    found: dict[str, Any] = {}
    for name, value in request.query_params.multi_items():
        field = kind.model_fields.get(name)
        if field is not None and "list" in str(field.annotation):
            found.setdefault(name, []).append(value)
        elif name in found:
            raise ConfigError(f"the query names {name[:60]!r} twice")
        else:
            found[name] = value
    return found


def _valid(kind: TypeAdapter[Any], value: Any, what: str, *, model: type[BaseModel] | None = None) -> Any:
    try:
        return kind.validate_python(value)
    except ValidationError as error:
        said = (
            explain_validation(error, model)
            if model is not None
            else error.errors()[0]["msg"].removeprefix("Value error, ")
        )
        raise ConfigError(f"{what}: {said}") from None
