"""The header `X-Aibox-Case`: which case a request belongs to, and so which pseudonyms it gets."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

import aibox
from aibox.box import Box
from aibox.server.app import create_app
from aibox.server.asked import CASE
from aibox.server.auth import Callers, LocalKey
from aibox.server.table import openapi
from aibox.settings import Settings
from aibox.testing import ScriptedBackend
from aibox.types import Scope

pytestmark = pytest.mark.anyio
TOKEN = re.compile(r"<EMAIL_[0-9]{6}>")
SAID = {"role": "user", "content": "Write to eva@example.org."}


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[httpx2.ASGITransport, str, ScriptedBackend]]:
    async with Box(Settings(home=tmp_path / "home", policy="balanced")) as box:
        key, model = LocalKey(tmp_path / "key", scope=Scope(tenant="acme", user="eva")), ScriptedBackend(*["Yes."] * 9)
        token = key.prepare()
        box.__dict__["router"] = aibox.Router(model, policy=box.policy, audit=box.audit)
        app = create_app(box, callers=Callers(key))
        yield httpx2.ASGITransport(app=app), token, model


@pytest.mark.parametrize("name", ["scripted", "agent:default"])
async def test_requests_of_a_case_share_their_pseudonyms(
    served: tuple[httpx2.ASGITransport, str, ScriptedBackend], name: str
) -> None:
    """Two requests of one case show the model one token, another case another, no case a third."""
    transport, token, model = served
    headers = {"authorization": f"Bearer {token}"}
    async with httpx2.AsyncClient(transport=transport, base_url="http://aibox", headers=headers) as http:
        for case in ("17/2026", "17/2026", "18/2026", None):
            more = {} if case is None else {"x-aibox-case": case}
            body = {"model": name, "messages": [SAID]}
            assert (await http.post("/v1/chat/completions", json=body, headers=more)).status_code == 200
    one, again, other, none = (TOKEN.findall(str(request.messages[-1]))[0] for request in model.requests)
    assert one == again
    assert len({one, other, none}) == 3


async def test_what_is_no_case_is_refused(served: tuple[httpx2.ASGITransport, str, ScriptedBackend]) -> None:
    """A case with a space, or far too long, is an error of the caller, and no model is asked."""
    transport, token, model = served
    headers = {"authorization": f"Bearer {token}"}
    async with httpx2.AsyncClient(transport=transport, base_url="http://aibox", headers=headers) as http:
        for case in ("a case", "x" * 256):
            body = {"model": "scripted", "messages": [SAID]}
            answer = await http.post("/v1/chat/completions", json=body, headers={"x-aibox-case": case})
            assert answer.status_code == 400, answer.text
    assert not model.requests


def test_the_document_says_that_a_request_may_name_its_case() -> None:
    """On each route that knows its caller, and what the schema allows is what is taken."""
    document = openapi()
    named = {"$ref": "#/components/parameters/Case"}
    for methods in document["paths"].values():
        for operation in methods.values():
            assert (named in operation.get("parameters", [])) == bool(operation["x-roles"])
    case = document["components"]["parameters"]["Case"]
    assert (case["name"].lower().encode(), case["in"]) == (CASE, "header")
    for text, good in (("17/2026", True), ("x" * 255, True), ("", True), ("x" * 256, False), ("a case", False)):
        assert (re.search(case["schema"]["pattern"], text) is not None) is good
        if good:
            Scope(tenant="acme", user="eva", case=text)
        else:
            with pytest.raises(aibox.ConfigError):
                Scope(tenant="acme", user="eva", case=text)


async def test_a_client_names_its_case(served: tuple[httpx2.ASGITransport, str, ScriptedBackend]) -> None:
    """All calls of a client that was made for a case belong to it."""
    transport, token, model = served
    for case in ("17/2026", "17/2026", "18/2026"):
        async with aibox.Client("http://127.0.0.1", token, case=case, transport=transport) as client:
            await client.chat("Write to eva@example.org.")
    one, again, other = (TOKEN.findall(str(request.messages[-1]))[0] for request in model.requests)
    assert one == again != other
