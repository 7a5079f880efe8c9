"""Text into the pieces of words that a BERT model knows, each with the characters that it came from.

WordPiece as uncased BERT models have it: case and accents dropped, words divided at spaces and at punctuation marks.
Takes time linear in the text.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_WORD_CHARS = 100
"""A longer word is one unknown piece, as these models were trained; it also keeps hostile words linear."""
_UNKNOWN = "[UNK]"


@dataclass(frozen=True, slots=True)
class Piece:
    """`id` in the vocabulary; the half-open range of characters; `first` of its word."""

    id: int
    start: int
    end: int
    first: bool


class WordPiece:
    """Pieces by a vocabulary, one of its lines for each id."""

    def __init__(self, vocabulary: list[str]) -> None:
        self._ids = {piece: number for number, piece in enumerate(vocabulary)}
        self._unknown = self._ids[_UNKNOWN]
        self.first, self.last = self._ids["[CLS]"], self._ids["[SEP]"]
        self._longest = max(map(len, vocabulary))

    def pieces(self, text: str) -> list[Piece]:
        """The pieces of a text, in order, without the marks that a model wants at both ends."""
        return [piece for start, end in _words(text) for piece in self._of_word(text, start, end)]

    def _of_word(self, text: str, start: int, end: int) -> list[Piece]:
        word = text[start:end]
        places: Sequence[int] = range(start, end)
        form = word.lower()
        if not word.isascii():
            form, places = _folded(text, start, end)
        if not form:
            return []
        if len(form) > _WORD_CHARS:
            return [Piece(self._unknown, start, end, first=True)]
        found: list[Piece] = []
        at = 0
        while at < len(form):
            mark = "##" if at else ""
            for stop in range(min(len(form), at + self._longest), at, -1):
                number = self._ids.get(mark + form[at:stop])
                if number is not None:
                    found.append(Piece(number, places[at], places[stop - 1] + 1, first=not at))
                    at = stop
                    break
            else:
                return [Piece(self._unknown, start, end, first=True)]
        return found


def _folded(text: str, start: int, end: int) -> tuple[str, list[int]]:
    """A word without case and accents, and for each of its letters the place that it came from."""
    letters: list[str] = []
    places: list[int] = []
    for place in range(start, end):
        for letter in unicodedata.normalize("NFD", text[place].lower()):
            if unicodedata.category(letter) != "Mn":
                letters.append(letter)
                places.append(place)
    return "".join(letters), places


def _words(text: str) -> Iterator[tuple[int, int]]:
    """Words, and punctuation marks and ideographs one by one."""
    start = -1
    for place, char in enumerate(text):
        if char.isalnum() and char < "\u2e80":
            if start < 0:
                start = place
            continue
        alone = _alone(char)
        if alone or char.isspace():
            if start >= 0:
                yield start, place
            start = -1
            if alone and not char.isspace():
                yield place, place + 1
        elif start < 0:
            start = place
    if start >= 0:
        yield start, len(text)


def _alone(char: str) -> bool:
    if char.isascii():
        return not char.isalnum()
    code = ord(char)
    return unicodedata.category(char).startswith("P") or any(low <= code <= high for low, high in _IDEOGRAPHS)


_IDEOGRAPHS = (
    *((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F)),
    *((0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F)),
)
