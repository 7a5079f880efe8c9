"""What a GGUF file says of itself, read without loading it. A hostile header costs bounded time and memory.

Little-endian GGUF, versions 2 and 3: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from aibox.errors import OPERATORS, ConfigError

MAX_KEYS = 65_536
MAX_TEXT_BYTES = 1 << 20
"""Of one string that is kept; a chat template has a few KiB."""
MAX_STRINGS = 4_000_000
"""Elements of all string arrays together; the largest vocabularies have a few hundred thousand."""

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "?", 10: "<Q", 11: "<q", 12: "<d"}
_HINT = "give a model file in GGUF format, whole and not compressed"


@dataclass(frozen=True, slots=True)
class Header:
    """`name` and `template` are empty and `context_tokens` None where the file does not say."""

    architecture: str = ""
    name: str = ""
    context_tokens: int | None = None
    template: str = ""
    pooling: int | None = None
    """How token vectors become one, in llama.cpp's numbers: 1 mean, 2 cls, 3 last, 4 rank. None: it chats."""


def read_header(path: Path) -> Header:
    """The header of a model file. Raises ConfigError, in one line, for anything that is not a GGUF file."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            values = _Reader(path, file, size).read()
    except OSError as error:
        raise ConfigError(f"cannot read the model file {path}: {error.strerror}", hint=_HINT, code=OPERATORS) from None
    architecture = _text(values.get("general.architecture"))
    context = values.get(f"{architecture}.context_length")
    return Header(
        architecture=architecture,
        name=_text(values.get("general.name")),
        context_tokens=context if isinstance(context, int) and context > 0 else None,
        template=_text(values.get("tokenizer.chat_template")),
        pooling=pooling if isinstance(pooling := values.get(f"{architecture}.pooling_type"), int) else None,
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


class _Reader:
    """Reads metadata once, front to back; arrays are passed over, never kept."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self._path = path
        self._file = file
        self._size = size
        self._strings = 0

    def read(self) -> dict[str, Any]:
        start = self._file.read(4)
        if start != b"GGUF":
            raise ConfigError(f"{self._path} is not a GGUF file", hint=_HINT, code=OPERATORS)
        version = self._number("<I")
        if version not in (2, 3):
            raise ConfigError(
                f"{self._path} is a GGUF file of version {version}; 2 and 3 can be read", hint=_HINT, code=OPERATORS
            )
        self._number("<Q")  # tensors
        count = self._number("<Q")
        if count > MAX_KEYS:
            raise self._broken("it announces more metadata than a model has")
        values = {}
        for _ in range(count):
            key = self._string()
            values[key] = self._value(self._number("<I"))
        return values

    def _value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            raise self._broken(f"it holds a value of an unknown type, {kind}")
        element, count = self._number("<I"), self._number("<Q")
        if element in _SCALARS:
            self._skip(count * struct.calcsize(_SCALARS[element]))
        elif element == _STRING:
            self._strings += count
            if self._strings > MAX_STRINGS:
                raise self._broken("it announces more tokens than a model has")
            for _ in range(count):
                self._skip(self._number("<Q"))
        else:
            raise self._broken("it holds an array of arrays")
        return None

    def _string(self) -> str:
        length = self._number("<Q")
        if length > MAX_TEXT_BYTES:
            self._skip(length)
            return ""
        return self._exactly(length).decode("utf-8", "replace")

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._exactly(struct.calcsize(form)))[0]

    def _exactly(self, length: int) -> bytes:
        data = self._file.read(length)
        if len(data) < length:
            raise self._broken("it ends in the middle of its header")
        return data

    def _skip(self, length: int) -> None:
        # Seeking past the end is allowed by every system, and would make a short file look whole.
        if length > self._size - self._file.tell():
            raise self._broken("it ends in the middle of its header")
        self._file.seek(length, os.SEEK_CUR)

    def _broken(self, why: str) -> ConfigError:
        return ConfigError(f"the model file {self._path} is damaged: {why}", hint=_HINT, code=OPERATORS)
