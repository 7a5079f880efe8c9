"""Pseudonyms that pass for a value of their type where a form is checked, each from a space that nobody's value is in.

A shape is another way to write an id of the vault, and tells no more than `<EMAIL_482139>` does: its length, its bank
and its network are the same whatever the value was.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from aibox.guardrails import formats
from aibox.guardrails.vault import FOR_GOOD, FOR_GOOD_DIGITS, STEM_DIGITS, SUFFIXES

DOMAIN = "pseudonym.example"
"""RFC 2606 sec. 2: a name under `.example` is nobody's, now and later. Software need not treat it as special (RFC 6761
sec. 6.5), so that checkers of addresses take it; they refuse `.invalid`."""

_LETTERS = re.compile("[a-z]*\\Z")
_PLACE = {suffix: at for at, suffix in enumerate(SUFFIXES)}
_FOR_GOOD_AT: int = len(SUFFIXES) * 10 ** min(STEM_DIGITS)


def _starts() -> dict[int, int]:
    starts, at = {}, 0
    for digits in STEM_DIGITS:
        starts[digits] = at
        at += len(SUFFIXES) * 10**digits + (10**FOR_GOOD_DIGITS if digits == min(STEM_DIGITS) else 0)
    return starts


_STARTS = _starts()


def number_of(id_: str) -> int:
    """An id as a number of its own; those that come up first are the smallest."""
    suffix = _LETTERS.search(id_)[0]  # type: ignore[index]  # it matches the empty end
    stem = id_[: len(id_) - len(suffix)]
    if suffix == FOR_GOOD:
        return _FOR_GOOD_AT + int(stem)
    return _STARTS[len(stem)] + int(f"{_PLACE[suffix]}{stem}")


def id_of(number: int) -> str | None:
    """The inverse; None for a number that is no id's."""
    if 0 <= number - _FOR_GOOD_AT < 10**FOR_GOOD_DIGITS:
        return f"{number - _FOR_GOOD_AT:0{FOR_GOOD_DIGITS}}{FOR_GOOD}"
    digits = max(digits for digits, start in _STARTS.items() if start <= number)
    place, stem = divmod(number - _STARTS[digits], 10**digits)
    return f"{stem:0{digits}}{SUFFIXES[place]}" if place < len(SUFFIXES) else None


_STEP = 61_803_398_875_019
"""Shares no factor with ten, so multiplying by it only moves numbers about: models miscount long rows of noughts."""


def _mixed(id_: str, places: int) -> str | None:
    """The id in so many digits; None where it needs more."""
    number = number_of(id_)
    return f"{number * _STEP % 10**places:0{places}}" if number < 10**places else None


def _unmixed(digits: str) -> str | None:
    room = 10 ** len(digits)
    return id_of(int(digits) * pow(_STEP, -1, room) % room)


def _digits(text: str) -> str:
    return "".join(char for char in text if char.isdigit())


# 9 is for national bodies, and three digits say of which country (ISO/IEC 7812-1); 900 to 999 are the codes of none
# (ISO 3166-1: user-assigned).
_ISSUER = "9990"


def _card(id_: str) -> str | None:
    payload = _mixed(id_, 11)
    if payload is None:
        return None
    return next(made for check in range(10) if formats.luhn(made := f"{_ISSUER}{payload}{check}"))


def _read_card(text: str) -> str | None:
    digits = _digits(text)
    return _unmixed(digits[4:15]) if len(digits) == 16 and formats.luhn(digits) else None


# A German bank code begins with its clearing area, 1 to 8 (Deutsche Bundesbank, Merkblatt Bankleitzahlendatei).
_BANK = "9990"


def _iban(id_: str) -> str | None:
    payload = _mixed(id_, 14)
    if payload is None:
        return None
    # ISO 13616: behind the account stand the letters as numbers, and nothing for the check digits.
    check = 98 - int(f"{_BANK}{payload}131400") % 97
    return f"DE{check:02}{_BANK}{payload}"


def _read_iban(text: str) -> str | None:
    digits = _digits(text)
    right = len(digits) == 20 and digits[2:6] == _BANK and formats.iban(f"DE{digits}")
    return _unmixed(digits[6:]) if right else None


# A country code that the ITU has given to nobody (list of ITU-T E.164 assigned country codes).
def _phone(id_: str) -> str | None:
    payload = _mixed(id_, 11)
    return None if payload is None else f"+999{payload}"


def _read_phone(text: str) -> str | None:
    digits = _digits(text).removeprefix("00").removeprefix("999")
    return _unmixed(digits) if len(digits) == 11 else None


# What is reserved for documentation has 768 addresses. This part of 240.0.0.0/4 may be neither a source nor a
# destination (RFC 1112 sec. 4, IANA's registry of special-purpose addresses).
def _ipv4(id_: str) -> str | None:
    number = number_of(id_)
    return None if number >= 1 << 24 else f"250.{number >> 16}.{number >> 8 & 255}.{number & 255}"


