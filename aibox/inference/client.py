"""OpenAI's own client, answered in this process: its transport hands requests to a backend. No port is opened.

The only file that imports `openai` and `httpx2`. Errors of aibox pass through the client unchanged.
"""

from __future__ import annotations

import functools
import time
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from aibox.chat import ChatRequest, Chunk, Completion
from aibox.errors import ConfigError
from aibox.inference.capabilities import Api
from aibox.inference.chunks import chunks_of, wants_usage
from aibox.types import Label, Scope

if TYPE_CHECKING:
    import httpx2
    from openai import AsyncOpenAI as AsyncOpenAI  # noqa: PLC0414 - the router names it from here

# The name can never resolve (RFC 6761 sec. 6.4), should anything ever try.
_BASE_URL = "http://aibox.invalid/v1"


_APIS: Mapping[str, Api] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
    "/v1/responses": "responses",
    "/v1/rerank": "rerank",
}


class Answers(Protocol):
    """The least that a client needs. `stream` and `models`, where a backend has them, are used too."""

    async def complete(self, request: ChatRequest, /, *, scope: Scope) -> Completion: ...


def openai_client(backend: Answers, *, scope: Scope, label: Label | None = None) -> AsyncOpenAI:
    """A client whose every call is `backend`'s, for `scope`, with text marked `label`.

    It knows `/chat/completions` and `/models` and, where the backend has `post`, `/completions`, `/embeddings`,
    `/responses` and `/rerank`; anything else is a 404. It never retries.
    """
    return _client(_Door(backend, scope=scope, label=Label.of(label)))


def refusing_client() -> AsyncOpenAI:
    """A client that answers nothing: the safety net behind a library that brings a client of its own."""
    return _client(_Closed())


class _Handler(Protocol):
    async def handle(self, method: str, path: str, body: bytes) -> httpx2.Response: ...


class _Closed:
    async def handle(self, method: str, path: str, body: bytes) -> httpx2.Response:  # noqa: ARG002 - whatever it is
        raise ConfigError(
            "a model was asked for without aibox's configuration, and nothing was sent",
            hint="run agents through aibox.Agent, or give the SDK router.openai(...)",
        )


class _Door:
    def __init__(self, backend: Answers, *, scope: Scope, label: Label) -> None:
        self._backend = backend
        self._scope = scope
        self._label = label

    async def handle(self, method: str, path: str, body: bytes) -> httpx2.Response:
        api = _APIS.get(path) if method == "POST" else None
        if api == "chat":
            return await self._chat(body)
        if api is not None and hasattr(self._backend, "post"):
            return await self._other(api, body)
        if (method, path) == ("GET", "/v1/models") and hasattr(self._backend, "models"):
            created = int(time.time())
            listed = [
                {"id": info.id, "object": "model", "created": created, "owned_by": info.backend}
                for info in await self._backend.models()
            ]
            return _json(200, {"object": "list", "data": listed})
        message = f"{method} {path} is not served here; /chat/completions and /models are"
        return _json(404, {"error": {"message": message, "type": "invalid_request_error", "code": "not_found"}})

    async def _chat(self, body: bytes) -> httpx2.Response:
        import httpx2

        request = ChatRequest(msgspec.json.decode(body), self._label)
        if not request.body.get("stream"):
            completion = await self._backend.complete(request, scope=self._scope)
            return _json(200, completion.body)
        headers = {"Content-Type": "text/event-stream"}
        return httpx2.Response(200, headers=headers, stream=_byte_stream()(self._chunks(request)))

    async def _other(self, api: Api, body: bytes) -> httpx2.Response:
        import httpx2

        request = ChatRequest(msgspec.json.decode(body), self._label)
        backend: Any = self._backend
        if not request.body.get("stream"):
            return _json(200, (await backend.post(api, request, scope=self._scope)).body)
        events = backend.events(api, request, scope=self._scope)
        headers = {"Content-Type": "text/event-stream"}
        return httpx2.Response(200, headers=headers, stream=_byte_stream()(events))

    async def _chunks(self, request: ChatRequest) -> AsyncIterator[Chunk]:
        if not hasattr(self._backend, "stream"):
            for chunk in chunks_of(
                await self._backend.complete(request, scope=self._scope), usage=wants_usage(request)
            ):
                yield chunk
            return
        chunks = self._backend.stream(request, scope=self._scope)
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            await chunks.aclose()


def _json(status: int, body: Any) -> httpx2.Response:
    import httpx2

    return httpx2.Response(status, headers={"Content-Type": "application/json"}, content=msgspec.json.encode(body))


def _client(handler: _Handler) -> AsyncOpenAI:
    import httpx2
    from openai import AsyncOpenAI

    return AsyncOpenAI(
        api_key="none",
        base_url=_BASE_URL,
        max_retries=0,
        http_client=httpx2.AsyncClient(transport=_transport()(handler), trust_env=False),
    )


# Classes over somebody else's base class, made once and only when the package is loaded anyway.


@functools.cache
def _transport() -> Any:
    import httpx2

    class Transport(httpx2.AsyncBaseTransport):
        def __init__(self, handler: _Handler) -> None:
            self._handler = handler

        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            return await self._handler.handle(request.method, request.url.path, await request.aread())

    return Transport


@functools.cache
def _byte_stream() -> Any:
    import httpx2

    class ByteStream(httpx2.AsyncByteStream):
        """Chunks as server-sent events, each as soon as it is there."""

        def __init__(self, chunks: AsyncIterator[Chunk]) -> None:
            self._chunks: Any = chunks

        async def __aiter__(self) -> AsyncIterator[bytes]:
            async for chunk in self._chunks:
                yield b"data: " + msgspec.json.encode(chunk.body) + b"\n\n"
            yield b"data: [DONE]\n\n"

        async def aclose(self) -> None:
            await self._chunks.aclose()

    return ByteStream
