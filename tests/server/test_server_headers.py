"""Headers that claim to be somebody: gateways and proxies set many, and here every one of them is only text."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from platform_world import Person, World, world
from server_parts import Upstream, serving

from aibox.server.api_keys import ApiKeys
from aibox.server.principal import Role
from aibox.types import Scope

EVA = Person("acme", "eva", ("user",))
TURN = "11111111-2222-4333-8444-555555555555"
WORDS = (
    *("user", "user id", "user name", "user email", "user role", "user roles", "user groups", "tenant", "tenant id"),
    *("org id", "role", "roles", "groups", "scopes", "admin", "forwarded user", "forwarded email", "forwarded groups"),
    *("forwarded access token", "auth request user", "auth request groups", "authenticated user", "remote user"),
    *("original user", "impersonate user", "on behalf of", "api key", "access token", "aibox user id", "aibox tenant"),
    *("aibox roles", "aibox principal", "aibox scope", "aibox cap token", "aibox turn id", "aibox session"),
)
VALUES = ("boss", "platform_admin", "tenant_admin,platform_admin,auditor", '["platform_admin"]', "rival", TURN)
ABOVE = ("/v1/admin/keys", "/v1/admin/models", "/v1/audit")
"""What needs an administrator of the tenant, one of the platform, an auditor."""


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def w(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with world(tmp_path_factory.mktemp("headers")) as made:
        yield made


def spelled(word: str) -> list[str]:
    dashed = word.title().replace(" ", "-")
    names = [f"X-{dashed}", dashed, f"HTTP-X-{dashed}", f"X-{dashed}".replace("-Id", "-ID")]
    names += [name.replace("-", "_") for name in names] + [f"X-{dashed[:1]}{dashed[1:].replace('-', '_')}"]
    return sorted({how for name in names for how in (name, name.lower(), name.upper(), name.swapcase())})


def test_the_spellings_are_many() -> None:
    """Those that are known from elsewhere are among them."""
    names = {name for word in WORDS for name in spelled(word)}
    assert len(names) > 500
    assert names > {
        *("X-User-ID", "x_user_id", "X-User-Roles", "X-User-Email", "X-Tenant-ID", "X_Tenant", "X-Forwarded-User"),
        *("X-Aibox-Turn-Id", "Remote-User", "REMOTE_USER", "HTTP_X_USER_ID", "X-Aibox-Principal", "X-Aibox-Cap-Token"),
    }


@pytest.mark.anyio
@pytest.mark.parametrize("word", WORDS)
async def test_a_header_names_nobody(w: World, word: str) -> None:
    """Who asks is proved by the token alone: a claim opens nothing, and each entry has the token's own person."""
    bearer, before = ("authorization", f"Bearer {EVA.token()}"), await w.box.audit.size("acme")
    # Each spelling with all values, and each value in all spellings.
    claimed = [[(name, value) for value in VALUES] for name in {name.lower() for name in spelled(word)}]
    claimed += [[*((name, value) for name in spelled(word)), ("connection", spelled(word)[0])] for value in VALUES]
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "tenant": "rival", "user": "boss"}
    for claims in claimed:
        for path in ABOVE:
            refused = await w.http.get(path, headers=[bearer, *claims])
            assert (refused.status_code, "policy.access" in refused.text) == (403, True), (path, claims, refused.text)
        answered = await w.http.post("/v1/chat/completions?tenant=rival", json=body, headers=[bearer, *claims])
        assert answered.status_code == 200, answered.text
    found = [entry async for entry in w.box.audit.entries("acme", start=before)]
    assert {str(entry.actor) for entry in found} == {str({"agent": "", "session": "", "user": "eva"})}
    assert [entry.kind for entry in found].count("turn.sealed") == len(claimed)
    assert TURN not in {entry.turn for entry in found}
    assert [tenant for tenant in ("rival", "boss", TURN) if await w.box.audit.size(tenant)] == []


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    found = Upstream()
    yield found
    found.close()


@pytest.mark.loopback
def test_a_header_names_nobody_on_the_wire_either(tmp_path: Path, upstream: Upstream) -> None:
    """As bytes, in every case, many in one request, to a server as it is started: the key's person and no other."""

    async def made(home: Path) -> tuple[str, str]:
        keys = ApiKeys(home / "keys.db")
        eva = await keys.create(scope=EVA.scope, roles=[Role.USER])
        auditor = await keys.create(scope=Scope(tenant="acme", user="ada"), roles=[Role.AUDITOR])
        await keys.close()
        return eva, auditor

    names = [name for word in ("user id", "user roles", "tenant id", "forwarded user") for name in spelled(word)]
    with serving(tmp_path, upstream, server='api_keys = "keys.db"') as server:
        eva, auditor = asyncio.run(made(server.home))
        for value in VALUES:
            headers = dict.fromkeys(names, value)
            for path in ABOVE:
                assert server.send("GET", path, headers=headers, key=eva).status == 403
            assert server.ask("hi", headers=headers, key=eva).status == 200
        shown = json.loads(server.send("GET", "/v1/audit?kind=turn.sealed", key=auditor).read())["data"]
        assert [(one["actor"]["user"], one["turn"] == TURN) for one in shown] == [("eva", False)] * len(VALUES)
        sent = {name for headers in upstream.headers for name in headers}
        assert sent.isdisjoint(name.lower() for name in names)
