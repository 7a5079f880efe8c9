"""Errors of the server, as the errors of the library that they were there."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any

from aibox import errors
from aibox.errors import AccessError, AIBoxError, BackendError, LimitError, UpstreamError
from aibox.server.problem import OPENAI_CODES


def _told_as(kind: type[AIBoxError]) -> type[AIBoxError]:
    """The class itself, or the nearest above it that needs nothing but what a problem says."""
    wanted = inspect.signature(kind).parameters.values()
    more = [one for one in wanted if one.kind is one.KEYWORD_ONLY and one.default is one.empty]
    return _told_as(kind.__mro__[1]) if more else kind


_KINDS: dict[str, type[AIBoxError]] = {
    kind.code: _told_as(kind)
    for kind in vars(errors).values()
    if inspect.isclass(kind) and issubclass(kind, AIBoxError)
}


def error_of(status: int, body: bytes, headers: Mapping[str, str]) -> AIBoxError:
    """What an answer that is no good one says, of the nearest class; UpstreamError where aibox did not say it."""
    try:
        read: Any = json.loads(body)
    except ValueError:
        read = None
    told: dict[str, Any] = read if isinstance(read, dict) else {}
    if isinstance(told.get("error"), dict):  # OpenAI's shape
        code = told["error"].get("code")
        title = next((ours for ours, theirs in OPENAI_CODES.items() if theirs == code), code)
        return told_error({"title": title, "detail": told["error"].get("message")}, status, headers)
    if not str(told.get("type", "")).startswith("urn:aibox:"):
        said = told.get("detail") or _missing(told.get("parts"))
        return UpstreamError(f"the server answered {status} {said}".rstrip(), retryable=status in (502, 503, 504))
    return told_error(told, status, headers)


def _missing(parts: object) -> str:
    """The parts that `/readyz` misses; nothing where this is no answer of it."""
    missing = [name for name, how in parts.items() if how != "ok"] if isinstance(parts, dict) else []
    return f"missing: {', '.join(missing)}" if missing else ""


def told_error(problem: Mapping[str, Any], status: int, headers: Mapping[str, str]) -> AIBoxError:
    """The error that a problem stands for."""
    code, message, hint = (str(problem.get(name) or "") for name in ("title", "detail", "hint"))
    name = code
    while name not in _KINDS and "." in name:
        name = name.rpartition(".")[0]
    kind = _KINDS.get(name, UpstreamError)
    made: AIBoxError
    if issubclass(kind, AccessError):
        made = kind(message, hint=hint, absent=status == 404)
    elif issubclass(kind, LimitError):
        wait = headers.get("retry-after", "")
        made = kind(message, hint=hint, retry_after_s=float(wait) if wait.isdecimal() else None)
    elif issubclass(kind, BackendError):
        made = kind(message, hint=hint, timeout=status == 504)
    else:
        made = kind(message, hint=hint)
    made.code = code or made.code
    return made
