"""Corporate reality, against real peers on loopback: an authority of one's own, client certificates, a proxy."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from corporate import Authority, Proxy
from inference_parts import Notes, Upstream

from aibox.chat import ChatRequest
from aibox.errors import BackendError, ConfigError, EgressError
from aibox.inference.configured import make_backend
from aibox.inference.openai_compatible import OpenAICompatible
from aibox.inference.router import Router
from aibox.inference.transport import Transport
from aibox.inference.vllm import VLLM
from aibox.policy.egress import EgressRules
from aibox.policy.policy import Policy
from aibox.settings import BackendSettings
from aibox.types import Scope

pytestmark = [pytest.mark.anyio, pytest.mark.loopback]
LOOPBACK = ("127.0.0.0/8",)


@dataclass
class Peers:
    """A model server behind TLS that wants a client certificate when `mutual`, its authority, and a proxy."""

    authority: Authority
    other: Authority
    upstream: Upstream
    url: str
    mutual_url: str
    proxy: Proxy
    folder: Path

    def trusted(self, **fields: Any) -> Transport:
        return Transport(ca_bundle=self.authority.bundle, **fields)


@pytest.fixture
async def peers(upstream: Upstream, tmp_path: Path) -> AsyncIterator[Peers]:
    authority, other = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    certificate, key = authority.issue("127.0.0.1")
    app = web.Application()
    app.router.add_post("/v1/chat/completions", upstream.chat)
    app.router.add_get("/v1/models", upstream.list_models)
    app.router.add_get("/health", upstream.list_models)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    for mutual in (False, True):
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate, key)
        if mutual:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(authority.bundle)
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    proxy = Proxy()
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    urls = [f"https://127.0.0.1:{address[1]}/v1" for address in runner.addresses]
    yield Peers(authority, other, upstream, urls[0], urls[1], proxy, tmp_path)
    server.close()
    proxy.close()
    await runner.cleanup()


KINDS = [VLLM, OpenAICompatible]


async def _ask(backend: Any, scope: Scope, **options: Any) -> str:
    router = Router(backend, **options)
    try:
        whole = await router.complete("Hi", model=f"{backend.name}/m", scope=scope)
        pieces = [chunk.text async for chunk in router.stream("Hi", model=f"{backend.name}/m", scope=scope)]
    finally:
        await router.close()
    assert "".join(pieces) == "Hello thére 😀."
    return whole.text


@pytest.mark.parametrize("kind", KINDS)
async def test_an_authority_of_ones_own_is_trusted_where_it_is_named(peers: Peers, kind: Any, scope: Scope) -> None:
    """With its bundle the server is believed, whole and streamed; without it, or with another's, nothing is sent."""
    assert await _ask(kind(peers.url, name="tls", transport=peers.trusted()), scope) == "Hello there."
    asked = len(peers.upstream.bodies)
    for transport in (None, Transport(ca_bundle=peers.other.bundle)):
        with pytest.raises(BackendError, match=r"(?i)certificate|ssl"):
            await _ask(kind(peers.url, name="tls", models=["m"], transport=transport), scope)
    assert len(peers.upstream.bodies) == asked


async def test_over_tls_a_connection_is_kept_until_something_comes_that_nobody_asked_for(
    tmp_path: Path, scope: Scope
) -> None:
    """Three calls go over one; an answer to nobody ends it, and is not taken for the answer to the next call."""
    authority = Authority(tmp_path, "ours")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*authority.issue("127.0.0.1"))
    writers: list[asyncio.StreamWriter] = []

    def answer(text: str) -> bytes:
        body = json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}).encode()
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]))
                writer.write(answer("mine"))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    backend = OpenAICompatible(url, models=["m"], transport=Transport(ca_bundle=authority.bundle))
    request = ChatRequest({"model": "m", "messages": [{"role": "user", "content": "Hi"}]})
    for connections in (1, 1, 1, 2, 2):
        if connections == 2 and len(writers) == 1:
            writers[0].write(answer("somebody else's"))
        assert (await backend.complete(request, scope=scope)).text == "mine"
        assert len(writers) == connections
    await backend.close()
    server.close()
    await server.wait_closed()


async def test_a_certificate_is_of_a_name(peers: Peers, scope: Scope) -> None:
    """A trusted authority's certificate for another host is refused: what is verified is who was asked for."""
    elsewhere = peers.url.replace("127.0.0.1", "localhost")
    with pytest.raises(BackendError, match=r"(?i)certificate|hostname|ssl"):
        await _ask(OpenAICompatible(elsewhere, name="tls", models=["m"], transport=peers.trusted()), scope)
    assert not peers.upstream.bodies


