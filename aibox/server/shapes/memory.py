"""Memories and documents, as they are kept and found again."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, Field

from aibox.server.shapes.shape import Answer, Asked, Id, LabelText, Text, Whole

Kind = Literal["user", "feedback", "project", "reference"]
Seen = Literal["private", "shared", "restricted"]


class NewMemory(Asked):
    """Something to remember for the caller. Before `valid_from` and from `valid_until` on it is not recalled."""

    text: str = Field(min_length=1, max_length=8000)
    type: Kind = "user"
    label: LabelText | None = None
    confidence: float = Field(default=1.0, ge=0, le=1)
    valid_from: AwareDatetime | None = None
    valid_until: AwareDatetime | None = None


class Changed(Asked):
    """Another text in the place of a memory's. The label can only rise."""

    text: str = Field(min_length=1, max_length=8000)
    label: LabelText | None = None


class Query(Asked):
    query: str = Field(min_length=1, max_length=8000)
    limit: Whole = Field(default=8, ge=1, le=100)
    types: list[Kind] | None = None
    """Only memories of these types; None also finds passages of documents."""
    ceiling: LabelText | None = None
    """Nothing is found that this label may not hold."""


class KindsQuery(Asked):
    types: list[Kind] | None = Field(default=None, examples=[["user"]])


class MemoryShown(Answer):
    """One memory. Times are microseconds since 1970; 0 sets no bound."""

    id: str
    type: Kind
    text: str
    label: Text
    agent: str
    session: str
    source: str
    confidence: float
    created_us: int
    valid_from_us: int
    valid_until_us: int
    supersedes: str


class MemoryList(Answer):
    data: list[MemoryShown]


class Found(Answer):
    """A memory, or a passage of a document, that has to do with the query. `score` is 0 to 1."""

    id: str
    kind: Literal["memory", "passage"]
    text: str
    label: Text
    citation: str
    score: float


class FoundList(Answer):
    data: list[Found]


class Forgotten(Answer):
    gone: int


class Everything(Asked):
    """Says that all of the caller's memories, and the documents that they added, are to be forgotten."""

    everything: Literal[True]


class Upload(Asked):
    """How a document is kept. Its format is told by the ending of its name."""

    name: str = Field(min_length=1, max_length=255, examples=["report.pdf"])
    label: LabelText | None = None
    visibility: Seen = Field(default="private", examples=["restricted"])
    group: list[Id] = Field(default_factory=list, examples=[["sales"]])
    """For `restricted`: the groups that may see it."""


class DocumentShown(Answer):
    """A document. `mine` is True for who added it, who alone can replace it or remove it."""

    id: str
    name: str
    visibility: Seen
    groups: list[str]
    label: Text
    pages: int
    passages: int
    size: int
    added_us: int
    mine: bool


class Uploaded(Answer):
    """The document as it is kept; None where the very same is kept already."""

    document: DocumentShown | None
    unchanged: bool


class DocumentList(Answer):
    data: list[DocumentShown]


class Search(Asked):
    query: str = Field(min_length=1, max_length=8000)
    limit: Whole = Field(default=8, ge=1, le=100)
    ceiling: LabelText | None = None
