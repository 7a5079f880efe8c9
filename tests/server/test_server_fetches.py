"""What is fetched of an issuer: bounded in size, depth and time, and from nowhere else than where it was said to be."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from corporate import Authority, Proxy
from server_parts import Quiet

from aibox.errors import AuthError, ConfigError, UpstreamError
from aibox.inference.transport import Transport
from aibox.server.fetch import JsonClient
from aibox.server.tokens import Tokens
from aibox.settings import Settings
from aibox.settings_server import IssuerSettings

pytestmark = [pytest.mark.anyio, pytest.mark.loopback]

GOOD = json.dumps({"keys": []}).encode()


class Issuer(ThreadingHTTPServer):
    """Answers each path in its own way, and remembers what was asked."""

    daemon_threads = False  # closing it waits for each answer, so that no connection is left to the collector

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.asked: list[str] = []
        self.over = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()


class Answers(Quiet):
    server: Issuer

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        getattr(self, self.path.strip("/"))()

    def told(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def good(self) -> None:
        self.told(GOOD)

    def failed(self) -> None:
        self.told(GOOD, 500)

    def elsewhere(self) -> None:
        self.told(b"", 302, location=f"{self.server.url}/good")

    def long(self) -> None:
        self.told(b'{"keys": "' + b"x" * (1 << 21) + b'"}')

    def bomb(self) -> None:
        self.told(gzip.compress(b'{"keys": "' + b"x" * (1 << 26) + b'"}'), **{"content-encoding": "gzip"})

    def deep(self) -> None:
        self.told(b'{"keys":' * 100_000)

    def array(self) -> None:
        self.told(b"[]")

    def words(self) -> None:
        self.told(b"<html>")

    def silent(self) -> None:
        self.server.over.wait(60)

    def drips(self) -> None:
        self.told(b"")
        while not self.server.over.wait(0.02):
            self.wfile.write(b" ")
            self.wfile.flush()


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    found = Issuer()
    yield found
    found.over.set()
    found.shutdown()
    found.server_close()


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("failed", "answered 500"), ("elsewhere", "answered 302"), ("long", "more than"), ("bomb", "cannot be read"),
        ("deep", "JSON"), ("array", "JSON object"), ("words", "JSON"),
    ],
)  # fmt: skip
async def test_an_answer_that_is_none_is_the_issuers_failure(issuer: Issuer, path: str, says: str) -> None:
    """Whatever it is, and where it leads nobody goes; the next answer is taken as ever."""
    client = JsonClient()
    with pytest.raises(UpstreamError, match=says):
        await client.get(f"{issuer.url}/{path}")
    assert await client.get(f"{issuer.url}/good") == {"keys": []}
    assert issuer.asked == [f"/{path}", "/good"]


@pytest.mark.parametrize("path", ["silent", "drips"])
async def test_nobody_waits_for_an_issuer_for_ever(issuer: Issuer, path: str) -> None:
    """One that says nothing, and one that says a little again and again, so that no single wait is long."""
    client, began = JsonClient(timeout_s=0.3), time.monotonic()
    with pytest.raises(UpstreamError, match="cannot be asked"):
        await client.get(f"{issuer.url}/{path}")
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    "url",
    [
        "http://id.example.org/", "https://a:b@id.example.org/", "file:///etc/passwd", "https:///x",
        "http://a:b@127.0.0.1/", "http://127.0.0.1:99999/", "https://id.example.org:x/", "https://[bad/",
    ],
)  # fmt: skip
async def test_only_https_is_asked_but_on_this_machine(url: str) -> None:
    """Nothing is sent in the clear, and no password with it."""
    with pytest.raises(ConfigError, match="not an https URL"):
        await JsonClient().get(url)


@pytest.fixture
def ours(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ours")


@pytest.fixture
def tls(issuer: Issuer, ours: Authority) -> Issuer:
    """The same issuer behind TLS, with a certificate of a private authority."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*ours.issue("127.0.0.1"))
    issuer.socket = context.wrap_socket(issuer.socket, server_side=True)
    issuer.url = issuer.url.replace("http:", "https:")
    return issuer


async def test_an_issuer_of_a_private_authority_is_believed_where_it_is_named(
    tls: Issuer, ours: Authority, tmp_path: Path
) -> None:
    """And nowhere else, which is told with what to do; the machine's own authorities count no more then."""
    assert await JsonClient(transport=Transport(ca_bundle=ours.bundle)).get(f"{tls.url}/good") == {"keys": []}
    for other in (Transport(), Transport(ca_bundle=Authority(tmp_path, "theirs").bundle)):
        with pytest.raises(UpstreamError, match="its certificate is not trusted here") as told:
            await JsonClient(transport=other).get(f"{tls.url}/good")
        assert "ca_bundle" in told.value.hint
    assert tls.asked == ["/good"]


async def test_an_issuer_is_asked_through_the_proxy_that_is_named(tls: Issuer, ours: Authority) -> None:
    """Who sent a token is told neither its address nor its password when it refuses."""
    proxy = Proxy()
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    transport = Transport(ca_bundle=ours.bundle, proxy=f"http://eva:secret@127.0.0.1:{port}")
    assert await JsonClient(transport=transport).get(f"{tls.url}/good") == {"keys": []}
    assert [head.split(" ")[0] for head in proxy.asked] == ["CONNECT"]
    proxy.refuses = True
    with pytest.raises(UpstreamError) as told:
        await JsonClient(transport=transport).get(f"{tls.url}/good")
    assert "secret" not in str(told.value)
    assert str(port) not in str(told.value)
    assert len(tls.asked) == 1
    server.close()
    proxy.close()


async def test_the_settings_of_an_issuer_say_how_it_is_reached(tls: Issuer, ours: Authority, tmp_path: Path) -> None:
    """`ca_bundle` is a path beside the settings file. One that cannot be used is told before anybody is let in."""
    config = tmp_path / "aibox.toml"
    config.write_text(
        f'[[server.issuers]]\nissuer = "{tls.url}"\naudience = "aibox"\njwks_url = "{tls.url}/good"\n'
        'ca_bundle = "ours.pem"\n'
    )
    settings = Settings.load(config=config)
    assert settings.server.issuers[0].ca_bundle == ours.bundle
    tokens = Tokens(settings.server.issuers)
    token = f"{_part({'alg': 'RS256', 'kid': 'k', 'typ': 'at+jwt'})}.{_part({'iss': tls.url})}.x"
    with pytest.raises(AuthError, match="a key that its issuer does not have"):
        await tokens.authenticate(token)
    assert tls.asked == ["/good"]
    with pytest.raises(ConfigError, match="the certificates cannot be used"):
        Tokens([IssuerSettings(issuer=tls.url, audience="aibox", ca_bundle=config)])


def _part(claims: dict[str, str]) -> str:
    return base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
