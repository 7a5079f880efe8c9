"""SQLite files that several processes of one owner may open at once, a new one too."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path


def open_private(path: Path | None, *, wait_s: float) -> sqlite3.Connection:
    """A database for its owner's eyes only (0600, in a folder of 0700 where that is made), in WAL; None is in memory.

    Any thread may use the connection; statements commit by themselves. Raises OSError and sqlite3.Error.
    """
    if path is not None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Made by us and not by SQLite, so that nobody else can read it for a moment.
        path.touch(mode=0o600, exist_ok=True)
    db = sqlite3.connect(path or ":memory:", timeout=wait_s, isolation_level=None, check_same_thread=False)
    try:
        write_ahead(db, wait_s=wait_s)
    except BaseException:
        db.close()
        raise
    return db


def write_ahead(db: sqlite3.Connection, *, wait_s: float) -> None:
    """Switch to WAL (https://sqlite.org/wal.html). Raises sqlite3.OperationalError when that takes too long.

    SQLite does not wait here for others who open the file, as it does elsewhere, so we do.
    """
    until = time.monotonic() + wait_s
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.01)
        else:
            return


def next_step(text: str) -> tuple[str, bool]:
    """What to do about what SQLite says, and whether the same can be tried again."""
    if "locked" in text or "busy" in text:
        return "another process has been writing for long; try again", True
    if "full" in text:
        return "the disk is full: make room; nothing that was kept is lost", False
    if "I/O" in text:
        return "look whether the disk is full, or failing", True
    if "not a database" in text or "malformed" in text:
        return "move the file away, or restore it from a backup", False
    if "readonly" in text or "unable to open" in text:
        return "make the folder writable, or name another", False
    return "", False
