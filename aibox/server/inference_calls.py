"""OpenAI's APIs for the client: whole answers, and streams chunk by chunk, with every field that the server sends."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from aibox.errors import UpstreamError
from aibox.server.calls import _Calls
from aibox.server.shapes import inference as shapes
from aibox.server.told import error_of

Messages = str | Sequence[Mapping[str, Any]]
C = TypeVar("C", shapes.ChatChunk, shapes.Completion, shapes.ResponseEvent)
_CHUNK: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])


class Inference(_Calls):
    """Models, and agents as `agent:NAME`, which chat. `fields` are further fields of OpenAI's API, sent as they are.

    What an answer has beyond its type's attributes is there too. A stream that fails raises in the middle what a whole
    answer would have raised; leaving it ends the call. A text instead of messages is the user's.
    """

    async def chat(
        self, messages: Messages, *, model: str = "default", idempotency_key: str | None = None, **fields: Any
    ) -> shapes.ChatCompletion:
        body, key = _chat(messages, model, fields), idempotency_key
        return await self._to.ask("POST", "/v1/chat/completions", shapes.ChatCompletion, body=body, idempotency_key=key)

    def stream_chat(
        self, messages: Messages, *, model: str = "default", idempotency_key: str | None = None, **fields: Any
    ) -> AsyncGenerator[shapes.ChatChunk, None]:
        body = _chat(messages, model, fields)
        return self._chunks("/v1/chat/completions", shapes.ChatChunk, body, idempotency_key)

    async def completions(
        self, prompt: str | list[str], *, model: str = "default", idempotency_key: str | None = None, **fields: Any
    ) -> shapes.Completion:
        body, key = {**fields, "model": model, "prompt": prompt, "stream": False}, idempotency_key
        return await self._to.ask("POST", "/v1/completions", shapes.Completion, body=body, idempotency_key=key)

    def stream_completions(
        self, prompt: str | list[str], *, model: str = "default", idempotency_key: str | None = None, **fields: Any
    ) -> AsyncGenerator[shapes.Completion, None]:
        """Each chunk has the form of a completion, with the next piece of its text."""
        body = {**fields, "model": model, "prompt": prompt}
        return self._chunks("/v1/completions", shapes.Completion, body, idempotency_key)

    async def responses(
        self,
        input: str | list[dict[str, Any]],  # noqa: A002 - the field's name
        *,
        model: str = "default",
        idempotency_key: str | None = None,
        **fields: Any,
    ) -> shapes.Response:
        """Nothing is kept between calls."""
        body, key = {**fields, "model": model, "input": input, "stream": False}, idempotency_key
        return await self._to.ask("POST", "/v1/responses", shapes.Response, body=body, idempotency_key=key)

    def stream_responses(
        self,
        input: str | list[dict[str, Any]],  # noqa: A002 - the field's name
        *,
        model: str = "default",
        idempotency_key: str | None = None,
        **fields: Any,
    ) -> AsyncGenerator[shapes.ResponseEvent, None]:
        body = {**fields, "model": model, "input": input}
        return self._chunks("/v1/responses", shapes.ResponseEvent, body, idempotency_key)

    async def embeddings(
        self,
        input: str | list[str],  # noqa: A002 - the field's name
        *,
        model: str = "embedding",
        idempotency_key: str | None = None,
        **fields: Any,
    ) -> shapes.Embeddings:
        body, key = {**fields, "model": model, "input": input}, idempotency_key
        return await self._to.ask("POST", "/v1/embeddings", shapes.Embeddings, body=body, idempotency_key=key)

    async def _chunks(
        self, path: str, kind: type[C], body: Mapping[str, Any], key: str | None
    ) -> AsyncGenerator[C, None]:
        told = self._to.events(path, _CHUNK, body={**body, "stream": True}, idempotency_key=key)
        async with aclosing(told) as chunks:
            async for chunk in chunks:
                # Chat Completions has the error in an object, Responses in the event.
                error = chunk if chunk.get("type") == "error" else chunk.get("error")
                if isinstance(error, dict):
                    raise error_of(200, json.dumps({"error": error}).encode(), {})
                try:
                    yield kind.model_validate(chunk)
                except ValidationError as wrong:
                    what = f"the server sent no {kind.__name__}: {wrong.errors()[0]['msg']}"
                    raise UpstreamError(what) from None


def _chat(messages: Messages, model: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    asked = [{"role": "user", "content": messages}] if isinstance(messages, str) else [dict(m) for m in messages]
    return {**fields, "model": model, "messages": asked, "stream": False}
