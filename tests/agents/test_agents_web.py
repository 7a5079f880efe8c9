"""The web: which addresses can be reached, what of an answer is taken, and that each passage is on record."""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import aibox
from aibox.agents.http import Http, is_public
from aibox.agents.web import WebRead, WebSearch, readable
from aibox.policy.egress import EgressRules
from aibox.policy.policy import Policy
from aibox.testing import ScriptedBackend, call
from aibox.types import Label, Scope

pytestmark = [pytest.mark.anyio, pytest.mark.loopback]

PAGE = (
    "<html><head><title>Tides</title></head><body><nav>Menu Home Login</nav><article><h1>Tides</h1>"
    "<p>The tide at Bergen turned at noon, and the harbour master wrote it down as on every day for thirty years.</p>"
    "<p>Nobody had asked him to, but the record is the longest on this coast and is used to this day.</p></article>"
    "<footer>Cookies</footer></body></html>"
)


def policy(*hosts: str) -> Policy:
    return Policy(egress=EgressRules(hosts=frozenset(hosts), ceiling=Label.parse("internal")))


@asynccontextmanager
async def site(answer: Callable[[str], tuple[int, dict[str, str], bytes]]) -> AsyncIterator[tuple[str, list[str]]]:
    """A web server on loopback; what it was asked for."""
    asked: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        asked.append(head)
        status, headers, body = answer(head.split()[1])
        lines = [f"HTTP/1.1 {status} x", f"content-length: {len(body)}", "connection: close"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", asked
    finally:
        server.close()
        await server.wait_closed()


async def read(url: str, *, scope: Scope, http: Http | None = None, rules: Policy | None = None) -> aibox.Reply:
    model = ScriptedBackend(call("web_read", {"url": url}), "done")
    tools = [WebRead(http=http or Http(private_hosts=["127.0.0.1"]))]
    return await aibox.Agent("x", router=model, tools=tools, policy=rules or policy("*")).run("go", scope=scope)


async def test_a_page_is_read_through_the_door(scope: Scope, tmp_path: Path) -> None:
    """The readable text comes back without menus; the passage is durable on record; the host must be allowed."""
    async with site(lambda _: (200, {"content-type": "text/html"}, PAGE.encode())) as (url, asked):
        async with aibox.AuditChain(tmp_path / "a.db") as chain:
            model = ScriptedBackend(call("web_read", {"url": url}), "done")
            tools = [WebRead(http=Http(private_hosts=["127.0.0.1"]))]
            agent = aibox.Agent("x", router=model, tools=tools, policy=policy("127.0.0.1"), audit=chain)
            reply = await agent.run("go", scope=scope.under("chosen-by-the-caller"))
            bodies = [(e.kind, e.detail) async for e in chain.entries(scope.tenant)]
        refused = await read(url, scope=scope, rules=policy("example.org"))
    assert "harbour master" in reply.tool_calls[0].text
    assert "Cookies" not in reply.tool_calls[0].text
    (passage,) = (detail for kind, detail in bodies if kind == "egress.allowed")
    assert f"X-Correlation-ID: {passage['passage']}\r\n" in asked[0]
    assert "chosen-by-the-caller" not in asked[0]
    assert passage["correlation"] == "chosen-by-the-caller"
    assert "untrusted content" in next(d["exposure"] for kind, d in bodies if kind == "tool.returned")
    assert "does not open the door" in refused.tool_calls[0].text
    assert len(asked) == 1


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/",
        "http://localhost:1/",
        "http://[::1]:1/",
        "http://0.0.0.0:1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::ffff:127.0.0.1]:1/",
        "http://[64:ff9b::7f00:1]/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://127.1/",
        "http://10.0.0.1/",
        "http://user:pass@example.org/",
        "file:///etc/passwd",
        "ftp://example.org/",
        "gopher://127.0.0.1/",
        "http:///nowhere",
        "http://127.0.0.1\t/",
        "http://exa mple.org/",
        "http://example.org\\@127.0.0.1/",
        "http://127.0.0.1:0/",
        "not an address",
    ],
)
async def test_what_cannot_be_reached(url: str, scope: Scope) -> None:
    """Loopback, private, link-local and metadata addresses, in every spelling, and anything but http and https."""
    reply = await read(url, scope=scope, http=Http())
    assert not reply.tool_calls[0].ok
    assert "passwd" not in reply.tool_calls[0].text.replace(url, "")


