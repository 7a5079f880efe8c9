"""The log in SQLite: WAL, synchronous=FULL, rows that cannot be changed through SQL. Blocking; one thread at a time."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Self

from aibox._sqlite import next_step, write_ahead
from aibox.audit.record import Row
from aibox.audit.store import FORMAT, Act, Conflict, LogName, Node, opening
from aibox.errors import StoreError

BUSY_S = 30.0
SCRUB_S = 0.25

_TABLES = {
    "meta": "name TEXT PRIMARY KEY, value TEXT NOT NULL",
    "logs": "log BLOB PRIMARY KEY, tenant TEXT NOT NULL UNIQUE, origin TEXT NOT NULL, public_key TEXT NOT NULL, "
    "number INTEGER NOT NULL",
    "entries": "place INTEGER PRIMARY KEY, log BLOB NOT NULL, seq INTEGER NOT NULL, header BLOB NOT NULL, open BLOB, "
    "sealed BLOB, tag BLOB NOT NULL",
    "nodes": "log BLOB NOT NULL, level INTEGER NOT NULL, idx INTEGER NOT NULL, hash BLOB NOT NULL, "
    "PRIMARY KEY (log, level, idx)",
    "checkpoints": "log BLOB NOT NULL, size INTEGER NOT NULL, note TEXT NOT NULL, PRIMARY KEY (log, size)",
    "turns": "log BLOB NOT NULL, turn TEXT NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (log, turn)",
    "acts": "log BLOB NOT NULL, seq INTEGER NOT NULL, kind TEXT NOT NULL, first INTEGER NOT NULL, "
    "last INTEGER NOT NULL, PRIMARY KEY (log, seq)",
    "subjects": "log BLOB NOT NULL, who BLOB NOT NULL, id BLOB NOT NULL, wrapped BLOB NOT NULL, PRIMARY KEY (log, who)",
}
_ROOM = 2**40
"""Entry `seq` of log number n, from 1, lies at the place n * _ROOM + seq: one tree, without an index, that grows at the
ends of logs. In files that earlier versions began `log, seq` are the key instead; they are read and go on as they are.
"""
_REFUSE = "BEGIN SELECT RAISE(ABORT, 'evidence is never changed'); END"
# The one change that there is: a body goes where an act of pruning, itself an entry, says that it goes.
_PRUNES = (
    "NEW.open IS NULL AND NEW.sealed IS NULL AND NEW.log = OLD.log AND NEW.seq = OLD.seq AND NEW.header = OLD.header "
    "AND NEW.tag = OLD.tag AND NEW.place = OLD.place "
    "AND EXISTS (SELECT 1 FROM acts WHERE acts.log = OLD.log AND acts.kind = 'bodies.pruned' "
    "AND OLD.seq BETWEEN acts.first AND acts.last)"
)


_TOGETHER = 32
"""How many rows a statement inserts at most. Each count is a statement of its own, which the connection keeps."""
_STATEMENTS = 256


class _Statements(NamedTuple):
    """On the entries of one log: each is given `where` they lie from some entry on, in their `order`."""

    rows: str
    of_kind: str
    last: str
    last_seq: str
    prune: str
    add_log: str

    @classmethod
    def of(cls, where: str, order: str, one: str, number: str) -> Self:
        rows = f"SELECT seq, header, open, sealed, tag FROM entries WHERE {where} "  # noqa: S608 - all constants
        last = f"ORDER BY {order} DESC LIMIT 1"
        return cls(
            f"{rows} ORDER BY {order} LIMIT ?",
            f"{rows} AND open >= ? AND open < ? ORDER BY {order} LIMIT ?",
            f"{rows} {last}",
            f"SELECT seq FROM entries WHERE {where} {last}",  # noqa: S608 - all constants
            f"UPDATE entries SET open = NULL, sealed = NULL WHERE {one}",  # noqa: S608 - all constants
            f"INSERT OR IGNORE INTO logs SELECT ?, ?, ?, ?{number}",
        )


_PLACED = _Statements.of(
    "place >= ? AND place < ?", "place", "place = ? AND place < ?", ", coalesce(max(number), 0) + 1 FROM logs"
)
_KEYED = _Statements.of("log = ? AND seq >= ?", "seq", "log = ? AND seq = ?", "")


class SqliteStore:
    """One database file with the logs of all tenants. `read_only` opens without making or changing anything.

    Raises StoreError for a file that cannot be opened, locked or written, or that is no audit log.
    """

    def __init__(self, path: str | Path, *, read_only: bool = False) -> None:
        self.path = str(path)
        self._version = -1
        self._mapped = _Mapped(self.path)
        self._firsts: dict[bytes, int] = {}
        # How many entries logs have, as long as nobody else has written. Whoever has makes `changed` say so.
        self._sizes: dict[bytes, int] = {}
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
            self._placed = "place" in (row[1] for row in self._db.execute("PRAGMA table_info(entries)"))
            self._sql = _PLACED if self._placed else _KEYED

    def _prepare(self) -> None:
        write_ahead(self._db, wait_s=BUSY_S)
        # An entry is acknowledged when it is on the disk, not when the system has promised to write it.
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("PRAGMA secure_delete=ON")
        if self._has_tables():
            return
        self._db.execute("BEGIN IMMEDIATE")
        for name, columns in _TABLES.items():
            # Rows that are a good part of a page are no keys: they would split the tree badly, and beyond a kilobyte
            # take a page each.
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
                self._firsts.clear()
                self._sizes.clear()
                # A failed COMMIT (a full disk) may have rolled back already.
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def changed(self) -> bool:
        with self._mapped:
            before, self._version = self._version, self._db.execute("PRAGMA data_version").fetchone()[0]
        if before != self._version:
            self._sizes.clear()
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
        self._db.execute(self._sql.add_log, name)

    def _first(self, log: bytes) -> int:
        """The place of entry 0. Of a log that is not there: one where nothing lies."""
        first = self._firsts.get(log)
        if first is None:
            row = self._db.execute("SELECT number FROM logs WHERE log = ?", (log,)).fetchone()
            if row is None:
                return 0
            first = self._firsts[log] = row[0] * _ROOM
        return first

    def _span(self, log: bytes, start: int = 0) -> tuple[bytes | int, int]:
        """What statements ask for the entries of a log from `start` on."""
        if not self._placed:
            return log, start
        first = self._first(log)
        # Never before the first: there lie the entries of another log.
        return first + max(0, start), first + _ROOM

    def head(self, log: bytes) -> Row | None:
        with self._mapped:
            row = self._db.execute(self._sql.last, self._span(log)).fetchone()
        return Row(*row) if row else None

    def size(self, log: bytes) -> int:
        with self._mapped:
            last = self._db.execute(self._sql.last_seq, self._span(log)).fetchone()
        return last[0] + 1 if last else 0

    def entries(self, log: bytes, *, start: int = 0, limit: int = -1, kind: str = "") -> Iterator[Row]:
        with self._mapped:
            span = self._span(log, start)
            if kind:
                found = self._db.execute(self._sql.of_kind, (*span, *opening(kind), limit))
            else:
                found = self._db.execute(self._sql.rows, (*span, limit))
            for row in found:
                yield Row(*row)

    def add_entries(self, log: bytes, size: int, rows: Sequence[Row]) -> None:
        if self._sizes.get(log) != size and self.size(log) != size:
            raise Conflict
        first = self._first(log) if self._placed else 0
        if self._placed and not first:
            raise StoreError(f"the audit log {self.path} has no log {log.hex()}")
        placed = [(first + row.seq, log, *row) for row in rows] if first else [(log, *row) for row in rows]
        try:
            self._insert("entries", placed)
        except sqlite3.IntegrityError:
            raise Conflict from None
        self._sizes[log] = size + len(rows)

    def _insert(self, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
        # Each step of a statement lets other threads go first, so many rows are one statement and not many steps.
        for start in range(0, len(rows), _TOGETHER):
            part = rows[start : start + _TOGETHER]
            self._db.execute(_inserting(table, len(part), len(part[0])), [*chain.from_iterable(part)])

    def nodes(self, log: bytes, level: int, start: int, count: int) -> list[bytes]:
        sql = "SELECT hash FROM nodes WHERE log = ? AND level = ? AND idx >= ? AND idx < ? ORDER BY idx"
        with self._mapped:
            return [row[0] for row in self._db.execute(sql, (log, level, start, start + count))]

    def all_nodes(self, log: bytes) -> Iterator[Node]:
        with self._mapped:
            for row in self._db.execute("SELECT level, idx, hash FROM nodes WHERE log = ?", (log,)):
                yield Node(*row)

    def add_nodes(self, log: bytes, nodes: Sequence[Node]) -> None:
        self._insert("nodes", [(log, *node) for node in nodes])

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
            self._insert("turns", [(log, *turn) for turn in turns])
        except sqlite3.IntegrityError:
            raise Conflict from None

    def acts(self, log: bytes) -> list[Act]:
        sql = "SELECT seq, kind, first, last FROM acts WHERE log = ? ORDER BY seq"
        with self._mapped:
            return [Act(*row) for row in self._db.execute(sql, (log,))]

    def add_acts(self, log: bytes, acts: Sequence[Act]) -> None:
        self._insert("acts", [(log, *act) for act in acts])

    def prune(self, log: bytes, seqs: Sequence[int]) -> None:
        self._db.executemany(self._sql.prune, [self._span(log, seq) for seq in seqs])

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
            hint, retryable = next_step(str(error))
            raise StoreError(f"the audit log {self._path}: {error}", hint=hint, retryable=retryable) from error


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
