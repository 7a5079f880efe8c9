"""How errors are told: RFC 9457 problems, and OpenAI's shape on the OpenAI routes."""

from __future__ import annotations

from aibox.server.shapes.shape import Answer


class Problem(Answer):
    """RFC 9457 problem details. `title` is the error's code, stable across releases; `hint` says what to do."""

    type: str
    title: str
    status: int
    detail: str
    hint: str = ""


class OpenAIFault(Answer):
    message: str
    type: str
    code: str | None = None
    param: str | None = None


class OpenAIError(Answer):
    """An error as clients of the OpenAI API read it."""

    error: OpenAIFault
