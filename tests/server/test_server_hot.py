"""The hot path as ASGI sees it: what is sent together, and what happens when the caller goes."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import aibox
from aibox.chat import ChatRequest, Chunk, Completion
from aibox.inference.streams import Take, waited
from aibox.server.app import create_app
from aibox.server.auth import Callers, LocalKey
from aibox.server.hot import while_there
from aibox.settings import Settings
from aibox.testing import ScriptedBackend
from aibox.types import Scope

pytestmark = pytest.mark.anyio


class Model(ScriptedBackend):
    """Streams `pieces` at once, then waits when it is told to; says when it was let go."""

    def __init__(self, pieces: int, *, waits: bool) -> None:
        super().__init__(name="m")
        self.pieces = pieces
        self.waits = waits
        self.asked = asyncio.Event()
        self.left = asyncio.Event()

    def _chunk(self, delta: dict[str, Any], end: str | None = None) -> Chunk:
        return Chunk({"id": "x", "choices": [{"index": 0, "delta": delta, "finish_reason": end}]}, "m")

    async def complete(self, request: ChatRequest, *, scope: Scope) -> Completion:
        self.asked.set()
        try:
            await asyncio.sleep(60)
        finally:
            self.left.set()
        raise AssertionError

    async def stream(self, request: ChatRequest, *, scope: Scope) -> AsyncIterator[Chunk]:
        try:
            for number in range(self.pieces):
                yield self._chunk({"content": f"{number}. "})
            if self.waits:
                self.asked.set()
                await asyncio.sleep(60)
            yield self._chunk({}, "stop")
        finally:
            self.left.set()


class Together(Model):
    """Its pieces arrive with one read."""

    async def stream_to(self, api: str, request: ChatRequest, take: Take, *, scope: Scope) -> None:
        await waited(take([chunk async for chunk in self.stream(request, scope=scope)]))


class Caller:
    """One ASGI request by hand."""

    def __init__(self, app: Any, token: str, body: dict[str, Any]) -> None:
        self.sent: list[dict[str, Any]] = []
        self.leave = asyncio.Event()
        self._app = app
        self._messages = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]
        self._scope = {
            "type": "http", "method": "POST", "path": "/v1/chat/completions", "raw_path": b"", "query_string": b"",
            "headers": [(b"authorization", f"Bearer {token}".encode())],
        }  # fmt: skip

    async def run(self) -> None:
        await self._app(self._scope, self._receive, self._send)

    async def _receive(self) -> dict[str, Any]:
        if self._messages:
            return self._messages.pop()
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[aibox.Box]:
    # Without checks: one that looks at the text lets go of the event loop, and what is there is then sent.
    (tmp_path / "open.toml").write_text("version = 1\n")
    settings = Settings(home=tmp_path / "home", policy=str(tmp_path / "open.toml"))
    async with aibox.open(settings=settings) as box:
        yield box


def served(box: aibox.Box, model: Model, **fields: Any) -> Caller:
    key = LocalKey(box.settings.home / "server.sha256", scope=Scope(tenant="t", user="u"))
    token = key.prepare() or ""
    box.__dict__["router"] = aibox.Router(model, policy=box.policy)
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return Caller(create_app(box, callers=Callers(key)), token, body)


async def test_what_arrives_together_is_sent_together(box: aibox.Box) -> None:
    """A thousand chunks of one read upstream are a few writes, whole and in order."""
    caller = served(box, Together(1000, waits=False), stream=True)
    await caller.run()
    raw = b"".join(message.get("body", b"") for message in caller.sent).decode()
    events = [json.loads(line[6:]) for line in raw.split("\n\n") if line and line != "data: [DONE]"]
    text = "".join(event["choices"][0]["delta"].get("content") or "" for event in events)
    assert text == "".join(f"{number}. " for number in range(1000))
    assert raw.endswith("data: [DONE]\n\n")
    assert len(caller.sent) < 20
    assert [m.get("more_body", False) for m in caller.sent[1:]] == [True] * (len(caller.sent) - 2) + [False]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_caller_who_goes_ends_the_call_upstream(box: aibox.Box, stream: bool) -> None:
    """At once, whole or streamed; the entry of the call says that it failed, and no task is left."""
    model = Model(1, waits=True)
    caller = served(box, model, stream=stream)
    before = asyncio.all_tasks()
    running = asyncio.create_task(caller.run())
    await model.asked.wait()
    assert not model.left.is_set()
    caller.leave.set()
    async with asyncio.timeout(60):
        await running
        await model.left.wait()
    assert not asyncio.all_tasks() - before
    kinds = [entry.kind async for entry in box.audit.entries("t")]
    assert kinds[-1] == "turn.failed"


async def test_a_call_that_took_long_leaves_no_ring_behind() -> None:
    """What watched whether the caller is there is gone with the call, and does not wait for the collector."""
    gc.collect()
    gc.disable()
    try:
        watched = while_there(asyncio.Event().wait)  # type: ignore[arg-type]  # a caller who says nothing, and stays
        with watched:
            while watched._leaving is None:
                await asyncio.sleep(0.001)
            leaving = watched._leaving
            await asyncio.sleep(0)
        await asyncio.wait([leaving])
        del watched, leaving
        await asyncio.sleep(0)
        assert not [one for one in gc.get_objects() if type(one) is while_there]
    finally:
        gc.enable()
