"""What stands around a gateway under test: a model server that answers at once, a bare pass-through, and a load.

`python bench/standin.py upstream PORT` and `python bench/standin.py bare PORT UPSTREAM_PORT` run the first two.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

TEXT = "The capital of France is Paris. " * 4
CHUNKS = 64
PACE_S = 0.002
"""Between two chunks of the model `paced`: as they come, they do not run together on their way."""
ANSWER = json.dumps({
    "id": "x", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 150, "completion_tokens": 32, "total_tokens": 182},
}).encode()  # fmt: skip
_SHARED = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m"}


def _event(delta: dict[str, Any], end: str | None = None) -> bytes:
    body = {**_SHARED, "choices": [{"index": 0, "delta": delta, "finish_reason": end}]}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


EVENTS = [_event({"content": f"word{n} "}) for n in range(CHUNKS)]
LAST = (
    _event({}, "stop")
    + b"data: "
    + json.dumps({**_SHARED, "choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 64}}).encode()
    + b"\n\ndata: [DONE]\n\n"
)
MESSAGES = [
    {"role": "system", "content": "You answer questions about countries, in one short sentence. " * 6},
    {"role": "user", "content": "What is the capital of France, and since when has it been? " * 4},
]
LONG = (
    "We run the heating of some four hundred flats, and every spring the same question comes up at the meeting of "
    "the owners: should the old boilers be repaired once more, or is it time to replace them with heat pumps? Last "
    "year the repairs cost more than in the three years before taken together, and in two of the houses the pumps "
    "of the circuit had to be changed twice. On the other hand the buildings are from the sixties, their walls are "
    "thin, and nobody has measured how warm the water in the radiators would have to be on a cold day in January. "
    "One of the owners, who is an engineer, says that it cannot be done below sixty degrees; another has read that "
    "fifty are enough when the largest radiators in the corner rooms are exchanged. The bank would lend us the "
    "money at a low rate, but only if an independent report shows that at least a third of the energy is saved.\n\n"
    "What I should like to have from you is a plan of the next steps that I can put before the meeting. Please "
    "begin with what has to be measured, in which of the houses, and for how long; a week in winter may not be "
    "enough when it happens to be a mild one. Then tell me which figures of the present system we need to know "
    "before anybody can say what a new one would save, and where such figures are usually found: the chimney sweep "
    "writes some of them down, the supplier of the gas knows others, and a few can only be had by reading the "
    "meters at the same hour on several days. After that I need a rough order of the costs, without pretending to "
    "be exact: what the measuring costs, what a report costs, what the exchange of the radiators costs in a flat of "
    "average size, and which of these can be left for later.\n\n"
    "Most of the owners are not technical people. They are afraid of noise in the yard, of weeks without hot water, "
    "and of rents that rise afterwards. A short answer to each of these worries would help me more than a long "
    "table. Do not use abbreviations that are not explained, and keep the whole plan to a single page."
)
"""2 KB of what a user may write, in which no check finds anything."""

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


async def _body(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def _answer(send: Send, body: bytes, kind: bytes = b"application/json") -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
    await send({"type": "http.response.body", "body": body})


async def upstream(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        return
    body = await _body(receive)
    if scope["path"].endswith("/models"):
        await _answer(send, b'{"object":"list","data":[{"id":"m","object":"model"},{"id":"paced","object":"model"}]}')
    elif b'"stream":true' not in body.replace(b" ", b""):
        await _answer(send, ANSWER)
    else:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        paced = b'"paced"' in body
        for event in EVENTS:
            if paced:
                await asyncio.sleep(PACE_S)
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": LAST})


def bare(port: int) -> Any:
    """The same server and client as aibox's, and nothing between them."""
    import aiohttp

    session: aiohttp.ClientSession | None = None

    async def app(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        nonlocal session
        if scope["type"] != "http":
            return
        session = session or aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        url = f"http://127.0.0.1:{port}{scope['path']}"
        headers = {"content-type": "application/json"}
        async with session.request(scope["method"], url, data=await _body(receive), headers=headers) as response:
            kind = response.headers["content-type"].encode()
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
            while data := await response.content.readany():
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

    return app


class Connection:
    """One keep-alive HTTP/1.1 connection that asks the same thing again and again."""

    def __init__(
        self, port: int, *, key: str, model: str, stream: bool, headers: Mapping[str, str] | None = None, user: str = ""
    ) -> None:
        messages = [MESSAGES[0], {"role": "user", "content": user}] if user else MESSAGES
        fields = {"model": model, "messages": messages, "max_tokens": 64, **({"stream": True} if stream else {})}
        body = json.dumps(fields).encode()
        more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        self._port = port
        self._request = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"{more}Authorization: Bearer {key}\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode() + body

    async def __aenter__(self) -> Connection:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    async def ask(self) -> tuple[float, float, int]:
        """(Seconds to the first byte of the body, seconds in all, bytes of the body.) Raises for any other status."""
        started = time.perf_counter()
        self._writer.write(self._request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError((head + await self._reader.read(600)).decode("utf-8", "replace"))
        lower = head.lower()
        first, size = 0.0, 0
        if b"content-length:" in lower:
            length = int(lower.partition(b"content-length:")[2].partition(b"\r\n")[0])
            size = len(await self._reader.readexactly(length))
            first = time.perf_counter() - started
        else:
            while length := int(await self._reader.readline(), 16):
                await self._reader.readexactly(length + 2)
                first = first or time.perf_counter() - started
                size += length
            await self._reader.readline()
        return first, time.perf_counter() - started, size


if __name__ == "__main__":
    import uvicorn

    what, port, *rest = sys.argv[1:]
    uvicorn.run(
        upstream if what == "upstream" else bare(int(rest[0])), host="127.0.0.1", port=int(port), log_level="error",
        access_log=False, lifespan="off", timeout_keep_alive=60,
    )  # fmt: skip
