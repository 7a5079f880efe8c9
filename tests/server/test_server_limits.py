"""A real `aibox serve` under callers who are slow, endless, many or rude: each is bounded, and others are served."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from server_parts import Upstream, serving

pytestmark = pytest.mark.loopback


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    found = Upstream()
    yield found
    found.close()


def whole(connection: socket.socket) -> bytes:
    """All that comes until the server closes."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            data += piece
    return data


def problem(answer: bytes) -> tuple[int, str]:
    """The status and the title of a problem (RFC 9457)."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head
    assert re.search(rb"x-correlation-id: [0-9a-f]{32}", head)
    said = json.loads(body)
    assert said["status"] == int(head.split()[1])
    return said["status"], said["title"]


def test_whoever_is_slow_or_endless_is_ended_and_others_are_served(tmp_path: Path, upstream: Upstream) -> None:
    """Silence, a dripping head, endless headers, half a body and line ends for ever: each ends with its own problem."""
    limits = "[server.limits]\nhead_s = 1.0\nbody_s = 1.5\nhead_kib = 16\nconnections = 64\nbody_mib = 1\n"
    with serving(tmp_path, upstream, server=limits) as server:
        silent, dripping, endless, one, half, ends = (server.connect() for _ in range(6))
        dripping.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-a: ")
        with contextlib.suppress(OSError):
            for _ in range(64):
                endless.sendall(b"GET / HTTP/1.1\r\nx-a: " + b"a" * 4096 + b"\r\nx-b: ")
        one.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nx-a: " + b"a" * 40_000 + b"\r\n\r\n")
        half.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer "
            + server.key.encode()
            + b"\r\ncontent-length: 500\r\n\r\n{"
        )
        ends.sendall(b"GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n")
        first = b""
        while not first.endswith(b"}"):
            piece = ends.recv(65536)
            assert piece
            first += piece
        assert b" 404 " in first
        with contextlib.suppress(OSError):
            ends.sendall(b"\r\n")
        assert problem(whole(one)) == (431, "policy.limit.headers")
        # What was still being sent when the answer came may have reset the connection before it could be read.
        told = whole(endless)
        assert not told or problem(told)[0] == 431
        assert problem(whole(silent)) == (408, "policy.limit.time")
        assert problem(whole(dripping)) == (408, "policy.limit.time")
        assert problem(whole(half)) == (408, "policy.limit.time")
        assert problem(whole(ends))[0] == 408
        rude = server.connect()
        rude.sendall(b"\x16\x03\x01\x02\x00nonsense\r\n\r\n")
        assert problem(whole(rude))[0] == 400
        long = server.ask("x" * (1 << 20))
        assert (long.status, json.loads(long.read())["error"]["code"]) == (413, "policy.limit.body")
        assert server.ask().status == 200
        server.until(lambda: len(server.lines("refused")) >= 6)


def test_many_idle_streams_are_held_and_bounded(tmp_path: Path, upstream: Upstream) -> None:
    """Two hundred streams that say nothing cost nobody else an answer; one more of that tenant is a 429 with a time."""
    limits = "[server.limits]\nrequests_per_tenant = 200\nconnections = 210\n"
    with serving(tmp_path, upstream, server=limits) as server:
        streams = [server.ask("HOLD", stream=True) for _ in range(200)]
        assert {stream.status for stream in streams} == {200}
        over = server.ask("hi")
        assert over.status == 429
        assert over.headers["retry-after"] == "2"
        assert json.loads(over.read())["error"]["code"] == "policy.limit.concurrent"
        health = server.send("GET", "/healthz")
        assert health.status == 200
        crowd = [server.connect() for _ in range(12)]
        assert problem(whole(crowd[-1]))[0] == 503
        for one in crowd:
            one.close()
        upstream.release.set()
        assert all(b"[DONE]" in stream.read() for stream in streams)
        server.until(lambda: len([line for line in server.lines("request") if line["status"] == 200]) >= 200)


def test_the_server_is_busy_with_what_was_proved_alone(tmp_path: Path, upstream: Upstream) -> None:
    """Whoever takes none of the answers that everybody may have shuts nobody out; more calls than may be are a 503."""
    with serving(tmp_path, upstream, server="[server.limits]\nrequests = 2\n") as server:
        crowd = [server.connect() for _ in range(4)]
        for one in crowd:
            one.sendall(b"GET /v1/openapi.json HTTP/1.1\r\nhost: x\r\n\r\n" * 100)
        assert server.ask("hi").status == 200
        streams = [server.ask("HOLD", stream=True) for _ in range(2)]
        over = server.ask("hi")
        assert (over.status, over.headers["retry-after"]) == (503, "2")
        assert json.loads(over.read())["error"]["code"] == "policy.limit.busy"
        assert server.send("GET", "/healthz").status == 200
        upstream.release.set()
        assert all(b"[DONE]" in stream.read() for stream in streams)
        assert server.ask("hi").status == 200
        for one in crowd:
            one.close()


def test_the_log_has_a_line_for_each_request_and_no_text(tmp_path: Path, upstream: Upstream) -> None:
    """Tenant, route, status, code, duration, tokens and the id stand in it; no message, no key and no made-up path."""
    with serving(tmp_path, upstream) as server:
        mine = "from-a-proxy_01"
        answer = server.ask("CANARY sentence", headers={"X-Correlation-ID": mine})
        assert answer.headers["x-correlation-id"] == mine
        assert upstream.headers[-1]["x-correlation-id"] == mine
        for unsafe in ("short", "a" * 65, "CANARY sentence with spaces", 'quote"quote'):
            made = server.ask("hi", headers={"X-Correlation-ID": unsafe}).headers["x-correlation-id"]
            assert re.fullmatch("[0-9a-f]{32}", made)
        assert server.send("GET", "/v1/CANARY/path").status == 404
        assert server.ask("hi", key="CANARY-key").status == 401
        server.until(lambda: len(server.lines("request")) == 7)
        line = server.lines("request")[0]
        assert line["correlation"] == mine
        assert (line["tenant"], line["route"], line["status"]) == ("default", "/v1/chat/completions", 200)
        assert (line["input_tokens"], line["output_tokens"]) == (7, 3)
        assert line["ms"] > 0
        told = [(found["status"], found["code"]) for found in server.lines("request")]
        assert told == [(200, "")] * 5 + [(404, ""), (401, "policy.auth")]
        assert server.lines("request")[-2]["route"] == "other"
        assert "CANARY" not in server.text
        assert server.text.count(server.key) == 1  # where it was shown to its owner
