"""The log in PostgreSQL: a role that may only insert, rows behind forced row-level security, triggers that raise.

The owner of the tables is not the one who writes: `aibox db upgrade` makes them, and gives a role its rights.
Two processes that write one log are kept apart by a compare-and-set on its size, and by the primary key under it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from aibox.audit.record import Row
from aibox.audit.store import FORMAT, Act, Conflict, LogName, Node, opening
from aibox.errors import StoreError
from aibox.postgres import connect, driver, host

if TYPE_CHECKING:
    from aibox.postgres import Connection

SCHEMA = "aibox_audit"
IDLE_S = 30.0
"""How long a writer may fall silent inside a transaction, by the server's clock; then the server ends it."""
SILENT_S = IDLE_S + 15.0
"""How long the server may say nothing; longer than it may have us wait for another writer."""


class PostgresStore:
    """The tables of `aibox.migrations`, through one connection of the writing role."""

    def __init__(self, url: str, *, read_only: bool = False) -> None:
        self.url = url
        self._named = b""
        self._read_only = read_only
        self._db = self._open()
        try:
            found = self.meta("format")
        except StoreError:
            found = None
        if found != FORMAT:
            self._db.close()
            raise StoreError(f"{host(url)} holds no audit log of this version", hint="aibox db upgrade, as the owner")

    def _open(self) -> Connection[Any]:
        db = connect(self.url, client_side=False, silent_s=SILENT_S)
        with _mapped(self.url):
            db.execute(f"SET search_path = {SCHEMA}")
            db.execute("SET synchronous_commit = on")
            db.execute(f"SET idle_in_transaction_session_timeout = {round(IDLE_S * 1000)}")
            if self._read_only:
                db.execute("SET default_transaction_read_only = on")
        return db

    def _log(self, log: bytes) -> bytes:
        """Name the log to row-level security, for this session until another is named."""
        if log != self._named:
            self._db.execute("SELECT set_config('aibox.log', %s, false)", (log.hex(),))
            self._named = log
        return log

    def _all(self, sql: str, values: Sequence[Any] = (), *, log: bytes | None = None) -> list[Any]:
        with _mapped(self.url):
            if log is not None:
                self._log(log)
            return self._db.execute(sql.encode(), values, binary=True).fetchall()

    def _one(self, sql: str, values: Sequence[Any] = (), *, log: bytes | None = None) -> Any:
        rows = self._all(sql, values, log=log)
        return rows[0] if rows else None

    def _insert(self, table: str, types: str, log: bytes, rows: Sequence[Sequence[Any]], *, once: bool = False) -> int:
        """Many rows in one statement: COPY does not go together with row-level security."""
        if not rows:
            return 0
        columns = [list(column) for column in zip(*rows, strict=True)]
        arrays = ", ".join(f"%s::{kind}[]" for kind in types.split())
        ending = " ON CONFLICT DO NOTHING" if once else ""
        with _mapped(self.url):
            self._log(log)
            sql = f"INSERT INTO {table} SELECT %s::bytea, * FROM unnest({arrays}){ending}"  # noqa: S608 - names are constants
            return self._db.execute(sql.encode(), [log, *columns]).rowcount

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self._named = b""
        if self._db.closed:
            # The server has been away, or has ended the session: whatever was under way there was not committed.
            self._db = self._open()
        with _mapped(self.url), self._db.transaction():
            yield

    def changed(self) -> bool:
        return True

    def meta(self, name: str) -> str | None:
        row = self._one("SELECT value FROM meta WHERE name = %s", (name,))
        return row[0] if row else None

    def set_meta(self, name: str, value: str) -> None:
        with _mapped(self.url):
            self._db.execute("INSERT INTO meta VALUES (%s, %s) ON CONFLICT DO NOTHING", (name, value))

    def logs(self) -> list[LogName]:
        return [LogName(*row) for row in self._all("SELECT log, tenant, origin, public_key FROM logs ORDER BY tenant")]

    def log_named(self, log: bytes) -> LogName | None:
        row = self._one("SELECT log, tenant, origin, public_key FROM logs WHERE log = %s", (log,))
        return LogName(*row) if row else None

    def add_log(self, name: LogName) -> None:
        with _mapped(self.url):
            self._log(name.log)
            self._db.execute("INSERT INTO logs VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING", name)
            self._db.execute("INSERT INTO heads VALUES (%s, 0) ON CONFLICT DO NOTHING", (name.log,))

    def head(self, log: bytes) -> Row | None:
        sql = "SELECT seq, header, open, sealed, tag FROM entries WHERE log = %s ORDER BY seq DESC LIMIT 1"
        row = self._one(sql, (log,), log=log)
        return Row(*row) if row else None

    def size(self, log: bytes) -> int:
        row = self._one("SELECT size FROM heads WHERE log = %s FOR UPDATE", (log,), log=log)
        return row[0] if row else 0

    def entries(self, log: bytes, *, start: int = 0, limit: int = -1, kind: str = "") -> Iterator[Row]:
        sql = "SELECT seq, header, open, sealed, tag FROM entries WHERE log = %s AND seq >= %s "
        kinds: tuple[bytes, ...] = opening(kind) if kind else ()
        sql += ("AND open >= %s AND open < %s " if kind else "") + "ORDER BY seq LIMIT %s"
        left = limit if limit >= 0 else 2**62
        while left > 0:
            rows = self._all(sql, (log, start, *kinds, min(left, 10_000)), log=log)
            yield from (Row(*row) for row in rows)
            if len(rows) < min(left, 10_000):
                return
            left, start = left - len(rows), rows[-1][0] + 1

    def add_entries(self, log: bytes, size: int, rows: Sequence[Row]) -> None:
        with _mapped(self.url):
            self._log(log)
            sql = "UPDATE heads SET size = %s WHERE log = %s AND size = %s"
            if self._db.execute(sql, (size + len(rows), log, size)).rowcount != 1:
                raise Conflict
        self._insert("entries", "int8 bytea bytea bytea bytea", log, rows)

    def nodes(self, log: bytes, level: int, start: int, count: int) -> list[bytes]:
        sql = "SELECT hash FROM nodes WHERE log = %s AND level = %s AND idx >= %s AND idx < %s ORDER BY idx"
        return [row[0] for row in self._all(sql, (log, level, start, start + count), log=log)]

    def all_nodes(self, log: bytes) -> Iterator[Node]:
        for row in self._all("SELECT level, idx, hash FROM nodes WHERE log = %s", (log,), log=log):
            yield Node(*row)

    def add_nodes(self, log: bytes, nodes: Sequence[Node]) -> None:
        self._insert("nodes", "int4 int8 bytea", log, nodes)

    def checkpoints(self, log: bytes) -> list[tuple[int, str]]:
        return self._all("SELECT size, note FROM checkpoints WHERE log = %s ORDER BY size", (log,), log=log)

    def checkpoint_from(self, log: bytes, size: int) -> tuple[int, str] | None:
        sql = "SELECT size, note FROM checkpoints WHERE log = %s AND size >= %s ORDER BY size LIMIT 1"
        found: tuple[int, str] | None = self._one(sql, (log, size), log=log)
        return found

    def add_checkpoint(self, log: bytes, size: int, note: str) -> None:
        self._insert("checkpoints", "int8 text", log, [(size, note)], once=True)

    def turn(self, log: bytes, turn: str) -> int | None:
        row = self._one("SELECT seq FROM turns WHERE log = %s AND turn = %s", (log, turn), log=log)
        return row[0] if row else None

    def turns(self, log: bytes) -> dict[str, int]:
        return dict(self._all("SELECT turn, seq FROM turns WHERE log = %s", (log,), log=log))

    def add_turns(self, log: bytes, turns: Sequence[tuple[str, int]]) -> None:
        self._insert("turns", "text int8", log, turns)

    def acts(self, log: bytes) -> list[Act]:
        sql = "SELECT seq, kind, first, last FROM acts WHERE log = %s ORDER BY seq"
        return [Act(*row) for row in self._all(sql, (log,), log=log)]

    def add_acts(self, log: bytes, acts: Sequence[Act]) -> None:
        self._insert("acts", "int8 text int8 int8", log, acts)

    def prune(self, log: bytes, seqs: Sequence[int]) -> None:
        with _mapped(self.url):
            self._log(log)
            sql = "UPDATE entries SET open = NULL, sealed = NULL WHERE log = %s AND seq = ANY(%s)"
            self._db.execute(sql, (log, list(seqs)))

    def subject(self, log: bytes, who: bytes) -> tuple[bytes, bytes] | None:
        sql = "SELECT id, wrapped FROM subjects WHERE log = %s AND who = %s"
        found: tuple[bytes, bytes] | None = self._one(sql, (log, who), log=log)
        return found

    def subject_key(self, log: bytes, subject: bytes) -> bytes | None:
        row = self._one("SELECT wrapped FROM subjects WHERE log = %s AND id = %s", (log, subject), log=log)
        return row[0] if row else None

    def add_subject(self, log: bytes, who: bytes, subject: bytes, wrapped: bytes) -> None:
        self._insert("subjects", "bytea bytea bytea", log, [(who, subject, wrapped)])

    def drop_subject(self, log: bytes, subject: bytes) -> None:
        with _mapped(self.url):
            self._log(log)
            self._db.execute("DELETE FROM subjects WHERE log = %s AND id = %s", (log, subject))

    def scrub(self) -> bool:
        """Dead rows and the server's journal are its owner's: vacuum, and let old journals expire."""
        return True

    def close(self) -> None:
        self._db.close()


@contextmanager
def _mapped(url: str) -> Iterator[None]:
    psycopg = driver()
    try:
        yield
    except (psycopg.errors.UniqueViolation, psycopg.errors.DeadlockDetected):
        raise Conflict from None
    except psycopg.Error as error:
        away = isinstance(error, psycopg.OperationalError)
        raise StoreError(f"the audit log at {host(url)}: {error}", retryable=away) from error
