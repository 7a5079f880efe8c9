"""The ASGI application: HTTP around the library, and no behaviour of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from aibox import __version__
from aibox.agents.agent import Agent
from aibox.box import Box
from aibox.errors import AIBoxError, LimitError
from aibox.server.auth import Callers
from aibox.server.inference_api import InferenceAPI, read_request
from aibox.server.problem import openai_error, problem, status_of

MAX_BODY_BYTES = 8 * 2**20
"""Of one request: room for a long conversation; a message alone is bounded by the policy."""


def create_app(box: Box, *, callers: Callers, agents: Mapping[str, Agent] | None = None) -> Starlette:
    """Serve an open box. `agents` are offered as `agent:NAME`; None offers the box's default agent."""
    api = InferenceAPI(box, agents=agents if agents is not None else {"default": box.agent()})

    async def models(request: Request) -> Response:
        await callers.scope(request.headers.get("authorization", ""))
        return JSONResponse(await api.models())

    async def chat_completions(request: Request) -> Response:
        # From the proof alone: no header, query or body names a tenant here.
        scope = await callers.scope(request.headers.get("authorization", ""))
        body = read_request(await _read(request))
        if not body.get("stream"):
            return JSONResponse(await api.complete(body, scope=scope))
        chunks = api.stream(body, scope=scope)
        # The first chunk is awaited here, so that what fails before it is an HTTP error and not a broken stream.
        first = await anext(chunks)
        return StreamingResponse(_sse(first, chunks), media_type="text/event-stream", headers=_NO_STORE)

    async def healthz(_: Request) -> Response:
        health = await box.router.health()
        return JSONResponse({"ok": health.ok, "version": __version__}, status_code=200 if health.ok else 503)

    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat_completions, methods=["POST"]),
            Route("/v1/models", models),
            Route("/healthz", healthz),
        ],
        exception_handlers={AIBoxError: _failed, ClientDisconnect: _gone},
    )


_NO_STORE = {"cache-control": "no-store"}


async def _read(request: Request) -> bytes:
    """The body, given up as soon as it is too long."""
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > MAX_BODY_BYTES:
            raise LimitError(f"the body is longer than {MAX_BODY_BYTES >> 20} MiB", hint="send less in one request")
    return bytes(data)


async def _sse(first: dict[str, Any], rest: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
    """Server-sent events as the OpenAI API sends them; an error in the middle is an event, then the stream ends."""
    yield _event(first)
    try:
        async for chunk in rest:
            yield _event(chunk)
    except AIBoxError as error:
        yield _event(openai_error(error))
        return
    yield b"data: [DONE]\n\n"


def _event(value: Any) -> bytes:
    # JSON has no raw line ends, so that no text of a model can end an event.
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


async def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, AIBoxError)
    headers = {}
    if isinstance(error, LimitError) and error.retry_after_s is not None:
        headers["retry-after"] = str(int(error.retry_after_s) + 1)
    if request.url.path.startswith("/v1/"):
        return JSONResponse(openai_error(error), status_code=status_of(error), headers=headers)
    return JSONResponse(
        problem(error), status_code=status_of(error), headers=headers, media_type="application/problem+json"
    )


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=499)
