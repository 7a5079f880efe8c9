"""The high-water mark: how far each log had come, on another path than the database, and whom it has erased.

A database that is behind its mark was put back. It is not written to until an operator says so, with a reason. The mark
is written after a commit and at most once a second, so it may be a second behind; it never runs ahead.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aibox.audit.keys import why
from aibox.errors import OPERATORS, ConfigError, StoreError

FORMAT = "aibox/highwater/v1"
INTERVAL_S = 1.0


class HighWater:
    """One JSON file: the last signed checkpoint of each log by its id, and the ids of people who were erased."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def notes(self) -> dict[bytes, str]:
        """The signed checkpoint of each log. Empty where there is no mark yet."""
        return {bytes.fromhex(log): str(note) for log, note in self._read()["notes"].items()}

    def erased(self, log: bytes) -> list[bytes]:
        return [bytes.fromhex(subject) for subject in self._read()["erased"].get(log.hex(), [])]

    def raise_to(self, notes: Mapping[bytes, tuple[int, str]]) -> None:
        """Forward only: another process may have written a higher mark meanwhile."""
        with self._changing() as value:
            for log, (size, note) in notes.items():
                known = value["notes"].get(log.hex())
                if known is None or _size(known) < size:
                    value["notes"][log.hex()] = note

    def set_back(self, log: bytes, note: str) -> None:
        """An operator's act, after it has been recorded: the mark falls to what was restored."""
        with self._changing() as value:
            value["notes"][log.hex()] = note

    def add_erased(self, log: bytes, subject: bytes) -> None:
        """Before the key is destroyed: whatever backup comes back, it is destroyed in it again."""
        with self._changing() as value:
            known = value["erased"].setdefault(log.hex(), [])
            if subject.hex() not in known:
                known.append(subject.hex())

    def _read(self) -> dict[str, Any]:
        try:
            value = json.loads(self.path.read_text("utf-8"))
        except FileNotFoundError:
            return {"format": FORMAT, "notes": {}, "erased": {}}
        except (OSError, ValueError) as error:
            raise StoreError(f"the high-water mark {self.path} cannot be read: {error}", hint=_HINT) from None
        if not isinstance(value, dict) or set(value) != {"format", "notes", "erased"} or value["format"] != FORMAT:
            raise ConfigError(f"{self.path} is not a high-water mark of this version", hint=_HINT, code=OPERATORS)
        return value

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Any]]:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self.path.with_name(self.path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                value = self._read()
                yield value
                fresh = self.path.with_name(f".{self.path.name}.{os.getpid()}")
                with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                    json.dump(value, file)
                    file.flush()
                    os.fsync(file.fileno())
                fresh.replace(self.path)
            finally:
                # Not by closing alone: a process that was forked meanwhile holds the file too, and with it the lock.
                fcntl.flock(lock, fcntl.LOCK_UN)
                os.close(lock)
        except OSError as error:
            raise StoreError(f"the high-water mark {self.path} cannot be written: {why(error)}") from None


_HINT = "restore it from where it is kept; without it, a database that was put back cannot be told from the newest"


def _size(note: str) -> int:
    return int(note.split("\n", 2)[1])
