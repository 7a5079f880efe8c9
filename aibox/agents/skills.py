"""Skills by the Agent Skills specification: a folder with a SKILL.md, validated strictly, known by its digest.

What a skill asks for never widens anything: `allowed-tools` is joined with the policy, and a folder that holds a link,
a device or too much is refused whole.
"""

from __future__ import annotations

import hashlib
import re
import stat
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aibox.agents import frontmatter
from aibox.errors import ConfigError, IntegrityError
from aibox.policy.tools import ToolRules

FIELDS = ("name", "description", "license", "compatibility", "metadata", "allowed-tools")
FOREIGN_FIELDS = ("disable-model-invocation", "argument-hint", "model", "context")
"""Written by one other client and no part of the specification: said as a warning, and without effect."""
MAX_NAME, MAX_DESCRIPTION, MAX_COMPATIBILITY = 64, 1024, 500
MAX_FILES = 256
MAX_FILE_KIB = 1024
MAX_FOLDER_KIB = 8 * 1024
ADVISED_LINES = 500
"""The specification advises to keep the body under this; longer is a warning."""
_TOOL = re.compile(r"[A-Za-z_][\w.-]*(\([^()]*\))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Skill:
    """A validated skill. `digest` is over every file of the folder; `allowed_tools` None restricts nothing."""

    name: str
    description: str
    folder: Path
    body: str
    digest: str
    manifest: str = "SKILL.md"
    resources: tuple[str, ...] = ()
    license: str = ""
    compatibility: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    allowed_tools: tuple[str, ...] | None = None
    warnings: tuple[str, ...] = ()
    trusted: bool = False
    """Somebody installed it under this digest. What it says is else a stranger's, and counts as untrusted content."""

    def tools(self) -> frozenset[str] | None:
        """Names that the skill lets through. A pattern of arguments, which nobody here enforces, lets nothing pass."""
        if self.allowed_tools is None:
            return None
        return frozenset(tool for tool in self.allowed_tools if "(" not in tool)

    def read(self, path: str) -> bytes:
        """A resource, one that was there when the digest was taken. Raises ConfigError, IntegrityError when changed."""
        if path not in self.resources:
            listed = ", ".join(self.resources) or "none"
            raise ConfigError(f"the skill {self.name} has no resource {path!r}", hint=f"its resources: {listed}")
        self.verify()
        return (self.folder / path).read_bytes()

    def verify(self) -> None:
        """Raises IntegrityError unless the folder is still what it was."""
        if digest_of(self.folder) != self.digest:
            raise IntegrityError(
                f"the skill {self.name} has changed on disk since it was loaded",
                hint="look at what changed, then install it again",
            )


def load(folder: str | Path) -> Skill:
    """Read and validate one skill. Raises ConfigError that names every fault of the file at once."""
    folder = Path(folder)
    faults, skill = examine(folder)
    if skill is None:
        raise ConfigError(f"{folder.name} is not a skill: {'; '.join(faults)}", hint="agentskills.io/specification")
    return skill


def examine(folder: Path) -> tuple[list[str], Skill | None]:
    """Every fault of a skill, in sentences, and the skill when there is none."""
    if not folder.exists():
        return [f"the path does not exist: {folder}"], None
    if not folder.is_dir():
        return [f"not a directory: {folder}"], None
    manifest = next((folder / name for name in ("SKILL.md", "skill.md") if (folder / name).is_file()), None)
    if manifest is None:
        return ["the required file SKILL.md is missing"], None
    try:
        digest = digest_of(folder)
        fields, body = frontmatter.split(manifest.read_text("utf-8"))
    except UnicodeDecodeError:
        return [f"{manifest.name} is not UTF-8"], None
    except ConfigError as error:
        return [str(error)], None
    faults, warnings = _faults(fields, folder), []
    if faults:
        return faults, None
    warnings = [f"the field {key!r} belongs to another client and has no effect" for key in fields if key not in FIELDS]
    if body.count("\n") >= ADVISED_LINES:
        warnings.append(f"the body has {body.count(chr(10)) + 1} lines; under {ADVISED_LINES} is advised")
    resources = tuple(name for name in files_of(folder) if name != manifest.name)
    return [], Skill(
        name=unicodedata.normalize("NFKC", fields["name"].strip()),
        description=fields["description"].strip(),
        folder=folder,
        body=body,
        digest=digest,
        manifest=manifest.name,
        resources=resources,
        license=fields.get("license", ""),
        compatibility=fields.get("compatibility", ""),
        metadata=fields.get("metadata", {}),
        allowed_tools=_tools(fields["allowed-tools"]) if "allowed-tools" in fields else None,
        warnings=tuple(warnings),
    )


def files_of(folder: Path) -> list[str]:
    """Relative paths of a skill's files, sorted. Raises ConfigError for what a skill must not hold."""
    found: list[str] = []
    size = 0
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        mode = path.lstat()
        if stat.S_ISDIR(mode.st_mode):
            continue
        if not stat.S_ISREG(mode.st_mode):
            raise ConfigError(f"{name} is a link or a device; a skill holds plain files only")
        if name.count("/") > 1:
            raise ConfigError(f"{name} lies too deep; resources are one folder deep")
        size += mode.st_size
        if mode.st_size > MAX_FILE_KIB << 10 or size > MAX_FOLDER_KIB << 10:
            raise ConfigError(f"{name} is too much: {MAX_FILE_KIB} KiB a file and {MAX_FOLDER_KIB} KiB a skill at most")
        found.append(name)
        if len(found) > MAX_FILES:
            raise ConfigError(f"a skill holds at most {MAX_FILES} files")
    return found


def digest_of(folder: Path) -> str:
    """`sha256:` over the names, in order, and contents of all files. Raises ConfigError as `files_of`."""
    whole = hashlib.sha256(b"aibox/skill/v1\x00")
    for name in files_of(folder):
        whole.update(name.encode() + b"\x00" + hashlib.sha256((folder / name).read_bytes()).digest())
    return f"sha256:{whole.hexdigest()}"


SKILL_TOOLS = frozenset({"activate_skill", "read_skill_resource", "run_skill_script"})


def narrowing(skill: Skill) -> ToolRules:
    """What is left to call once the skill is active: its `allowed-tools`, and the tools for skills themselves."""
    names = skill.tools()
    return ToolRules(allow=None if names is None else names | SKILL_TOOLS)


def catalogue(skills: Sequence[Skill]) -> str:
    """What a model is told before it needs any of them: a name and a sentence each. Empty without skills."""
    if not skills:
        return ""
    lines = [f"- {skill.name}: {' '.join(skill.description.split())}" for skill in skills]
    return "Skills that you can activate, each with instructions for one kind of task:\n" + "\n".join(lines)


def _faults(fields: Mapping[str, Any], folder: Path) -> list[str]:
    faults = [wrong] if (wrong := frontmatter.unknown(list(fields), [*FIELDS, *FOREIGN_FIELDS])) else []
    faults += [f"the required field {name} is missing" for name in ("name", "description") if name not in fields]
    if "name" in fields:
        faults += _name_faults(fields["name"], folder)
    faults += _text_faults(fields, "description", most=MAX_DESCRIPTION, least=1)
    faults += _text_faults(fields, "compatibility", most=MAX_COMPATIBILITY, least=1)
    faults += _text_faults(fields, "license", most=MAX_COMPATIBILITY, least=1)
    metadata = fields.get("metadata", {})
    if not isinstance(metadata, Mapping) or not all(isinstance(value, str) for value in metadata.values()):
        faults.append("metadata must map text to text")
    if "allowed-tools" in fields:
        try:
            _tools(fields["allowed-tools"])
        except ConfigError as error:
            faults.append(error.message)
    return faults


def _name_faults(name: Any, folder: Path) -> list[str]:
    if not isinstance(name, str) or not name.strip():
        return ["name must be text"]
    name = unicodedata.normalize("NFKC", name.strip())
    faults = []
    if len(name) > MAX_NAME:
        faults.append(f"name has {len(name)} characters; at most {MAX_NAME} are allowed")
    if name != name.lower():
        faults.append("name must be lower case")
    if name.startswith("-") or name.endswith("-"):
        faults.append("name cannot begin or end with a hyphen")
    if "--" in name:
        faults.append("name cannot have two hyphens in a row")
    if not all(char.isalnum() or char == "-" for char in name):
        faults.append("name can have letters, digits and hyphens only")
    if unicodedata.normalize("NFKC", folder.name) != name:
        faults.append(f"name must be that of its folder, {folder.name!r}")
    return faults


def _text_faults(fields: Mapping[str, Any], key: str, *, most: int, least: int) -> list[str]:
    if key not in fields:
        return []
    value = fields[key]
    if not isinstance(value, str) or len(value.strip()) < least:
        return [f"{key} must be text, and not empty"]
    return [f"{key} has {len(value)} characters; at most {most} are allowed"] if len(value) > most else []


def _tools(value: Any) -> tuple[str, ...]:
    """One text with spaces between (as specified), or a list. A pattern such as `Bash(git:*)` is kept as it stands."""
    if isinstance(value, str):
        value = re.findall(r"[^\s(]+(?:\([^()]*\))?", value)
    if not isinstance(value, list) or not all(isinstance(item, str) and _TOOL.fullmatch(item) for item in value):
        raise ConfigError("allowed-tools must be names of tools: one text with spaces between, or a list")
    return tuple(value)
