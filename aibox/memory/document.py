"""A document that is kept, and what came of adding some."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass, field

from aibox.memory.record import Visibility
from aibox.types import Label


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A document as it is listed: `source` is the path that it was read from, or its name; `size` is in bytes.

    `mine` is True for who added it, who alone can replace it or remove it. `pages` is 0 where the format has none.
    """

    id: str
    name: str
    source: str
    visibility: Visibility
    groups: tuple[str, ...] = ()
    label: Label = field(default_factory=Label)
    pages: int = 0
    passages: int = 0
    size: int = 0
    added_us: int
    mine: bool = True


@dataclass(frozen=True, slots=True)
class Progress:
    """How far `add` has come: files done of files to do, and which one is next. Given to `progress` as it happens."""

    done: int
    total: int
    name: str


@dataclass(frozen=True, slots=True)
class Documents:
    """What came of `add`: documents that are new or new again, how many stayed as they were or went, what failed.

    `failed` has a name and a reason each. Iterating gives the documents that were added.
    """

    added: tuple[Document, ...] = ()
    unchanged: int = 0
    removed: int = 0
    failed: tuple[tuple[str, str], ...] = ()
    note: str = ""
    """What is less than was asked for, though nothing failed."""

    def __iter__(self) -> Iterator[Document]:
        return iter(self.added)

    def __len__(self) -> int:
        return len(self.added)

    def __str__(self) -> str:
        passages = sum(document.passages for document in self.added)
        added = f"{len(self.added)} documents added ({passages} passages)"
        first = f"{added}, {self.unchanged} unchanged, {self.removed} removed, {len(self.failed)} failed"
        return "\n".join([first, *(f"  {name}: {reason}" for name, reason in self.failed), *filter(None, [self.note])])

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"
