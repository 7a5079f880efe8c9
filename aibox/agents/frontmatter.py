"""YAML between two lines of `---` at the top of a Markdown file, read so that nothing in it can surprise.

Every scalar is text: `no`, `1.0` and `2026-01-01` mean what was typed. A key that comes twice, an alias and a tag are
errors. The only file that imports `yaml`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

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
    return _read(head), "\n".join(lines[end + 1 :]).strip()


def unknown(keys: Sequence[str], known: Sequence[str]) -> str:
    """What is wrong with keys that nobody knows, each with the one that was probably meant; empty when none is."""
    said = []
    for key in keys:
        if key not in known:
            close = get_close_matches(key, known, n=1, cutoff=0.5)
            said.append(f"unknown field {key!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
    return "; ".join(said)


def _read(head: str) -> dict[str, Any]:
    import yaml

    try:
        value = yaml.load(head, Loader=_loader())  # noqa: S506 - a loader that makes text, lists and mappings only
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 2}" if mark is not None else ""
        raise ConfigError(f"the head is not YAML{where}: {getattr(error, 'problem', None) or error}") from None
    except RecursionError:
        raise ConfigError("the head is nested too deeply") from None
    if not isinstance(value, Mapping):
        raise ConfigError("the head must be fields with values, such as `name: my-skill`")
    return dict(value)


@functools.cache
def _loader() -> Any:
    import yaml

    class Loader(yaml.BaseLoader):
        """Text, lists and mappings; nothing else can be made of a document."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]  # not in the stubs
            if isinstance(event, yaml.AliasEvent):
                mark: Any = event.start_mark
                raise yaml.composer.ComposerError(None, None, "aliases are not read", mark)
            if getattr(event, "tag", None) is not None:
                raise yaml.composer.ComposerError(None, None, "tags are not read", event.start_mark)
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key_node, _ in node.value:
                key = self.construct_object(key_node, deep=True)
                if not isinstance(key, str):
                    raise yaml.constructor.ConstructorError(None, None, "a key must be text", key_node.start_mark)
                if key in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key} comes twice", key_node.start_mark)
                seen.add(key)
            return super().construct_mapping(node, deep=deep)

    return Loader
