"""The ASGI application: HTTP around the library, and no behaviour of its own."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from aibox import __version__
from aibox.agents.agent import Agent
from aibox.box import Box
from aibox.errors import AIBoxError, LimitError
from aibox.server.auth import Callers
from aibox.server.hot import HotPath
from aibox.server.inference_api import InferenceAPI
from aibox.server.problem import openai_error, problem, status_of


def create_app(box: Box, *, callers: Callers, agents: Mapping[str, Agent] | None = None) -> HotPath:
    """Serve an open box. `agents` are offered as `agent:NAME`; None offers the box's default agent."""
    api = InferenceAPI(box, agents=agents if agents is not None else {"default": box.agent()})

    async def models(request: Request) -> Response:
        scope = await callers.scope(request.headers.get("authorization", ""))
        return JSONResponse(await api.models(scope=scope))

    async def healthz(_: Request) -> Response:
        health = await box.router.health()
        return JSONResponse({"ok": health.ok, "version": __version__}, status_code=200 if health.ok else 503)

    rest = Starlette(
        routes=[
            Route("/v1/models", models),
            Route("/healthz", healthz),
        ],
        exception_handlers={AIBoxError: _failed, ClientDisconnect: _gone},
    )
    return HotPath(api, callers=callers, rest=rest)


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
