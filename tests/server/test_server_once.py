"""`Idempotency-Key`: done once, answered alike, nobody else's to use, and kept for no longer than said."""

from __future__ import annotations

import asyncio
import io
import json
import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from waiting import until

import aibox
from aibox.box import Box
from aibox.chat import ChatRequest
from aibox.errors import AIBoxError, BackendError, ConfigError, GuardrailError, StoreError, UpstreamError
from aibox.protocols import Erasable
from aibox.server.answers import HELD_S, KEPT_S, Answer, Answers, of_request
from aibox.server.api_keys import ApiKeys
from aibox.server.app import create_app
from aibox.server.auth import Callers
from aibox.server.log import Log
from aibox.server.principal import Role
from aibox.settings import Settings
from aibox.testing import ScriptedBackend
from aibox.testing.erasable_contract import ErasableContract
from aibox.types import Scope

pytestmark = pytest.mark.anyio
EVA = Scope(tenant="acme", user="eva")


class Served:
    def __init__(self, box: Box, keys: ApiKeys, tokens: dict[str, str]) -> None:
        self.box, self.tokens = box, tokens
        self.asked = 0
        self.begun, self.go = asyncio.Event(), asyncio.Event()
        self.fails: AIBoxError | None = None
        self.model = ScriptedBackend(*[self._answer] * 99, name="m")
        box.__dict__["router"] = aibox.Router(self.model, policy=box.policy, audit=box.audit)
        self.app = create_app(box, callers=Callers(keys))
        self.http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=self.app), base_url="http://aibox")

    async def _answer(self, request: ChatRequest) -> str:
        self.asked += 1
        if self.fails is not None:
            raise self.fails
        if "wait" in str(request.messages):
            self.begun.set()
            await self.go.wait()
        return f"Answer {self.asked}."

    async def ask(
        self,
        text: str = "hi",
        *,
        key: str = "k-1",
        who: str = "eva",
        path: str = "",
        method: str = "POST",
        case: str = "",
        **fields: Any,
    ) -> httpx2.Response:
        openai = {"model": "m", "messages": [{"role": "user", "content": text}]}
        body = fields if "message" in fields else {**openai, **fields}
        headers = {"authorization": f"Bearer {self.tokens[who]}", "Idempotency-Key": key}
        headers |= {"X-Aibox-Case": case} if case else {}
        return await self.http.request(method, path or "/v1/chat/completions", json=body, headers=headers)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    keys = ApiKeys(tmp_path / "keys.db")
    tokens = {
        "eva": await keys.create(scope=EVA),
        "tom": await keys.create(scope=Scope(tenant="acme", user="tom")),
        "eva herself": await keys.create(scope=EVA, roles=[Role.USER]),
        "admin": await keys.create(scope=Scope(tenant="acme", user="ada"), roles=[Role.TENANT_ADMIN]),
        "rival": await keys.create(scope=Scope(tenant="rival", user="eva")),
    }
    async with Box(Settings(home=tmp_path / "home", policy="permissive")) as box:
        yield Served(box, keys, tokens)
    await keys.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_repeat_has_the_same_answer_and_nothing_is_done_twice(served: Served, stream: bool) -> None:
    """Byte for byte, streamed or not, marked as a repeat, with an id of its own; and one call is in the log."""
    first = await served.ask(stream=stream)
    again = await served.ask(stream=stream)
    assert (first.status_code, again.status_code) == (200, 200)
    assert again.content == first.content
    assert again.headers["content-type"] == first.headers["content-type"]
    assert again.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    assert again.headers["x-correlation-id"] != first.headers["x-correlation-id"]
    assert served.asked == 1
    assert [entry.kind async for entry in served.box.audit.entries("acme")].count("turn.sealed") == 1


async def test_a_key_is_bound_to_who_what_and_where(served: Served) -> None:
    """Another body is a 422; another user, tenant or route has never heard of the key."""
    assert (await served.ask("one")).status_code == 200
    other = await served.ask("two")
    assert other.status_code == 422
    assert other.json()["error"]["code"] == "config.key_reused"
    for number, who in ((2, "tom"), (3, "rival")):
        answer = await served.ask("one", who=who)
        assert answer.json()["choices"][0]["message"]["content"] == f"Answer {number}."
    assert (await served.ask("one", path="/v1/completions", prompt="hi")).headers.get("idempotency-replayed") is None


async def test_a_role_is_part_of_who_asks(served: Served) -> None:
    """The same user under other roles is not told what was answered under the first."""
    assert (await served.ask("one")).status_code == 200
    other = await served.ask("one", who="eva herself")
    assert (other.status_code, other.json()["error"]["code"]) == (422, "config.key_reused")


async def test_a_case_is_part_of_what_is_asked(served: Served) -> None:
    """What was answered in one case of a user's is no answer in another one of theirs, and none without a case."""
    assert (await served.ask("one", case="17/2026")).status_code == 200
    assert (await served.ask("one", case="17/2026")).headers["idempotency-replayed"] == "true"
    for case in ("18/2026", ""):
        other = await served.ask("one", case=case)
        assert (other.status_code, other.json()["error"]["code"]) == (422, "config.key_reused")


