"""A real `aibox serve` process before a model server of our own, for tests that kill, flood and watch it."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PATIENCE_S = 120.0
FLOOD_MIB = 48
"""More than two connections of this machine hold by themselves, whose buffers may grow to 10 MiB."""


class _Threads(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024


class Quiet(BaseHTTPRequestHandler):
    """Says nothing of what it is asked, nor of who goes before the answer."""

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            return  # the one who asked has gone

    def log_message(self, *_: Any) -> None:
        """Nobody wants to read it."""


class Upstream:
    """An OpenAI-compatible server. A message that holds the word HOLD is answered when `release` is set.

    One that holds FLOOD is answered with FLOOD_MIB of text, as fast as it is taken.
    """

    def __init__(self) -> None:
        self.headers: list[dict[str, str]] = []
        self.asked: list[str] = []
        self.release = threading.Event()
        self.begun = 0
        self.written = 0
        """MiB of a flood that somebody has taken."""
        upstream = self

        class Handler(Quiet):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                upstream.headers.append({name.lower(): value for name, value in self.headers.items()})
                text = str(body["messages"][-1]["content"])
                upstream.asked.append(text)
                stream = bool(body.get("stream"))
                kind = "text/event-stream" if stream else "application/json"
                if not stream:
                    self._hold(text)
                    self._answer(kind, json.dumps(_whole()).encode())
                    return
                self.send_response(200)
                self.send_header("content-type", kind)
                self.send_header("connection", "close")
                self.end_headers()
                self._event(_chunk({"role": "assistant", "content": "One. "}))
                self._hold(text)
                while "FLOOD" in text and upstream.written < FLOOD_MIB:
                    self._event(_chunk({"content": "x" * 2**20}))
                    upstream.written += 1
                self._event(_chunk({"content": "Two."}, "stop"))
                self._event({"id": "x", "choices": [], "usage": _USAGE})
                self.wfile.write(b"data: [DONE]\n\n")

            def _hold(self, text: str) -> None:
                upstream.begun += 1
                if "HOLD" in text:
                    upstream.release.wait(PATIENCE_S)

            def _event(self, body: dict[str, Any]) -> None:
                self.wfile.write(b"data: " + json.dumps(body).encode() + b"\n\n")
                self.wfile.flush()

            def _answer(self, kind: str, data: bytes) -> None:
                self.send_response(200)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self._server = _Threads(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()


_USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


def _whole() -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": "One. Two."}, "finish_reason": "stop"}
    return {"id": "x", "object": "chat.completion", "model": "m", "choices": [choice], "usage": _USAGE}


def _chunk(delta: dict[str, Any], end: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": end}
    return {"id": "x", "object": "chat.completion.chunk", "model": "m", "choices": [choice]}


class Running:
    """A server that runs, and what it has logged."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, port: int, key: str, home: Path) -> None:
        self.process = process
        self.port = port
        self.key = key
        self.home = home
        self._log = log
        self._opened: list[Any] = []

    def close(self) -> None:
        """Close what `connect`, `ask` and `send` have opened."""
        while self._opened:
            self._opened.pop().close()

    def lines(self, event: str | None = None) -> list[dict[str, Any]]:
        """The lines of JSON so far, or those of one event."""
        found = [json.loads(line) for line in self._log.read_text().splitlines() if line.startswith("{")]
        return [line for line in found if event in (None, line["event"])]

    @property
    def text(self) -> str:
        return self._log.read_text()

    def until(self, condition: Any) -> None:
        """Look until it holds. Fails after two minutes, or when the server has died."""
        ends = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < ends, self.text
            time.sleep(0.02)

    def connect(self) -> socket.socket:
        self._opened.append(socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S))
        opened: socket.socket = self._opened[-1]
        return opened

    def ask(
        self, text: str = "hi", *, headers: dict[str, str] | None = None, key: str | None = None, **fields: Any
    ) -> http.client.HTTPResponse:
        """A call of the model; the answer is still to be read."""
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": text}], **fields})
        return self.send("POST", "/v1/chat/completions", body, headers=headers, key=key)

    def send(
        self, method: str, path: str, body: str = "", *, headers: dict[str, str] | None = None, key: str | None = None
    ) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        own = {"authorization": f"Bearer {key or self.key}", "content-type": "application/json", **(headers or {})}
        connection.request(method, path, body or None, own)
        answer = connection.getresponse()
        self._opened += [connection, answer]
        return answer


@contextmanager
def serving(
    folder: Path,
    upstream: Upstream,
    *,
    server: str = "",
    policy: str = "",
    more: str = "",
    memory: bool = False,
    backend: str = "",
    arguments: tuple[str, ...] = (),
) -> Iterator[Running]:
    """Until the block ends; it is then told to stop, and must leave with 0 unless it was killed."""
    (folder / "policy.toml").write_text(policy or "version = 1\n")
    (folder / "aibox.toml").write_text(
        f'home = "home"\npolicy = "policy.toml"\n{more}\n[[backends]]\nkind = "openai"\nname = "up"\n'
        f'url = "http://127.0.0.1:{upstream.port}/v1"\nmodels = ["m"]\n{backend}\n'
        f"[memory]\nenabled = {str(memory).lower()}\n[server]\nport = 0\n{server}\n"
    )
    log = folder / "log"
    command = [sys.executable, "-m", "aibox", "serve", *arguments]
    with log.open("wb") as out, subprocess.Popen(command, stderr=out, cwd=folder) as process:
        try:
            ends = time.monotonic() + PATIENCE_S
            while (said := re.search(r":(\d+)/v1\n(?:key \(shown this once\): (\S+)\n)?", log.read_text())) is None or (
                "api_keys" not in server and said[2] is None and not (folder / "known").exists()
            ):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < ends, log.read_text()
                time.sleep(0.05)
            if said[2]:
                (folder / "known").write_text(said[2])
            known = (folder / "known").read_text() if (folder / "known").exists() else ""
            with closing(Running(process, log, int(said[1]), known, folder / "home")) as running:
                yield running
        finally:
            upstream.release.set()
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE_S)
    assert process.returncode in (0, -signal.SIGKILL), log.read_text()
