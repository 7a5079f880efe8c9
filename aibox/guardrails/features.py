"""A text as a set of numbers that a linear head weighs: its words, runs and pairs of them, and parts of words.

Pure Python over CRC-32, so that a head needs nothing but the base install. Time is linear in the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from zlib import crc32

BITS = 20
"""Features are hashed into 2^BITS places."""
_MASK = (1 << BITS) - 1
CONTENT_BITS = 15
"""Fewer for the heads of the check `content`, of which there are several."""
WINDOW_WORDS = 200
"""A longer text is weighed window by window, so that an order does not drown in what stands around it."""
_STEP_WORDS = 120
_WORD_CHARS = 24
_PARTS = (3, 5)

_WORD = re.compile(r"[^\W_]{1,64}|[^\w\s]")
# Scripts without spaces between words (Thai to Khmer, kana, Han): each character counts as a word.
_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
# The vowel signs of Indic scripts are no letters to `\w`, but parts of their words.
_WIDE_WORD = re.compile(rf"[{_UNSPACED}]|(?:[^\W_{_UNSPACED}]|[\u0900-\u0963\u0966-\u0dff]){{1,64}}|[^\w\s]")
_SEGMENT_END = re.compile(r"(?<=[.!?])[\"')\]]{0,3}\s{1,8}|\n{1,8}|(?<=[\u3002\u0964])\s{0,8}")
SEGMENT_CHARS = 1_000
"""A sentence or line longer than this is weighed in pieces."""


class Places:
    """The places, below 2^BITS, of the features of a text, given as its words in order: each is hashed once, however
    many runs of its words are asked for.

    `parts` remembers those of the parts of words, for texts that have words in common. With `apart`, pairs of words
    with one or two others between them are features too: "ignore" and "rules" of "ignore all the rules".
    """

    def __init__(self, words: list[str], parts: dict[bytes, list[int]] | None = None, *, apart: bool = False) -> None:
        self._words = all_ = [word[:_WORD_CHARS].encode("utf-8", "surrogatepass") for word in words]
        self._parts = {} if parts is None else parts
        # Maps and lists: this is the hottest loop of all checks.
        runs: list[Iterable[bytes]] = [all_, map(b" ".join, pairwise(all_))]
        runs.append(map(b" ".join, zip(all_, all_[1:], all_[2:], strict=False)))
        if apart:
            runs += [map(b"~".join, zip(all_, all_[at:], strict=False)) for at in (2, 3)]
        self._runs = [[each & _MASK for each in map(crc32, run)] for run in runs]
        for word in set(all_) - self._parts.keys():
            self._parts[word] = _of_word(word)

    def of(self, start: int, end: int) -> set[int]:
        """Those of the words from `start` to `end`."""
        found: set[int] = set()
        for run in self._runs:
            # A run of pairs has one less than there are words: so many of the last words begin none.
            last = end - (len(self._words) - len(run))
            found.update(run[start : max(start, last)])
        found.update(*map(self._parts.__getitem__, set(self._words[start:end])))
        return found


def features(words: list[str], parts: dict[bytes, list[int]] | None = None, *, apart: bool = False) -> set[int]:
    """Those of a text as a whole; see `Places`."""
    return Places(words, parts, apart=apart).of(0, len(words))


def _of_word(word: bytes) -> list[int]:
    """The places of its parts. The size seeds the sum: a part and a whole word of the same letters are two."""
    if word.isascii():
        edged = b"^%b$" % word
        return [crc32(edged[at : at + size], size) & _MASK for size in _PARTS for at in range(len(edged) - size + 1)]
    # Parts of letters, not of their bytes.
    letters = f"^{word.decode('utf-8', 'surrogatepass')}$"
    return [
        crc32(letters[at : at + size].encode("utf-8", "surrogatepass"), size) & _MASK
        for size in _PARTS
        for at in range(len(letters) - size + 1)
    ]


def words_of(text: str) -> list[str]:
    """Words and signs of a normal form, in order."""
    return (_WORD if text.isascii() else _WIDE_WORD).findall(text)


def windows(text: str) -> Iterator[tuple[int, int, list[str]]]:
    """(start, end, words) of overlapping windows of a text; one window where it is short."""
    found = matches_of(text)
    for first, last in runs(len(found)):
        yield found[first].start(), found[last - 1].end(), [word[0] for word in found[first:last]]


def matches_of(text: str) -> list[re.Match[str]]:
    """Words and signs of a normal form, in order, with where they stand."""
    return list((_WORD if text.isascii() else _WIDE_WORD).finditer(text))


def runs(words: int) -> Iterator[tuple[int, int]]:
    """From which word and to which each window goes, of so many words."""
    at = 0
    while at < words:
        yield at, min(words, at + WINDOW_WORDS)
        if at + WINDOW_WORDS >= words:
            return
        at += _STEP_WORDS


def segments(text: str) -> Iterator[tuple[int, int]]:
    """(start, end) of sentences and lines, in order; none is longer than SEGMENT_CHARS."""
    at = 0
    for stop in _SEGMENT_END.finditer(text):
        yield from _pieces(text, at, stop.start())
        at = stop.end()
    yield from _pieces(text, at, len(text))


def _pieces(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    for at in range(start, end, SEGMENT_CHARS):
        if text[at : min(end, at + SEGMENT_CHARS)].strip():
            yield at, min(end, at + SEGMENT_CHARS)