async def test_no_answer_with_a_key_in_it_is_kept(served: Served) -> None:
    """Making an API key takes no Idempotency-Key: it would lie in a file, where it lies nowhere else."""
    answer = await served.ask(who="admin", path="/v1/admin/keys", user="nightly")
    assert answer.status_code == 400
    assert "is not kept" in answer.json()["detail"]


async def test_at_once_one_works_and_the_others_are_told(served: Served) -> None:
    """While the first is under way a repeat is a 409; afterwards it has the first's answer."""
    working = asyncio.create_task(served.ask("wait"))
    await served.begun.wait()
    busy = await served.ask("wait")
    assert (busy.status_code, busy.json()["error"]["code"]) == (409, "config.key_in_use")
    served.go.set()
    first = await working
    assert (await served.ask("wait")).content == first.content
    assert served.asked == 1


async def test_work_goes_on_when_the_caller_goes_away(served: Served) -> None:
    """That is what the key is for: whoever asks again finds it done."""
    body = b'{"model": "m", "messages": [{"role": "user", "content": "wait"}]}'
    headers = [(b"authorization", f"Bearer {served.tokens['eva']}".encode()), (b"idempotency-key", b"k-9")]
    scope: dict[str, Any] = {
        "type": "http", "method": "POST", "path": "/v1/chat/completions", "raw_path": b"", "query_string": b"",
        "headers": headers,
    }  # fmt: skip
    messages = [{"type": "http.disconnect"}, {"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def send(_: Any) -> None:
        """Nobody is there."""

    working = asyncio.create_task(served.app(scope, receive, send))
    await served.begun.wait()
    served.go.set()
    await working
    again = await served.http.post("/v1/chat/completions", content=body, headers=dict(headers))
    assert again.status_code == 200
    assert again.headers["idempotency-replayed"] == "true"
    assert served.asked == 1


async def test_what_failed_may_be_tried_again_and_a_refusal_stays(served: Served) -> None:
    """A 5xx leaves the key free; a 4xx of the request itself is the answer to it."""
    served.fails = BackendError("gone")
    assert (await served.ask()).status_code == 502
    served.fails = None
    assert (await served.ask()).status_code == 200
    bad = [await served.ask(key="k-2", messages=[]) for _ in range(2)]
    assert [one.status_code for one in bad] == [400, 400]
    assert bad[1].headers["idempotency-replayed"] == "true"


@pytest.mark.parametrize("agent", [False, True])
async def test_a_stream_that_failed_may_be_asked_for_again_and_a_refusal_stays(served: Served, agent: bool) -> None:
    """What a stream that had begun ends with is kept, or not, as it would be where nothing was streamed."""
    fields = {"message": "hi"} if agent else {"model": "agent:default", "stream": True}
    path = "/v1/chat/stream" if agent else ""
    for number, (error, answers) in enumerate(((BackendError("gone"), 2), (GuardrailError("no"), 1))):
        served.asked, served.fails = 0, error
        failed = await served.ask(path=path, key=f"k-{number}", **fields)
        assert (failed.status_code, error.code in failed.text) == (200, True)
        served.fails = None
        again = await served.ask(path=path, key=f"k-{number}", **fields)
        assert (served.asked, "Answer 2." in again.text) == (answers, answers == 2)
        assert (await served.ask(path=path, key=f"k-{number}", **fields)).content == again.content
        assert served.asked == answers


@pytest.mark.parametrize("key", ["", '""', "x" * 256, "tab\there", "naïve"])
async def test_a_key_that_is_none_is_refused(served: Served, key: str) -> None:
    """An empty one is as good as none; a long or unprintable one is a 400, and nothing is asked of a model."""
    headers = {"authorization": f"Bearer {served.tokens['eva']}", "Idempotency-Key": key.encode()}
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    answer = await served.http.post("/v1/chat/completions", json=body, headers=headers)  # type: ignore[arg-type]
    assert answer.status_code == (200 if not key else 400)
    assert served.asked == (0 if key else 1)


async def test_without_the_store_nothing_is_done(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asked for once must not get twice: a store that fails is a 503."""

    async def gone(*_: Any) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(Answers, "begin", gone)
    assert (await served.ask()).status_code == 503
    assert served.asked == 0


@pytest.mark.parametrize(
    ("asks", "logged"),
    [
        ({}, ("/v1/chat/completions", 200, "")),
        ({"messages": []}, ("/v1/chat/completions", 400, "config")),
        ({"path": "/v1/memory/CANARY", "method": "DELETE"}, ("/v1/memory/{id}", 404, "policy.access")),
        ({"path": "/v1/chat/stream", "message": "hi"}, ("/v1/chat/stream", 200, "policy.guardrail")),
    ],
)
async def test_a_repeat_is_in_the_log_as_the_first_was(
    served: Served, asks: dict[str, Any], logged: tuple[str, int, str]
) -> None:
    """By its route and by the code of its error, also where a stream told that: no path stands there."""
    served.fails = GuardrailError("no") if "message" in asks else None
    out = io.BytesIO()
    served.app._log = log = Log(out)
    for _ in range(2):
        await served.ask(**asks)
    log.close()
    first, again = (json.loads(line) for line in out.getvalue().splitlines())
    assert tuple(first[name] for name in ("route", "status", "code")) == logged
    assert tuple(again[name] for name in ("route", "status", "code")) == logged


def test_an_answer_that_an_older_version_kept_is_read() -> None:
    """It has three parts, and its repeat none of what the log would say."""
    kept = msgspec.msgpack.decode(msgspec.msgpack.encode((200, [], b"theirs")), type=Answer)
    assert kept == Answer(200, [], b"theirs", route="", code="")


async def test_who_is_broken_off_while_the_key_is_taken_gives_it_back(served: Served) -> None:
    """Where the file is held up, a request that the server ends leaves no key under way for an hour."""
    assert (await served.ask(key="first")).status_code == 200
    other = sqlite3.connect(served.box.settings.home / "idempotency.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    asking = asyncio.create_task(served.ask())
    await until(lambda: bool(served.app.under_way))
    await asyncio.sleep(0.3)  # it waits for the file, in a thread
    (request,) = served.app.under_way
    served.app.end(request, UpstreamError("the server is stopping"))
    assert (await asking).status_code == 502  # told at once, while the file is still held up
    other.execute("COMMIT")
    other.close()
    await until(lambda: served.app._once is not None and not served.app._once._leaving)
    assert (await served.ask()).status_code == 200
    assert served.asked == 2


def asking(key: str = "k", scope: Scope = EVA, body: bytes = b"{}") -> Any:
    return of_request(scope, method="POST", path="/v1/x", query=b"", key=key, body=body)


async def test_a_killed_process_holds_a_key_until_nobody_can_be_at_work(shared_place: Path | str) -> None:
    """Another process meets the key as in use, then as free; an answer ends after a day; the file shows neither."""
    now = 0.0
    one, other = (Answers(shared_place, key=bytes(32), clock=lambda: now) for _ in range(2))
    assert await one.begin(asking("CANARYkey")) is None
    await one.close()  # and never ends it
    now = HELD_S - 1
    with pytest.raises(ConfigError, match="under way"):
        await other.begin(asking("CANARYkey"))
    now = HELD_S
    assert await other.begin(asking("CANARYkey")) is None
    kept = Answer(200, [(b"content-type", b"text/plain")], b"CANARYbody")
    await other.keep(asking("CANARYkey"), kept)
    assert await other.begin(asking("CANARYkey")) == kept
    assert await other.begin(asking('"quoted"')) is None
    with pytest.raises(ConfigError, match="under way"):
        await other.begin(asking("quoted"))
    now = HELD_S + KEPT_S
    assert await other.begin(asking("CANARYkey")) is None
    await other.keep(asking("CANARYkey"), None)
    with pytest.raises(ConfigError, match="too long"):
        await other.begin(asking("CANARYkey"))
    await other.close()
    if isinstance(shared_place, Path):
        assert b"CANARY" not in b"".join(path.read_bytes() for path in shared_place.parent.iterdir())


async def test_of_many_who_ask_at_once_one_has_it_to_do(shared_place: Path | str) -> None:
    """Several servers meet the same key in the same moment: one does it, the others are told that it is under way."""
    servers = [Answers(shared_place, key=bytes(32)) for _ in range(3)]
    asked = [server.begin(asking()) for server in servers for _ in range(4)]
    met = await asyncio.gather(*asked, return_exceptions=True)
    assert [one for one in met if not isinstance(one, ConfigError)] == [None]
    for server in servers:
        await server.close()


async def test_what_is_over_is_swept_for_every_tenant(postgres_full: str, postgres_url: str) -> None:
    """An answer of a tenant that asks nothing more goes after its day, by whatever request comes next."""
    import psycopg

    now = time.time() - KEPT_S - 1
    answers = Answers(postgres_url, key=bytes(32), clock=lambda: now)
    for tenant in ("acme", "rival"):
        whose = asking(scope=Scope(tenant=tenant, user="eva"))
        await answers.begin(whose)
        await answers.keep(whose, Answer(200, [], b"theirs"))
    now = time.time()
    assert await answers.begin(asking("another")) is None
    await answers.close()
    with psycopg.connect(postgres_full) as db:
        assert db.execute("SELECT count(*), sum(done) FROM aibox_server.answers").fetchone() == (1, 0)


class TestAnswersErase(ErasableContract):
    @pytest.fixture
    async def store(self, shared_place: Path | str) -> AsyncIterator[Erasable]:
        answers = Answers(shared_place, key=bytes(32))
        yield answers
        await answers.close()

    async def plant(self, store: Erasable, scope: Scope) -> None:
        assert isinstance(store, Answers)
        await store.begin(asking(scope=scope))
        await store.keep(asking(scope=scope), Answer(200, [], b"theirs"))

    async def held(self, store: Erasable, scope: Scope) -> bool:
        assert isinstance(store, Answers)
        found = await store.begin(asking(scope=scope))
        if found is None:
            await store.drop(asking(scope=scope))
        return found is not None
