"""The correlation id: on every answer, whatever it is, and on every entry of the request that it names."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import anyio
import httpx2
import jwt
import pytest
from platform_world import KEY, PUBLIC
from server_parts import Quiet

import aibox
from aibox.box import Box
from aibox.errors import ConfigError
from aibox.server.app import create_app
from aibox.server.auth import Callers, LocalKey
from aibox.server.log import KEPT, Log, LogHandler
from aibox.server.tokens import Tokens
from aibox.settings import Settings
from aibox.settings_server import IssuerSettings
from aibox.testing import ScriptedBackend
from aibox.types import Scope

pytestmark = pytest.mark.anyio
SCOPE = Scope(tenant="acme", user="eva")


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[tuple[httpx2.AsyncClient, Box]]:
    async with Box(Settings(home=tmp_path / "home")) as box:
        key = LocalKey(tmp_path / "key", scope=SCOPE)
        token = key.prepare()
        box.__dict__["router"] = aibox.Router(ScriptedBackend(*["Yes."] * 9), policy=box.policy, audit=box.audit)
        app = create_app(box, callers=Callers(key))
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://aibox") as made:
            made.headers["authorization"] = f"Bearer {token}"
            yield made, box


@pytest.mark.parametrize("model", ["scripted", "agent:default"])
@pytest.mark.parametrize("stream", [False, True])
async def test_every_entry_of_a_request_names_it(
    client: tuple[httpx2.AsyncClient, Box], model: str, stream: bool
) -> None:
    """The id that the answer has stands in each of its entries, in the part that only its person's key opens."""
    http, box = client
    asked = {"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": stream}
    answer = await http.post("/v1/chat/completions", json=asked, headers={"X-Correlation-ID": "mine-000001"})
    assert answer.headers["x-correlation-id"] == "mine-000001"
    entries = [entry async for entry in box.audit.entries("acme")]
    assert entries
    assert {entry.detail["correlation"] for entry in entries} == {"mine-000001"}
    assert b"mine-000001" not in b"".join(entry.open for entry in entries)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/models", 200), ("GET", "/healthz", 200), ("GET", "/v1/none", 404), ("GET", "/none", 404),
     ("DELETE", "/v1/models", 405), ("POST", "/v1/chat/completions", 400), ("GET", "/v1/approvals/x", 404)],
)  # fmt: skip
async def test_every_answer_has_one(
    client: tuple[httpx2.AsyncClient, Box], method: str, path: str, status: int
) -> None:
    """Also an error, also where nobody was asked who they are; and no two requests have the same."""
    http, _ = client
    answers = [await http.request(method, path) for _ in range(2)]
    assert {answer.status_code for answer in answers} == {status}
    ids = {answer.headers["x-correlation-id"] for answer in answers}
    assert len(ids) == 2
    assert all(re.fullmatch("[0-9a-f]{32}", found) for found in ids)
    wrong = await http.request(method, path, headers={"authorization": "Bearer wrong"})
    assert wrong.headers["x-correlation-id"]
    assert wrong.status_code == (401 if path.startswith("/v1/") else status)


class Issuer(ThreadingHTTPServer):
    """An OpenID provider of one key, and the id of the request that each of its documents was asked for with."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), IssuerAnswers)
        self.asked: list[tuple[str, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def token(self) -> str:
        now = int(time.time())
        claims = {"iss": self.url, "sub": "eva", "aud": "aibox", "client_id": "web", "jti": "1", "tenant": "acme",
                  "roles": ["user"], "iat": now - 10, "exp": now + 600}  # fmt: skip
        return jwt.encode(claims, KEY, algorithm="ES256", headers={"typ": "at+jwt", "kid": "k"})


class IssuerAnswers(Quiet):
    server: Issuer

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers["x-correlation-id"]))
        discovery = {"issuer": self.server.url, "jwks_uri": f"{self.server.url}/keys"}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"keys": [PUBLIC]} if self.path == "/keys" else discovery).encode())


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    found = Issuer()
    yield found
    found.shutdown()
    found.server_close()


@pytest.mark.loopback
async def test_an_issuer_is_told_for_whose_request_its_keys_are(tmp_path: Path, issuer: Issuer) -> None:
    """Both its documents are asked for with the id of the first of many requests, which all wait for one answer."""
    tokens = Tokens([IssuerSettings(issuer=issuer.url, audience="aibox", algorithms=("ES256",))])
    statuses: list[int] = []
    async with Box(Settings(home=tmp_path / "home")) as box:
        box.__dict__["router"] = aibox.Router(ScriptedBackend(), policy=box.policy, audit=box.audit)
        callers = Callers(tokens)
        transport = httpx2.ASGITransport(app=create_app(box, callers=callers))
        async with httpx2.AsyncClient(transport=transport, base_url="http://aibox") as http:
            http.headers["authorization"] = f"Bearer {issuer.token()}"

            async def ask(number: int) -> None:
                answer = await http.get("/v1/models", headers={"X-Correlation-ID": f"request-{number}"})
                statuses.append(answer.status_code)

            async with anyio.create_task_group() as group:
                for number in range(5):
                    group.start_soon(ask, number)
        await callers.close()
    assert statuses == [200] * 5
    assert issuer.asked == [("/.well-known/openid-configuration", "request-0"), ("/keys", "request-0")]


@pytest.mark.parametrize("value", ["", "short", "a" * 65, "with space", "a\nb-injected", "naïve-0001", "x=1;y=2 33"])
def test_an_unsafe_id_is_no_part_of_a_scope(value: str) -> None:
    """What could break a log, a header or an entry is refused where it would enter; an empty one is none."""
    if value:
        with pytest.raises(ConfigError):
            SCOPE.under(value)
    assert SCOPE.under("mine-000001") == SCOPE
    assert hash(SCOPE.under("mine-000001")) == hash(SCOPE)
    assert SCOPE.under("mine-000001").narrow(agent="a").correlation == "mine-000001"


def test_a_log_says_where_and_never_what() -> None:
    """Of an exception and of other people's messages the type and the place are told, and no word of them."""
    out = io.BytesIO()
    log = Log(out)
    handler = LogHandler(log)
    try:
        int("CANARY of a user")
    except ValueError:
        raised = sys.exc_info()
    said = logging.getLogger("x")
    handler.emit(said.makeRecord("someone.else", logging.ERROR, __file__, 1, "CANARY %s", ("too",), raised))
    handler.emit(logging.getLogger("x").makeRecord("uvicorn.error", logging.WARNING, "f", 2, "A sentence.", (), None))
    log.close()
    first, second = (json.loads(line) for line in out.getvalue().splitlines())
    assert (first["error"], first["logger"]) == ("ValueError", "someone.else")
    assert second["message"] == "A sentence."
    assert b"CANARY" not in out.getvalue()


def test_a_log_that_nobody_reads_holds_nobody_up() -> None:
    """More lines than are kept are counted, and the number is the next line that is written."""

    class Slow(io.BytesIO):
        def __init__(self) -> None:
            super().__init__()
            self.go = threading.Event()

        def write(self, data: bytes) -> int:  # type: ignore[override]
            self.go.wait()
            return super().write(data)

    out = Slow()
    log = Log(out)
    for number in range(3 * KEPT):
        log.say("request", number=number)
    out.go.set()
    log.close()
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    dropped = sum(line["lines"] for line in lines if line["event"] == "log.dropped")
    assert dropped >= KEPT
    assert dropped + sum(line["event"] == "request" for line in lines) == 3 * KEPT
