"""A FastAPI application that embeds an agent: one box for the life of the application, one scope a request."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, Header, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

import aibox
from aibox.agents.events import TextDelta
from aibox.testing import ScriptedBackend


class Question(BaseModel):
    question: str


class Answer(BaseModel):
    answer: str
    label: str
    turn: str


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with aibox.open() as box:
        model = ScriptedBackend(*[lambda request: f"You said: {request.messages[-1]['content']}"] * 100)
        app.state.agent = box.agent("You help.", router=model, memory=None)
        yield


def who(x_user: Annotated[str, Header()]) -> aibox.Scope:
    # Whoever signs your users in has said who this is; a header stands for it here.
    return aibox.Scope(tenant="acme", user=x_user)


app = FastAPI(lifespan=lifespan)
Who = Annotated[aibox.Scope, Depends(who)]


@app.post("/ask")
async def ask(asked: Question, request: Request, scope: Who) -> Answer:
    reply = await request.app.state.agent.run(asked.question, scope=scope)
    return Answer(answer=reply.text, label=str(reply.label), turn=reply.receipt.turn)


@app.post("/stream")
async def stream(asked: Question, request: Request, scope: Who) -> StreamingResponse:
    events = request.app.state.agent.stream(asked.question, scope=scope)
    return StreamingResponse(event.text async for event in events if isinstance(event, TextDelta))


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app, host="127.0.0.1", port=8000)
