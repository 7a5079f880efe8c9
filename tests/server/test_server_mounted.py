"""`create_app` under a path of somebody else's application: the same gate, the same routes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

import aibox
from aibox.box import Box
from aibox.server.api_keys import ApiKeys
from aibox.server.app import create_app
from aibox.server.auth import Callers
from aibox.settings import Settings
from aibox.testing import ScriptedBackend
from aibox.types import Scope

pytestmark = pytest.mark.anyio
EVA = Scope(tenant="acme", user="eva")
ASKED = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


class Mounted:
    """Another application that has a route of its own beside ours."""

    def __init__(self, box: Box, keys: ApiKeys, token: str, at: str) -> None:
        self.box = box
        self.model = ScriptedBackend(*["Hello."] * 99, name="m")
        box.__dict__["router"] = aibox.Router(self.model, policy=box.policy, audit=box.audit)
        theirs = Route("/", _theirs)
        app = Starlette(routes=[theirs, Mount(at, create_app(box, callers=Callers(keys)))])
        transport = httpx2.ASGITransport(app=app)
        headers = {"authorization": f"Bearer {token}"}
        self.http = httpx2.AsyncClient(transport=transport, base_url=f"http://x{at}", headers=headers)

    async def ask(self, **headers: str) -> httpx2.Response:
        return await self.http.post("/v1/chat/completions", json=ASKED, headers=headers)

    async def entries(self) -> list[Any]:
        return [entry async for entry in self.box.audit.entries(EVA.tenant)]


async def _theirs(_: Request) -> PlainTextResponse:
    return PlainTextResponse("theirs")


# The second looks like a guarded path without being one, and the third like one of ours.
@pytest.fixture(params=["/ai", "/tools/ai", "/v1/chat/completions"])
async def mounted(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Mounted]:
    keys = ApiKeys(tmp_path / "keys.db")
    policy = tmp_path / "policy.toml"
    policy.write_text("[rates.user]\nrequests_per_minute = 3\n")
    async with Box(Settings(home=tmp_path / "home", policy=str(policy))) as box:
        made = Mounted(box, keys, await keys.create(scope=EVA), request.param)
        async with made.http:
            yield made
    await keys.close()


async def test_a_model_is_asked_and_the_call_is_on_record(mounted: Mounted) -> None:
    """OpenAI's route answers under the path that it is mounted at, and leaves its one terminal entry."""
    answer = await mounted.ask()
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == "Hello."
    assert [entry.kind for entry in await mounted.entries()] == ["model.called", "turn.sealed"]


async def test_who_does_not_prove_who_they_are_is_refused(mounted: Mounted) -> None:
    """On every route, and before anything is read of what they sent."""
    for path in ("/v1/chat/completions", "/v1/chat", "/v1/memory"):
        refused = await mounted.http.post(path, content=b"{", headers={"authorization": "Bearer no"})
        assert refused.status_code == 401, path
    assert mounted.model.requests == []


async def test_rates_hold(mounted: Mounted) -> None:
    """The gate counts what comes in under another path too, on the hot path and behind it."""
    got = [(await mounted.ask()).status_code, (await mounted.http.get("/v1/usage")).status_code]
    got += [(await mounted.ask()).status_code, (await mounted.ask()).status_code]
    got.append((await mounted.http.get("/v1/usage")).status_code)
    assert got == [200, 200, 200, 429, 429]


async def test_a_repeat_is_done_once(mounted: Mounted) -> None:
    """An `Idempotency-Key` means what it means elsewhere."""
    first, second = await mounted.ask(**{"idempotency-key": "k-1"}), await mounted.ask(**{"idempotency-key": "k-1"})
    assert second.content == first.content
    assert second.headers["idempotency-replayed"] == "true"
    assert len(mounted.model.requests) == 1


async def test_what_is_not_there_is_told_as_elsewhere(mounted: Mounted) -> None:
    """A path that is none is a problem with a hint, and the other application's own routes are its own."""
    told = await mounted.http.get("/v1/nothing")
    assert (told.status_code, told.headers["content-type"]) == (404, "application/problem+json")
    assert (await mounted.http.get("/healthz")).status_code == 200
    assert (await mounted.http.get("http://x/")).text == "theirs"
