"""The log in SQLite: WAL, synchronous=FULL, rows that cannot be changed through SQL. Blocking; one thread at a time."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from aibox._sqlite import write_ahead
from aibox.audit.record import Row
from aibox.audit.store import FORMAT, Act, Conflict, LogName, Node, opening
from aibox.errors import StoreError

BUSY_S = 30.0
SCRUB_S = 0.25

_TABLES = {
    "meta": "name TEXT PRIMARY KEY, value TEXT NOT NULL",
    "logs": "log BLOB PRIMARY KEY, tenant TEXT NOT NULL UNIQUE, origin TEXT NOT NULL, public_key TEXT NOT NULL",
    "entries": "log BLOB NOT NULL, seq INTEGER NOT NULL, header BLOB NOT NULL, open BLOB, sealed BLOB, "
    "tag BLOB NOT NULL, PRIMARY KEY (log, seq)",
    "nodes": "log BLOB NOT NULL, level INTEGER NOT NULL, idx INTEGER NOT NULL, hash BLOB NOT NULL, "
    "PRIMARY KEY (log, level, idx)",
    "checkpoints": "log BLOB NOT NULL, size INTEGER NOT NULL, note TEXT NOT NULL, PRIMARY KEY (log, size)",
    "turns": "log BLOB NOT NULL, turn TEXT NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (log, turn)",
    "acts": "log BLOB NOT NULL, seq INTEGER NOT NULL, kind TEXT NOT NULL, first INTEGER NOT NULL, "
    "last INTEGER NOT NULL, PRIMARY KEY (log, seq)",
    "subjects": "log BLOB NOT NULL, who BLOB NOT NULL, id BLOB NOT NULL, wrapped BLOB NOT NULL, PRIMARY KEY (log, who)",
}
_REFUSE = "BEGIN SELECT RAISE(ABORT, 'evidence is never changed'); END"
# The one change that there is: a body goes where an act of pruning, itself an entry, says that it goes.
_PRUNES = (
    "NEW.open IS NULL AND NEW.sealed IS NULL AND NEW.log = OLD.log AND NEW.seq = OLD.seq AND NEW.header = OLD.header "
    "AND NEW.tag = OLD.tag AND EXISTS (SELECT 1 FROM acts WHERE acts.log = OLD.log AND acts.kind = 'bodies.pruned' "
    "AND OLD.seq BETWEEN acts.first AND acts.last)"
)


_TOGETHER = 32
"""How many rows a statement inserts at most. Each count is a statement of its own, which the connection keeps."""
_STATEMENTS = 256


class SqliteStore:
    """One database file with the logs of all tenants. `read_only` opens without making or changing anything.

    Raises StoreError for a file that cannot be opened, locked or written, or that is no audit log.
    """

    def __init__(self, path: str | Path, *, read_only: bool = False) -> None:
        self.path = str(path)
        self._version = -1
        self._mapped = _Mapped(self.path)
        with self._mapped:
            if read_only:
                self._db = _open_read_only(Path(path))
            else:
                self._db = sqlite3.connect(
                    self.path,
                    timeout=BUSY_S,
                    isolation_level=None,
                    check_same_thread=False,
                    cached_statements=_STATEMENTS,
                )
                self._prepare()
            self._check_format()

    def _prepare(self) -> None:
        write_ahead(self._db, wait_s=BUSY_S)
        # An entry is acknowledged when it is on the disk, not when the system has promised to write it.
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("PRAGMA secure_delete=ON")
        if self._has_tables():
            return
        self._db.execute("BEGIN IMMEDIATE")
        for name, columns in _TABLES.items():
            # Rows that are a good part of a page are kept in a tree of their own, in the order in which they came: as
            # keys they would split it badly, and beyond a kilobyte take a page each. Logs begun so go on so.
            ending = "" if name == "entries" else " WITHOUT ROWID"
            self._db.execute(f"CREATE TABLE IF NOT EXISTS {name} ({columns}){ending}")
            if name == "subjects":
                continue
            for verb in ("UPDATE", "DELETE"):
                when = f"WHEN NOT ({_PRUNES}) " if (name, verb) == ("entries", "UPDATE") else ""
                trigger = f"{name}_no_{verb.lower()} BEFORE {verb} ON {name}"
                self._db.execute(f"CREATE TRIGGER IF NOT EXISTS {trigger} {when}{_REFUSE}")
        self._db.execute("INSERT OR IGNORE INTO meta VALUES ('format', ?)", (FORMAT,))
        self._db.execute("COMMIT")

    def _has_tables(self) -> bool:
        return bool(self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'turns'").fetchone())

    def _check_format(self) -> None:
        if not self._has_tables() or self.meta("format") != FORMAT:
            raise StoreError(f"{self.path} is not an audit log of this version")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Other writers wait until it ends."""
        with self._mapped:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                # A failed COMMIT (a full disk) may have rolled back already.
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def changed(self) -> bool:
        with self._mapped:
            before, self._version = self._version, self._db.execute("PRAGMA data_version").fetchone()[0]
        return before != self._version

    def meta(self, name: str) -> str | None:
        with self._mapped:
            row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    def set_meta(self, name: str, value: str) -> None:
        self._db.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (name, value))

    def logs(self) -> list[LogName]:
        with self._mapped:
            rows = self._db.execute("SELECT log, tenant, origin, public_key FROM logs ORDER BY tenant").fetchall()
        return [LogName(*row) for row in rows]

    def log_named(self, log: bytes) -> LogName | None:
        with self._mapped:
            sql = "SELECT log, tenant, origin, public_key FROM logs WHERE log = ?"
            row = self._db.execute(sql, (log,)).fetchone()
        return LogName(*row) if row else None

    def add_log(self, name: LogName) -> None:
        self._db.execute("INSERT OR IGNORE INTO logs VALUES (?, ?, ?, ?)", name)

    def head(self, log: bytes) -> Row | None:
        sql = "SELECT seq, header, open, sealed, tag FROM entries WHERE log = ? ORDER BY seq DESC LIMIT 1"
        with self._mapped:
            row = self._db.execute(sql, (log,)).fetchone()
        return Row(*row) if row else None

    def size(self, log: bytes) -> int:
        with self._mapped:
            last = self._db.execute("SELECT max(seq) FROM entries WHERE log = ?", (log,)).fetchone()[0]
        return 0 if last is None else last + 1

    def entries(self, log: bytes, *, start: int = 0, limit: int = -1, kind: str = "") -> Iterator[Row]:
        kinds = opening(kind) if kind else ()
        sql = "SELECT seq, header, open, sealed, tag FROM entries WHERE log = ? AND seq >= ? "
        sql += ("AND open >= ? AND open < ? " if kind else "") + "ORDER BY seq LIMIT ?"
        with self._mapped:
            for row in self._db.execute(sql, (log, start, *kinds, limit)):
                yield Row(*row)

    def add_entries(self, log: bytes, size: int, rows: Sequence[Row]) -> None:
        if self.size(log) != size:
            raise Conflict
        self._insert("entries", log, rows)

    def _insert(self, table: str, log: bytes, rows: Sequence[Sequence[Any]]) -> None:
        # Each step of a statement lets other threads go first, so many rows are one statement and not many steps.
        for start in range(0, len(rows), _TOGETHER):
            values = [value for row in rows[start : start + _TOGETHER] for value in (log, *row)]
            self._db.execute(_inserting(table, min(_TOGETHER, len(rows) - start), len(rows[0]) + 1), values)

    def nodes(self, log: bytes, level: int, start: int, count: int) -> list[bytes]:
        sql = "SELECT hash FROM nodes WHERE log = ? AND level = ? AND idx >= ? AND idx < ? ORDER BY idx"
        with self._mapped:
            return [row[0] for row in self._db.execute(sql, (log, level, start, start + count))]

    def all_nodes(self, log: bytes) -> Iterator[Node]:
        with self._mapped:
            for row in self._db.execute("SELECT level, idx, hash FROM nodes WHERE log = ?", (log,)):
                yield Node(*row)

    def add_nodes(self, log: bytes, nodes: Sequence[Node]) -> None:
        self._insert("nodes", log, nodes)

    def checkpoints(self, log: bytes) -> list[tuple[int, str]]:
        with self._mapped:
            return self._db.execute("SELECT size, note FROM checkpoints WHERE log = ? ORDER BY size", (log,)).fetchall()

    def checkpoint_from(self, log: bytes, size: int) -> tuple[int, str] | None:
        sql = "SELECT size, note FROM checkpoints WHERE log = ? AND size >= ? ORDER BY size LIMIT 1"
        with self._mapped:
            found: tuple[int, str] | None = self._db.execute(sql, (log, size)).fetchone()
        return found

    def add_checkpoint(self, log: bytes, size: int, note: str) -> None:
        self._db.execute("INSERT OR IGNORE INTO checkpoints VALUES (?, ?, ?)", (log, size, note))

    def turn(self, log: bytes, turn: str) -> int | None:
        with self._mapped:
            row = self._db.execute("SELECT seq FROM turns WHERE log = ? AND turn = ?", (log, turn)).fetchone()
        return row[0] if row else None

    def turns(self, log: bytes) -> dict[str, int]:
        with self._mapped:
            return dict(self._db.execute("SELECT turn, seq FROM turns WHERE log = ?", (log,)).fetchall())

    def add_turns(self, log: bytes, turns: Sequence[tuple[str, int]]) -> None:
        try:
            self._insert("turns", log, turns)
        except sqlite3.IntegrityError:
            raise Conflict from None

    def acts(self, log: bytes) -> list[Act]:
        sql = "SELECT seq, kind, first, last FROM acts WHERE log = ? ORDER BY seq"
        with self._mapped:
            return [Act(*row) for row in self._db.execute(sql, (log,))]

    def add_acts(self, log: bytes, acts: Sequence[Act]) -> None:
        self._insert("acts", log, acts)

    def prune(self, log: bytes, seqs: Sequence[int]) -> None:
        sql = "UPDATE entries SET open = NULL, sealed = NULL WHERE log = ? AND seq = ?"
        self._db.executemany(sql, [(log, seq) for seq in seqs])

    def subject(self, log: bytes, who: bytes) -> tuple[bytes, bytes] | None:
        with self._mapped:
            sql = "SELECT id, wrapped FROM subjects WHERE log = ? AND who = ?"
            found: tuple[bytes, bytes] | None = self._db.execute(sql, (log, who)).fetchone()
        return found

    def subject_key(self, log: bytes, subject: bytes) -> bytes | None:
        with self._mapped:
            sql = "SELECT wrapped FROM subjects WHERE log = ? AND id = ?"
            row = self._db.execute(sql, (log, subject)).fetchone()
        return row[0] if row else None

    def add_subject(self, log: bytes, who: bytes, subject: bytes, wrapped: bytes) -> None:
        self._db.execute("INSERT INTO subjects VALUES (?, ?, ?, ?)", (log, who, subject, wrapped))

    def drop_subject(self, log: bytes, subject: bytes) -> None:
        self._db.execute("DELETE FROM subjects WHERE log = ? AND id = ?", (log, subject))

    def scrub(self) -> bool:
        with self._mapped:
            # A reader may take long, and whoever wants to write waits meanwhile.
            self._db.execute(f"PRAGMA busy_timeout = {round(SCRUB_S * 1000)}")
            (busy, *_) = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            self._db.execute(f"PRAGMA busy_timeout = {round(BUSY_S * 1000)}")
        return not busy

    def close(self) -> None:
        self._db.close()


class _Mapped:
    """SQLite's errors as ours. A class, because each commit goes through it five times."""

    __slots__ = ("_path",)

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, sqlite3.Error | OverflowError):
            raise StoreError(f"the audit log {self._path}: {error}", hint=_hint(str(error))) from error


@cache
def _inserting(table: str, rows: int, columns: int) -> str:
    row = f"({', '.join('?' * columns)})"
    return f"INSERT INTO {table} VALUES {', '.join([row] * rows)}"  # noqa: S608 - names are constants


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
        ("disk I/O", "look whether the disk is full or failing; nothing that was acknowledged is lost"),
        ("full", "free some space; nothing that was acknowledged is lost"),
        ("not a database", "the file is something else, or damaged from its first bytes"),
        ("malformed", "the file is damaged; restore a backup beside it and compare"),
    ):
        if words in message:
            return hint
    return ""
