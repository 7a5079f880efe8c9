"""The normal form: what it makes of a text, and that every span finds its way back."""

from __future__ import annotations

import itertools
import time
import unicodedata
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibox.guardrails.normalise import _SPECIAL, normalise

# Letters, marks, spaces, invisible and full-width characters, emoji, a lone surrogate: what texts are disguised with.
ODD = st.text(alphabet="aBz 0９\u200b\u0301\u00a8\t\n\u2028éßİŉﬁЕоα각ᄀ\u1161🏴\U000e0061\ud800\x00", max_size=60)


@given(st.one_of(st.text(), ODD), st.booleans())
def test_spans_are_in_range_and_in_order(text: str, fold: bool) -> None:
    """Each character of the normal form comes from a place in the original, and places never go backwards."""
    normal = normalise(text, fold=fold)
    before = 0
    for index in range(len(normal.text)):
        start, end = normal.span(index, index + 1)
        assert before <= start < end <= len(text)
        before = start


@given(st.one_of(st.text(), ODD), st.booleans())
def test_the_whole_normal_form_lies_within_the_original(text: str, fold: bool) -> None:
    """The widest span is a range of the original."""
    normal = normalise(text, fold=fold)
    start, end = normal.span(0, len(normal.text))
    assert 0 <= start <= end <= len(text)


@pytest.mark.parametrize("form", ["NFKC", "NFKD"])
def test_what_is_copied_is_its_own_normal_form(form: Literal["NFKC", "NFKD"]) -> None:
    """All of Han that is copied as it stands: no form of Unicode, no case and no mark would change it."""
    copied = [char for char in map(chr, range(0x80, 0x110000)) if not _SPECIAL.match(char)]
    assert len(copied) > 27_000
    assert [char for char in copied if unicodedata.normalize(form, char) != char or char.casefold() != char] == []
    assert not any(map(unicodedata.combining, copied))


def test_a_mark_on_han_belongs_to_it() -> None:
    """A mark that nobody sees is dropped with its letter's span, and the letters around it keep theirs."""
    normal = normalise("中文\u0301字")
    assert normal.text == "中文字"
    assert [normal.span(at, at + 1) for at in range(3)] == [(0, 1), (1, 3), (3, 4)]


@given(st.lists(st.text(alphabet="abcdefghijklmnopqrstuvwxyz0123456789.,;!?@-", min_size=1), max_size=20).map(" ".join))
def test_plain_small_ascii_is_its_own_normal_form(text: str) -> None:
    """Nothing happens to plain lower-case ASCII with single spaces, and spans are the same."""
    normal = normalise(text)
    assert normal.text == text
    assert all(normal.span(i, i + 1) == (i, i + 1) for i in range(len(text)))


@given(st.one_of(st.text(), ODD))
def test_white_space_never_comes_in_runs(text: str) -> None:
    """No two white-space characters stand beside each other in a normal form."""
    normal = normalise(text).text
    assert not any(a.isspace() and b.isspace() for a, b in itertools.pairwise(normal))


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("ＩＧＮＯＲＥ", "ignore"),
        ("ig\u200bno\u00adre", "ignore"),
        ("іgnоrе", "ignore"),  # Cyrillic і, о, е
        ("ΙGNΟRΕ", "ignore"),  # Greek Ι, Ο, Ε
        ("ïgnôré", "ignore"),
        ("igno\u0301re", "ignore"),
        ("ign\U000e0061ore", "ignore"),
        ("\u202eignore\u202c", "ignore"),
        ("ignore \t\r\n  all", "ignore\nall"),
        ("ignore \u200b all", "ignore all"),
        ("𝐢𝐠𝐧𝐨𝐫𝐞", "ignore"),
    ],
)
def test_disguises_fall(text: str, normal: str) -> None:
    """Full-width, invisible, look-alike, accented and styled letters are read as what they look like."""
    assert normalise(text).text == normal


def test_names_keep_their_letters() -> None:
    """Without folding, case, accents and other scripts stay: names are found in them."""
    assert normalise("Jiří Новак\u200b  Ｅva", fold=False).text == "Jiří Новак Eva"


def test_a_range_outside_is_refused() -> None:
    """A span of what is not there raises IndexError."""
    with pytest.raises(IndexError):
        normalise("abc").span(2, 9)


@pytest.mark.parametrize("unit", ["a", "é", "\u0301\u0315", "\u200b ", " \n", "e\u0301\u0323"])
def test_time_is_linear(unit: str) -> None:
    """Ten times the text takes about ten times as long, also for hostile stacks of marks."""
    normalise(unit * 100)

    def seconds(count: int) -> float:
        text = unit * count
        started = time.process_time()
        normalise(text)
        return time.process_time() - started

    small = min(seconds(5_000) for _ in range(3))
    assert min(seconds(50_000) for _ in range(2)) < 40 * small + 0.01
