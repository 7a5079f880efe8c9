"""What is fetched of an issuer: bounded in size, depth and time, and from nowhere else than where it was said to be."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Iterator
from http.server import ThreadingHTTPServer

import pytest
from server_parts import Quiet

from aibox.errors import ConfigError, UpstreamError
from aibox.http import JsonClient

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
        ("failed", "answered 500"), ("elsewhere", "answered 302"), ("long", "more than"), ("bomb", "JSON"),
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
    await client.close()


@pytest.mark.parametrize("path", ["silent", "drips"])
async def test_nobody_waits_for_an_issuer_for_ever(issuer: Issuer, path: str) -> None:
    """One that says nothing, and one that says a little again and again, so that no single wait is long."""
    client, began = JsonClient(timeout_s=0.3), time.monotonic()
    with pytest.raises(UpstreamError, match="cannot be asked"):
        await client.get(f"{issuer.url}/{path}")
    assert time.monotonic() - began < 30
    await client.close()


@pytest.mark.parametrize(
    "url", ["http://id.example.org/", "https://a:b@id.example.org/", "file:///etc/passwd", "https:///x"]
)
async def test_only_https_is_asked_but_on_this_machine(url: str) -> None:
    """Nothing is sent in the clear, and no password with it."""
    with pytest.raises(ConfigError, match="not an https URL"):
        await JsonClient().get(url)
