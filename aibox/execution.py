"""What a run of code may use, and what came of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

from aibox.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one sandbox session may use. All are upper bounds; joining two takes the smaller of each.

    `memory_mib` is resident memory of all processes together; `pids` counts processes and threads; `cpus` is processor
    time a second, in processors; `wall_s` is the time of one run; `output_kib` is what is kept of stdout and of stderr
    each; `workspace_mib` bounds one file and the whole workspace.
    """

    memory_mib: int = 512
    pids: int = 64
    cpus: float = 2.0
    wall_s: float = 30.0
    output_kib: int = 256
    workspace_mib: int = 128

    def __post_init__(self) -> None:
        for limit in fields(self):
            if not 0 < getattr(self, limit.name) < math.inf:
                raise ConfigError(f"a sandbox limit must be a number above 0: {limit.name}")

    def __and__(self, other: Limits) -> Limits:
        return Limits(**{f.name: min(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)})


@dataclass(frozen=True, slots=True)
class Table:
    """A table that code returned, as text: at most 50 rows and 30 columns of it, of `total_rows`."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    total_rows: int

    def __str__(self) -> str:
        lines = [" | ".join(self.columns), *(" | ".join(row) for row in self.rows)]
        more = self.total_rows - len(self.rows)
        return "\n".join([*lines, *([f"({more} more rows)"] if more > 0 else [])])

    def _repr_html_(self) -> str:
        from html import escape  # its table of entities is large, and a server shows no notebook

        head = "".join(f"<th>{escape(name)}</th>" for name in self.columns)
        body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in self.rows)
        return f"<table><tr>{head}</tr>{body}</table>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came of one run. A command that fails is a result; only an isolation that fails is an exception.

    `value` is the text of the last expression of Python code, `tables` and `figures` (PNG) what it showed: all of it,
    like stdout, the word of the code that ran. `exit_code` is None when the run was stopped; `limits_hit` then names
    the limits in words a model can act on. `state_lost` says that variables of the session are gone; files are kept.
    """

    stdout: str
    stderr: str
    exit_code: int | None
    duration_s: float
    value: str | None = None
    tables: tuple[Table, ...] = ()
    figures: tuple[bytes, ...] = field(default=(), repr=False)
    peak_memory_mib: float | None = None
    truncated: bool = False
    limits_hit: tuple[str, ...] = ()
    state_lost: bool = False

    @property
    def ok(self) -> bool:
        return self.exit_code == 0


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file that code made: its path in the workspace, its size, and the SHA-256 of its bytes in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class FileEntry:
    """Something in a workspace. `kind` is file, folder, link or other; `changed_ns` only compares with itself."""

    path: str
    kind: str
    size: int
    changed_ns: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """What the kernel counted for a guest; `memory_kills` are processes that it ended for want of memory."""

    peak_memory_mib: float | None = None
    memory_kills: int = 0
