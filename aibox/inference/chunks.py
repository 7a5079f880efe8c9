"""A whole answer as the stream that it could have been. The inverse of `aibox.chat.assemble`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from aibox.chat import ChatRequest, Chunk, Completion


def wants_usage(request: ChatRequest) -> bool:
    """Whether the caller asked for a last chunk that carries the token counts."""
    return bool((request.body.get("stream_options") or {}).get("include_usage"))


def chunks_of(completion: Completion, *, size: int | None = None, usage: bool = False) -> Iterator[Chunk]:
    """The chunks of an answer: its text in pieces of `size` characters (None: one piece), then its tool calls."""
    shared: dict[str, Any] = {key: completion.body[key] for key in ("id", "created", "model") if key in completion.body}
    shared["object"] = "chat.completion.chunk"

    def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> Chunk:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return Chunk({**shared, "choices": [choice]}, completion.backend, completion.weights)

    yield chunk({"role": "assistant", "content": None if completion.tool_calls else ""})
    text = completion.text
    for start in range(0, len(text), size or len(text) or 1):
        yield chunk({"content": text[start : start + size] if size else text})
    for index, call in enumerate(completion.tool_calls):
        function = {"name": call.name, "arguments": call.arguments}
        yield chunk({"tool_calls": [{"index": index, "id": call.id, "type": "function", "function": function}]})
    yield chunk({}, completion.finish_reason or "stop")
    if usage and completion.body.get("usage"):
        body = {**shared, "choices": [], "usage": completion.body["usage"]}
        yield Chunk(body, completion.backend, completion.weights)
