"""Which fields of an answer are known. Whatever else says something is left out where answers are looked at."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

from aibox.chat import json_text, plain
from aibox.fields import DEEP, is_name
from aibox.inference.capabilities import Api

SAID: Mapping[str, tuple[str, ...]] = {
    "chat": ("reasoning_content", "reasoning", "content", "refusal"),
    "completions": ("text",),
}
"""What a model writes in a choice of these APIs, in the order in which it writes it."""
ARGUMENTS: Mapping[str, str] = {"function": "arguments", "custom": "input"}
"""The kinds of call in a message, and the field of what each is called with."""

_UNREAD = object()
_ANSWER = frozenset(
    {
        *("id", "object", "created", "model", "choices", "usage", "system_fingerprint", "service_tier", "provider"),
        *("prompt_logprobs", "prompt_token_ids"),
    }
)
"""Fields of an answer. Of the prompt its caller is told what the model was shown, which is concealed already."""
RESPONSE = frozenset(
    {
        *("id", "object", "created_at", "completed_at", "model", "status", "output", "usage", "error"),
        *("incomplete_details", "instructions", "metadata", "prompt", "reasoning", "text", "tools", "tool_choice"),
        *("user", "safety_identifier", "prompt_cache_key", "service_tier", "truncation", "conversation"),
    }
)
"""Fields of an answer of the Responses API, most of them the request's own."""
_CHOICE = frozenset({"index", "finish_reason", "stop_reason", "logprobs", "token_ids"})
_ROLES = ("assistant", "tool", "function", "user", "system", "developer")


def readable(api: Api, body: dict[str, Any], key: Literal["message", "delta"]) -> dict[str, Any]:
    """An answer of `SAID`'s APIs, or a piece of one, without what no check can read.

    A content in parts becomes the text of them, arguments that are an object become its text; any other field that says
    something (`reasoning_details`, `audio`, `annotations`) is left out.
    """
    if api not in SAID:
        return body
    made = known(body, _ANSWER)
    if choices := body.get("choices"):
        made["choices"] = [_readable_choice(api, choice, key) for choice in choices]
    return made


def known(body: Mapping[str, Any], fields: Collection[str]) -> dict[str, Any]:
    """Without what says something in other fields than these."""
    return {name: value for name, value in body.items() if name in fields or not _says(value)}


def _says(value: Any, depth: int = 0) -> bool:
    """Whether a text may stand in it."""
    if isinstance(value, str):
        return value != ""
    if not value or not isinstance(value, list | dict):
        return False
    named = isinstance(value, list) or all(map(is_name, value))
    inside = value if isinstance(value, list) else value.values()
    return depth == DEEP or not named or any(_says(one, depth + 1) for one in inside)


def _readable_choice(api: Api, choice: dict[str, Any], key: str) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for field, value in choice.items():
        if api == "chat" and field == key:
            said = {name: _readable(name, told) for name, told in (value or {}).items()}
            made[field] = {name: told for name, told in said.items() if told is not _UNREAD}
        elif api == "completions" and field == "text":
            made[field] = plain(value)
        elif not value or field in _CHOICE:
            made[field] = value
    return made


def _readable(name: str, value: Any) -> Any:
    if not value or (name in SAID["chat"] and isinstance(value, str)) or (name == "role" and value in _ROLES):
        return value
    if name in SAID["chat"]:
        return plain(value)
    if name == "function_call" and isinstance(value, dict):
        return _with_text(value)
    if name == "tool_calls" and isinstance(value, list):
        return [_readable_call(call) for call in value]
    return _UNREAD


def _readable_call(call: dict[str, Any]) -> dict[str, Any]:
    """A call of one kind: of one that is of two, the second could be looked at as neither."""
    kinds = {
        kind: _with_text(call[kind], field) for kind, field in ARGUMENTS.items() if isinstance(call.get(kind), dict)
    }
    made = {**call, **kinds}
    if made.get("function"):
        made.pop("custom", None)
    return made


def _with_text(called: dict[str, Any], field: str = "arguments") -> dict[str, Any]:
    given = called.get(field)
    return called if isinstance(given, str | None) else {**called, field: json_text(given)}
