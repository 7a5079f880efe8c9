"""Canonical JSON (RFC 8785): the same value always gives the same bytes, so that a digest of it means something.

The subset has no floats, because their text is where canonical forms differ in practice: numbers are integers within
±(2^53 - 1) (RFC 7493 sec. 2.2), fractions travel as strings or in smaller units.
"""

from __future__ import annotations

import json
from typing import Any, Never

import msgspec

MAX_SAFE_INTEGER = 2**53 - 1

_encoder = msgspec.json.Encoder(order="sorted")


def dumps(value: Any) -> bytes:
    """The canonical bytes. Raises ValueError, naming the place, for what has no canonical form here."""
    check(value)
    return encode(value)


def check(value: Any, place: str = "$") -> None:
    """Raises what `dumps` raises, but for texts that are none."""
    _check(value, place)


def encode(value: Any) -> bytes:
    """Of what has been checked, or is made of texts and small integers alone."""
    try:
        return _encoder.encode(value)
    except TypeError as error:
        raise ValueError(f"$: {error}") from None


def loads(data: bytes) -> Any:
    """Read canonical bytes. Raises ValueError for other bytes, also where they would mean the same."""
    value = json.loads(
        data.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_float=_no_float, parse_constant=_no_float
    )
    if dumps(value) != data:
        raise ValueError("not in canonical form")
    return value


def _check(value: Any, place: str) -> None:  # noqa: C901, PLR0912 - one branch a type
    kind = type(value)
    # By exact type first, and without a call for each value: this runs for every value of every entry.
    if kind is dict:
        for key, item in value.items():
            # Sorting by UTF-16 (RFC 8785 sec. 3.2.3) and by bytes agree on ASCII.
            if type(key) is not str or not key.isascii():
                raise ValueError(f"{place}: the key {key!r} is not an ASCII string")
            kind = type(item)
            if kind is str:
                if not item.isascii():
                    _check_text(item, f"{place}.{key}")
            elif kind is not int or not -MAX_SAFE_INTEGER <= item <= MAX_SAFE_INTEGER:
                _check(item, f"{place}.{key}")
    elif kind is bool or value is None:
        return
    elif kind is int:
        if not -MAX_SAFE_INTEGER <= value <= MAX_SAFE_INTEGER:
            raise ValueError(f"{place}: {value} is beyond 2^53 - 1; write it as a string")
    elif kind is list or isinstance(value, list | tuple):
        for index, item in enumerate(value):
            if type(item) is not str or not item.isascii():
                _check(item, f"{place}[{index}]")
    elif isinstance(value, dict):
        _check(dict(value), place)
    elif isinstance(value, str):
        _check_text(value, place)
    else:
        raise ValueError(f"{place}: {kind.__name__} has no canonical form here")


def _check_text(value: str, place: str) -> None:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{place}: a lone surrogate is not text") from None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return value


def _no_float(text: str) -> Never:
    raise ValueError(f"{text} is not an integer")
