"""A web application that embeds an agent: one box for the life of the application, one scope a request."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

import aibox
from aibox.agents.events import TextDelta
from aibox.testing import ScriptedBackend


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with aibox.open() as box:
        model = ScriptedBackend(*[lambda request: f"You said: {request.messages[-1]['content']}"] * 100)
        app.state.agent = box.agent("You help.", router=model, memory=None)
        yield


def scope_of(request: Request) -> aibox.Scope:
    # Whoever signs your users in has said who this is; a header stands for it here.
    return aibox.Scope(tenant="acme", user=request.headers["x-user"])


async def ask(request: Request) -> JSONResponse:
    reply = await request.app.state.agent.run((await request.json())["question"], scope=scope_of(request))
    return JSONResponse({"answer": reply.text, "label": str(reply.label), "turn": reply.receipt.turn})


async def stream(request: Request) -> StreamingResponse:
    events = request.app.state.agent.stream((await request.json())["question"], scope=scope_of(request))
    return StreamingResponse(event.text async for event in events if isinstance(event, TextDelta))


app = Starlette(
    lifespan=lifespan, routes=[Route("/ask", ask, methods=["POST"]), Route("/stream", stream, methods=["POST"])]
)

if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app, host="127.0.0.1", port=8000)
