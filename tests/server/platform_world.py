"""Two tenants behind one served box with real stores, people of every role with real tokens, and things of theirs."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx2
import jwt
from cryptography.hazmat.primitives.asymmetric import ec

import aibox
from aibox.box import Box
from aibox.chat import ChatRequest
from aibox.inference.embeddings import Embeddings
from aibox.sandbox.sandbox import Sandbox
from aibox.server import stores
from aibox.server.api_keys import ApiKeys
from aibox.server.app import create_app
from aibox.server.auth import Callers
from aibox.server.log import Log, LogHandler
from aibox.server.people import People
from aibox.server.reload import Reload
from aibox.server.tokens import Tokens
from aibox.settings import Settings
from aibox.settings_server import IssuerSettings
from aibox.testing import ScriptedBackend, call
from aibox.testing.unsafe_local import UnsafeLocalDriver
from aibox.types import Scope

ISSUER = "https://id.example.org"
KEY = ec.generate_private_key(ec.SECP256R1())
PUBLIC = {**json.loads(jwt.algorithms.ECAlgorithm.to_jwk(KEY.public_key())), "kid": "k", "alg": "ES256", "use": "sig"}
ROLES = ("user", "service", "tenant_admin", "platform_admin", "auditor")


class Provider:
    """The documents of an OpenID provider, where HTTP would stand."""

    async def get(self, url: str, *, correlation: str = "") -> dict[str, Any]:
        if url.endswith("openid-configuration"):
            return {"issuer": ISSUER, "jwks_uri": f"{ISSUER}/jwks"}
        return {"keys": [PUBLIC]}


def token(who: Person, **changes: Any) -> str:
    """An access token as the provider signs it."""
    now = int(time.time())
    claims = {
        "iss": ISSUER, "sub": who.user, "aud": "aibox", "client_id": "web", "jti": "1", "tenant": who.tenant,
        "roles": list(who.roles), "iat": now - 10, "exp": now + 3600, **changes,
    }  # fmt: skip
    return jwt.encode(claims, KEY, algorithm="ES256", headers={"typ": "at+jwt", "kid": "k"})


@dataclass(frozen=True)
class Person:
    tenant: str
    user: str
    roles: tuple[str, ...]

    @property
    def scope(self) -> Scope:
        return Scope(tenant=self.tenant, user=self.user)

    def token(self, **changes: Any) -> str:
        return token(self, **changes)


@dataclass
class Asked:
    """One request, as somebody may send it who is allowed to."""

    path: dict[str, str] = field(default_factory=dict)
    query: dict[str, Any] = field(default_factory=dict)
    body: Any = None
    content: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)


def answer(request: ChatRequest) -> Any:
    """The model: it pays when it is told to, and else repeats what it was told."""
    last = request.messages[-1]
    text = str(last.get("content") or "")
    return call("pay", {"to": text}) if last.get("role") == "user" and text.startswith("pay ") else f"You said: {text}"


class World:
    def __init__(
        self,
        box: Box,
        keys: ApiKeys,
        *,
        model: Any = answer,
        isolated: bool = False,
        code: bool = False,
        log: Log | None = None,
    ) -> None:
        self.box, self.keys = box, keys

        @aibox.tool(approve=True, side_effects=True)
        def pay(to: str) -> str:
            """Pay somebody."""
            return f"paid {to}"

        self.model = model if isinstance(model, ScriptedBackend) else ScriptedBackend(*[model] * 100_000, name="m")
        # What a test replaces: the model, and the isolation, which other tests are about and not every machine has.
        box.__dict__["router"] = aibox.Router(
            self.model, Embeddings(box.memory.embedder), policy=box.policy, audit=box.audit, aliases={"quick": "m/m"},
            tenant_policies=box.tenant_policies,
        )  # fmt: skip
        if not isolated:
            sandbox = Sandbox(UnsafeLocalDriver(), audit=box.audit, sessions=10_000, per_tenant=10_000)
            box.__dict__["sandbox"] = box._keep(sandbox)
        issuer = IssuerSettings(issuer=ISSUER, audience="aibox", algorithms=("ES256",))
        self.settings = box.settings.model_copy(
            update={"server": box.settings.server.model_copy(update={"issuers": (issuer,)})}
        )
        """What a reload would read."""
        tokens = Tokens([issuer], http=Provider())
        callers = Callers(keys, tokens)
        self.agents = agents = {"default": box.agent(tools=[pay], sandbox=box.sandbox if code else None)}
        self.reload = Reload(
            box,
            callers=callers,
            tokens=tokens,
            keys=keys,
            read=lambda: self.settings,
            renew=lambda: None,
            guarded=False,
        )
        kept = stores.keep(box)
        self.in_force = kept.in_force
        self.app = create_app(box, callers=callers, agents=agents, keys=keys, log=log, reload=self.reload, kept=kept)
        self.http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=self.app), base_url="http://aibox")
        self.made = 0
        self.people: People

    def fresh(self) -> str:
        self.made += 1
        return f"n{self.made}"

    async def send(self, method: str, path: str, asked: Asked, bearer: str | None) -> httpx2.Response:
        headers = {**asked.headers, **({} if bearer is None else {"authorization": f"Bearer {bearer}"})}
        more: dict[str, Any] = {"content": asked.content} if asked.content is not None else {"json": asked.body}
        if asked.body is None and asked.content is None:
            more = {}
        return await self.http.request(
            method.upper(), path.format(**asked.path), params=asked.query, headers=headers, **more
        )


@asynccontextmanager
async def world(
    home: Path,
    *,
    model: Any = answer,
    isolated: bool = False,
    code: bool = False,
    database: str | None = None,
    said: BytesIO | None = None,
) -> AsyncIterator[World]:
    """A served world in a folder. `isolated`: code really runs where it can harm nobody, or not at all.

    `code`: the agent has the sandbox as tools. `database`: what several servers would share is there. `said` takes what
    the server logs, as `aibox serve` logs it; all of it is there when the world is closed.
    """
    keys, people = ApiKeys(home / "api-keys.db"), People(home / "home" / "people.db")
    log = None if said is None else Log(said)
    handler = logging.NullHandler() if log is None else LogHandler(log)
    logging.getLogger().addHandler(handler)
    try:
        async with Box(Settings(home=home / "home", policy="permissive", database=database)) as box:
            made = World(box, keys, model=model, isolated=isolated, code=code, log=log)
            made.people = people
            try:
                yield made
            finally:
                await made.http.aclose()
                await keys.close()
                await people.close()
    finally:
        logging.getLogger().removeHandler(handler)
        if log is not None:
            log.close()
