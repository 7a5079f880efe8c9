"""Secrets of tools: a handle in the code, a value only while the tool runs, and never in what the tool returns."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import quote

from aibox.errors import ConfigError
from aibox.types import Scope

MIN_CHARS = 6
"""Shorter values are not looked for in results: they would be found by chance."""


class Secret:
    """A handle of a secret, given as the default of a tool's parameter: `def post(text: str, key=Secret("crm", ...))`.

    The model never sees the parameter. When the tool is called the handle is replaced by one whose `reveal()` gives the
    value; the handle itself, which is what code, prompts, logs and entries can hold, has none. The value comes from
    `file` (read at each call, without its line end) or from `read`, a function of the scope.
    """

    __slots__ = ("_file", "_read", "name")

    def __init__(
        self, name: str, *, file: str | Path | None = None, read: Callable[[Scope], str] | None = None
    ) -> None:
        if (file is None) == (read is None):
            raise ConfigError(f"the secret {name!r} needs a source: either file or read")
        self.name = name
        self._file = None if file is None else Path(file)
        self._read = read

    def resolve(self, *, scope: Scope) -> Revealed:
        """The value, for one call. Raises ConfigError where there is none."""
        if self._read is not None:
            value = self._read(scope)
        else:
            assert self._file is not None
            try:
                value = self._file.read_text("utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"the secret {self.name} cannot be read", hint=type(error).__name__) from None
        if not value:
            raise ConfigError(f"the secret {self.name} is empty")
        return Revealed(self.name, value)

    def reveal(self) -> str:
        raise ConfigError(f"the secret {self.name} has no value here; only a tool that is being called gets one")

    def __repr__(self) -> str:
        return f"Secret({self.name!r})"


class Revealed(Secret):
    """What a running tool holds in place of the handle. Its repr does not show the value; it cannot be pickled."""

    __slots__ = ("_value",)

    def __init__(self, name: str, value: str) -> None:
        super().__init__(name, read=lambda _: "")
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __reduce__(self) -> str:
        raise TypeError("a secret is not pickled")


def scrub(text: str, secrets: Mapping[str, Revealed]) -> str:
    """The text without the values, also where they were encoded on the way: base64, hex and URL quoting."""
    for secret in secrets.values():
        value = secret.reveal()
        if len(value) < MIN_CHARS:
            continue
        raw = value.encode()
        for form in (
            value,
            quote(value, safe=""),
            base64.b64encode(raw).decode().rstrip("="),
            base64.urlsafe_b64encode(raw).decode().rstrip("="),
            raw.hex(),
        ):
            text = text.replace(form, f"[secret {secret.name}]")
    return text
