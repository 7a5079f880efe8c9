"""What an answer of a model server must be so that it can be read: what it says stands where whoever looks finds it.

Values are a server's own words and anything may stand in them; objects and lists must be what the APIs say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CHAT = "/chat/completions"
CHOOSES = (CHAT, "/completions")
"""Paths whose answers are choices."""
_RESPONSES = "/responses"
ENDS = ("response.completed", "response.incomplete", "response.failed")
"""Events after which the Responses API says nothing more."""


def is_answer(path: str, answer: Mapping[str, Any]) -> bool:
    """Whether a whole answer at this path can be read."""
    if path in CHOOSES:
        choices = answer.get("choices")
        return isinstance(choices, list) and all(_is_choice(choice, "message") for choice in choices)
    return path != _RESPONSES or _is_response(answer)


def ends(path: str, event: Mapping[str, Any]) -> bool | None:
    """Whether an event of a stream says that the answer has come to its end; None for one that cannot be read."""
    if path == _RESPONSES:
        return event.get("type") in ENDS if _is_event(event) else None
    choices, last = event.get("choices"), False
    if choices is not None and not isinstance(choices, list):
        return None
    for choice in choices or ():
        if not _is_choice(choice, "delta"):
            return None
        last = last or bool(choice.get("finish_reason"))
    return last


def _is_choice(choice: Any, key: str) -> bool:
    """What it says, under `key`, is an object where it says anything, and each call too; `text` is of /completions."""
    # JSON makes these very types, and this is asked for each piece of each stream.
    if type(choice) is not dict or type(choice.get("index", 0)) is not int:
        return False
    text, told = choice.get("text"), choice.get(key)
    if text is not None and type(text) is not str:
        return False
    if told is None:
        return True
    if type(told) is not dict:
        return False
    calls = told.get("tool_calls")
    return not calls or (type(calls) is list and all(map(_is_call, calls)))


def _is_call(call: Any) -> bool:
    known = isinstance(call, dict) and all(isinstance(call.get(kind), dict | None) for kind in ("function", "custom"))
    return known and isinstance(call.get("index", 0), int)


def _is_response(body: Any) -> bool:
    """What has choices is an answer of another API."""
    if not isinstance(body, Mapping) or "choices" in body:
        return False
    output = body.get("output")
    return output is None or (isinstance(output, list) and all(map(_is_item, output)))


def _is_event(event: Mapping[str, Any]) -> bool:
    response = event.get("response")
    whole = response is None or _is_response(response)
    return (
        whole and "choices" not in event and _is_item(event.get("item", {})) and isinstance(event.get("part", {}), dict)
    )


def _is_item(item: Any) -> bool:
    if not isinstance(item, dict):
        return False
    lists = [item[key] for key in ("content", "summary") if item.get(key) is not None]
    return all(isinstance(parts, list) and all(isinstance(part, dict) for part in parts) for parts in lists)
