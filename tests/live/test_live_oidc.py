"""A real OpenID provider: its discovery, its keys, its access tokens, and what happens when it rotates or is gone."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import re
import secrets
import socket
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
from services import BACKEND

import aibox
from aibox.audit.receipt import ReceiptEntry
from aibox.box import Box
from aibox.server.app import create_app
from aibox.server.auth import Callers
from aibox.server.tokens import Tokens
from aibox.settings import Settings
from aibox.settings_server import IssuerSettings
from aibox.testing import ScriptedBackend

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
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


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
async def served(
    tmp_path: Path, port: int, postgres_copy: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Served]:
    issuer = f"http://127.0.0.1:{port}"
    if REPLICAS == 2:
        tables = f'{BACKEND}[[server.issuers]]\nissuer = "{issuer}"\naudience = "{AUDIENCE}"\n'
        with front(tmp_path, tables, database=postgres_copy) as both:
            async with httpx2.AsyncClient(base_url=both.url, timeout=60) as client:
                yield Served(client, both.entries)
        return
    monkeypatch.setattr("aibox.server.jwks.COOLDOWN_S", 0.0)
    tokens = Tokens([IssuerSettings(issuer=issuer, audience=AUDIENCE)])
    async with Box(Settings(home=tmp_path / "home")) as box:

        async def entries(tenant: str) -> list[ReceiptEntry]:
            return [entry async for entry in box.audit.entries(tenant)]

        box.__dict__["router"] = aibox.Router(ScriptedBackend(*["Hello."] * 16), policy=box.policy, audit=box.audit)
        app = create_app(box, callers=Callers(tokens))
        yield Served(httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://aibox"), entries)
    await tokens.close()


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


async def test_keys_are_rotated_without_a_gap(served: Served, port: int) -> None:
    """With a new key beside the old one both tokens pass; when the old key is gone, only the new token does."""
    first, second = private_jwk("a"), private_jwk("b")
    with provider(port, first) as issuer:
        old = await token(issuer, "acme-program")
        unseen = await token(issuer, "acme-program")
        await served.until(old, 200)
    with provider(port, second, first) as issuer:
        await served.until(await token(issuer, "acme-program"), 200)
        await served.until(old, 200)
    with provider(port, private_jwk("c")) as issuer:
        await served.until(await token(issuer, "acme-program"), 200)
        assert {(await served.ask(unseen)).status_code for _ in range(REPLICAS)} == {401}


async def test_a_provider_that_is_gone_closes_the_door(served: Served, port: int) -> None:
    """Before its keys are known nothing passes, and the answer says that the world failed and not the caller."""
    with provider(port, private_jwk("a")) as issuer:
        good = await token(issuer, "acme-program")
    for _ in range(REPLICAS):
        answer = await served.ask(good)
        assert answer.status_code == 502
        assert "cannot be asked" in answer.text
