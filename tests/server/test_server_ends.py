"""Work that leaves entries of its own, and fails before it has left one: the request has its one end all the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextvars import Context
from pathlib import Path
from typing import Any

import httpx2
import pytest
from platform_world import Asked, Person, World, world

from aibox.agents.agent import Agent
from aibox.agents.approvals import Approvals
from aibox.agents.runs import Runs
from aibox.errors import AccessError, AIBoxError, ConfigError, LimitError, StoreError
from aibox.memory.memory import Memory
from aibox.sandbox.sandbox import Sandbox
from aibox.sandbox.session import Session

pytestmark = pytest.mark.anyio

EVA = Person("acme", "eva", ("user", "tenant_admin", "platform_admin"))
ROUTES: dict[str, tuple[type, str, str, Any]] = {
    "sandbox.open": (Sandbox, "open", "/v1/sandbox", {}),
    "sandbox.run": (Sandbox, "attach", "/v1/sandbox/s/run", {"code": "1"}),
    "memory.recall": (Memory, "recall", "/v1/memory/recall", {"query": "Vienna"}),
    "knowledge.search": (Memory, "recall", "/v1/knowledge/search", {"query": "Vienna"}),
    "approvals.approve": (Approvals, "get", "/v1/approvals/a/approve", {"digest": "sha256:" + "0" * 64}),
    "approvals.resume": (Runs, "agent_of", "/v1/runs/r/resume", None),
    "chat.run": (Agent, "run", "/v1/chat", {"message": "hi"}),
    "chat.stream": (Agent, "stream", "/v1/chat/stream", {"message": "hi"}),
}


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        made.http = httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app=made.app, raise_app_exceptions=False), base_url="http://aibox"
        )
        yield made


async def left(w: World) -> list[tuple[str, str, str]]:
    """Kind, operation and outcome of what stands in the tenant's log."""
    found = [(entry.kind, entry.detail) async for entry in w.box.audit.entries("acme")]
    return [(kind, detail.get("operation", ""), detail.get("outcome", "")) for kind, detail in found]


@pytest.mark.parametrize("error", [ZeroDivisionError(), StoreError("it is away"), LimitError("too many")])
@pytest.mark.parametrize("name", ROUTES)
async def test_what_fails_before_it_has_left_an_entry_has_one(
    w: World, monkeypatch: pytest.MonkeyPatch, name: str, error: Exception
) -> None:
    """A bug of ours, a store that is away, a limit: one entry, with the code that the caller is told."""
    kind, method, path, body = ROUTES[name]

    def breaks(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(kind, method, breaks)
    answer = await w.send("post", path, Asked(body=body), EVA.token())
    assert answer.status_code == {"aibox": 500, "upstream.store": 503, "policy.limit": 429}[code_of(error)]
    assert answer.json()["title"] == code_of(error)
    assert await left(w) == [("request.ended", name, code_of(error))]


def code_of(error: Exception) -> str:
    return error.code if isinstance(error, AIBoxError) else AIBoxError.code


async def test_a_stream_that_fails_before_it_has_left_an_entry_has_one(
    w: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its head is sent by then, and what went wrong is its last event: the entry has that code."""

    async def breaks(*_: Any, **__: Any) -> AsyncIterator[Any]:
        raise ConfigError("no such session")
        yield

    monkeypatch.setattr(Agent, "stream", breaks)
    answer = await w.send("post", "/v1/chat/stream", Asked(body={"message": "hi"}), EVA.token())
    assert (answer.status_code, "event: failed" in answer.text) == (200, True)
    assert await left(w) == [("request.ended", "chat.stream", "config")]


async def test_what_has_left_its_own_entry_has_no_second(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that was opened and code that ran: what breaks after it changes nothing, and a recall has none."""
    opened, ran = Sandbox.open, Session.python

    async def opens(*what: Any, **how: Any) -> None:
        await opened(*what, **how)
        raise ZeroDivisionError

    async def runs(*what: Any) -> None:
        await ran(*what)
        raise StoreError("it is away")

    monkeypatch.setattr(Sandbox, "open", opens)
    assert (await w.send("post", "/v1/sandbox", Asked(body={}), EVA.token())).status_code == 500
    assert [kind for kind, *_ in await left(w)] == ["sandbox.started"]
    (session,) = w.box.sandbox.ids(scope=EVA.scope)
    monkeypatch.setattr(Session, "python", runs)
    path = f"/v1/sandbox/{session}"
    assert (await w.send("post", f"{path}/run", Asked(body={"code": "1"}), EVA.token())).status_code == 503
    assert (await w.send("delete", path, Asked(), EVA.token())).status_code == 204
    kinds = ["sandbox.started", "sandbox.ran", "sandbox.ended"]
    assert [kind for kind, *_ in await left(w)] == kinds
    assert (await w.send("post", "/v1/memory/recall", Asked(body={"query": "tea"}), EVA.token())).status_code == 200
    assert [kind for kind, *_ in await left(w)] == kinds


async def test_a_turn_that_meets_a_bug_has_its_own_end_alone(tmp_path: Path) -> None:
    """Whoever runs the turn ends it, on each way of asking; the gate writes nothing besides."""

    def breaks(_: object) -> str:
        raise ZeroDivisionError

    async with world(tmp_path, model=breaks) as w:
        w.http = httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app=w.app, raise_app_exceptions=False), base_url="http://aibox"
        )
        for path in ("/v1/chat", "/v1/chat/stream"):
            await w.send("post", path, Asked(body={"message": "hi"}), EVA.token())
        ends = [one for one in await left(w) if one[0] in ("turn.sealed", "turn.failed", "request.ended")]
    assert ends == [("turn.failed", "", "failed")] * 2


async def test_what_is_broken_off_before_it_has_left_an_entry_has_one(
    w: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that stops says so in the entry."""
    waiting = asyncio.Event()

    async def waits(*_: Any, **__: Any) -> None:
        waiting.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(Sandbox, "open", waits)
    asking = asyncio.create_task(w.send("post", "/v1/sandbox", Asked(body={}), EVA.token()))
    await waiting.wait()
    await w.app.stop()
    assert (await asking).status_code == 503
    assert await left(w) == [("request.ended", "sandbox.open", "upstream.stopping")]


@pytest.mark.parametrize(
    ("error", "status"), [(AccessError("there is no such session", absent=True), 404), (LimitError("too many"), 429)]
)
async def test_what_ends_badly_is_on_record_whatever_else_has_the_id(
    w: World, monkeypatch: pytest.MonkeyPatch, error: AIBoxError, status: int
) -> None:
    """Who asks with one id twice at once does not hide by the entries of one request that the other was refused."""

    async def meanwhile(*_: Any, **__: Any) -> None:
        scope = EVA.scope.under("chosen-by-eva")
        Context().run(lambda: w.box.audit.note("model.answered", scope=scope, detail={}))  # as another request does
        raise error

    monkeypatch.setattr(Sandbox, "attach", meanwhile)
    headers = {"authorization": f"Bearer {EVA.token()}", "x-correlation-id": "chosen-by-eva"}
    answer = await w.http.post("/v1/sandbox/s/run", json={"code": "1"}, headers=headers)
    assert answer.status_code == status
    ended = ("request.ended", "sandbox.run", error.code)
    assert [one for one in await left(w) if one[0] != "model.answered"] == [ended]
