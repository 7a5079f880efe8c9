"""The ASGI application: HTTP around the library, and no behaviour of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from aibox import __version__
from aibox.agents.agent import Agent
from aibox.box import Box
from aibox.errors import AIBoxError, ConfigError, LimitError
from aibox.server.approvals_api import ApprovalsAPI
from aibox.server.auth import Callers
from aibox.server.hot import HotPath
from aibox.server.inference_api import InferenceAPI
from aibox.server.principal import Principal
from aibox.server.problem import openai_error, problem, status_of

MAX_ANSWER_BYTES = 64 << 10
"""Of the body of an answer to a question."""


def create_app(box: Box, *, callers: Callers, agents: Mapping[str, Agent] | None = None) -> HotPath:
    """Serve an open box. `agents` are offered as `agent:NAME`; None offers the box's default agent."""
    offered = agents if agents is not None else {"default": box.agent()}
    api, asked = InferenceAPI(box, agents=offered), ApprovalsAPI(box.state, agents=offered)

    async def who(request: Request) -> Principal:
        return await callers.principal(request.headers.get("authorization", ""))

    async def approvals(request: Request) -> Response:
        return JSONResponse(await asked.list(who=await who(request)))

    async def approval(request: Request) -> Response:
        return JSONResponse(await asked.show(request.path_params["id"], who=await who(request)))

    async def approve(request: Request) -> Response:
        proved = await who(request)
        return JSONResponse(await asked.approve(request.path_params["id"], await _object(request), who=proved))

    async def reject(request: Request) -> Response:
        proved = await who(request)
        return JSONResponse(await asked.reject(request.path_params["id"], await _object(request), who=proved))

    async def resume(request: Request) -> Response:
        return JSONResponse(await asked.resume(request.path_params["id"], who=await who(request)))

    async def models(request: Request) -> Response:
        scope = await callers.scope(request.headers.get("authorization", ""))
        return JSONResponse(await api.models(scope=scope))

    async def healthz(_: Request) -> Response:
        health = await box.router.health()
        return JSONResponse({"ok": health.ok, "version": __version__}, status_code=200 if health.ok else 503)

    rest = Starlette(
        routes=[
            Route("/v1/models", models),
            Route("/v1/approvals", approvals),
            Route("/v1/approvals/{id}", approval),
            Route("/v1/approvals/{id}/approve", approve, methods=["POST"]),
            Route("/v1/approvals/{id}/reject", reject, methods=["POST"]),
            Route("/v1/runs/{id}/resume", resume, methods=["POST"]),
            Route("/healthz", healthz),
        ],
        exception_handlers={AIBoxError: _failed, ClientDisconnect: _gone},
    )
    return HotPath(api, callers=callers, rest=rest)


async def _object(request: Request) -> dict[str, Any]:
    """The small JSON object that an answer is. Raises ConfigError, LimitError."""
    data = b""
    async for piece in request.stream():
        data += piece
        if len(data) > MAX_ANSWER_BYTES:
            raise LimitError(f"an answer has at most {MAX_ANSWER_BYTES >> 10} KiB")
    try:
        body = msgspec.json.decode(data or b"{}")
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise ConfigError("the body is a JSON object")
    return body


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
