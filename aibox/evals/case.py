"""What an agent is asked, and what should come of it: cases, from YAML, JSON lines or CSV, under one digest."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from aibox import plain_yaml
from aibox.audit import canonical
from aibox.errors import ConfigError, MissingExtraError
from aibox.types import Label
from aibox.validation import explain_validation

MAX_FILE_BYTES = 64 * 2**20
# Also the name of a session, a test and a file.
_ID = re.compile(r"[!-.0-Z\\^-~]{1,120}")


class Case(BaseModel):
    """One question. `expected` is what scorers compare with; `tools` names what should be called, in order.

    `history` are earlier messages; `final` is a state of the world that should be reached; `label` marks the input.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    input: str = Field(min_length=1)
    expected: Any = None
    tools: tuple[str, ...] | None = None
    history: tuple[dict[str, str], ...] = ()
    final: Any = None
    label: str | None = None
    tags: tuple[str, ...] = ()
    source: str = ""
    """Where the case comes from, such as the turn that it was; for people."""

    @field_validator("id")
    @classmethod
    def _named(cls, value: str) -> str:
        if not _ID.fullmatch(value):
            raise ValueError("an id has 1 to 120 printable ASCII characters, and no space, slash or square bracket")
        return value

    @field_validator("label")
    @classmethod
    def _labelled(cls, value: str | None) -> str | None:
        if value is not None:
            Label.parse(value)
        return value

    @property
    def digest(self) -> str:
        """The SHA-256, in hex, of the case's canonical JSON without its source."""
        return hashlib.sha256(canonical.dumps(definite(self.model_dump(mode="json", exclude={"source"})))).hexdigest()


@dataclass(frozen=True, slots=True)
class Dataset(Sequence[Case]):
    """Cases in order, with ids of their own. The digest depends on the cases and their order, not on the file."""

    cases: tuple[Case, ...]
    name: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for case in self.cases:
            if case.id in seen:
                raise ConfigError(f"two cases are called {case.id}", hint="give each case an id of its own")
            seen.add(case.id)

    @classmethod
    def load(cls, path: str | Path) -> Dataset:
        """Read `.yaml`, `.jsonl` or `.csv`. Raises ConfigError that names the file and the case at fault.

        A case without an `id` is called by its number. YAML is a list of cases, or a mapping with the key `cases`, in
        which only `true`, `false`, `null` and plain decimal numbers are more than text. In CSV a cell of
        `expected`, `tools`, `history`, `final` or `tags` that is JSON is read as such.
        """
        path = Path(path)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"cannot read the cases {path}: {error.strerror}") from None
        if len(data) > MAX_FILE_BYTES:
            raise ConfigError(f"{path} is longer than {MAX_FILE_BYTES} bytes")
        read = _READERS.get(path.suffix.lower())
        if read is None:
            raise ConfigError(f"{path} is no file of cases", hint=f"one of {', '.join(_READERS)}")
        try:
            rows = read(data.decode("utf-8-sig"), str(path))
        except UnicodeDecodeError:
            raise ConfigError(f"{path} is not UTF-8") from None
        except ValueError as error:
            raise ConfigError(f"{path}: {error}") from None
        return cls.of(rows, name=path.name)

    @classmethod
    def of(cls, rows: Sequence[Any], *, name: str = "cases") -> Dataset:
        """From cases, or mappings that describe them."""
        made = []
        for number, row in enumerate(rows, 1):
            if isinstance(row, Case):
                made.append(row)
                continue
            if not isinstance(row, Mapping):
                raise ConfigError(f"{name}: case {number} is no mapping")
            try:
                made.append(Case.model_validate({"id": f"case-{number}", **row}))
            except ValidationError as error:
                raise ConfigError(
                    f"{name}: case {row.get('id') or number}: {explain_validation(error, Case)}"
                ) from None
            except ConfigError as error:
                raise ConfigError(f"{name}: case {row.get('id') or number}: {error.message}", hint=error.hint) from None
        if not made:
            # An empty set of cases would pass everything.
            raise ConfigError(f"{name} holds no cases")
        return cls(tuple(made), name)

    def save(self, path: str | Path) -> None:
        """Write JSON lines, one case a line, which diff well in git."""
        lines = [
            json.dumps(case.model_dump(mode="json", exclude_defaults=True), ensure_ascii=False) for case in self.cases
        ]
        Path(path).write_text("".join(f"{line}\n" for line in lines), "utf-8")

    @property
    def digest(self) -> str:
        """`sha256:` and the SHA-256 over the digests of the cases."""
        return "sha256:" + hashlib.sha256("\n".join(case.digest for case in self.cases).encode()).hexdigest()

    def tagged(self, *tags: str) -> Dataset:
        """The cases that carry all of these tags."""
        return Dataset(tuple(case for case in self.cases if set(tags) <= set(case.tags)), self.name)

    def params(self) -> list[Any]:
        """The cases for `@pytest.mark.parametrize("case", dataset.params())`, each test called by its case's id."""
        try:
            import pytest
        except ImportError:
            raise MissingExtraError("tests from cases", extra="evals") from None
        return [pytest.param(case, id=case.id) for case in self.cases]

    def __getitem__(self, index: Any) -> Any:
        return self.cases[index]

    def __len__(self) -> int:
        return len(self.cases)

    def __iter__(self) -> Iterator[Case]:
        return iter(self.cases)


def definite(value: Any) -> Any:
    """A value with a canonical form: floats as the shortest text that gives them back, keys as ASCII."""
    if isinstance(value, Mapping):
        return {str(key).encode("unicode_escape").decode(): definite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [definite(item) for item in value]
    if isinstance(value, float) or (isinstance(value, int) and abs(value) > canonical.MAX_SAFE_INTEGER):
        return {"number": repr(value)}
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return value


def _yaml(text: str, source: str) -> list[Any]:
    try:
        value = plain_yaml.read(text, source=source, typed=True)
    except ImportError:
        raise MissingExtraError("cases in YAML", extra="evals") from None
    if isinstance(value, dict) and set(value) == {"cases"}:
        value = value["cases"]
    if not isinstance(value, list):
        raise ValueError("a list of cases is wanted, or a mapping with the one key `cases`")  # noqa: TRY004 - a file's fault
    return value


def _jsonl(text: str, _source: str) -> list[Any]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"line {number} is not JSON: {error}") from None
    return rows


def _csv(text: str, _source: str) -> list[Any]:
    reader = csv.DictReader(io.StringIO(text), strict=True)
    rows: list[dict[str, Any]] = []
    try:
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(f"line {reader.line_num} has another number of cells than the head")
            rows.append({key: _cell(key, cell) for key, cell in row.items() if cell != ""})
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from None
    return rows


def _cell(key: str, cell: str) -> Any:
    if key not in ("expected", "tools", "history", "final", "tags"):
        return cell
    try:
        return json.loads(cell)
    except ValueError:
        return cell


_READERS = {".yaml": _yaml, ".yml": _yaml, ".jsonl": _jsonl, ".csv": _csv}
