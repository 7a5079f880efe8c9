"""What whoever watches a server is told: which part is missing, and what was counted; never a text of anybody's."""

from __future__ import annotations

import io
import json
import re
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

import aibox
from aibox.box import Box
from aibox.chat import Health
from aibox.errors import OPERATORS, AIBoxError, ConfigError, IntegrityError, StoreError, UpstreamError
from aibox.sandbox.bubblewrap import Bubblewrap
from aibox.sandbox.sandbox import Sandbox
from aibox.server import metrics, ready_api
from aibox.server.api_keys import ApiKeys
from aibox.server.app import create_app
from aibox.server.auth import Callers
from aibox.server.log import Log
from aibox.server.metrics import TENANTS, Metrics
from aibox.server.principal import Role
from aibox.server.problem import KEPT_BACK
from aibox.server.rates import RateLimits
from aibox.server.redis_buckets import RedisBuckets
from aibox.settings import BackendSettings, Settings
from aibox.testing import ScriptedBackend
from aibox.testing.unsafe_local import UnsafeLocalDriver
from aibox.types import Scope

pytestmark = pytest.mark.anyio


class Served:
    def __init__(self, box: Box, keys: ApiKeys, operator: str, program: str, **options: Any) -> None:
        self.box, self.keys = box, keys
        self.model = ScriptedBackend(*["Yes."] * 9, name="m")
        box.__dict__["router"] = aibox.Router(self.model, policy=box.policy, audit=box.audit, on_call=box._called)
        self.gate = create_app(box, callers=Callers(keys), keys=keys, **options)
        self.operator, self.program = operator, program
        self.http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=self.gate), base_url="http://aibox")

    async def ready(self) -> tuple[int, dict[str, Any]]:
        answer = await self.http.get("/readyz")
        return answer.status_code, answer.json()

    def client(self) -> aibox.Client:
        return aibox.Client("http://localhost", self.program, transport=httpx2.ASGITransport(app=self.gate))

    async def metrics(self, key: str) -> httpx2.Response:
        return await self.http.get("/metrics", headers={"authorization": f"Bearer {key}"})


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    keys = ApiKeys(tmp_path / "keys.db")
    operator = await keys.create(scope=Scope(tenant="ops", user="o"), roles=(Role.PLATFORM_ADMIN,))
    program = await keys.create(scope=Scope(tenant="acme", user="p"), roles=(Role.TENANT_ADMIN, Role.USER))
    gone = RateLimits(RedisBuckets("unix:///nowhere"))
    async with Box(Settings(home=tmp_path / "home", policy="permissive")) as box:
        yield Served(box, keys, operator, program, rates=gone)
    await gone.close()
    await keys.close()


async def test_a_probe_learns_which_part_is_missing(served: Served) -> None:
    """A Redis that is gone is said, and is no reason to send nobody; a server that is stopping is one."""
    isolates = await Bubblewrap().available()
    served.box.__dict__["sandbox"] = served.box._keep(Sandbox(Bubblewrap()))
    code, said = await served.ready()
    assert code == 200
    assert said["ok"]
    assert said["parts"] == {
        "audit": "ok", "models": "ok", "memory": "ok", "people": "ok", "keys": "ok", "redis": "missing",
        "sandbox": "ok" if isolates.ok else "missing",
    }  # fmt: skip
    served.gate.drain()
    assert (await served.http.get("/readyz")).status_code == 503


async def test_memory_and_a_sandbox_that_are_missing_are_said_and_missed_softly(served: Served) -> None:
    """A store of memories that is damaged, and an engine that does not isolate: each by its name, and requests come."""
    served.box.__dict__["sandbox"] = served.box._keep(Sandbox(UnsafeLocalDriver()))
    await served.box.memory.remember("I like tea.", scope=Scope(tenant="acme", user="p"))
    await served.box.memory.close()
    del served.box.__dict__["memory"]
    damage(served.box.settings.home / "memory" / "memory.db")
    code, said = await served.ready()
    assert (code, said["ok"]) == (200, True)
    missing = {name for name, how in said["parts"].items() if how != "ok"}
    assert missing == {"memory", "sandbox", "redis"}