@given(st.ip_addresses())
def test_only_what_is_global_is_public(address: Any) -> None:
    """Law: nothing that the standard library does not call global is public, nor is it when mapped into IPv6."""
    if not address.is_global:
        assert not is_public(str(address))
    if isinstance(address, ipaddress.IPv4Address):
        assert is_public(f"::ffff:{address}") is is_public(str(address))
        assert not is_public(f"64:ff9b::{address}")


async def test_a_redirect_is_looked_at_like_a_first_request(scope: Scope) -> None:
    """One that leads to a private address, another host, another scheme or in a circle is refused, and not followed."""
    async with site(lambda _: (200, {"content-type": "text/plain"}, b"secret metadata")) as (inner, inner_asked):
        for to in (inner.replace("127.0.0.1", "localhost"), "file:///etc/passwd", "/"):
            async with site(lambda _, to=to: (302, {"location": to}, b"")) as (url, _):
                reply = await read(url, scope=scope)
                assert not reply.tool_calls[0].ok
                assert "secret metadata" not in reply.tool_calls[0].text
        async with site(lambda _: (302, {"location": inner}, b"")) as (url, _):
            followed = await read(url, scope=scope)
    assert "secret metadata" in followed.tool_calls[0].text
    assert len(inner_asked) == 1


@pytest.mark.parametrize(
    ("headers", "body", "says"),
    [
        ({"content-type": "text/html"}, b"x" * (3 << 20), "longer than 2048 KiB"),
        ({"content-type": "application/octet-stream"}, b"x", "application/octet-stream"),
        ({"content-type": "text/html", "content-encoding": "gzip"}, b"\x1f\x8b", "compressed"),
        ({}, b"x", "no type"),
    ],
)
async def test_an_answer_is_bounded(headers: dict[str, str], body: bytes, says: str, scope: Scope) -> None:
    """Too much, of another type, or compressed so that its size cannot be known: refused in words."""
    async with site(lambda _: (200, headers, body)) as (url, _):
        assert says in (await read(url, scope=scope)).tool_calls[0].text


async def test_search_goes_through_the_operators_endpoint(scope: Scope) -> None:
    """Results are listed; what is not SearXNG's answer, or an error, says so."""
    found = {"results": [{"title": "Tides", "url": "https://example.org/t", "content": "noon"}] * 20}
    for status, body, says in (
        (200, json.dumps(found).encode(), "https://example.org/t"),
        (200, b"<html>", "did not answer as SearXNG"),
        (500, b"{}", "answered 500"),
        (200, json.dumps({"results": []}).encode(), "Nothing was found"),
    ):
        async with site(lambda _, s=status, b=body: (s, {"content-type": "application/json"}, b)) as (url, asked):
            model = ScriptedBackend(call("web_search", {"query": "tides & moon"}), "done")
            agent = aibox.Agent("x", router=model, tools=[WebSearch(url)], policy=policy("127.0.0.1"))
            reply = await agent.run("go", scope=scope)
        assert says in reply.tool_calls[0].text
        assert "q=tides+%26+moon&format=json" in asked[0]


def test_the_extractor_survives_what_is_not_html() -> None:
    """Anything that is called a page is text or nothing, never an exception."""
    assert "harbour" in readable(PAGE, "https://example.org/")
    for text in ("", "<", "\x00\x01", "<html>" * 500, "{}"):
        assert isinstance(readable(text, "https://example.org/"), str)
