"""Subagents as Markdown files: a head that says what they may use, and a body that is their instructions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from aibox.agents import frontmatter
from aibox.errors import ConfigError

FIELDS = ("name", "description", "tools", "model", "skills", "mcpServers", "maxTurns")
LIBRARY = ("analyst", "coder", "researcher")
DEFAULT_TURNS, MOST_TURNS = 8, 64
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class SubagentSpec:
    """What a file says. `tools` None is all that the parent has, but `delegate`; `model` "" is the parent's."""

    name: str
    description: str
    instructions: str
    tools: tuple[str, ...] | None = None
    model: str = ""
    skills: tuple[str, ...] = ()
    mcp_servers: tuple[str, ...] | None = None
    max_turns: int = DEFAULT_TURNS

    @classmethod
    def read(cls, text: str, *, source: str) -> SubagentSpec:
        """From the text of a file. Raises ConfigError that names the file and the field."""
        try:
            fields, body = frontmatter.split(text)
            if wrong := frontmatter.unknown(list(fields), FIELDS):
                raise ConfigError(wrong)  # noqa: TRY301 - told with the name of the file, below
            if not body:
                raise ConfigError("there are no instructions under the head")  # noqa: TRY301 - likewise
            return cls(
                name=_name(fields.get("name")),
                description=_text(fields, "description", required=True),
                instructions=body,
                tools=_names(fields, "tools"),
                model="" if fields.get("model", "inherit") == "inherit" else _text(fields, "model", required=True),
                skills=_names(fields, "skills") or (),
                mcp_servers=_names(fields, "mcpServers"),
                max_turns=_turns(fields.get("maxTurns", str(DEFAULT_TURNS))),
            )
        except ConfigError as error:
            raise ConfigError(f"{source}: {error.message}", hint=error.hint) from None

    @classmethod
    def load(cls, path: str | Path) -> SubagentSpec:
        """From a file. Raises ConfigError."""
        path = Path(path)
        try:
            return cls.read(path.read_text("utf-8"), source=path.name)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the subagent {path}: {error}") from None

    @classmethod
    def shipped(cls, name: str) -> SubagentSpec:
        """One of the library: researcher, coder or analyst."""
        if name not in LIBRARY:
            raise ConfigError(f"no subagent is called {name!r}", hint=f"shipped are {', '.join(LIBRARY)}; or a path")
        text = resources.files("aibox").joinpath("agents", "library", f"{name}.md").read_text("utf-8")
        return cls.read(text, source=f"{name}.md")


def specs(given: Sequence[SubagentSpec | str | Path]) -> tuple[SubagentSpec, ...]:
    """From specs, names of shipped ones, files, and folders of files. Raises ConfigError for a name given twice."""
    found: list[SubagentSpec] = []
    for item in given:
        if isinstance(item, SubagentSpec):
            found.append(item)
        elif isinstance(item, str) and _NAME.fullmatch(item):
            found.append(SubagentSpec.shipped(item))
        elif (path := Path(item)).is_dir():
            found += [SubagentSpec.load(file) for file in sorted(path.glob("*.md"))]
        else:
            found.append(SubagentSpec.load(path))
    names = [spec.name for spec in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"two subagents are called {', '.join(twice)}", hint="a name means one of them")
    return tuple(found)


def _name(value: Any) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value) or len(value) > 64:
        raise ConfigError("name must be lower case letters, digits and single hyphens, at most 64")
    return value


def _text(fields: dict[str, Any], key: str, *, required: bool) -> str:
    value = fields.get(key, "")
    if not isinstance(value, str) or (required and not value.strip()):
        raise ConfigError(f"{key} must be text, and not empty")
    return value.strip()


def _names(fields: dict[str, Any], key: str) -> tuple[str, ...] | None:
    if key not in fields:
        return None
    value = fields[key]
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise ConfigError(f"{key} must be names, as a list or with commas between")
    return tuple(value)


def _turns(value: Any) -> int:
    if not isinstance(value, str) or not value.isdecimal() or not 1 <= int(value) <= MOST_TURNS:
        raise ConfigError(f"maxTurns must be a whole number from 1 to {MOST_TURNS}")
    return int(value)
