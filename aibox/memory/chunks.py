"""A text cut into passages along its structure: at headings first, then between blocks, sentences and words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from aibox.memory.extracted import Block, Extracted

MOST_CHARS = 1_200
"""Of a passage: some 300 tokens of English, within the 512 that the embedder reads at once; short enough to cite."""
LEAST_CHARS = 400
"""A passage shorter than this takes the next block with it, when that has the same heading and is on the same page."""

_SENTENCE = re.compile(r"(?<=[.!?;:])\s+|(?<=[。！？；])|\n+")


@dataclass(frozen=True, slots=True)
class Chunk:
    """`text` is exactly the characters `start` to `end` of the extracted text."""

    text: str
    start: int
    end: int
    page: int = 0
    heading: str = ""

    @property
    def for_search(self) -> str:
        """With its headings, which often say what the passage itself does not repeat."""
        return f"{self.heading}\n{self.text}" if self.heading else self.text


def chunks(extracted: Extracted) -> list[Chunk]:
    """The passages in order, none overlapping, at most `MOST_CHARS` long; each character of a block is in one."""
    return list(_merged(extracted.text, _pieces(extracted)))


@dataclass(frozen=True, slots=True)
class _Piece:
    start: int
    end: int
    page: int
    heading: str
    bare: bool = False
    """A heading without anything below it yet."""


def _pieces(extracted: Extracted) -> Iterator[_Piece]:
    """The blocks with their headings, none longer than a passage."""
    path: list[tuple[int, str]] = []
    for block in extracted.blocks:
        if block.level:
            title = " ".join(extracted.text[block.start : block.end].lstrip("#").split())[:120]
            path = [*((level, name) for level, name in path if level < block.level), (block.level, title)]
        heading = " > ".join(name for _, name in path)
        for start, end in _split(extracted.text, block):
            yield _Piece(start, end, block.page, heading, bare=bool(block.level))


def _split(text: str, block: Block) -> Iterator[tuple[int, int]]:
    if block.end - block.start <= MOST_CHARS:
        yield block.start, block.end
        return
    at = block.start
    while block.end - at > MOST_CHARS:
        window = text[at : at + MOST_CHARS]
        cut = max((m.end() for m in _SENTENCE.finditer(window) if m.end() > LEAST_CHARS), default=0)
        cut = cut or window.rfind(" ", LEAST_CHARS) + 1 or MOST_CHARS
        yield at, at + len(window[:cut].rstrip())
        at += cut
        at += len(text[at : block.end]) - len(text[at : block.end].lstrip())
    if at < block.end:
        yield at, block.end


def _merged(text: str, pieces: Iterable[_Piece]) -> Iterator[Chunk]:
    held: _Piece | None = None
    for piece in pieces:
        if held is None:
            held = piece
        elif _belongs(piece, held):
            held = _Piece(held.start, piece.end, held.page, piece.heading, bare=held.bare and piece.bare)
        else:
            yield _chunk(text, held)
            held = piece
    if held is not None:
        yield _chunk(text, held)


def _belongs(piece: _Piece, held: _Piece) -> bool:
    """A short passage takes the next block of its section; a bare heading the first block under it."""
    under = piece.heading == held.heading or (held.bare and piece.heading.startswith(f"{held.heading} > "))
    short = held.bare or held.end - held.start < LEAST_CHARS
    return under and short and piece.page == held.page and piece.end - held.start <= MOST_CHARS


def _chunk(text: str, piece: _Piece) -> Chunk:
    return Chunk(text[piece.start : piece.end], piece.start, piece.end, piece.page, piece.heading)