async def test_without_a_model_the_server_is_not_ready(served: Served) -> None:
    """503, and the part by its name."""

    async def gone() -> Health:
        return Health(ok=False, detail="CANARY http://10.0.0.7")

    served.model.health = gone  # type: ignore[method-assign]
    answer = await served.http.get("/readyz")
    assert (answer.status_code, answer.json()["parts"]["models"]) == (503, "missing")
    assert "CANARY" not in answer.text
    async with served.client() as ask:
        with pytest.raises(UpstreamError, match="503 missing: models") as missing:
            await ask.ready()
    assert "audit" not in str(missing.value)


async def test_without_the_log_the_server_is_not_ready(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that cannot be written is the part that is missing; nothing could be answered without it."""

    async def full() -> None:
        raise StoreError("the disk is full: CANARY") from sqlite3.OperationalError("disk")

    monkeypatch.setattr(served.box.audit, "flush", full)
    code, said = await served.ready()
    assert (code, said["parts"]["audit"]) == (503, "missing")
    assert "CANARY" not in str(said)


async def test_a_full_disk_is_a_log_that_is_missing(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that could not write down its next answer says so before somebody asks it."""
    monkeypatch.setattr(ready_api, "ROOM_BYTES", 1 << 62)
    code, said = await served.ready()
    assert (code, said["parts"]["audit"]) == (503, "missing")


@pytest.mark.parametrize("part", ["keys", "people"])
async def test_without_what_says_who_is_let_in_the_server_is_not_ready(
    served: Served, tmp_path: Path, part: str
) -> None:
    """A store of keys or of people that is damaged is the part that is missing: nobody would be answered."""
    answer = await served.http.get("/v1/models", headers={"authorization": f"Bearer {served.program}"})
    assert answer.status_code == 200
    damage(tmp_path / "keys.db" if part == "keys" else served.box.settings.home / "people.db")
    code, said = await served.ready()
    assert (code, said["ok"], said["parts"][part]) == (503, False, "missing")


def damage(place: Path) -> None:
    """Of the file and of what is written ahead of it no byte is as it was."""
    for file in place.parent.glob(f"{place.name}*"):
        with file.open("r+b") as bytes_:
            bytes_.write(b"\xa5" * file.stat().st_size)


@pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions", "/v1/chat/stream", "/v1/memory"])
@pytest.mark.parametrize("where", ["CANARY.db", "postgresql://aibox:CANARY@127.0.0.1:9/CANARY"])
async def test_where_a_store_is_says_the_log_and_no_answer(
    served: Served, tmp_path: Path, where: str, path: str
) -> None:
    """Who has no key learns neither the file nor the address of one that fails; the operator's log has it."""
    (tmp_path / "CANARY.db").write_bytes(b"\xa5" * 9999)
    out = io.BytesIO()
    log, keys = Log(out), ApiKeys(where if "://" in where else tmp_path / where)
    gate = create_app(served.box, callers=Callers(keys), log=log)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=gate), base_url="http://aibox") as http:
        headers = {"authorization": f"Bearer aibox-0123456789ab-{'A' * 43}"}
        answer = await http.request("POST" if "chat" in path else "GET", path, headers=headers)
    await keys.close()
    log.close()
    assert answer.status_code == 503
    assert KEPT_BACK in answer.text
    assert not {word for word in ("CANARY", "127.0.0.1", str(tmp_path)) if word in answer.text}
    said, request = (json.loads(line) for line in out.getvalue().splitlines())
    assert (said["event"], said["correlation"], request["code"]) == (
        "store.failed", answer.headers["x-correlation-id"], "upstream.store",
    )  # fmt: skip
    assert ("127.0.0.1:9/CANARY" if "://" in where else str(tmp_path / where)) in said["message"]
    assert "aibox:CANARY" not in out.getvalue().decode()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/chat", "/v1/chat/stream"])
