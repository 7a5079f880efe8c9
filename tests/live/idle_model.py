"""A model's server for thousands of streams: each begins, says nothing until it is let go, and then ends.

    python idle_model.py [PORT]

It says its port. What is no stream is answered at once. `GET /held` is how many streams are held now; `POST /go` lets
go all of them, and all that come.
"""

from __future__ import annotations

import asyncio
import json
import re
import resource
import signal
import subprocess
import sys
import urllib.request

USED = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}


def event(choice: dict[str, object] | None) -> bytes:
    chunk = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    told = {"choices": [{"index": 0, **choice}]} if choice is not None else {"choices": [], "usage": USED}
    return b"data: " + json.dumps(chunk | told).encode() + b"\n\n"


FIRST = event({"delta": {"role": "assistant", "content": "One. "}})
REST = event({"delta": {"content": "Two."}}) + event({"delta": {}, "finish_reason": "stop"}) + event(None)

MESSAGE = {"role": "assistant", "content": "Yes."}
WHOLE = {
    "id": "x", "object": "chat.completion", "created": 1, "model": "m", "usage": USED,
    "choices": [{"index": 0, "message": MESSAGE, "finish_reason": "stop"}],
}  # fmt: skip


class Held:
    def __init__(self) -> None:
        self.now = 0
        self.go = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head.lower())
            body = await reader.readexactly(int(length[1]) if length else 0)
            if head.startswith(b"POST /v1/") and json.loads(body).get("stream"):
                await self._stream(writer)
            elif head.startswith(b"POST /v1/"):
                _whole(writer, json.dumps(WHOLE).encode())
            elif head.startswith(b"POST /go "):
                self.go.set()
                _whole(writer, b"{}")
            elif head.startswith(b"GET /held "):
                _whole(writer, json.dumps(self.now).encode())
            else:
                _whole(writer, b'{"object":"list","data":[{"id":"m","object":"model"}]}')
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # who asked has gone
        finally:
            writer.close()

    async def _stream(self, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n" + FIRST)
        self.now += 1
        try:
            await self.go.wait()
        finally:
            self.now -= 1
        writer.write(REST + b"data: [DONE]\n\n")


def _whole(writer: asyncio.StreamWriter, body: bytes) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n")
    writer.write(b"content-length: %d\r\n\r\n" % len(body) + body)


async def main() -> None:
    server = await asyncio.start_server(Held().serve, "127.0.0.1", int((*sys.argv, "0")[1]), backlog=4096)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


class IdleModel:
    """Such a server, as a process. With a port it comes back where it was."""

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen([sys.executable, __file__, str(self.port)], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def kill(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        self.process.kill()
        self.process.wait(60)
        self.process.stdout.close()

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def held(self) -> int:
        return int(self._ask("GET", "/held"))

    def go(self) -> None:
        self._ask("POST", "/go")

    def _ask(self, method: str, path: str) -> bytes:
        asked = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", method=method)
        with urllib.request.urlopen(asked, timeout=60) as answer:
            data: bytes = answer.read()
        return data


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    asyncio.run(main())
