"""The one table that maps errors to HTTP: RFC 9457 problems, and OpenAI's error shape on the OpenAI routes."""

from __future__ import annotations

from typing import Any

import msgspec

from aibox.errors import (
    NO_MODEL,
    OPERATORS,
    STATE,
    AccessError,
    AIBoxError,
    ApprovalError,
    AuthError,
    BackendError,
    ConfigError,
    EgressError,
    GuardrailError,
    IntegrityError,
    LimitError,
    PolicyError,
    SandboxError,
    StoreError,
    UpstreamError,
)

STATUS: dict[type[AIBoxError], int] = {
    AIBoxError: 500,
    ConfigError: 400,
    PolicyError: 403,
    AuthError: 401,
    AccessError: 403,
    GuardrailError: 400,
    EgressError: 403,
    ApprovalError: 403,
    LimitError: 429,
    UpstreamError: 502,
    BackendError: 502,
    StoreError: 503,
    SandboxError: 503,
    IntegrityError: 500,
}


CODES: dict[str, int] = {
    # Nothing has failed: a path was named that is not there.
    "upstream.store.missing": 404,
    NO_MODEL: 404,
    # Nothing is wrong with what was asked.
    OPERATORS: 500,
    "config.key_in_use": 409,
    "config.key_done": 409,
    "config.other_replica": 409,
    STATE: 409,
    "config.key_reused": 422,
    "config.policy_changed": 412,
    "config.policy_unnamed": 428,
    "policy.limit.body": 413,
    "policy.limit.headers": 431,
    "policy.limit.time": 408,
    "policy.limit.busy": 503,
    "upstream.stopping": 503,
}
"""Codes that say more than their class does."""
KEPT_BACK = "what this server keeps cannot be read or written now"
"""The message of an error that names a file or an address of the server, to whoever asks: its own is for the log."""
_UNFIT = "this server is not set up as it has to be"
_CHANGED = "something that this server keeps is not as it was kept, and is not used"
_ASK = "its operator finds in the log what it is"
OPENAI_CODES = {NO_MODEL: "model_not_found"}
"""What OpenAI's API calls the same, and its clients look for."""


def status_of(error: AIBoxError) -> int:
    """The status of the nearest class in the tree; 504 for a slow backend, 404 where existence is a secret."""
    if (status := CODES.get(error.code)) is not None:
        return status
    if isinstance(error, BackendError) and error.timeout:
        return 504
    if isinstance(error, AccessError) and error.absent:
        return 404
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def is_kept_back(error: AIBoxError) -> bool:
    """Whether the message may say where the server keeps something, and how it is set up: it is for the log.

    That of a store that failed, whatever failed; of a model server that cannot be reached; of evidence, a row or
    a file that does not hold; and of what the operator alone can put right.
    """
    if isinstance(error, StoreError):
        return error.code == StoreError.code
    if isinstance(error, BackendError):
        return bool(error.outward)
    return isinstance(error, IntegrityError) or (isinstance(error, ConfigError) and error.code == OPERATORS)


def told(error: AIBoxError) -> tuple[str, str]:
    """The message and the hint of an error, as callers are told them."""
    if not is_kept_back(error):
        return error.message, error.hint
    if isinstance(error, StoreError):
        return KEPT_BACK, error.hint
    if isinstance(error, BackendError):
        return error.outward, error.hint
    return (_CHANGED if isinstance(error, IntegrityError) else _UNFIT), _ASK


def problem(error: AIBoxError) -> dict[str, Any]:
    """RFC 9457 problem details."""
    detail, hint = told(error)
    return {
        "type": f"urn:aibox:{error.code}",
        "title": error.code,
        "status": status_of(error),
        "detail": detail,
        "hint": hint,
    }


def openai_error(error: AIBoxError) -> dict[str, Any]:
    """The shape that clients of the OpenAI API read."""
    kind = "invalid_request_error" if status_of(error) < 500 else "server_error"
    code, param = OPENAI_CODES.get(error.code, error.code), "model" if error.code == NO_MODEL else None
    message, hint = told(error)
    message = f"{message} ({hint})" if hint else message
    return {"error": {"message": message, "type": kind, "code": code, "param": param}}


def fields(error: AIBoxError) -> dict[str, str]:
    """Headers of an answer that is this error."""
    if isinstance(error, LimitError) and error.retry_after_s is not None:
        return {"retry-after": str(int(error.retry_after_s) + 1)}
    if isinstance(error, AuthError):
        # RFC 6750 sec. 3, RFC 9068 sec. 4: who sent no proof is told how, and who sent one that it does not hold.
        return {"www-authenticate": "Bearer" if error.missing else 'Bearer error="invalid_token"'}
    return {}


def refusal(error: AIBoxError, *, openai: bool) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body of an answer that is an error."""
    kind = b"application/json" if openai else b"application/problem+json"
    headers = [(b"content-type", kind), *((name.encode(), value.encode()) for name, value in fields(error).items())]
    body = msgspec.json.encode(openai_error(error) if openai else problem(error))
    return status_of(error), [*headers, (b"content-length", str(len(body)).encode())], body
