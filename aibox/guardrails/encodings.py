"""What an encoded text says: base64, base32, hexadecimal, bits, escapes, Morse, ROT13, leetspeak, spelled or backward.

Each view knows which characters of the original it came from. Depth, number and size are bounded, and a text that is
still encoded at the bound says so.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import unescape
from urllib.parse import unquote

from aibox.guardrails.once import shared

DEPTH = 4
VIEWS = 64
VIEW_CHARS = 65_536
"""Bounds: how deep encodings within encodings are followed, how many views a text has, and the size of each."""
_MIN_CHARS = 8


@dataclass(frozen=True, slots=True)
class View:
    """Another reading of a part of a text. `how` names the encoding; `deep` when the bound of depth was met."""

    text: str
    span: tuple[int, int]
    how: str
    deep: bool = False


@shared
def views(text: str) -> tuple[View, ...]:
    """The decoded readings of a text, the outermost first. Most texts have none, and that is found out quickly."""
    found: list[View] = []
    layer = [View(text, (0, len(text)), "")]
    for depth in range(DEPTH):
        last = depth == DEPTH - 1
        following: list[View] = []
        for outer in layer:
            for inner, (start, end), how in _decoded(outer.text):
                # Of a part of a view only the whole place of that view in the original is known.
                span = (start, end) if not depth else outer.span
                following.append(View(inner[:VIEW_CHARS], span, how, last and any(_decoded(inner[:VIEW_CHARS]))))
                if len(found) + len(following) >= VIEWS:
                    return tuple(found + following)
        found += following
        layer = following
    return tuple(found)


def _decoded(text: str) -> Iterator[tuple[str, tuple[int, int], str]]:
    words = text.casefold().split()
    longest = max(map(len, words), default=0)
    for how, wanted, pattern, decode in _PARTS:
        # Most texts hold none of the signs of an encoding, which is found out faster than by searching for it.
        if longest >= 16 if wanted == "" else any(sign in text for sign in wanted.split()):
            for match in pattern.finditer(text):
                inner = decode(match[0])
                if inner is not None and len(inner) >= _MIN_CHARS and inner != match[0]:
                    yield inner, match.span(), how
    bare = [word.strip(".,:;!?") for word in words]
    for how, turned, whole in _WHOLE:
        if sum(map(turned, bare)) >= 2:
            for at in range(0, len(text), VIEW_CHARS):
                piece = text[at : at + VIEW_CHARS]
                yield whole(piece), (at, at + len(piece)), how


def _readable(data: bytes) -> str | None:
    """The text in these bytes, if they are text: valid UTF-8, printable, and mostly letters and spaces."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    plain = sum(char.isalpha() or char in " \n\t.,:;!?'\"-" for char in text)
    printable = all(char.isprintable() or char in "\n\t\r" for char in text)
    return text if printable and plain >= 0.8 * len(text) else None


def _base64(text: str) -> str | None:
    body = text.rstrip("=").replace("-", "+").replace("_", "/")
    # Prose is made of the same letters: decoding it gives no text, and a single word is not worth the try.
    if len(body) % 4 == 1:
        body = body[:-1]
    try:
        return _readable(base64.b64decode(body + "=" * (-len(body) % 4)))
    except (binascii.Error, ValueError):
        return None


def _base32(text: str) -> str | None:
    body = text.rstrip("=")
    try:
        return _readable(base64.b32decode(body + "=" * (-len(body) % 8)))
    except (binascii.Error, ValueError):
        return None


