"""A text as a set of numbers that a linear head weighs: its words, runs and pairs of them, and parts of words.

Pure Python over CRC-32, so that a head needs nothing but the base install. Time is linear in the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from zlib import crc32

BITS = 20
"""Features are hashed into 2^BITS places."""
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


def features(words: list[str], parts: dict[bytes, list[int]] | None = None, *, apart: bool = False) -> set[int]:
    """The places, below 2^BITS, of the features of a text, given as its words in order.

    `parts` remembers those of the parts of words, for windows of one text that overlap. With `apart`, pairs of words
    with one or two others between them are features too: "ignore" and "rules" of "ignore all the rules".
    """
    known = {} if parts is None else parts
    mask = (1 << BITS) - 1
    encoded = [word[:_WORD_CHARS].encode("utf-8", "surrogatepass") for word in words]
    different = set(encoded)
    # Maps and lists, and one set at the end: this is the hottest loop of all checks.
    sums = list(map(crc32, different))
    sums += map(crc32, map(b" ".join, pairwise(encoded)))
    sums += map(crc32, map(b" ".join, zip(encoded, encoded[1:], encoded[2:], strict=False)))
    if apart:
        sums += map(crc32, map(b"~".join, zip(encoded, encoded[2:], strict=False)))
        sums += map(crc32, map(b"~".join, zip(encoded, encoded[3:], strict=False)))
    for word in different:
        of_word = known.get(word)
        if of_word is None and not word.isascii():
            # Parts of letters, not of their bytes.
            letters = f"^{word.decode('utf-8', 'surrogatepass')}$"
            of_word = known[word] = [
                crc32(letters[at : at + size].encode("utf-8", "surrogatepass"), size)
                for size in _PARTS
                for at in range(len(letters) - size + 1)
            ]
        elif of_word is None:
            edged = b"^%b$" % word
            # The size seeds the sum: a part and a whole word of the same letters are two features.
            of_word = known[word] = [
                crc32(edged[at : at + size], size) for size in _PARTS for at in range(len(edged) - size + 1)
            ]
        sums += of_word
    return {each & mask for each in sums}


def words_of(text: str) -> list[str]:
    """Words and signs of a normal form, in order."""
    return (_WORD if text.isascii() else _WIDE_WORD).findall(text)


def windows(text: str) -> Iterator[tuple[int, int, list[str]]]:
    """(start, end, words) of overlapping windows of a text; one window where it is short."""
    found = list((_WORD if text.isascii() else _WIDE_WORD).finditer(text))
    at = 0
    while found:
        part = found[at : at + WINDOW_WORDS]
        yield part[0].start(), part[-1].end(), [word[0] for word in part]
        if at + WINDOW_WORDS >= len(found):
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
