"""Canonical JSON: RFC 8785 on the subset without floats, with the reference implementation as the oracle."""

from __future__ import annotations

import json

import pytest
import rfc8785
from audit_parts import published
from hypothesis import given
from hypothesis import strategies as st

from aibox.audit import canonical

KEYS = st.text(st.characters(max_codepoint=127), max_size=8)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_the_bytes_are_those_of_rfc_8785_and_read_back(value: object) -> None:
    """Byte for byte what an independent implementation writes; reading gives the value again."""
    data = canonical.dumps(value)
    assert data == rfc8785.dumps(value)  # type: ignore[arg-type]  # JSON values
    assert canonical.loads(data) == value


@pytest.mark.parametrize(
    "value",
    [1.0, float("nan"), float("inf"), -0.0, 2**53, -(2**53), "\ud800", {"é": 1}, {1: 2}, b"x", {1, 2}, [[1.5]]],
    ids=repr,
)
def test_what_has_no_canonical_form_is_refused(value: object) -> None:
    """Floats, integers beyond 2^53 - 1, lone surrogates, keys that are not ASCII, other types: none is written."""
    with pytest.raises(ValueError, match=r"\$"):
        canonical.dumps({"k": value})


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":1,"a":2}', b'{"b":1,"a":2}', b'{"a": 1}', b'{"a":1.0}', b'{"a":1e0}', b'{"a":NaN}', b'{"a":-0}',
        b'{"a":"\\u0041"}', b'{"a":"\\/"}', b'\xef\xbb\xbf{"a":1}', b'{"a":1}\n', b'{"a":9007199254740992}',
        b'{"a":"\\ud800"}', b'{"a":1e400}', b"\xff", b"", b"{'a':1}", b'{"a":"\\u000A"}',
    ],
)  # fmt: skip
def test_other_bytes_for_the_same_value_are_refused(data: bytes) -> None:
    """Duplicate keys, other orders, spaces, escapes, numbers, a byte-order mark: there is one form and no second."""
    with pytest.raises(ValueError):  # noqa: PT011 - json's own error is one too
        canonical.loads(data)


def test_composed_and_decomposed_letters_stay_two_texts() -> None:
    """Nothing is normalised: what was recorded is what was said, é in one code point or in two."""
    assert canonical.dumps("\u00e9") != canonical.dumps("e\u0301")


@pytest.mark.parametrize("text", ["a\nb", "a\rb", "\x1b[2J", '"', "\\", "\x00", "\u2028"])
def test_no_text_breaks_out_of_its_line(text: str) -> None:
    """Attack: a value with line ends, terminal escapes or quotes stays one JSON string on one line."""
    data = canonical.dumps({"k": text})
    assert b"\n" not in data
    assert b"\x1b" not in data
    assert json.loads(data) == {"k": text}


def test_a_deep_nest_is_refused_and_no_crash() -> None:
    """Attack: a hundred thousand brackets end in an error that can be caught."""
    with pytest.raises((ValueError, RecursionError)):
        canonical.loads(b"[" * 100_000 + b"]" * 100_000)


def test_published_vectors() -> None:
    """RFC 8785's own vectors: the same bytes where they lie in the subset, refused where they do not."""
    folder = published("canonical-json")
    written = 0
    for file in sorted((folder / "input").glob("*.json")):
        value = json.loads(file.read_text("utf-8"))
        try:
            data = canonical.dumps(value)
        except ValueError:
            continue
        written += 1
        assert data == (folder / "output" / file.name).read_bytes()
    assert written


def test_a_key_that_stands_twice_is_named_and_odd_texts_are_looked_at_too() -> None:
    """The reason is given, and a text of a class of its own is held to what texts are held to."""

    class Text(str):
        __slots__ = ()

    with pytest.raises(ValueError, match="twice"):
        canonical.loads(b'{"a":1,"a":1}')
    with pytest.raises(ValueError, match="unsupported"):
        canonical.dumps(Text("é"))
    with pytest.raises(ValueError, match="lone surrogate"):
        canonical.dumps(Text("\ud800"))


def test_a_table_of_a_class_of_its_own_is_looked_into() -> None:
    """Attack: a fraction, or a key that sorts in two ways, hides in a subclass of dict."""

    class Table(dict[str, object]):
        pass

    assert canonical.dumps(Table(b=1, a=Table(c=None))) == b'{"a":{"c":null},"b":1}'
    for value in (Table(x=0.5), {"t": Table({"é": 1})}, [Table(x=2**53)]):
        with pytest.raises(ValueError, match=r"no canonical form|not an ASCII|beyond"):
            canonical.dumps(value)