def _read_ipv4(text: str) -> str | None:
    parts = [int(part) for part in text.split(".")[1:]]
    return id_of(parts[0] << 16 | parts[1] << 8 | parts[2]) if max(parts) < 256 else None


# Reserved for documentation (RFC 3849).
def _ipv6(id_: str) -> str | None:
    payload = _mixed(id_, 15)
    # With a digit before each three no group begins with a nought or is nought: there is one way to write it.
    return None if payload is None else "2001:db8:999" + "".join(f":1{payload[at : at + 3]}" for at in range(0, 15, 3))


def _read_ipv6(text: str) -> str | None:
    return _unmixed("".join(group[1:] for group in text.split(":")[3:]))


def _email(id_: str) -> str | None:
    return f"email-{id_}@{DOMAIN}"


def _read_email(text: str) -> str | None:
    return text.partition("-")[2].partition("@")[0].lower()


def _url(id_: str) -> str | None:
    return f"https://{DOMAIN}/url-{id_}"


def _read_url(text: str) -> str | None:
    return text.rpartition("-")[2].lower()


@dataclass(frozen=True, slots=True)
class _Shape:
    type: str
    read: Callable[[str], str | None]
    pattern: str
    begun: str
    """The beginnings of what the pattern matches, and what must come after before that is known."""
    sure: bool = True
    """Whether what stands for nothing cannot be anything else either."""


def _begun(literal: str, rest: str) -> str:
    """Any beginning of the literal, or all of it and any of the rest."""
    for char in reversed(literal):
        rest = f"{re.escape(char)}(?:{rest})?"
    return rest


_ID = f"[0-9]{{{min(STEM_DIGITS)},{max(STEM_DIGITS)}}}[a-z]{{0,2}}"
_ID_BEGUN = f"[0-9a-z]{{0,{max(STEM_DIGITS) + 2}}}"
# What models put between groups of digits, Unicode's hyphens and narrow spaces among it. A digit too few or too many,
# which is what they do to long numbers, makes nobody's number of it: it is found, and stands for nothing.
_SIGNS = " .\u00a0\u2010\u2011\u202f-"
_SIGN = f"[{_SIGNS}]?"
_PHONE_SIGN = f"[(){_SIGNS}]{{0,2}}"
_NAME, _TOP = DOMAIN.split(".")
_SHAPES = {
    "as_email": _Shape(
        "EMAIL",
        _read_email,
        # Small models stop before the last part of the name.
        rf"(?<![.+%])email-{_ID}@{_NAME}(?:\.{_TOP})?(?![\w-]|\.\w)",
        _begun("email-", f"{_ID_BEGUN}(?:{_begun(f'@{DOMAIN}', '[.]?')})?"),
    ),
    # Or before all of it; by itself it may be some other word, so that only one that is known is taken for a pseudonym.
    "as_mailbox": _Shape(
        "EMAIL",
        _read_email,
        rf"(?<![.+%])(?-i:[Ee]mail-){_ID}(?![\w@-]|\.\w)",
        _begun("email-", f"{_ID_BEGUN}[.]?"),
        sure=False,
    ),
    "as_url": _Shape(
        "URL",
        _read_url,
        rf"https?://{_NAME}\.{_TOP}/url-{_ID}(?![\w-])",
        _begun("http", f"s?(?:{_begun(f'://{DOMAIN}/url-', _ID_BEGUN)})?"),
    ),
    "as_card": _Shape(
        "CARD",
        _read_card,
        rf"{_ISSUER}(?:(?:{_SIGN}[0-9]){{12}}|[0-9]{{11}}|[0-9]{{13}})(?!\w)",
        _begun(_ISSUER, f"[0-9{_SIGNS}]{{0,24}}"),
    ),
    "as_iban": _Shape(
        "IBAN",
        _read_iban,
        rf"DE[0-9]{{2}}{_SIGN}999(?:(?:{_SIGN}[0-9]){{15}}|[0-9]{{14}}|[0-9]{{16}})(?!\w)",
        _begun("de", f"[0-9{_SIGNS}]{{0,35}}"),
    ),
    "as_phone": _Shape(
        "PHONE",
        _read_phone,
        rf"(?<!\+)(?:\+|00)999(?:(?:{_PHONE_SIGN}[0-9]){{11}}|[0-9]{{10}}|[0-9]{{12}})(?!\w)",
        f"(?:{_begun('+999', f'[0-9(){_SIGNS}]{{0,33}}')}|{_begun('00999', f'[0-9(){_SIGNS}]{{0,33}}')})",
    ),
    # Without the sign it may be some other number: likewise.
    "as_digits": _Shape(
        "PHONE",
        _read_phone,
        rf"(?<![+.,-])999(?:{_PHONE_SIGN}[0-9]){{11}}(?!\w)",
        _begun("999", f"[0-9(){_SIGNS}]{{0,33}}"),
        sure=False,
    ),
    "as_ipv4": _Shape("IP", _read_ipv4, r"(?<!\.)250(?:\.[0-9]{1,3}){3}(?!\w|\.[0-9])", _begun("250.", "[0-9.]{0,12}")),
    "as_ipv6": _Shape(
        "IP",
        _read_ipv6,
        r"(?<![:.])2001:0?db8:0?999(?::1[0-9]{3}){5}(?!\w|:[0-9a-f:])",
        _begun("2001:", "[0-9a-f:]{0,35}"),
    ),
}
TYPES = frozenset(shape.type for shape in _SHAPES.values())
"""The entity types that have a shape. The others' tokens stay tokens: docs/guardrails.md says why."""