async def test_nor_does_an_answer_say_it_that_had_begun(served: Served, path: str) -> None:
    """In OpenAI's shape, as a problem and as the last event of a stream: fixed words, and the hint."""
    served.model._answers[0] = StoreError("the rows in /CANARY/place.db cannot be used", hint="the disk is full")
    openai = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    headers = {"authorization": f"Bearer {served.program}"}
    answer = await served.http.post(path, json=openai if "comp" in path else {"message": "hi"}, headers=headers)
    assert answer.status_code == (200 if "stream" in path else 503)
    assert KEPT_BACK in answer.text
    assert "the disk is full" in answer.text
    assert "CANARY" not in answer.text


@pytest.mark.parametrize("path", ["/v1/models", "/v1/memory", "/v1/chat"])
async def test_a_role_and_the_place_of_a_database_says_the_log_and_no_answer(
    served: Served, postgres_full: str, path: str
) -> None:
    """Met by the first request: the tables' owner, for whom rows are not kept apart, is not used and not named."""
    out = io.BytesIO()
    log, keys = Log(out), ApiKeys(postgres_full)
    gate = create_app(served.box, callers=Callers(keys), log=log)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=gate), base_url="http://aibox") as http:
        headers = {"authorization": f"Bearer aibox-0123456789ab-{'A' * 43}"}
        answer = await http.request("POST" if "chat" in path else "GET", path, headers=headers)
    await keys.close()
    log.close()
    assert answer.status_code == 500
    assert "config.operator" in answer.text
    assert "its operator finds in the log what it is" in answer.text
    place = postgres_full.partition("@")[2]
    assert not {word for word in ("owner", "upgrade", "row-level", place, place[1:14]) if word in answer.text}
    said, request = (json.loads(line) for line in out.getvalue().splitlines())
    assert (said["event"], said["correlation"], request["code"]) == (
        "config.failed", answer.headers["x-correlation-id"], "config.operator",
    )  # fmt: skip
    assert said["message"].startswith("the role owner at ")
    assert said["message"].endswith("(take the role that `aibox db upgrade --role` gave its rights to)")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/chat", "/v1/chat/stream"])
@pytest.mark.parametrize(
    ("error", "event"),
    [
        (ConfigError("the key /CANARY.key is short", hint="chmod CANARY", code=OPERATORS), "config.failed"),
        (IntegrityError("a row of CANARY.db does not belong there", hint="restore CANARY"), "integrity.failed"),
    ],
)
async def test_nor_does_an_answer_say_what_the_operator_alone_can_put_right(
    served: Served, path: str, error: AIBoxError, event: str
) -> None:
    """A setting of the server's, and what does not hold: fixed words in every shape; the log has message and hint."""
    out = io.BytesIO()
    log = Log(out)
    gate = create_app(served.box, callers=Callers(served.keys), log=log)
    served.model._answers[0] = error
    openai = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=gate), base_url="http://aibox") as http:
        headers = {"authorization": f"Bearer {served.program}"}
        answer = await http.post(path, json=openai if "comp" in path else {"message": "hi"}, headers=headers)
    log.close()
    assert answer.status_code == (200 if "stream" in path else 500)
    assert "its operator finds in the log what it is" in answer.text
    assert error.code in answer.text
    assert "CANARY" not in answer.text
    said, _ = (json.loads(line) for line in out.getvalue().splitlines())
    assert (said["event"], said["message"]) == (event, str(error))


