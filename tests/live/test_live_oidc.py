"""A real OpenID provider: its discovery, its keys, its access tokens, and what happens when it rotates or is gone.

`aibox serve` is asked, with the times that it has: keys that nobody knows are asked for once in 30 s.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import re
import secrets
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from front import REPLICAS, front
from services import BACKEND, modelling
from waiting import free_port

from aibox.audit.receipt import ReceiptEntry
from aibox.server.jwks import COOLDOWN_S

pytestmark = [pytest.mark.anyio, pytest.mark.live, pytest.mark.loopback]

AUDIENCE = "urn:aibox"
SCRIPT = Path(__file__).with_name("oidc_provider.mjs")


def private_jwk(kid: str) -> dict[str, Any]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    found: dict[str, Any] = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key))
    found.pop("key_ops")
    return {**found, "kid": kid, "use": "sig", "alg": "RS256"}


@contextmanager
def provider(port: int, *keys: dict[str, Any]) -> Iterator[str]:
    """The issuer's URL while it runs. It signs with the first key."""
    modules = Path(os.environ["AIBOX_TEST_NODE_MODULES"])
    script = modules.parent / SCRIPT.name  # beside the modules, where Node looks for them
    script.write_text(SCRIPT.read_text())
    command = ["node", str(script), str(port), json.dumps(keys)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().strip() == "ready"
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def other_port() -> int:
    return free_port()


async def questions(issuer: str) -> dict[str, int]:
    """How often it was asked for its discovery document and for its keys since it runs."""
    async with httpx2.AsyncClient() as http:
        asked = (await http.get(f"{issuer}/asked")).json()
    return {path: asked.get(path, 0) for path in ("/.well-known/openid-configuration", "/jwks")}


def once(discovery: int, keys: int) -> dict[str, int]:
    """What `questions` are when each replica has asked so often."""
    return {"/.well-known/openid-configuration": discovery * REPLICAS, "/jwks": keys * REPLICAS}


async def token(issuer: str, client: str, audience: str = AUDIENCE) -> str:
    fields = {"grant_type": "client_credentials", "resource": audience, "scope": "ask"}
    async with httpx2.AsyncClient() as http:
        answer = await http.post(f"{issuer}/token", data=fields, auth=(client, "a secret for tests only"))
    return str(answer.json()["access_token"])


async def sign_in(issuer: str, user: str) -> dict[str, str]:
    """The tokens of a person who signs in with a browser: a code for PKCE's verifier, and consent."""
    verifier = secrets.token_urlsafe(48)
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    about = {"client_id": "web", "redirect_uri": "http://127.0.0.1/back", "resource": AUDIENCE}
    asked = {
        "response_type": "code",
        "scope": "openid ask",
        "code_challenge": challenge,
        "code_challenge_method": "S256",
    }
    async with httpx2.AsyncClient(base_url=issuer) as browser:
        page = await browser.get("/auth", params={**about, **asked})
        for _ in range(12):
            if page.is_redirect:
                going = page.headers["location"]
                if going.startswith(about["redirect_uri"]):
                    code = httpx2.URL(going).params["code"]
                    fields = {**about, "grant_type": "authorization_code", "code": code, "code_verifier": verifier}
                    return dict((await browser.post("/token", data=fields)).json())
                page = await browser.get(going)
            else:
                prompt = re.search(r'name="prompt" value="(\w+)"', page.text)
                form = re.search(r'action="([^"]+)"', page.text)
                assert prompt is not None, page.text
                assert form is not None, page.text
                page = await browser.post(form[1], data={"prompt": prompt[1], "login": user, "password": "any"})
    raise AssertionError(page.text)


class Served:
    """Where tokens are shown, and the log of what was done for them."""

    def __init__(self, client: httpx2.AsyncClient, entries: Callable[[str], Awaitable[list[ReceiptEntry]]]) -> None:
        self.client = client
        self.entries = entries

    async def ask(self, bearer: str) -> httpx2.Response:
        body = {"model": "agent:default", "messages": [{"role": "user", "content": "hi"}]}
        return await self.client.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {bearer}"})

    async def get(self, path: str, bearer: str) -> httpx2.Response:
        return await self.client.get(path, headers={"authorization": f"Bearer {bearer}"})

    async def until(self, bearer: str, status: int) -> None:
        """Wait until it is answered so by all: a replica asks for unknown keys once in 30 s at the most."""
        ends, seen = time.monotonic() + 120, 0
        while seen < 2 * REPLICAS:
            seen = seen + 1 if (await self.ask(bearer)).status_code == status else 0
            assert time.monotonic() < ends, f"never {status}"
            await asyncio.sleep(0 if seen else 0.5)


@pytest.fixture
async def served(tmp_path: Path, port: int, other_port: int, postgres_copy: Callable[[], str]) -> AsyncIterator[Served]:
    with modelling(free_port()) as model:
        tables = BACKEND.replace("{model}", str(model.port)) + "".join(
            f'[[server.issuers]]\nissuer = "http://127.0.0.1:{one}"\naudience = "{AUDIENCE}"\n'
            for one in (port, other_port)
        )
        with front(tmp_path, tables, database=postgres_copy) as made:
            many = httpx2.Limits(max_connections=None)
            async with httpx2.AsyncClient(base_url=made.url, timeout=60, limits=many) as client:
                yield Served(client, made.entries)


async def test_a_program_is_known_by_its_token(served: Served, port: int) -> None:
    """Two tenants are told apart, one without a tenant gets 403, and a token for another server 401."""
    with provider(port, private_jwk("a")) as issuer:
        for tenant in ("acme", "rival"):
            answer = await served.ask(await token(issuer, f"{tenant}-program"))
            assert answer.status_code == 200, answer.text
            assert (await served.entries(tenant))[-1].kind == "turn.sealed"
        assert (await served.ask(await token(issuer, "homeless-program"))).status_code == 403
        assert (await served.ask(await token(issuer, "acme-program", "urn:billing"))).status_code == 401


async def test_a_person_is_known_by_the_access_token_and_not_by_the_other(served: Served, port: int) -> None:
    """Signed in with a code and PKCE: tenant, user and roles are those of the provider; the ID token is refused."""
    with provider(port, private_jwk("a")) as issuer:
        eva, boss, guest = [await sign_in(issuer, name) for name in ("eva", "boss", "guest")]
        for tokens, status in ((eva, 403), (boss, 200)):
            assert (await served.ask(tokens["access_token"])).status_code == 200
            assert (await served.get("/v1/admin/users", tokens["access_token"])).status_code == status
            assert (await served.ask(tokens["id_token"])).status_code == 401
        assert (await served.ask(guest["access_token"])).status_code == 403
        seen = (await served.get("/v1/admin/users", boss["access_token"])).json()["data"]
    assert [(one["user"], one["roles"]) for one in seen] == [("boss", ["tenant_admin", "user"]), ("eva", ["user"])]


def forged(issuer: str, kid: str, key: rsa.RSAPrivateKey) -> str:
    now = int(time.time())
    claims = {"iss": issuer, "aud": AUDIENCE, "sub": "x", "tenant": "acme", "iat": now, "exp": now + 300}
    return jwt.encode(claims, key, algorithm="RS256", headers={"kid": kid, "typ": "at+jwt"})


async def test_two_hundred_forged_keys_are_one_question(served: Served, port: int) -> None:
    """All at once, to a server that knows no key yet: each is refused, and the keys are found by that one question."""
    mine = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    with provider(port, private_jwk("a")) as issuer:
        told = await asyncio.gather(*(served.ask(forged(issuer, f"k{n}", mine)) for n in range(200)))
        assert {answer.status_code for answer in told} == {401}
        assert "a key that its issuer does not have" in told[0].text
        assert await questions(issuer) == once(1, 1)
        for _ in range(REPLICAS):
            assert (await served.ask(await token(issuer, "acme-program"))).status_code == 200
        assert await questions(issuer) == once(1, 1)


async def test_keys_are_rotated_without_a_gap(served: Served, port: int, other_port: int) -> None:
    """Where the new key is beside the old one both tokens pass; where the old key is gone, only the new token does.

    The new key is unknown for as long as nobody may ask. Of many who then show it at once one asks, all are let in, and
    the discovery document is not asked for again.
    """
    first, second = private_jwk("a"), private_jwk("b")
    with provider(port, first) as beside, provider(other_port, private_jwk("c")) as instead:
        old, gone = await token(beside, "acme-program"), await token(instead, "acme-program")
        # What was shown is believed for a minute; these are not shown before the keys have changed.
        unseen, late = await token(beside, "acme-program"), await token(instead, "acme-program")
        await served.until(old, 200)
        await served.until(gone, 200)
        may_ask = time.monotonic() + COOLDOWN_S
    with provider(port, second, first), provider(other_port, private_jwk("d")):
        new, only = await token(beside, "acme-program"), await token(instead, "acme-program")
        assert {(await served.ask(one)).status_code for one in [new] * REPLICAS + [only] * REPLICAS} == {401}
        await asyncio.sleep(may_ask - time.monotonic())
        told = await asyncio.gather(*(served.ask(one) for one in [new] * 20 + [only] * 20))
        assert {answer.status_code for answer in told} == {200}
        await served.until(unseen, 200)
        assert {(await served.ask(late)).status_code for _ in range(REPLICAS)} == {401}
        assert [await questions(issuer) for issuer in (beside, instead)] == [once(0, 1)] * 2


async def test_a_provider_that_is_gone_closes_the_door(served: Served, port: int) -> None:
    """Before its keys are known nothing passes, and the answer says that the world failed and not the caller."""
    with provider(port, private_jwk("a")) as issuer:
        good = await token(issuer, "acme-program")
    for _ in range(REPLICAS):
        answer = await served.ask(good)
        assert answer.status_code == 502
        assert "cannot be asked" in answer.text