# None begins in the middle of a word, and few words begin as one does: this is what makes a search fast.
PATTERN = rf"(?=[DEHdeh0-9+])(?<!\w)(?:{'|'.join(f'(?P<{n}>(?i:{shape.pattern}))' for n, shape in _SHAPES.items())})"
"""Everything in the reserved spaces, also what stands for nothing. `read` knows the named group of each alternative."""
_PATTERN = re.compile(PATTERN, re.ASCII)
CHARS = 45
"""The longest shape, and what must come after it before it is known to be one."""
_BEGUN = re.compile(rf"(?<!\w)(?i:{'|'.join(f'(?:{shape.begun})' for shape in _SHAPES.values())})\Z", re.ASCII)

# Each is looked for only where a part of it stands, which most texts do not have.
_MAILBOX = re.compile("mail-[0-9]{6}")
_LONG = re.compile(r"999(?:[^0-9a-zA-Z]{0,2}[0-9]){10}")
_IPV4 = re.compile(r"250(?:\.[0-9]{1,3}){3}")
_IPV6 = re.compile(r"2001:0?[dD][bB]8:0?999:")
_JSON_MAILBOX = re.compile(_MAILBOX.pattern.encode())
_JSON_LONG = re.compile(rb'999(?:[^0-9"]{0,12}[0-9]){10}')
_JSON_IPV4 = re.compile(_IPV4.pattern.encode())
_JSON_IPV6 = re.compile(_IPV6.pattern.encode())
# A letter, a digit or a sign of a shape that JSON need not have escaped.
_JSON_ESCAPED = re.compile(rb"\\u00(?:2[0bdefBDEF89]|3[0-9aA]|[46][0-9a-fA-F]|[57][0-9aA])")


def write(type_: str, id_: str, value: str) -> str | None:
    """The shape of an id of the vault, for a value of this type; None where there is none, or no room in it."""
    writer = _ipv6 if type_ == "IP" and ":" in value else _WRITERS.get(type_)
    return None if writer is None else writer(id_)


_WRITERS: dict[str, Callable[[str], str | None]] = {
    "EMAIL": _email,
    "URL": _url,
    "CARD": _card,
    "IBAN": _iban,
    "PHONE": _phone,
    "IP": _ipv4,
}


def read(match: re.Match[str]) -> tuple[str, str | None]:
    """The type and the id of a match of PATTERN; no id for one that was damaged, or never was a pseudonym."""
    shape = _SHAPES[str(match.lastgroup)]
    return shape.type, shape.read(match[0])


def sure(match: re.Match[str]) -> bool:
    """Whether a match that stands for nothing is a pseudonym that was damaged or made up, and nothing else."""
    return not match.lastgroup or _SHAPES[match.lastgroup].sure


def type_of(text: str) -> str | None:
    """The type of a text that is a shape and nothing else."""
    match = _PATTERN.fullmatch(text)
    return _SHAPES[str(match.lastgroup)].type if match and sure(match) else None


def maybe(text: str) -> bool:
    """False of a text that holds no shape, and of nearly all of them."""
    return bool(
        (("@" in text or "://" in text) and _NAME in text.lower())
        or ("mail-" in text and _MAILBOX.search(text))
        or ("999" in text and _LONG.search(text))
        or ("250." in text and _IPV4.search(text))
        or ("2001:" in text and _IPV6.search(text))
    )


JSON_HINTS = rb"mail-|@|:(?://|\\/\\/)|999|250\.|2001:|\\u00"
"""A JSON text without any of these holds no shape: what `json_maybe` looks for one after the other."""


def json_maybe(data: bytes) -> bool:
    """As `maybe` of all texts of a JSON text, however their characters are written in it."""
    return bool(
        (b"mail-" in data and _JSON_MAILBOX.search(data))
        or ((b"@" in data or b"://" in data or rb":\/\/" in data) and _NAME.encode() in data.lower())
        or (b"999" in data and _JSON_LONG.search(data))
        or (b"250." in data and _JSON_IPV4.search(data))
        or (b"2001:" in data and _JSON_IPV6.search(data))
        or (rb"\u00" in data and _JSON_ESCAPED.search(data))
    )


def begun_at(text: str, start: int = 0) -> int:
    """Where, from `start`, one begins that is not complete, or not known to be, at the end; the end if nowhere."""
    begun = _BEGUN.search(text, max(start, len(text) - CHARS))
    return begun.start() if begun else len(text)
