"""An upstream on loopback that answers well or badly, and a recorder in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from aibox.errors import StoreError
from aibox.types import Entry, Scope

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Upstream:
    """A model server on 127.0.0.1. `answer` says how it answers a chat; by default as it should."""

    def __init__(self) -> None:
        self.answer: Answer = self.well
        self.models: list[dict[str, Any]] = [{"id": "m", "max_model_len": 8192}]
        self.bodies: list[bytes] = []
        self.headers: list[Mapping[str, str]] = []
        self.gone = asyncio.Event()
        self.url = ""
        self.other: dict[str, Any] = {}
        """What other routes answer: text, JSON, or a function."""

    async def chat(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.read())
        self.headers.append(request.headers)
        try:
            return await self.answer(request)
        except (asyncio.CancelledError, ConnectionError):
            self.gone.set()
            raise

    async def well(self, request: web.Request) -> web.StreamResponse:
        asked = json.loads(self.bodies[-1])
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        shared = {"id": "x", "created": 1, "model": "m"}
        if not asked.get("stream"):
            message = {"role": "assistant", "content": "Hello there."}
            choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
            return web.json_response({**shared, "object": "chat.completion", "choices": choices, "usage": usage})
        pieces: list[tuple[dict[str, Any], str | None]] = [
            ({"role": "assistant", "content": ""}, None),
            ({"content": "Hello "}, None),
            ({"content": "thére 😀."}, None),
            ({}, "stop"),
        ]
        bodies: list[dict[str, Any]] = [
            {**shared, "choices": [{"index": 0, "delta": delta, "finish_reason": end}]} for delta, end in pieces
        ]
        if (asked.get("stream_options") or {}).get("include_usage"):
            bodies.append({**shared, "choices": [], "usage": usage})
        text = "".join(f"data: {json.dumps(body, ensure_ascii=False)}\n\n" for body in bodies) + "data: [DONE]\n\n"
        return await self.sends(text.encode())(request)

    def sends(self, *parts: bytes, status: int = 200, then: str = "end") -> Answer:
        """An answer of raw bytes; `then` it ends, resets the connection, or waits for ever."""

        async def answer(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(status=status, headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            for part in parts:
                await response.write(part)
                await asyncio.sleep(0.01)
            if then == "reset":
                assert request.transport is not None
                request.transport.abort()
            if then == "wait":
                while request.transport is not None and not request.transport.is_closing():
                    await response.write(b": still here\n\n")
                    await asyncio.sleep(0.01)
                self.gone.set()
            return response

        return answer

    def says(self, body: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
        async def answer(_: web.Request) -> web.StreamResponse:
            return web.json_response(body, status=status, headers=headers)

        return answer

    async def rest(self, request: web.Request) -> web.StreamResponse:
        found = self.other.get(request.path)
        if found is None:
            return web.json_response({"detail": "Not Found"}, status=404)
        self.bodies.append(await request.read())
        if callable(found):
            answer: web.StreamResponse = await found(request)
            return answer
        return web.Response(text=found) if isinstance(found, str) else web.json_response(found)

    async def list_models(self, _: web.Request) -> web.StreamResponse:
        return web.json_response({"object": "list", "data": self.models})


class Notes:
    """A Recorder in memory. It keeps what is appended, in order; `broken` makes it fail as a full disk would."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, Scope, dict[str, Any]]] = []
        self.broken = False

    def note(self, kind: str, *, scope: Scope, detail: Mapping[str, Any], turn: str = "") -> None:
        if self.broken:
            raise StoreError("the disk is full")
        self.entries.append((kind, scope, dict(detail)))

    async def append(self, kind: str, *, scope: Scope, detail: Mapping[str, Any], turn: str = "") -> Entry:
        self.note(kind, scope=scope, detail=detail, turn=turn)
        return Entry(scope.tenant, len(self.entries) - 1, kind, b"", 0)
