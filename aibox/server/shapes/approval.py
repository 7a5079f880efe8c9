"""Questions to people, as they are shown and answered."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from aibox.server.shapes.shape import Answer, Asked


class ApprovalShown(Answer):
    """A question with all that an answer is bound to. `digest` is what a yes must name."""

    object: Literal["approval"]
    id: str
    run: str
    status: Literal["waiting", "approved", "rejected", "expired", "used"]
    tool: str
    arguments: dict[str, Any]
    reason: str
    label: str
    label_why: list[str]
    agent: str
    agent_version: str
    policy: str
    asked_by: str
    people: int
    expires: int
    """Unix time in seconds."""
    digest: str
    approved_by: list[str]
    rejected_by: str
    rejected_because: str


class ApprovalList(Answer):
    object: Literal["list"]
    data: list[ApprovalShown]


class Yes(Asked):
    digest: str
    """What the question shows: the yes is to exactly that."""


class No(Asked):
    reason: str = Field(default="", max_length=8000)
    """The model is told."""
