"""What a file says, as text and as the blocks that it is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

Kind = Literal["text", "markdown", "html", "csv", "pdf", "docx"]


class Block(NamedTuple):
    """A half-open range of characters of the text. `level` is 1 to 6 for a heading, 0 for anything else.

    `page` counts from 1; 0 where the format has no pages.
    """

    start: int
    end: int
    level: int = 0
    page: int = 0


@dataclass(frozen=True, slots=True)
class Extracted:
    """The text of a file and its blocks, in order and without overlap. What is in no block is white space or markup."""

    text: str
    blocks: tuple[Block, ...]
    pages: int = 0


class Text:
    """Puts an Extracted together, block by block."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._blocks: list[Block] = []
        self._at = 0

    def add(self, text: str, *, level: int = 0, page: int = 0) -> None:
        """A block; nothing where the text is white space."""
        text = text.strip()
        if text:
            self._blocks.append(Block(self._at, self._at + len(text), level, page))
            self._parts.append(text + "\n\n")
            self._at += len(text) + 2

    def done(self, *, pages: int = 0) -> Extracted:
        return Extracted("".join(self._parts), tuple(self._blocks), pages)
