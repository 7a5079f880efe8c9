"""SQLite files that several processes of one owner may open at once, a new one too."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

_STEPS = (
    ("locked", "another process has been writing for long; try again", True),
    ("busy", "another process has been writing for long; try again", True),
    ("I/O", "look whether the disk is full or failing; nothing that was acknowledged is lost", True),
    ("No space left", "the disk is full: free some space; nothing that was acknowledged is lost", True),
    ("full", "the disk is full: free some space; nothing that was acknowledged is lost", True),
    ("not a database", "it is something else, or damaged from its first bytes: restore it from a backup", False),
    ("malformed", "the file is damaged: restore it from a backup, beside it, and compare", False),
    ("readonly", "make the file and its folder writable, or set AIBOX_HOME", False),
    ("unable to open", "check that the folder exists and that you may use it, or set AIBOX_HOME", False),
)
"""A word of SQLite's or the system's, what to do, and whether the same may work a moment later."""


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


def next_step(said: str) -> tuple[str, bool]:
    """What to do about what SQLite, or the system, says, and whether the same can be tried again."""
    return next(((hint, again) for word, hint, again in _STEPS if word in said), ("", False))
