"""What was said to a model and by it, in the form of OpenTelemetry's GenAI conventions: a list of messages as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

MAX_CHARS = 64 * 1024
"""Of one attribute; what is longer is cut, and says so."""
_CUT = " [cut]"


def asked(body: Mapping[str, Any]) -> str:
    """The messages of a request of any of OpenAI's APIs."""
    given = body.get("messages") or body.get("input") or body.get("prompt") or ()
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    return _written(_message(item) for item in items if isinstance(item, Mapping))


def answered(said: Any, finish_reason: str) -> str:
    """What a model said: a message, the text of a completion, or the items of a response."""
    items = said if isinstance(said, list) else [{"content": said}] if isinstance(said, str) else [said]
    made = [_message({"role": "assistant", **item}) for item in items if isinstance(item, Mapping)]
    return _written({**message, "finish_reason": finish_reason} for message in made)


def short(text: str) -> str:
    return text if len(text) <= MAX_CHARS else text[: MAX_CHARS - len(_CUT)] + _CUT


def _message(item: Mapping[str, Any]) -> dict[str, Any]:
    parts: list[dict[str, Any]] = []
    content = item.get("content")
    for part in [{"text": content}] if isinstance(content, str) else content or ():
        if isinstance(part, Mapping) and isinstance(part.get("text"), str):
            parts.append({"type": "text", "content": short(part["text"])})
        elif isinstance(part, Mapping):  # an image or a sound is not repeated
            parts.append({"type": str(part.get("type", "other"))[:64]})
    if item.get("role") == "tool":
        text = "\n".join(part["content"] for part in parts if "content" in part)
        parts = [{"type": "tool_call_response", "id": item.get("tool_call_id"), "response": text}]
    for call in item.get("tool_calls") or ():
        function = call.get("function") or {}
        told = {"id": call.get("id"), "name": function.get("name", ""), "arguments": function.get("arguments", "")}
        parts.append({"type": "tool_call", **told})
    if "arguments" in item:  # of the Responses API
        told = {"id": item.get("call_id"), "name": item.get("name", ""), "arguments": item["arguments"]}
        parts.append({"type": "tool_call", **told})
    return {"role": str(item.get("role", "user")), "parts": parts}


def _written(messages: Iterable[Mapping[str, Any]]) -> str:
    """Whole messages, the last ones where there is no room for all."""
    kept: list[Mapping[str, Any]] = []
    left = MAX_CHARS
    for message in reversed(list(messages)):
        left -= len(msgspec.json.encode(message))
        if kept and left < 0:
            break
        kept.append(message)
    return msgspec.json.encode(kept[::-1]).decode()
