"""The log in SQLite: WAL, synchronous=FULL, rows that cannot be changed through SQL. Blocking; one thread at a time."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from aibox.audit.record import Header, leaf_hash
from aibox.errors import StoreError

FORMAT = "aibox/audit/v1"
BUSY_S = 30.0

_TABLES = {
    "meta": "name TEXT PRIMARY KEY, value TEXT NOT NULL",
    "logs": "log BLOB PRIMARY KEY, tenant TEXT NOT NULL UNIQUE, origin TEXT NOT NULL",
    "entries": "log BLOB NOT NULL, seq INTEGER NOT NULL, header BLOB NOT NULL, body BLOB NOT NULL, tag BLOB NOT NULL, "
    "PRIMARY KEY (log, seq)",
    "nodes": "log BLOB NOT NULL, level INTEGER NOT NULL, idx INTEGER NOT NULL, hash BLOB NOT NULL, "
    "PRIMARY KEY (log, level, idx)",
    "checkpoints": "log BLOB NOT NULL, size INTEGER NOT NULL, note TEXT NOT NULL, PRIMARY KEY (log, size)",
    "turns": "log BLOB NOT NULL, turn TEXT NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (log, turn)",
}


class Row(NamedTuple):
    """An entry as it is stored."""

    seq: int
    header: bytes
    body: bytes
    tag: bytes


class SqliteLog:
    """One database file with the logs of all tenants. `read_only` opens without making or changing anything.

    Raises StoreError for a file that cannot be opened, locked or written, or that is no audit log.
    """

    def __init__(self, path: str | Path, *, read_only: bool = False) -> None:
        self.path = str(path)
        with self._mapped():
            if read_only:
                self._db = _open_read_only(Path(path))
            else:
                self._db = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
                self._prepare()
            self._check_format()

    def _prepare(self) -> None:
        self._db.execute("PRAGMA journal_mode=WAL")
        # An entry is acknowledged when it is on the disk, not when the system has promised to write it.
        self._db.execute("PRAGMA synchronous=FULL")
        if self._has_tables():
            return
        self._db.execute("BEGIN IMMEDIATE")
        for name, columns in _TABLES.items():
            self._db.execute(f"CREATE TABLE IF NOT EXISTS {name} ({columns}) WITHOUT ROWID")
            for verb in ("UPDATE", "DELETE"):
                self._db.execute(
                    f"CREATE TRIGGER IF NOT EXISTS {name}_no_{verb.lower()} BEFORE {verb} ON {name} "
                    f"BEGIN SELECT RAISE(ABORT, 'evidence is never changed'); END"
                )
        self._db.execute("INSERT OR IGNORE INTO meta VALUES ('format', ?)", (FORMAT,))
        self._db.execute("COMMIT")

    def _has_tables(self) -> bool:
        return bool(self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'turns'").fetchone())

    def _check_format(self) -> None:
        if not self._has_tables() or self.meta("format") != FORMAT:
            raise StoreError(f"{self.path} is not an audit log of this version")

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OverflowError) as error:
            raise StoreError(f"the audit log {self.path}: {error}", hint=_hint(str(error))) from error

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, durable at the end; other writers wait. Raises StoreError, and then nothing was written."""
        with self._mapped():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                # A failed COMMIT (a full disk) may have rolled back already.
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def meta(self, name: str) -> str | None:
        with self._mapped():
            row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    def set_meta(self, name: str, value: str) -> None:
        self._db.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (name, value))

    def logs(self) -> list[tuple[bytes, str, str]]:
        """(log_id, tenant, origin) of each log, by tenant."""
        with self._mapped():
            return self._db.execute("SELECT log, tenant, origin FROM logs ORDER BY tenant").fetchall()

    def add_log(self, log: bytes, tenant: str, origin: str) -> None:
        self._db.execute("INSERT OR IGNORE INTO logs VALUES (?, ?, ?)", (log, tenant, origin))

    def head(self, log: bytes) -> Row | None:
        sql = "SELECT seq, header, body, tag FROM entries WHERE log = ? ORDER BY seq DESC LIMIT 1"
        with self._mapped():
            row = self._db.execute(sql, (log,)).fetchone()
        return Row(*row) if row else None

    def entries(self, log: bytes, *, start: int = 0, limit: int = -1) -> Iterator[Row]:
        sql = "SELECT seq, header, body, tag FROM entries WHERE log = ? AND seq >= ? ORDER BY seq LIMIT ?"
        with self._mapped():
            for row in self._db.execute(sql, (log, start, limit)):
                yield Row(*row)

    def node(self, log: bytes, level: int, index: int) -> bytes:
        """The hash of a complete subtree; of a leaf from its header. Raises StoreError where it is missing."""
        with self._mapped():
            if level == 0:
                row = self._db.execute("SELECT header FROM entries WHERE log = ? AND seq = ?", (log, index)).fetchone()
                if row:
                    return leaf_hash(row[0])
            else:
                sql = "SELECT hash FROM nodes WHERE log = ? AND level = ? AND idx = ?"
                row = self._db.execute(sql, (log, level, index)).fetchone()
                if row:
                    found: bytes = row[0]
                    return found
        raise StoreError(f"the audit log {self.path} has lost node {level}/{index}", hint="aibox verify says more")

    def nodes(self, log: bytes) -> Iterator[tuple[int, int, bytes]]:
        with self._mapped():
            yield from self._db.execute("SELECT level, idx, hash FROM nodes WHERE log = ?", (log,))

    def checkpoints(self, log: bytes) -> list[tuple[int, str]]:
        with self._mapped():
            return self._db.execute("SELECT size, note FROM checkpoints WHERE log = ? ORDER BY size", (log,)).fetchall()

    def turn(self, log: bytes, turn: str) -> int | None:
        """The seq of the terminal entry of a turn."""
        with self._mapped():
            row = self._db.execute("SELECT seq FROM turns WHERE log = ? AND turn = ?", (log, turn)).fetchone()
        return row[0] if row else None

    def turns(self, log: bytes) -> dict[str, int]:
        with self._mapped():
            return dict(self._db.execute("SELECT turn, seq FROM turns WHERE log = ?", (log,)).fetchall())

    # Writing; inside `transaction` only.

    def add_entries(self, log: bytes, rows: Sequence[Row]) -> None:
        self._db.executemany("INSERT INTO entries VALUES (?, ?, ?, ?, ?)", [(log, *row) for row in rows])

    def add_nodes(self, log: bytes, nodes: Sequence[tuple[int, int, bytes]]) -> None:
        self._db.executemany("INSERT INTO nodes VALUES (?, ?, ?, ?)", [(log, *node) for node in nodes])

    def add_checkpoint(self, log: bytes, size: int, note: str) -> None:
        self._db.execute("INSERT OR IGNORE INTO checkpoints VALUES (?, ?, ?)", (log, size, note))

    def add_turn(self, log: bytes, turn: str, seq: int) -> None:
        self._db.execute("INSERT INTO turns VALUES (?, ?, ?)", (log, turn, seq))

    def close(self) -> None:
        self._db.close()


