"""Tables of one part: in an SQLite file, or in the PostgreSQL database that several servers share. One face for both.

Statements are what both databases have in common, with `?` for values; names that one of them reserves are quoted.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from aibox._sqlite import next_step, open_private
from aibox.errors import StoreError
from aibox.postgres import Postgres, Rows, is_postgres

_BUSY_S = 10.0


class Tables(Protocol):
    """Blocking; any thread may use it. Raises StoreError, and then nothing has changed."""

    @property
    def place(self) -> str:
        """For messages."""
        ...

    def transaction(
        self, tenant: str, *, alone: str = "", key: str = "", reads: bool = False
    ) -> AbstractContextManager[Rows]:
        """All or nothing, durable when it ends. Transactions with the same word in `alone` go one after another.

        `reads`: it writes nothing.
        Where there is row-level security only rows of `tenant` are there, and the one that `key` names.
        """
        ...

    def turn_to(self, rows: Rows, tenant: str) -> None:
        """Within a transaction: from now on it is about another tenant."""
        ...

    def scrub(self) -> None:
        """See that what was deleted lies in no journal of ours either."""
        ...

    def close(self) -> None:
        """Closing twice is allowed."""
        ...


def open_tables(place: str | Path | None, *, schema: str, made_by: Sequence[str], what: str) -> Tables:
    """At `postgresql://...` the tables of `schema`, which `aibox db` makes; else a file, and None is in memory only.

    `made_by` are the statements that make a file; `what` is what is kept there, for messages. Nothing is opened yet.
    """
    if isinstance(place, str) and is_postgres(place):
        return SharedTables(place, schema=schema, what=what)
    return FileTables(None if place is None else Path(place), made_by=made_by, what=what)


class SharedTables(Postgres):
    """Tables in PostgreSQL."""

    @contextmanager
    def transaction(self, tenant: str, *, alone: str = "", key: str = "", reads: bool = False) -> Iterator[Rows]:
        with self.begun(tenant, alone=alone, key=key, durable=not reads) as rows:
            yield rows

    def turn_to(self, rows: Rows, tenant: str) -> None:
        rows.execute("SELECT set_config('aibox.tenant', ?, true)", (tenant,))

    def scrub(self) -> None:
        """Dead rows and the server's journal are its owner's: vacuum, and let old journals expire."""


class FileTables:
    """Tables in a file of their own (0600), which the processes of one machine may share; one writes at a time."""

    def __init__(self, path: Path | None, *, made_by: Sequence[str], what: str) -> None:
        self.place = "memory" if path is None else str(path)
        self._path = path
        self._made_by = made_by
        self._what = what
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None

    @contextmanager
    def transaction(self, tenant: str, *, alone: str = "", key: str = "", reads: bool = False) -> Iterator[Rows]:
        del tenant, alone, key
        with self._lock:
            db = None
            try:
                db = self._open()
                db.execute("BEGIN" if reads else "BEGIN IMMEDIATE")
                yield db
                db.execute("COMMIT")
            except (sqlite3.Error, OSError) as error:
                said = error.strerror if isinstance(error, OSError) else error
                hint, retryable = next_step(str(said))
                what = f"{self._what} in {self.place} cannot be used: {said}"
                raise StoreError(what, hint=hint, retryable=retryable) from error
            finally:
                if db is not None and db.in_transaction:
                    db.execute("ROLLBACK")

    def turn_to(self, rows: Rows, tenant: str) -> None:
        """Every tenant's rows are there already."""

    def scrub(self) -> None:
        with self._lock:
            if self._db is not None:
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _open(self) -> sqlite3.Connection:
        if self._db is None:
            db = open_private(self._path, wait_s=_BUSY_S)
            try:
                self._prepare(db)
            except BaseException:
                db.close()
                raise
            self._db = db
        return self._db

    def _prepare(self, db: sqlite3.Connection) -> None:
        db.execute("PRAGMA synchronous=FULL")
        # What is deleted is overwritten in the file, and not only gone from the table.
        db.execute("PRAGMA secure_delete=ON")
        for statement in self._made_by:
            db.execute(statement)

    def close(self) -> None:
        with self._lock:
            db, self._db = self._db, None
        if db is not None:
            db.close()


def marks(values: Collection[object]) -> str:
    """The placeholders of a list of values, for `IN (...)`."""
    return ", ".join("?" * len(values))


def of_tenants(tables: Tables, sql: str, asked: Mapping[str, Collection[str]]) -> list[tuple[str, tuple[Any, ...]]]:
    """As `once` for several tenants, in one transaction: each with the rows of what is asked of it.

    `sql` has a mark for the tenant, and then `{marks}` for what is asked.
    """
    found: list[tuple[str, tuple[Any, ...]]] = []
    with tables.transaction("", reads=True) as rows:
        for tenant, names in asked.items():
            tables.turn_to(rows, tenant)
            cursor = rows.execute(sql.format(marks=marks(names)), (tenant, *names))
            found += [(tenant, row) for row in cursor.fetchall()]
    return found


def once(tables: Tables, tenant: str, sql: str, values: Sequence[Any] = (), *, key: str = "") -> list[Any]:
    """One statement in a transaction of its own, and the rows that it gives."""
    with tables.transaction(tenant, key=key, reads=sql.startswith("SELECT")) as rows:
        cursor = rows.execute(sql, values)
        return list(cursor.fetchall()) if cursor.description else []
