"""A text and what is decided about it; the policy that holds."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from aibox.server.shapes.shape import Answer, Asked, LabelText, Text

Place = Literal["input", "tool_arguments", "tool_result", "retrieved", "output"]


class TextToCheck(Asked):
    text: str = Field(min_length=1, max_length=200_000)
    where: Place = "input"
    """As what the text is looked at."""
    label: LabelText | None = None


class Because(Answer):
    """Why one finding led to a decision; `levels` are those of the policy that asked for it."""

    check: str
    rule: str
    score: float
    span: tuple[int, int]
    """A half-open range of characters of the text."""
    decision: Text
    levels: list[str]
    reason: str


class Decided(Answer):
    """What is decided about a text. `text` is what may be used further on; it is empty when blocked."""

    decision: Text
    blocked: bool
    text: str
    where: Place
    because: list[Because]
    policy: str
    """The digest of the policy that decided."""


class Level(Answer):
    """One policy of those that are joined."""

    name: str
    policy: str
    digest: str


class PolicyShown(Answer):
    """The policy that holds for the caller: the join of its levels, which only ever narrows."""

    digest: str
    levels: list[Level]
    policy: dict[str, Any]