@pytest.mark.parametrize("model", ["m", "m/m", "default"])
async def test_nor_does_a_backend_that_cannot_say_what_it_offers(
    served: Served, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    """A model's file that is gone: by each way of naming the model, and told anew, it is the operator's still."""

    async def models() -> Any:
        raise ConfigError("the model file /CANARY.gguf does not exist", hint="give CANARY", code=OPERATORS)

    monkeypatch.setattr(served.model, "models", models)
    for _ in range(2):
        asked = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
        headers = {"authorization": f"Bearer {served.program}"}
        answer = await served.http.post("/v1/chat/completions", json=asked, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, OPERATORS)
        assert "CANARY" not in answer.text


@pytest.mark.loopback
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings", "/v1/chat"])
async def test_nor_where_a_model_server_is_that_cannot_be_reached(served: Served, tmp_path: Path, path: str) -> None:
    """Callers are told its name; its address, and what the system said of it, is in the log."""
    out = io.BytesIO()
    log = Log(out)
    gpu = BackendSettings(kind="openai", name="gpu", url="http://127.0.0.1:9/v1", models=("m",))
    async with Box(Settings(home=tmp_path / "other", policy="permissive", backends=(gpu,))) as box:
        agent = box.agent(model="m")
        gate = create_app(box, callers=Callers(served.keys), agents={agent.name: agent}, log=log)
        asked = {
            "/v1/chat": {"message": "hi"}, "/v1/embeddings": {"model": "m", "input": "hi"},
        }.get(path, {"model": "m", "messages": [{"role": "user", "content": "hi"}]})  # fmt: skip
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=gate), base_url="http://aibox") as http:
            answer = await http.post(path, json=asked, headers={"authorization": f"Bearer {served.program}"})
    log.close()
    assert answer.status_code == 502
    assert "gpu cannot be reached" in answer.text
    assert "127.0.0.1" not in answer.text
    said, _ = (json.loads(line) for line in out.getvalue().splitlines())
    assert said["event"] == "backend.failed"
    assert said["message"].startswith("gpu cannot be reached at http://127.0.0.1:9/v1: ")


async def test_what_is_wrong_with_what_was_asked_is_told(served: Served) -> None:
    """The caller's own mistakes keep their words."""
    headers = {"authorization": f"Bearer {served.program}"}
    answer = await served.http.post("/v1/memory/recall", json={"query": "q", "limit": "CANARY"}, headers=headers)
    assert (answer.status_code, answer.json()["title"]) == (400, "config")
    assert "limit" in answer.json()["detail"]


LINE = re.compile(r'[a-z_]+(\{[a-z]+="(?:[^"\\\n]|\\.)*"(,[a-z]+="(?:[^"\\\n]|\\.)*")*\})? [0-9.e+-]+')


async def test_what_is_counted_is_for_the_operator_and_holds_no_text(served: Served) -> None:
    """Requests, calls, tokens and times in Prometheus' format, by tenant; no path that was made up and no message."""
    body = {"model": "m", "messages": [{"role": "user", "content": "CANARY words here"}]}
    headers = {"authorization": f"Bearer {served.program}"}
    for stream in (False, True):
        asked = {**body, "stream": stream}
        assert (await served.http.post("/v1/chat/completions", json=asked, headers=headers)).status_code == 200
    assert (await served.http.get("/v1/CANARY", headers=headers)).status_code == 404
    assert (await served.http.get("/v1/sessions/CANARY", headers=headers)).status_code == 404
    assert (await served.metrics(served.program)).status_code == 403
    assert (await served.metrics("nobody")).status_code == 401
    answer = await served.metrics(served.operator)
    assert answer.headers["content-type"] == metrics.MEDIA
    text = answer.text
    assert "CANARY" not in text
    lines = text.splitlines()
    assert all(LINE.fullmatch(line) for line in lines if not line.startswith("# "))
    assert 'aibox_requests_total{tenant="acme",method="POST",route="/v1/chat/completions",status="200"} 2' in lines
    assert 'aibox_requests_total{tenant="acme",method="GET",route="/v1/sessions/{id}",status="404"} 1' in lines
    assert 'aibox_requests_total{tenant="acme",method="GET",route="other",status="404"} 1' in lines
    assert 'aibox_model_calls_total{tenant="acme",backend="m",model="m",outcome="answered"} 2' in lines
    assert 'aibox_tokens_total{tenant="acme",backend="m",model="m",direction="input"} 6' in lines
    assert 'aibox_request_seconds_bucket{route="/v1/chat/completions",le="+Inf"} 2' in lines
    assert "aibox_requests_under_way 1" in lines


def test_the_tenants_among_the_labels_are_bounded() -> None:
    """Whoever makes a thousand tenants makes no thousand-and-first series, and a name cannot break a line."""
    counted = Metrics()
    for number in range(TENANTS + 50):
        assert counted._tenant(f"t{number}") == (f"t{number}" if number < TENANTS else "other")
    assert metrics._escaped('a"b\\c\nd') == 'a\\"b\\\\c\\nd'
