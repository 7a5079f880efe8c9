"""YAML read so that nothing in it can surprise: no aliases (so no cycles), no tags, no key twice, each key a text.

Every scalar is text: `no`, `1.0` and `2026-01-01` mean what was written. Read as `typed`, `true`, `false`, `null` and
plain decimal numbers are what they say.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from aibox.errors import ConfigError

_TYPED = (
    ("bool", r"true|false", "tf"),
    ("null", r"null|~|", ["n", "~", ""]),
    ("int", r"-?(?:0|[1-9][0-9]*)", "-0123456789"),
    ("float", r"-?(?:0|[1-9][0-9]*)\.[0-9]+", "-0123456789"),
)


def read(text: str, *, source: str, first_line: int = 1, typed: bool = False) -> Any:
    """What a document says. Raises ConfigError that names `source` and the line, where the text begins at another."""
    import yaml

    try:
        return yaml.load(text, Loader=_loader(typed=typed))  # noqa: S506 - a loader that makes plain values only
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + first_line}" if mark is not None else ""
        raise ConfigError(f"{source} is not YAML{where}: {getattr(error, 'problem', None) or error}") from None
    except RecursionError:
        raise ConfigError(f"{source} is nested too deeply") from None


@functools.cache
def _loader(*, typed: bool) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Text, lists, mappings, and what `_TYPED` says; nothing else can be made of a document."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]  # not in the stubs
            mark: Any = event.start_mark
            if isinstance(event, yaml.AliasEvent):
                raise yaml.composer.ComposerError(None, None, "aliases are not read", mark)
            if getattr(event, "tag", None) is not None:
                raise yaml.composer.ComposerError(None, None, "tags are not read", mark)
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key_node, _ in node.value:
                # A threshold is written 0.5 and means the key "0.5"; every key is the text that it is written as.
                if not isinstance(key_node, yaml.ScalarNode):
                    raise yaml.constructor.ConstructorError(None, None, "a key must be text", key_node.start_mark)
                key_node.tag = "tag:yaml.org,2002:str"
                if key_node.value in seen:
                    problem = f"{key_node.value} comes twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
                seen.add(key_node.value)
            return super().construct_mapping(node, deep=deep)

    Loader.yaml_implicit_resolvers = {}
    for name, pattern, first in _TYPED if typed else ():
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{name}", re.compile(rf"(?:{pattern})\Z"), list(first))
    return Loader