def head_of(row: Row | None) -> tuple[int, bytes, int] | None:
    """(size, leaf hash, ts_us) after an entry."""
    return (row.seq + 1, leaf_hash(row.header), Header.unpack(row.header).ts_us) if row else None


def _open_read_only(path: Path) -> sqlite3.Connection:
    if not path.is_file():
        raise StoreError(f"there is no audit log {path}")
    # A copy on read-only media has no room for the index of its write-ahead log. Where there is no such log either, the
    # file is whole and is read as it lies.
    whole = not path.with_name(path.name + "-wal").exists()
    mode = "mode=ro&immutable=1" if whole else "mode=ro"
    uri = f"{path.absolute().as_uri()}?{mode}"
    return sqlite3.connect(uri, uri=True, timeout=BUSY_S, isolation_level=None, check_same_thread=False)


def _hint(message: str) -> str:
    for words, hint in (
        ("locked", "another process has been writing for long; try again"),
        ("readonly", "make the file and its folder writable, or set AIBOX_HOME"),
        ("unable to open", "check that the folder exists and that you may use it"),
        ("full", "free some space; nothing that was acknowledged is lost"),
        ("not a database", "the file is something else, or damaged from its first bytes"),
        ("malformed", "the file is damaged; restore a backup beside it and compare"),
    ):
        if words in message:
            return hint
    return ""
