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

_UNREAD = object()
_FIELDS: Mapping[str, str] = {"function": "arguments", "custom": "input"}
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
    """An answer of `SAID`'s APIs, or a piece of one, without what no check can read; the same object when that is all.

    A content in parts becomes the text of them, arguments that are an object become its text; any other field that says
    something (`reasoning_details`, `audio`, `annotations`) is left out.
    """
    choices = body.get("choices")
    if api not in SAID:
        return body
    kept = body if body.keys() <= _ANSWER else known(body, _ANSWER)
    if not choices:
        return kept
    made = [_readable_choice(api, choice, key) for choice in choices]
    return kept if all(map(unchanged, choices, made)) else {**kept, "choices": made}


def known(body: dict[str, Any], fields: Collection[str]) -> dict[str, Any]:
    """Without what says something in other fields than these; the same object when there is none."""
    made = {name: value for name, value in body.items() if name in fields or not _says(value)}
    return body if len(made) == len(body) else made


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
    made = {name: value for name, value in choice.items() if not value or name in _CHOICE}
    if api == "chat":
        told = choice.get(key) or {}
        said = {name: text for name, value in told.items() if (text := _readable(name, value)) is not _UNREAD}
        made |= {key: told if alike(said, told) else said} if key in choice else {}
    elif "text" in choice:
        made["text"] = plain(choice["text"])
    return choice if alike(made, choice) else made


def alike(made: dict[str, Any], told: dict[str, Any]) -> bool:
    return made.keys() == told.keys() and all(made[name] is told[name] for name in told)


def _readable(name: str, value: Any) -> Any:
    if not value or (name in SAID["chat"] and isinstance(value, str)) or (name == "role" and value in _ROLES):
        return value
    if name in SAID["chat"]:
        return plain(value)
    if name == "function_call" and isinstance(value, dict):
        return _with_text(value)
    if name == "tool_calls" and isinstance(value, list):
        made = [_readable_call(call) for call in value]
        return value if all(map(unchanged, value, made)) else made
    return _UNREAD


def _readable_call(call: dict[str, Any]) -> dict[str, Any]:
    """A call of one kind: of one that is of two, the second could be looked at as neither."""
    if call.get("function") and "custom" in call:
        call = {name: value for name, value in call.items() if name != "custom"}
    for kind, field in _FIELDS.items():
        if isinstance(told := call.get(kind), dict) and (made := _with_text(told, field)) is not told:
            return {**call, kind: made}
    return call


def _with_text(called: dict[str, Any], field: str = "arguments") -> dict[str, Any]:
    given = called.get(field)
    return called if isinstance(given, str | None) else {**called, field: json_text(given)}


def unchanged(old: Any, new: Any) -> bool:
    return old is new or (isinstance(old, str) and old == new)
