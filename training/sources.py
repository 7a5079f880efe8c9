"""The labelled texts of a folder, as its `sources.toml` says what each file is. None of them may be a held-out one."""

from __future__ import annotations

import hashlib
import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import held_out


@dataclass(frozen=True)
class Source:
    name: str
    role: str
    train: bool
    rows: list[dict[str, Any]]
    sha256: str


def read(folder: Path) -> list[Source]:
    """Raises SystemExit where a file holds a held-out text, trained on or not: the others calibrate the scores."""
    files = tomllib.loads((folder / "sources.toml").read_text("utf-8"))["files"]
    found = []
    for name, spec in sorted(files.items()):
        data = (folder / name).read_bytes()
        # Not splitlines(): a text may hold any other line separator of Unicode.
        rows = [json.loads(line) for line in data.decode().split("\n") if line.strip()]
        held_out.refuse((row["text"] for row in rows), name)
        found.append(Source(name, spec["role"], spec["train"], rows, hashlib.sha256(data).hexdigest()))
    return found
