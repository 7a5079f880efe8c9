"""Personal data that has a checkable form: addresses, phone, card and account numbers. Linear in the text."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator

Found = tuple[int, int, str, float]
"""Start, end, entity type, score."""

CUE_CHARS = 48
"""How far before a number the word may stand that says what it is."""

# A dot-atom (RFC 5322 sec. 3.2.3, without the rarer signs), at most 64 characters (RFC 5321 sec. 4.5.3.1.1).
_LOCAL = re.compile(r"[\w.+%'-]{1,64}\Z")
_DOMAIN = re.compile(r"(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,6}[^\W\d_]{2,24}(?![\w-])")
_USERINFO = re.compile(r"[^\s/?#@:\"'<>\\]{0,64}:[^\s/?#@\"'<>\\]{1,128}@[\w.-]{1,253}(?::\d{1,5})?")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,20}\Z")

# What may not stand before is looked for behind the first digit: searching for a digit is fast.
_DIGITS = re.compile(r"\d(?<![\w.,/-]\d)(?:[ -]?\d){11,18}(?!\w)")
_SSN = re.compile(r"\d(?<![\w-]\d)(?<!9)\d\d(?<!000)(?<!666)([- ])(?!00)\d{2}\1(?!0000)\d{4}(?![\w-])")
_IBAN = re.compile(r"(?<!\w)[A-Za-z]{2}\d{2}(?:[ -]?[A-Za-z0-9]){11,30}")
_IPV4 = re.compile(r"\d(?<![\w.]\d)(?<!ersion \d)\d{0,2}(?:\.\d{1,3}){3}(?!\w|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f:]{2,39}(?:\d{1,3}(?:\.\d{1,3}){3})?(?![\w:])")

_PHONE = re.compile(
    r"(?<![\w.+/-])(?:"
    r"(?:\+|00 ?)[1-9]\d{0,2}[ .-]?(?:\(0?\d{0,4}\)[ .-]?)?\d(?:[ ./-]?\d){5,13}"  # international, ITU-T E.164
    r"|(?:1[ .-]?)?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[ .-])\d{3}[ .-]\d{4}"  # North American
    r"|\(?0[1-9]\d{0,3}\)?(?:[ ./-]\d{2,8}){1,5}"  # a trunk prefix and groups
    r"|\(\d{2,5}\) ?\d{2,4}(?:[ -]\d{2,4}){1,3}"  # an area code in brackets
    r")(?:(?: ?x| ?ext\.? ?)\d{1,6})?(?!\w|-\d)",
)
_LOOSE_PHONE = re.compile(r"\d(?<![\w.+/-]\d)\d{1,3}(?:[ .-]?\d{2,4}){1,4}(?:x\d{1,6})?(?!\w)")
_PHONE_CUE = re.compile(
    r"(?i)\b(?:phone|telephone|tel|mobile|cell|fax|desk|call (?:me|him|her|us|them) (?:on|at)|answering at|messages to|"
    r"whatsapp|text me (?:on|at)|reach me (?:on|at)|phone number|contact number)(?: number)?(?: is| was)?"
    r"[.:#]{0,2}\s{0,2}\Z"
)
_DATE = re.compile(r"(?:(?:19|20)\d\d([-./ ])\d{1,2}\1\d{1,2}|\d{1,2}([-./ ])\d{1,2}\2(?:19|20)\d\d)(?: \d{2})?")
_PHONE_AFTER = re.compile(r"(?i)(?: |-)(?:office|fax|mobile|cell|desk|home)\b")

# Lengths of national account numbers (ISO 13616 registry).
_IBAN_COUNTRIES = {
    15: "NO",
    16: "BE",
    18: "DK FI FO GL NL SD",
    19: "MK SI",
    20: "AT BA EE KZ LT LU MN XK",
    21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA",
    23: "AE GI IL IQ OM SO TL",
    24: "AD CZ ES MD PK RO SA SE SK TN VG",
    25: "LY PT ST",
    26: "IS TR",
    27: "BI DJ FR GR IT MC MR SM",
    28: "AL AZ BY CY DO GT HU LB NI PL SV",
    29: "BR EG PS QA UA",
    30: "JO KW MU YE",
    31: "MT SC",
    32: "LC",
    33: "RU",
}
_IBAN_LENGTHS = {country: length for length, names in _IBAN_COUNTRIES.items() for country in names.split()}

# Issuer prefixes and the lengths that they issue (ISO/IEC 7812).
_BRANDS: tuple[tuple[re.Pattern[str], frozenset[int]], ...] = (
    (re.compile(r"4"), frozenset({13, 16, 19})),
    (re.compile(r"5[1-5]|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)"), frozenset({16})),
    (re.compile(r"3[47]"), frozenset({15})),
    (re.compile(r"3(?:0[0-5]|095|[689])"), frozenset({14, 16, 19})),
    (re.compile(r"6(?:011|4[4-9]|5)|62"), frozenset({16, 17, 18, 19})),
    (re.compile(r"35(?:2[89]|[3-8])"), frozenset({16, 17, 18, 19})),
    (re.compile(r"1800|2131"), frozenset({15})),
)
_CARD_CUE = re.compile(r"(?i)\b(?:card|cc|credit|debit|maestro|visa|mastercard)\b")

_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]{0,6}\.?"
_BIRTHDATE = re.compile(
    r"(?i)\b(?:born(?: on)?|date of birth|birth ?date|birthday|d\.?o\.?b\.?)(?: is|:|,|\.? it'?s| was)?\s{0,2}(?:the )?"
    rf"(\d{{1,4}}[./-]\d{{1,2}}[./-]\d{{1,4}}|\d{{1,2}}(?:st|nd|rd|th|\.)? (?:of )?{_MONTH},? \d{{4}}|"
    rf"{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?,? \d{{4}})(?!\w)"
)


def find(text: str) -> Iterator[Found]:
    """Everything with a valid form, overlaps included. `text` is a normal form with its case kept."""
    if "@" in text:
        yield from _emails(text)
        if "://" in text:
            yield from _urls(text)
    digits = len(_DIGIT.findall(text))
    for fewest, finder in _NUMBERS:
        if digits >= fewest:
            yield from finder(text)
    if digits < _FEWEST_OF_IP and _maybe_ipv6(text):
        yield from _ip_addresses(text)


def _emails(text: str) -> Iterator[Found]:
    # From each @ outwards: a search for whole addresses would try every letter of a long word as a beginning.
    for sign in _positions(text, "@"):
        local = _LOCAL.search(text, max(0, sign - 64), sign)
        domain = _DOMAIN.match(text, sign + 1)
        if local and domain:
            start = local.start() + len(local[0]) - len(local[0].lstrip(".'%-"))
            if start < sign:
                yield start, domain.end(), "EMAIL", 1.0


def _urls(text: str) -> Iterator[Found]:
    for sign in _positions(text, "://"):
        scheme = _SCHEME.search(text, max(0, sign - 20), sign)
        userinfo = _USERINFO.match(text, sign + 3)
        if scheme and userinfo:
            yield scheme.start(), userinfo.end(), "URL", 1.0


def _positions(text: str, needle: str) -> Iterator[int]:
    at = text.find(needle)
    while at >= 0:
        yield at
        at = text.find(needle, at + len(needle))


def _cards(text: str) -> Iterator[Found]:
    for run in _DIGITS.finditer(text):
        yield from _cards_in(text, run)


def _cards_in(text: str, run: re.Match[str]) -> Iterator[Found]:
    """The longest valid card number at the beginning of a run; a date or a code may stand after it."""
    start, end = run.span()
    while len(digits := re.sub(r"\D", "", text[start:end])) >= 12:
        if _is_card(digits, cued=bool(_CARD_CUE.search(text, max(0, start - CUE_CHARS), start))):
            yield start, end, "CARD", 1.0
            return
        cut = max(text.rfind(" ", start, end), text.rfind("-", start, end))
        if cut < 0:
            return
        end = cut


def _is_card(digits: str, *, cued: bool) -> bool:
    branded = any(brand.match(digits) and len(digits) in lengths for brand, lengths in _BRANDS)
    # Every tenth number passes the checksum: without a known issuer it takes a word about a card.
    return (branded or cued) and luhn(digits)


def luhn(digits: str) -> bool:
    """ISO/IEC 7812-1 annex B."""
    total = sum(int(d) for d in digits[-1::-2]) + sum(sum(divmod(2 * int(d), 10)) for d in digits[-2::-2])
    return total % 10 == 0 and len(set(digits)) > 1


def _ibans(text: str) -> Iterator[Found]:
    for run in _IBAN.finditer(text):
        length = _IBAN_LENGTHS.get(run[0][:2].upper())
        taken = 0
        for offset, char in enumerate(run[0]):
            taken += char.isalnum()
            if taken == length:
                end = run.start() + offset + 1
                if not text[end : end + 1].isalnum() and iban(run[0][: offset + 1]):
                    yield run.start(), end, "IBAN", 1.0
                break


def iban(text: str) -> bool:
    """ISO 13616: moved by four and read in base 36, the rest by 97 is 1."""
    packed = re.sub(r"[ -]", "", text)
    return int("".join(str(int(char, 36)) for char in packed[4:] + packed[:4])) % 97 == 1


def _ssns(text: str) -> Iterator[Found]:
    for match in _SSN.finditer(text):
        yield *match.span(), "SSN", 1.0


def _ip_addresses(text: str) -> Iterator[Found]:
    sixes = _IPV6.finditer(text) if _maybe_ipv6(text) else ()
    for match in (*_IPV4.finditer(text), *sixes):
        candidate = match[0].rstrip(":") if not match[0].endswith("::") else match[0]
        try:
            address = ipaddress.ip_address(candidate)
        except ValueError:
            continue
        if address.is_loopback or address.is_unspecified:
            continue  # says nothing about anybody
        # Short forms such as a::b are more often code than an address.
        if address.version == 6 and len(re.findall(r"[0-9A-Fa-f]+", candidate)) < 3:
            continue
        yield match.start(), match.start() + len(candidate), "IP", 1.0


def _maybe_ipv6(text: str) -> bool:
    return "::" in text or text.count(":") >= 7


def _phones(text: str) -> Iterator[Found]:
    for match in _PHONE.finditer(text):
        if 7 <= _digit_count(re.split("x|ext", match[0])[0]) <= 15 and not _is_date(match[0]):
            yield *match.span(), "PHONE", 0.9
    for match in _LOOSE_PHONE.finditer(text):
        if not 6 <= _digit_count(match[0].split("x")[0]) <= 12 or _is_date(match[0]):
            continue
        cued = _PHONE_CUE.search(text, max(0, match.start() - CUE_CHARS), match.start())
        if cued or _PHONE_AFTER.match(text, match.end()):
            yield *match.span(), "PHONE", 0.8


def _digit_count(text: str) -> int:
    return sum(map(str.isdigit, text))


def _is_date(text: str) -> bool:
    return bool(_DATE.fullmatch(text))


def _birthdates(text: str) -> Iterator[Found]:
    for match in _BIRTHDATE.finditer(text):
        yield *match.span(1), "BIRTHDATE", 0.9


_DIGIT = re.compile(r"\d")
_FEWEST_OF_IP = 4
# Each with the fewest digits of what it finds: most texts have fewer, and counting them costs next to nothing.
_NUMBERS: tuple[tuple[int, Callable[[str], Iterator[Found]]], ...] = (
    (12, _cards),
    (2, _ibans),
    (9, _ssns),
    (_FEWEST_OF_IP, _ip_addresses),
    (6, _phones),
    (3, _birthdates),
)
