"""How pseudonyms are written in a text, and how models write them: tokens in brackets, and shapes."""

from __future__ import annotations

import re
from collections.abc import Iterable

from aibox.guardrails import shapes
from aibox.guardrails.vault import STEM_DIGITS

LITERAL = "LITERAL"
"""The type of a token that stands for text which looked like a token when it came in."""

# Six digits from an HMAC (more in a tenant that has used those up), then up to two letters for further writings of the
# same value. Of sixteen forms that were measured a small model repeats this one most faithfully (docs/guardrails.md).
_ID = rf"[0-9]{{{min(STEM_DIGITS)},{max(STEM_DIGITS)}}}[a-z]{{0,2}}"
_KNOWN = "PERSON|EMAIL|PHONE|CARD|IBAN|SSN|IP|URL|BIRTHDATE|ADDRESS|PLACE|LITERAL"
_WORD = "[A-Za-z0-9_]"
# As written; or, for the types that aibox makes itself, with the harm that small models do: another case, square
# brackets, a bracket missing. A type and an id name one value whatever stands around them: none of it is ambiguous.
TOKEN = re.compile(
    rf"<([A-Z]{{2,16}}_{_ID})>"
    rf"|(?i:\[((?:{_KNOWN})_{_ID})\])"
    rf"|(?i:(?<!{_WORD})<?((?:{_KNOWN})_{_ID})(?!{_WORD})>?)"
    rf"|{shapes.PATTERN}",
    re.ASCII,
)
_IN_BRACKETS = 2 + 16 + 1 + max(STEM_DIGITS) + 2
TOKEN_CHARS = max(_IN_BRACKETS, shapes.CHARS)
"""The longest token, brackets included, or shape: what a stream holds back at most."""
_MAYBE = re.compile(rf"_[0-9]{{{min(STEM_DIGITS)}}}", re.ASCII)
"""In every token: most texts hold none, and this says so some fifty times faster."""
_MAYBE_BYTES = re.compile(rb"_[0-9]{%d}" % min(STEM_DIGITS))
_MAYBE_JSON = re.compile(rb"(?:_|\\u005[fF])(?:[0-9]|\\u003[0-9]){%d}" % min(STEM_DIGITS))
_HINTS = re.compile(rb"%b|%b" % (_MAYBE_BYTES.pattern, shapes.JSON_HINTS))
_TAIL = re.compile(rf"[<\[]?{_WORD}{{0,{_IN_BRACKETS - 2}}}\Z", re.ASCII)


def names(match: re.Match[str]) -> tuple[str, ...]:
    """What a token may be called in the vault; a shape does not tell whether its value only looked like one."""
    if match.lastgroup:
        type_, id_ = shapes.read(match)
        return (f"{type_}_{id_ or '?'}", f"{LITERAL}_{id_ or '?'}")
    type_, _, id_ = (match[1] or match[2] or match[3]).partition("_")
    return (f"{type_.upper()}_{id_.lower()}",)


def all_names(matches: Iterable[re.Match[str]]) -> list[str]:
    return [name for match in matches for name in names(match)]


def might_hold_tokens(text: str) -> bool:
    """False of a text in which `find_tokens` finds nothing, and of nearly all of them."""
    return _MAYBE.search(text) is not None or shapes.maybe(text)


def json_might_hold_tokens(data: bytes) -> bool:
    """As `might_hold_tokens` of all texts of a JSON text, however their characters are written in it."""
    # Of nearly all texts one search says that there is nothing, at a third of the cost of all that follows.
    if _HINTS.search(data) is None:
        return False
    # Where no character stands as its number the simple pattern says as much, and is ten times as fast.
    by_number = b"\\" in data and rb"\u00" in data
    return (_MAYBE_JSON if by_number else _MAYBE_BYTES).search(data) is not None or shapes.json_maybe(data)


def find_tokens(text: str) -> list[str]:
    """The pseudonyms in a text, in brackets and as they are made, in order; also those that a model has damaged."""
    return [token for _, _, token in token_spans(text)]


def token_spans(text: str) -> list[tuple[int, int, str]]:
    """Start, end and token of each of `find_tokens`."""
    if not might_hold_tokens(text):
        return []
    return [(*match.span(), f"<{names(match)[0]}>") for match in TOKEN.finditer(text)]


def masked(text: str) -> str:
    """The text with its pseudonyms made unreadable: for who looks for people's own values. Its length is the same."""
    return TOKEN.sub(lambda match: "_" * len(match[0]), text) if might_hold_tokens(text) else text


def held_from(text: str, start: int = 0) -> int:
    """Where, from `start`, a token begins that is not complete, or not known to be, at the end; the end if nowhere."""
    at = _open(text, start)
    for match in TOKEN.finditer(text, start) if might_hold_tokens(text) else ():
        if match.start() < at < match.end():  # what is within one begins none
            at = _open(text, match.end())
    return at


def _open(text: str, start: int) -> int:
    tail = _TAIL.search(text, max(start, len(text) - _IN_BRACKETS))
    at = tail.start() if tail else len(text)
    if at > start and text[at - 1].isascii() and re.match(_WORD, text[at - 1]) and text[at : at + 1] not in ("<", "["):
        at = len(text)  # the end of a word too long for a token
    return min(at, shapes.begun_at(text, start))
