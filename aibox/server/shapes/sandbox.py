"""Sessions of the sandbox, what runs there, and its files."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from aibox.server.shapes.shape import Answer, Asked, Whole


class NewSandbox(Asked):
    gpus: Whole = Field(default=0, ge=0, le=64)
    """How many of the engine's GPUs; the policy says how many the tenant may have."""


class SandboxShown(Answer):
    id: str


class SandboxList(Answer):
    data: list[SandboxShown]


class Code(Asked):
    code: str = Field(max_length=1 << 20)
    language: Literal["python", "bash"] = "python"
    """`python` runs in the session's interpreter, whose variables remain; `bash` is one command line."""


class TableShown(Answer):
    columns: list[str]
    rows: list[list[str]]
    total_rows: int


class Ran(Answer):
    """What came of one run. Code that fails is a result too: `exit_code` says so, None where it was stopped."""

    stdout: str
    stderr: str
    exit_code: int | None
    duration_s: float
    value: str | None
    """The text of the last expression of Python code."""
    tables: list[TableShown]
    figures: list[str]
    """PNG, in base64."""
    peak_memory_mib: float | None
    truncated: bool
    limits_hit: list[str]
    state_lost: bool


class PathQuery(Asked):
    path: str = Field(min_length=1, max_length=4096, examples=["plan.csv"])
    """Inside the workspace."""


class FolderQuery(Asked):
    path: str = Field(default=".", min_length=1, max_length=4096)
    deep: bool = False
    """Also what is below it."""


class FileShown(Answer):
    path: str
    kind: Literal["file", "folder", "link", "other"]
    size: int


class FileList(Answer):
    data: list[FileShown]
