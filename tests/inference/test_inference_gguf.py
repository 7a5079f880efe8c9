"""The GGUF header: what a good file says, and that a bad one costs a sentence and no more."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibox.errors import ConfigError
from aibox.inference.gguf import Header, read_header


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def gguf(*pairs: bytes, version: int = 3, count: int | None = None) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, 0, len(pairs) if count is None else count) + b"".join(pairs)


TOKENS = pair("tokenizer.tokens", 9, struct.pack("<IQ", 8, 3) + text("a") + text("bc") + text(""))
SCORES = pair("tokenizer.scores", 9, struct.pack("<IQ", 6, 3) + b"\0" * 12)
GOOD = gguf(
    pair("general.architecture", 8, text("llama")),
    pair("general.name", 8, text("Tiny")),
    TOKENS,
    SCORES,
    pair("llama.context_length", 4, struct.pack("<I", 8192)),
    pair("tokenizer.chat_template", 8, text("{{ messages }}")),
)


def test_a_header_says_what_the_model_is(tmp_path: Path) -> None:
    """Name, context and template are found behind arrays of any kind."""
    (tmp_path / "m.gguf").write_bytes(GOOD)
    assert read_header(tmp_path / "m.gguf") == Header("llama", "Tiny", 8192, "{{ messages }}")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not a GGUF file"),
        (b"hello world", "not a GGUF file"),
        (b"GGUF", "ends in the middle"),
        (gguf(version=1), "version 1"),
        (gguf(version=0x03000000), "version"),
        (gguf(count=1 << 60), "more metadata"),
        (gguf(count=100), "ends in the middle"),
        (gguf(struct.pack("<Q", 1 << 62)), "ends in the middle"),
        (gguf(pair("k", 9, struct.pack("<IQ", 8, 1 << 60))), "more tokens"),
        (gguf(pair("k", 9, struct.pack("<IQ", 8, 3_999_999))), "ends in the middle"),
        (gguf(pair("k", 9, struct.pack("<IQ", 4, 1 << 62))), "ends in the middle"),
        (gguf(pair("k", 9, struct.pack("<IQ", 9, 1))), "array of arrays"),
        (gguf(pair("k", 99, b"")), "unknown type"),
    ],
)
def test_a_file_that_is_none_is_refused_in_a_sentence(data: bytes, says: str, tmp_path: Path) -> None:
    """Whatever it announces, nothing large is read or allocated for it."""
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=says) as caught:
        read_header(path)
    assert "\n" not in str(caught.value)


@given(cut=st.integers(0, len(GOOD) - 1), at=st.integers(0, len(GOOD) - 1), byte=st.integers(0, 255))
def test_damage_is_read_or_refused(cut: int, at: int, byte: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A header cut anywhere is refused; one with any byte changed gives a header or a ConfigError."""
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(GOOD[:cut])
    with pytest.raises(ConfigError):
        read_header(path)
    path.write_bytes(GOOD[:at] + bytes([byte]) + GOOD[at + 1 :])
    with contextlib.suppress(ConfigError):
        assert isinstance(read_header(path), Header)
