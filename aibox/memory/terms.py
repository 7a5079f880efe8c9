"""The words of a text for BM25, as keyed hashes: they can be counted and compared, and not read without the key.

Words are runs of letters and digits in lower case, without accents; the ends that English gives to plurals and verbs
are cut. Scripts that write no spaces (Chinese, Japanese, Thai and their like) are read as pairs of neighbours.
"""

from __future__ import annotations

import hmac
import re
import struct
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache

Terms = dict[int, float]
"""Hash of a word to its weight in the text."""

# Robertson and Zaragoza (2009), "The Probabilistic Relevance Framework: BM25 and Beyond", the usual constants.
_K1 = 1.2
_B = 0.75
_AVERAGE_WORDS = 120
"""Of our passages; a constant, so that adding one text does not change the weights of others."""
MAX_WORDS = 4_000

_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]+|[^\W_{_UNSPACED}]+")
_IS_UNSPACED = re.compile(f"[{_UNSPACED}]")
# The words that English sentences are held together by.
_STOP = frozenset(
    re.findall(
        r"\w+",
        """a an and are as at be been but by can could did do does for from had has have he her his how i if in into is
        it its me my not of on or our she should so than that the their them then there these they this to was we were
        what when where which who why will with would you your""",
    )
)


def words(text: str) -> list[str]:
    """The words of a text that tell it from others, in order; at most 4,000."""
    plain = unicodedata.normalize("NFKD", text[: MAX_WORDS * 12]).casefold()
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    found: list[str] = []
    for match in _WORD.finditer(plain):
        run = match[0]
        if _IS_UNSPACED.match(run):
            found += [run[i : i + 2] for i in range(len(run) - 1)] or [run]
        elif run not in _STOP:
            found.append(_stem(run))
    return found[:MAX_WORDS]


@lru_cache(maxsize=20_000)
def _stem(word: str) -> str:
    """Without the plural and the common endings of English verbs (Harman's S-stemmer, and -ed, -ing)."""
    if len(word) < 4 or not word.isascii() or not word.isalpha():
        return word
    if word.endswith("ies") and not word.endswith(("eies", "aies")):
        word = word[:-3] + "y"
    elif (word.endswith("es") and not word.endswith(("aes", "ees", "oes"))) or (
        word.endswith("s") and not word.endswith(("us", "ss", "es"))
    ):
        word = word[:-1]
    for end in ("ing", "ed"):
        if word.endswith(end) and len(word) - len(end) >= 4:
            return word[: -len(end)]
    return word.removesuffix("e") if len(word) > 4 else word


class Termer:
    """Makes terms under one tenant's key."""

    def __init__(self, key: bytes) -> None:
        self._hash: Callable[[str], int] = lru_cache(maxsize=50_000)(
            lambda word: int.from_bytes(hmac.digest(key, word.encode(), "sha256")[:4], "big")
        )

    def query(self, text: str) -> Terms:
        """Each word of a question once."""
        return dict.fromkeys((self._hash(word) for word in words(text)), 1.0)

    def passage(self, text: str) -> Terms:
        """The words of a text with BM25's weight of how often they occur; how rare they are is left to the index."""
        found = Counter(words(text))
        length = _K1 * (1 - _B + _B * sum(found.values()) / _AVERAGE_WORDS)
        weights: Terms = {}
        for word, count in found.items():
            weights[self._hash(word)] = count * (_K1 + 1) / (count + length)
        return weights


def pack_terms(terms: Mapping[int, float]) -> bytes:
    """For a row: the number of terms, their hashes in order, their weights; little-endian."""
    hashes = sorted(terms)
    return struct.pack(f"<I{len(hashes)}I{len(hashes)}f", len(hashes), *hashes, *(terms[h] for h in hashes))


def unpack_terms(packed: bytes) -> Terms:
    count = struct.unpack_from("<I", packed)[0]
    values = array("f", packed[4 + 4 * count :])
    return dict(zip(struct.unpack_from(f"<{count}I", packed, 4), values, strict=True))
