"""Names of people, by what stands around them or by a common given name before a surname. Linear in the text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import cache
from importlib import resources

from aibox.guardrails.formats import Found

# Latin, Greek and Cyrillic capitals; `re` has no class for them.
_CAPITAL = "[" + "".join(char for char in map(chr, range(0x41, 0x530)) if char.isupper()) + "]"
_WORD = rf"{_CAPITAL}(?:[^\W\d_]{{1,30}}|['’]{_CAPITAL}[^\W\d_]{{1,30}})(?:['’-]{_CAPITAL}?[^\W\d_]{{1,30}}){{0,2}}"
_INITIAL = rf"{_CAPITAL}(?:\.|(?= ))"
_PARTICLE = r"(?:van|von|der|den|de|da|do|dos|del|della|di|du|la|le|el|al|bin|ibn|ben|ter|ten|zu) "
_MORE = rf"(?: (?:{_INITIAL} ?){{1,2}}| )(?:{_PARTICLE}){{0,2}}{_WORD}"
_NAME = rf"{_WORD}(?:{_MORE}){{0,3}}"

_TITLE = r"(?:Mr|Mrs|Ms|Miss|Mx|Dr|Prof|Professor|Sir|Madam|Herr|Frau|Monsieur|Madame|mr|mrs|ms|dr)\.?"
_TITLED = re.compile(rf"\b{_TITLE} (?:{_TITLE} )?((?:{_PARTICLE}){{0,2}}{_NAME})")

# Whoever says so gives a name: what follows counts if it is capitalised, or a common given name in small letters.
_SURE_CUE = re.compile(
    r"(?i)\b(?:my (?:full )?name is|my name's|name\s?:|i am called|i'm called|people call me|the name is|signed by|"
    r"(?:his|her|their|the (?:customer|client|patient|user|employee)'?s?) name is|"
    r"(?:first|last|full|contact) name\s?:)\s{0,8}"
)
_SURE_ANCHORS = ("name", "called", "call me", "signed")
# Before a common given name these introduce somebody, with or without a surname.
_CUE = re.compile(
    r"\b(?:I am|I'm|I’m|i am|i'm|[Tt]his is|[Dd]ear|[Hh]i|[Hh]ello|[Hh]ey|[Cc]ontact|[Cc]all|[Ee]-?mail|[Aa]sk|[Tt]ell|"
    r"[Mm]eet|[Rr]egards,|[Ss]incerely,|[Tt]hanks,|[Cc]heers,|[Bb]est,|named|called|on behalf of)\s\Z"
)
_CUE_CHARS = 16
_PAIR_CUE = re.compile(
    rf"\b(?:I am|I'm|I’m|[Cc]ontact|[Rr]egards,|[Ss]incerely,|(?:called|named)) ?\n?({_WORD}{_MORE})(?!\w)"
)
_PAIR_ANCHORS = ("I am", "I'm", "I’m", "ontact", "egards,", "incerely,", "called", "named")
_SEQUENCE = re.compile(rf"(?<![\w@.-]){_NAME}(?![\w@])")
_SMALL_WORD = re.compile(r"[^\W\d_]{2,30}(?: [^\W\d_]{2,30})?")

# Capitalised words that end a name or are none.
_OTHER_WORDS = """
a an and are as at but by can could dear did do for from has have he hello her hi his how i if in is it its just
let me my no not now of on or our please she so some thanks that the their then there these they this those to
us was we were what when where which who why will with yes you your monday tuesday wednesday thursday friday
saturday sunday january february march april may june july august september october november december american
british english french german italian spanish portuguese dutch czech polish russian chinese japanese indian inc
ltd llc corp gmbh co company group bank university college school hospital hotel airport street road avenue
prize award island islands county river lake city state states house church museum theorem law effect test api
apt apartment suite unit http https json sql python java windows linux excel google microsoft openai amazon apple ai
"""
NOT_A_NAME = frozenset(_OTHER_WORDS.split())


def find(text: str) -> Iterator[Found]:
    """Names of people, overlaps included. `text` is a normal form with its case kept; no name goes over a line."""
    for match in _TITLED.finditer(text):
        if trimmed := _trimmed(text, *match.span(1)):
            yield *trimmed, "PERSON", 0.9
    yield from _introduced(text)
    for match in _SEQUENCE.finditer(text):
        if found := _from_given_name(text, *match.span()):
            yield *found, "PERSON", 0.8


_NAME_PATTERN = re.compile(_NAME)


def _introduced(text: str) -> Iterator[Found]:
    small_text = text.casefold()
    sure = _SURE_CUE.finditer(text) if any(anchor in small_text for anchor in _SURE_ANCHORS) else ()
    for cue in sure:
        capital = _NAME_PATTERN.match(text, cue.end())
        if capital:
            if trimmed := _trimmed(text, *capital.span()):
                yield *trimmed, "PERSON", 0.9
        elif (small := _SMALL_WORD.match(text, cue.end())) and is_given(small[0].split()[0]):
            yield *small.span(), "PERSON", 0.8
    pairs = _PAIR_CUE.finditer(text) if any(anchor in text for anchor in _PAIR_ANCHORS) else ()
    for match in pairs:
        trimmed = _trimmed(text, *match.span(1))
        if trimmed and " " in text[trimmed[0] : trimmed[1]]:
            yield *trimmed, "PERSON", 0.7


def _trimmed(text: str, start: int, end: int) -> tuple[int, int] | None:
    """Up to the first word that belongs to no name; None when that is the first word."""
    at = start
    last = start
    for word in text[start:end].split(" "):
        if word.casefold().rstrip(".") in NOT_A_NAME:
            break
        last = at + len(word)
        at = last + 1
    # "Eva Novak's house": the possessive is no part of the name, whichever apostrophe it is written with.
    if text[last - 2 : last] in ("'s", "’s"):
        last -= 2
    return (start, last) if last > start else None


def _from_given_name(text: str, start: int, end: int) -> tuple[int, int] | None:
    """From the first common given name in a run of capitalised words, if a surname follows or a cue goes before."""
    at = start
    for word in text[start:end].split(" "):
        if is_given(word) and not word.isupper():
            trimmed = _trimmed(text, at, end)
            alone = trimmed is not None and trimmed[1] <= at + len(word)
            return None if alone and not _CUE.search(text, max(0, at - _CUE_CHARS), at) else trimmed
        at += len(word) + 1
    return None


_BREAK = re.compile("['’-]")


def is_given(word: str) -> bool:
    """True for a common given name, in any case, with or without accents; of a double name the first part counts."""
    first = _BREAK.split(word, maxsplit=1)[0].casefold()
    if first.isascii():
        return first in _given_names()
    plain = "".join(char for char in unicodedata.normalize("NFKD", first) if not unicodedata.combining(char))
    return plain.replace("ł", "l").replace("ø", "o").replace("ß", "ss") in _given_names()


@cache
def _given_names() -> frozenset[str]:
    return _listed("given_names.txt")


@cache
def common_words() -> frozenset[str]:
    """Words that people write in small letters, of many languages, and so nobody's names; read when first asked for."""
    return _listed("common_words.txt")


def _listed(file: str) -> frozenset[str]:
    text = resources.files("aibox.guardrails").joinpath(file).read_text("utf-8")
    return frozenset(word for line in text.splitlines() if not line.startswith("#") for word in line.split())
