"""YAML between two lines of `---` at the top of a Markdown file, in which every scalar is text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from aibox import plain_yaml
from aibox.errors import ConfigError

MAX_CHARS = 64 * 1024
"""Of the whole head; a real one has a few hundred."""


def split(text: str) -> tuple[dict[str, Any], str]:
    """The head as a mapping, and the body. Raises ConfigError with the line where it went wrong."""
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")
    if lines[0].rstrip() != "---":
        raise ConfigError("the file does not begin with ---", hint="put name and description between two lines of ---")
    try:
        end = next(number for number, line in enumerate(lines[1:], 1) if line.rstrip() == "---")
    except StopIteration:
        raise ConfigError("the head has no end", hint="close it with a line of ---") from None
    head = "\n".join(lines[1:end])
    if len(head) > MAX_CHARS:
        raise ConfigError(f"the head has {len(head)} characters; at most {MAX_CHARS} are read")
    value = plain_yaml.read(head, source="the head", first_line=2)
    if not isinstance(value, Mapping):
        raise ConfigError("the head must be fields with values, such as `name: my-skill`")
    return dict(value), "\n".join(lines[end + 1 :]).strip()


def unknown(keys: Sequence[str], known: Sequence[str]) -> str:
    """What is wrong with keys that nobody knows, each with the one that was probably meant; empty when none is."""
    said = []
    for key in keys:
        if key not in known:
            close = get_close_matches(key, known, n=1, cutoff=0.5)
            said.append(f"unknown field {key!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
    return "; ".join(said)
