"""A text as a reader means it, with a way back: every span of the normal form points at the original characters.

Takes time linear in the text, whatever is in it. Plain lower-case ASCII and Han are their own normal forms.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache

from aibox.guardrails.once import shared

# Letters that look like a Latin one, each with what it is taken for. Capitals differ from their small letters.
_LOOK_ALIKES = (
    "аa еe іi јj оo рp сc уy хx ѕs ԁd һh ԛq ԝw ѵv ӏl кk мm нh тt вb гr "  # Cyrillic
    "АA ЕE ІI ЈJ ОO РP СC УY ХX ЅS КK МM НH ТT ВB Ӏl "
    "αa εe ιi κk νv οo ρp τt υu χx ωw γy ηn "  # Greek
    "ΑA ΕE ΙI ΚK ΝN ΟO ΡP ΤT ΥY ΧX ΖZ ΗH ΜM ΒB "
    "ıi łl ŁL øo ØO đd ĐD ɡg ɑa ɩi ħh"  # Latin without a decomposition
)
_CONFUSABLES = {ord(pair[0]): pair[1] for pair in _LOOK_ALIKES.split()}

# What is not plain printable ASCII, or Han, with single spaces and line breaks; everything else is copied in slices.
# These ideographs are their own normal form (UAX 15), and Chinese is hardly anything else.
_SPECIAL = re.compile(r"\s{2,}|[^!-~ \n\u3400-\u4dbf\u4e00-\u9fff]+")
# A base character and the marks on it are normalised together. The bound keeps hostile stacks of marks linear: sorting
# them is quadratic in their number.
_MARKS = 30

_INVISIBLE = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0"  # joiners and fillers that draw nothing
    + "".join(map(chr, (*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0000, 0xE01F0))))
)
_LINE_BREAKS = frozenset("\n\r\v\f\x85\u2028\u2029")


@dataclass(frozen=True, slots=True)
class Normal:
    """A normal form. `text` is searched; `span` gives the half-open range of the original that a match came from."""

    text: str
    length: int
    """Length of the original, in characters."""
    _starts: tuple[int, ...]
    _pieces: tuple[tuple[int, int, int], ...]

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Where `text[start:end]` came from. An empty range gives an empty one. Raises IndexError outside `text`."""
        if not 0 <= start <= end <= len(self.text):
            raise IndexError(f"no such range in the normal form: {start}:{end}")
        if start == end:
            at = self._original(start)[0] if start < len(self.text) else self.length
            return at, at
        return self._original(start)[0], self._original(end - 1)[1]

    def _original(self, index: int) -> tuple[int, int]:
        """The original characters behind one character of the normal form."""
        normal, start, end = self._pieces[bisect_right(self._starts, index) - 1]
        if end < 0:  # copied one to one
            return start + index - normal, start + index - normal + 1
        return start, end


@shared
def normalise(text: str, *, fold: bool = True) -> Normal:
    """The normal form of a text (Unicode NFKC by character cluster, UAX 15), with an offset map.

    Invisible characters (zero width, bidi controls, tags, variation selectors) and control characters are dropped and
    runs of white space become one space, or one line break where the run holds one. With `fold`, case and accents are
    folded and Cyrillic and Greek letters that look like a Latin one become it: for matching words, not names.
    """
    builder = _Builder(text, fold)
    at = 0
    for special in _SPECIAL.finditer(text):
        start, end = special.span()
        if start > at and unicodedata.combining(text[start]):
            start -= 1  # a mark belongs to the letter before it
        builder.copy(at, start)
        builder.special(start, end)
        at = end
    builder.copy(at, len(text))
    return builder.finish()


class _Builder:
    """Collects the normal form piece by piece; `pieces` holds (normal start, original start, original end or -1)."""

    def __init__(self, text: str, fold: bool) -> None:
        self.source = text
        self.fold = fold
        self.parts: list[str] = []
        self.pieces: list[tuple[int, int, int]] = []
        self.length = 0

    def copy(self, start: int, end: int) -> None:
        """What is its own normal form but for case, as it is."""
        if start < end and self.source[start] in " \n" and self._ends_in_space():
            self._space(start, start + 1)
            start += 1
        if start < end:
            part = self.source[start:end]
            self._add(part.lower() if self.fold else part, start, -1)

    def special(self, start: int, end: int) -> None:
        at = start
        while at < end:
            cluster_end = at + 1
            char = self.source[at]
            if char.isspace():
                self._space(at, cluster_end)
            elif not _invisible(char):
                while cluster_end < min(end, at + _MARKS) and _continues(self.source[cluster_end]):
                    cluster_end += 1
                self._cluster(at, cluster_end)
            at = cluster_end

    def _cluster(self, start: int, end: int) -> None:
        cluster = self.source[start:end]
        form = _letter(cluster, self.fold) if len(cluster) == 1 else _form(cluster, self.fold)
        if form:
            self._add(form, start, end)

    def _space(self, start: int, end: int) -> None:
        line_break = self.source[start] in _LINE_BREAKS
        if not self._ends_in_space():
            self._add("\n" if line_break else " ", start, end)
        elif line_break and self.parts[-1][-1] == " ":
            self.parts[-1] = self.parts[-1][:-1] + "\n"

    def _ends_in_space(self) -> bool:
        return bool(self.parts) and self.parts[-1][-1] in " \n"

    def _add(self, part: str, start: int, end: int) -> None:
        self.parts.append(part)
        self.pieces.append((self.length, start, end))
        self.length += len(part)

    def finish(self) -> Normal:
        starts = tuple(piece[0] for piece in self.pieces)
        return Normal("".join(self.parts), len(self.source), starts, tuple(self.pieces))


def _form(cluster: str, fold: bool) -> str:
    if fold:
        form = unicodedata.normalize("NFKD", cluster)
        form = "".join(char for char in form if not unicodedata.combining(char))
        form = unicodedata.normalize("NFC", form.translate(_CONFUSABLES).casefold())
    else:
        form = unicodedata.normalize("NFKC", cluster)
    # A compatibility form may hold spaces of its own: U+00A8 is a space and a diaeresis.
    return " ".join(form.split()) if any(map(str.isspace, form)) else form


# Texts use few different letters. Single characters tell nothing about anybody, so they may stay in memory.
_letter = lru_cache(maxsize=4096)(_form)


@lru_cache(maxsize=4096)
def _invisible(char: str) -> bool:
    # Half a surrogate pair is no character: whoever shows or reads the text drops it, or puts a sign for it.
    return char in _INVISIBLE or unicodedata.category(char) in ("Cf", "Cc", "Cs")


def _continues(char: str) -> bool:
    """True for marks, and for the Hangul vowels and finals that compose with what stands before them."""
    return unicodedata.combining(char) != 0 or "\u1161" <= char <= "\u11ff"