@pytest.mark.parametrize("kind", KINDS)
async def test_a_client_certificate_is_shown_where_it_is_wanted(peers: Peers, kind: Any, scope: Scope) -> None:
    """The server that wants one answers who has one of its authority, and nobody else."""
    certificate, key = peers.authority.issue("aibox", client=True)
    transport = peers.trusted(client_certificate=certificate, client_key=key)
    assert await _ask(kind(peers.mutual_url, name="mtls", transport=transport), scope) == "Hello there."
    asked = len(peers.upstream.bodies)
    wrong, wrong_key = peers.other.issue("stranger", client=True)
    for given in (peers.trusted(), peers.trusted(client_certificate=wrong, client_key=wrong_key)):
        with pytest.raises(BackendError):
            await _ask(kind(peers.mutual_url, name="mtls", models=["m"], transport=given), scope)
    assert len(peers.upstream.bodies) == asked


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("secure", [True, False])
async def test_everything_goes_through_the_proxy(peers: Peers, kind: Any, secure: bool, scope: Scope) -> None:
    """By CONNECT with TLS to the server itself, or in absolute form; the proxy gets its password, and no more."""
    proxy = f"http://eva:secret@127.0.0.1:{peers.proxy.port}"
    url = peers.url if secure else peers.upstream.url
    backend = kind(url, name="far", api_key="key-of-the-server", transport=peers.trusted(proxy=proxy))
    assert await _ask(backend, scope) == "Hello there."
    assert peers.proxy.asked
    wanted = "Basic " + base64.b64encode(b"eva:secret").decode()
    for head in peers.proxy.asked:
        assert head.startswith("CONNECT 127.0.0.1:") if secure else "http://127.0.0.1:" in head.split("\r\n", 1)[0]
        assert wanted in head
        assert not secure or "key-of-the-server" not in head
    assert {h["Authorization"] for h in peers.upstream.headers} == {"Bearer key-of-the-server"}
    assert not any("Proxy-Authorization" in h for h in peers.upstream.headers if secure)


async def test_a_proxy_that_refuses_is_an_error_that_names_it_and_no_password(peers: Peers, scope: Scope) -> None:
    """And nothing goes around it."""
    peers.proxy.refuses = True
    proxy = f"http://eva:secret@127.0.0.1:{peers.proxy.port}"
    backend = OpenAICompatible(peers.url, name="far", models=["m"], transport=peers.trusted(proxy=proxy))
    with pytest.raises(BackendError) as caught:
        await _ask(backend, scope)
    assert "407" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert not peers.upstream.bodies


async def test_the_door_goes_the_same_way(peers: Peers, notes: Notes, scope: Scope) -> None:
    """An external backend behind the door has its authority, its client certificate and its proxy, and each attempt
    is on record before the proxy hears of it."""
    certificate, key = peers.authority.issue("aibox", client=True)
    proxy = f"http://127.0.0.1:{peers.proxy.port}"
    transport = peers.trusted(client_certificate=certificate, client_key=key, proxy=proxy, networks=LOOPBACK)
    backend = OpenAICompatible(peers.mutual_url, name="out", models=["m"], external=True, transport=transport)
    policy = Policy(egress=EgressRules(models=frozenset({"out/m"})))
    router = Router(backend, policy=policy, audit=notes)
    answer = await router.complete("Hi", model="out/m", scope=scope, label="public")
    assert answer.text == "Hello there."
    kinds = [kind for kind, _, _ in notes.entries]
    assert kinds == ["egress.allowed", "egress.returned"]
    heard = len(peers.proxy.asked)
    notes.broken = True
    with pytest.raises(Exception, match="disk is full"):
        await router.complete("Hi", model="out/m", scope=scope, label="public")
    notes.broken = False
    with pytest.raises(EgressError, match="marked confidential"):
        await router.complete("Hi", model="out/m", scope=scope, label="confidential")
    assert len(peers.proxy.asked) == heard
    await router.close()


async def test_settings_carry_all_of_it(peers: Peers, scope: Scope) -> None:
    """What a table of the settings says is what the connection does."""
    certificate, key = peers.authority.issue("aibox", client=True)
    table = BackendSettings(
        kind="openai", name="set", url=peers.mutual_url, ca_bundle=peers.authority.bundle,
        client_certificate=certificate, client_key=key, proxy=f"http://127.0.0.1:{peers.proxy.port}",  # type: ignore[arg-type]
    )  # fmt: skip
    assert await _ask(make_backend(table), scope) == "Hello there."
    assert peers.proxy.asked
    assert json.loads(peers.upstream.bodies[0])["model"] == "m"
    broken = peers.folder / "broken.pem"
    broken.write_text("not a certificate")
    with pytest.raises(ConfigError, match="certificates cannot be used"):
        await _ask(make_backend(table.model_copy(update={"ca_bundle": broken, "proxy": None})), scope)


def test_an_older_tls_is_not_spoken() -> None:
    """1.2 at least, names and certificates verified, whatever else is set."""
    context = replace(Transport(), networks=LOOPBACK).tls()
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