def _hex(text: str) -> str | None:
    digits = re.sub(r"\\x|0x|[ :,]", "", text)
    return _readable(bytes.fromhex(digits[: len(digits) // 2 * 2]))


def _bits(text: str) -> str | None:
    digits = text.replace(" ", "")
    return _readable(bytes(int(digits[at : at + 8], 2) for at in range(0, len(digits) // 8 * 8, 8)))


def _escapes(text: str) -> str | None:
    return re.sub(r"\\u([0-9a-fA-F]{4})", lambda code: chr(int(code[1], 16)), text)


def _tags(text: str) -> str | None:
    return "".join(chr(ord(char) - 0xE0000) for char in text)


def _selected(text: str) -> str | None:
    """Byte n is the variation selector n + 1: nobody sees them, and every character may be followed by any number."""
    return _readable(bytes(code - 0xFE00 if (code := ord(char)) < 0xFE10 else code - 0xE0100 + 16 for char in text))


SELECTORS = "[\ufe00-\ufe0f\U000e0100-\U000e01ef]"
# What bytes of text in UTF-8 become: the letters a, e and t, a space, and what letters of other scripts begin with.
_SELECTED = " ".join(chr(0xE0100 + byte - 16) for byte in b"aet " + bytes((*range(0xC3, 0xC6), *range(0xCE, 0xEE))))

_MORSE_LETTERS = (
    "a.- b-... c-.-. d-.. e. f..-. g--. h.... i.. j.--- k-.- l.-.. m-- n-. o--- p.--. q--.- r.-. s... t- u..- v...- "
    "w.-- x-..- y-.-- z--.. 0----- 1.---- 2..--- 3...-- 4....- 5..... 6-.... 7--... 8---.. 9----."
)
_MORSE = {pair[1:]: pair[0] for pair in _MORSE_LETTERS.split(" ")}


def _morse(text: str) -> str | None:
    words = re.split(r" ?/ ?", text.strip())
    return " ".join("".join(_MORSE.get(sign, "") for sign in word.split()) for word in words)


def _spelled(text: str) -> str | None:
    """`i g n o r e  a l l`: one sign between letters, more between words."""
    return re.sub(r"(?<=\w)[ ._*-](?=\w\b)", "", re.sub(r"[ ._*-]{2,4}", "\0", text)).replace("\0", " ")


_AGAIN = re.compile(r"%(?:25){1,4096}+(?=[0-9a-fA-F]{2})")

# How it is called, the signs of which one must stand in a text (none: a word of 16 characters), what it looks like, how
# it is read.
_PARTS: tuple[tuple[str, str, re.Pattern[str], Callable[[str], str | None]], ...] = (
    ("base64", "", re.compile(r"(?<![\w+/=-])[A-Za-z0-9+/_-]{16,65536}={0,2}(?![\w+/-])"), _base64),
    ("base32", "", re.compile(r"(?<!\w)[A-Z2-7]{24,65536}={0,6}(?!\w)"), _base32),
    ("hexadecimal", "4 5 6 7", re.compile(r"(?<!\w)(?:(?:\\x|0x)?[0-9a-fA-F]{2}[ :,]?){8,32768}(?!\w)"), _hex),
    ("bits", "0110 0111 0100", re.compile(r"(?<!\w)(?:[01]{8} ?){6,8192}(?!\w)"), _bits),
    (
        "percent signs",
        "%",
        # `%252520` is a space encoded three times: such a run of 25s is one sign, however long it is.
        re.compile(
            r"(?<![^\s\"'(=])[^\s%]{0,200}(?:%(?:(?:25){1,4096}+(?=[0-9a-fA-F]{2})|)[0-9a-fA-F]{2}[^\s%]{0,200}){2,2000}"
        ),
        lambda text: unquote(_AGAIN.sub("%", text)),
    ),
    ("escapes", "\\u", re.compile(r"(?:\\u[0-9a-fA-F]{4} ?){6,8192}"), _escapes),
    ("entities", "&#", re.compile(r"(?:&#x?[0-9a-fA-F]{2,6}; ?){6,8192}"), unescape),
    ("invisible tags", "\U000e0061 \U000e0065 \U000e0074", re.compile("[\U000e0020-\U000e007e]{8,65536}"), _tags),
    ("variation selectors", _SELECTED, re.compile(SELECTORS + "{8,65536}"), _selected),
    ("Morse code", ".- -.", re.compile(r"(?<![.\w-])(?:[.-]{1,5} (?:/ )?){8,8192}[.-]{1,5}"), _morse),
    ("spelled words", "e e. e- e_ e* E o", re.compile(r"(?<!\w)(?:\w[ ._*-]{1,4}){8,8192}\w(?!\w)"), _spelled),
)

# How the commonest English words look when they are turned: two of them are no chance.
_ROT13 = frozenset(
    {"gur", "naq", "lbh", "nyy", "vafgehpgvbaf", "vtaber", "cerivbhf", "flfgrz", "cebzcg", "gryy", "guvf"}
)
_REVERSED = frozenset({"eht", "dna", "uoy", "snoitcurtsni", "erongi", "suoiverp", "metsys", "tpmorp", "llet", "siht"})
_LEET = str.maketrans("01345789@$!|", "oieastbgasil")
_LEET_WORD = re.compile(r"(?=[^0-9@$]{0,20}[013457@$])(?=[^a-z]{0,20}[a-z])[a-z0-9@$!]{3,20}")
_WHOLE: tuple[tuple[str, Callable[[str], bool], Callable[[str], str]], ...] = (
    ("ROT13", _ROT13.__contains__, lambda text: codecs.encode(text, "rot13")),
    ("reversed letters", _REVERSED.__contains__, lambda text: text[::-1]),
    (
        "leetspeak",
        lambda word: not word.isalpha() and _LEET_WORD.fullmatch(word) is not None,
        lambda text: text.translate(_LEET),
    ),
)
