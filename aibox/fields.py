"""A field of a request that is not known: each text in it may be read by a model's server, and may be anybody's."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

DEEP = 32
"""How deep a text may stand in such a field."""
_NAMED = frozenset({"type", "role", "id", "name", "call_id", "tool_call_id", "status", "detail", "format", "phase"})
_NAME = re.compile(r"(?![\d.:/-]*\Z)[\w.:/-]{1,128}", re.ASCII)


def is_name(text: str) -> bool:
    """Whether it can be the name of something, or a word of the API; a number of somebody's is neither."""
    return _NAME.fullmatch(text) is not None


def names(field: str, value: object) -> bool:
    """Whether a field is one of those that hold a name, and this holds one: no text, and nobody's data."""
    return field in _NAMED and isinstance(value, str) and is_name(value)


async def each_text(
    value: Any,
    change: Callable[[str], Awaitable[str]],
    unread: Callable[[str], Exception],
    depth: int = 0,
    named: Callable[[str, object], bool] = names,
) -> Any:
    """The value with each text in it changed, keys too, but for names: fields of which `named` says so.

    For what is nested more than `DEEP` deep it raises what `unread` makes of the words for it.
    """
    if isinstance(value, str):
        return await change(value) if value else value
    if not value or not isinstance(value, list | dict):
        return value
    if depth == DEEP:
        raise unread(f"a field that is nested more than {DEEP} deep")
    if isinstance(value, list):
        return [await each_text(one, change, unread, depth + 1, named) for one in value]
    return {
        name if is_name(name) else await change(name): one
        if named(name, one)
        else await each_text(one, change, unread, depth + 1, named)
        for name, one in value.items()
    }
