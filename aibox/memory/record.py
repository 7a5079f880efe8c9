"""One thing that is remembered, a passage of a document, and either of them found again."""

from __future__ import annotations

import secrets
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, get_args

from aibox.types import Label

RecordType = Literal["user", "feedback", "project", "reference"]
RECORD_TYPES: tuple[RecordType, ...] = get_args(RecordType)
Within = Literal["user", "agent", "session"]
"""What a search looks through: everything of the user, what was told to this agent, or in this session of it."""
Visibility = Literal["private", "shared", "restricted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One memory: a sentence or a few, for whom it is kept, how secret it is and where it came from.

    `type` says what it is for:
    `user`: who the person is and what they prefer; `feedback`: how they want the work done, corrections among it;
    `project`: what is being worked on, decisions and dates; `reference`: where something is found.

    `agent` and `session` say where it was told and restrict nothing. `source` is the turn, `confidence` is 0 to 1,
    `created_us` is Unix time in microseconds, `supersedes` the id of the older version that this one replaced. From
    `valid_from_us` on and before `valid_until_us` it is found; 0 sets no bound.
    """

    id: str
    type: RecordType
    text: str
    tenant: str
    user: str
    agent: str = ""
    session: str = ""
    label: Label = field(default_factory=Label)
    source: str = ""
    confidence: float = 1.0
    created_us: int
    valid_from_us: int = 0
    valid_until_us: int = 0
    supersedes: str = ""

    @property
    def citation(self) -> str:
        """For people and for `Label.why`: which memory, and of which day (UTC)."""
        day = datetime.fromtimestamp(self.created_us / 1e6, UTC).date()
        return f"memory {self.id[:13]}… of {day.isoformat()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """A piece of a document with its place in it, so that an answer can cite it.

    `page` counts from 1, 0 where the format has no pages; `heading` is the path of headings above it, joined by ` > `;
    `start` and `end` are a half-open range of characters in the document's extracted text.
    """

    id: str
    document: str
    name: str
    text: str
    page: int = 0
    heading: str = ""
    start: int
    end: int
    label: Label = field(default_factory=Label)

    @property
    def citation(self) -> str:
        """For people and for `Label.why`: which document, where in it, and the id that `Memory.get` takes."""
        place = f", page {self.page}" if self.page else ""
        place += f", {self.heading}" if self.heading else ""
        return f"{self.name}{place} [{self.id}]"


@dataclass(frozen=True, slots=True)
class Hit:
    """What a query found, with the label of its text. `score` is 0 to 1.

    Of a memory it is the cosine of the two vectors; of a passage seven tenths of that, and three of its words.
    """

    record: Record | Passage
    score: float

    @property
    def citation(self) -> str:
        return self.record.citation

    @property
    def label(self) -> Label:
        return self.record.label


def now_us() -> int:
    return time.time_ns() // 1000


def new_id(created_us: int) -> str:
    """A UUID of version 7 (RFC 9562 sec. 5.7), with the fraction of the millisecond in `rand_a`: ids sort by time."""
    milliseconds, rest_us = divmod(created_us, 1000)
    value = (milliseconds & (1 << 48) - 1) << 80 | 0x7 << 76 | (rest_us * 4096 // 1000) << 64
    value |= 0b10 << 62 | secrets.randbits(62)
    return str(uuid.UUID(int=value))
