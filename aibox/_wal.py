"""SQLite's write-ahead log, where several processes may open a new file at once."""

from __future__ import annotations

import sqlite3
import time


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
