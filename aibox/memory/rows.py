"""The rows of the embedded memory: one SQLite file that is the truth about every record and its vector.

Every statement names the tenant, and all but the two for an index and for erasing a tenant name the user. What is
removed is overwritten in the file. One thread at a time may use a `Rows`; any number of processes may use the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import sqlite3
import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from aibox.errors import StoreError
from aibox.memory.record import Record, RecordType
from aibox.types import Label, Scope

_APPLICATION_ID = 0x61624D31  # "abM1"
_VERSION = 1
_BUSY_TIMEOUT_S = 10.0

_SCHEMA = (
    # `epoch` is random, and a new one whenever something was removed: an index made under another one is thrown away.
    # `change` numbers the latest change: an index that has applied it is up to date.
    """
    CREATE TABLE tenants (tenant TEXT PRIMARY KEY NOT NULL, epoch TEXT NOT NULL, change INTEGER NOT NULL)
    """,
    # `n` is never used again, so that an old index cannot name another row.
    """
    CREATE TABLE records (
        n INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        tenant TEXT NOT NULL,
        user TEXT NOT NULL,
        agent TEXT NOT NULL,
        session TEXT NOT NULL,
        type TEXT NOT NULL,
        text TEXT NOT NULL,
        digest BLOB NOT NULL,
        label TEXT NOT NULL,
        source TEXT NOT NULL,
        confidence REAL NOT NULL,
        created_us INTEGER NOT NULL,
        supersedes TEXT NOT NULL,
        superseded INTEGER NOT NULL DEFAULT 0,
        embedder TEXT NOT NULL,
        vector BLOB NOT NULL,
        change INTEGER NOT NULL
    )
    """,
    "CREATE UNIQUE INDEX records_once ON records (tenant, user, type, digest) WHERE superseded = 0",
    "CREATE INDEX records_changes ON records (tenant, change)",
    "CREATE INDEX records_user ON records (tenant, user, embedder)",
)

_COLUMNS = "id, type, text, tenant, user, agent, session, label, source, confidence, created_us, supersedes"
_MINE = "tenant = :tenant AND user = :user"
_TYPES = "(:types IS NULL OR type IN (SELECT value FROM json_each(:types)))"

_INSERT = """
INSERT INTO records (id, type, text, tenant, user, agent, session, label, source, confidence, created_us, supersedes,
                     digest, embedder, vector, change)
VALUES (:id, :type, :text, :tenant, :user, :agent, :session, :label, :source, :confidence, :created_us, :supersedes,
        :digest, :embedder, :vector, :change)
"""


def _sql(template: str) -> str:
    """A statement with its constant parts put in. Values are only ever bound."""
    return template.format(columns=_COLUMNS, mine=_MINE, types=_TYPES)


class Rows:
    """The open file `memory.db` for vectors of one embedder. Raises StoreError, also when it cannot be opened."""

    def __init__(self, path: Path, *, embedder: str) -> None:
        self.path = path
        self._embedder = embedder
        with _store_errors(path):
            # SQLite gives its side files the mode of this one: what is remembered is for its owner's eyes.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._db = sqlite3.connect(
                path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, cached_statements=64
            )
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise

    def _prepare(self) -> None:
        self._write_ahead()
        for pragma in ("synchronous = FULL", "secure_delete = ON"):
            self._db.execute(f"PRAGMA {pragma}")
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > _VERSION:
            raise StoreError(f"{self.path} was written by a newer aibox", hint="update aibox-sdk")
        if version == _VERSION:
            return
        with self.transaction():
            # Another process may have made the tables while this one waited.
            if self._db.execute("PRAGMA user_version").fetchone()[0] == 0:
                if self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                    raise StoreError(f"{self.path} is some other program's database", hint="name another folder")
                for statement in _SCHEMA:
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                self._db.execute(f"PRAGMA user_version = {_VERSION}")

    def _write_ahead(self) -> None:
        # Two processes that open a new file at once: SQLite does not wait here for the one that was first.
        deadline = time.monotonic() + _BUSY_TIMEOUT_S
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
            else:
                return

    @contextlib.contextmanager
    def transaction(self, kind: str = "IMMEDIATE") -> Iterator[None]:
        """All or nothing; `kind` DEFERRED is for several reads that must agree."""
        with _store_errors(self.path):
            self._db.execute(f"BEGIN {kind}")
            try:
                yield
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    def add(self, record: Record, vector: Sequence[float]) -> Record:
        mine = {"tenant": record.tenant, "user": record.user}
        with self.transaction():
            kept = self._find(record.text, record.type, mine)
            if kept is not None:
                return self._met_again(kept, record)
            change = self._next_change(record.tenant)
            if record.supersedes:
                updated = self._db.execute(
                    _sql(
                        "UPDATE records SET superseded = 1, change = :change "
                        "WHERE {mine} AND id = :id AND superseded = 0"
                    ),
                    mine | {"change": change, "id": record.supersedes},
                ).rowcount
                if not updated:
                    record = replace(record, supersedes="")
            values = {
                **mine,
                **{name: getattr(record, name) for name in _COLUMNS.split(", ")},
                "label": str(record.label),
                "digest": _digest(record.text),
                "embedder": self._embedder,
                "vector": _pack(vector),
                "change": change,
            }
            self._db.execute(_INSERT, values)
        return record

    def _met_again(self, kept: Record, record: Record) -> Record:
        met = replace(kept, label=kept.label | record.label, confidence=max(kept.confidence, record.confidence))
        if met != kept:
            self._db.execute(
                _sql("UPDATE records SET label = :label, confidence = :confidence WHERE {mine} AND id = :id"),
                {"tenant": met.tenant, "user": met.user, "id": met.id}
                | {"label": str(met.label), "confidence": met.confidence},
            )
        return met

    def find(self, text: str, kind: RecordType, scope: Scope) -> Record | None:
        with _store_errors(self.path):
            return self._find(text, kind, _mine(scope))

    def _find(self, text: str, kind: RecordType, mine: Mapping[str, Any]) -> Record | None:
        row = self._db.execute(
            _sql("SELECT {columns} FROM records WHERE {mine} AND type = :type AND digest = :digest AND superseded = 0"),
            {**mine, "type": kind, "digest": _digest(text)},
        ).fetchone()
        return _record(row) if row else None

    def all(self, scope: Scope, types: Sequence[RecordType] | None) -> list[Record]:
        with _store_errors(self.path):
            rows = self._db.execute(
                _sql("SELECT {columns} FROM records WHERE {mine} AND {types} AND superseded = 0 ORDER BY n"),
                _mine(scope, types),
            )
            return [_record(row) for row in rows]

    def get(self, id_: str, scope: Scope) -> Record | None:
        with _store_errors(self.path):
            row = self._db.execute(
                _sql("SELECT {columns} FROM records WHERE {mine} AND id = :id"), _mine(scope) | {"id": id_}
            ).fetchone()
            return _record(row) if row else None

    def remove(self, ids: Sequence[str], scope: Scope) -> int:
        query = """
            DELETE FROM records WHERE {mine} AND id IN (
                WITH RECURSIVE gone (id) AS (
                    SELECT id FROM records WHERE {mine} AND id IN (SELECT value FROM json_each(:ids))
                    UNION
                    SELECT supersedes FROM records JOIN gone USING (id) WHERE {mine}
                )
                SELECT id FROM gone
            )
        """
        return self._remove(scope.tenant, _sql(query), _mine(scope) | {"ids": json.dumps(list(ids))})

    def remove_all(self, tenant: str, user: str | None) -> int:
        query = "DELETE FROM records WHERE tenant = :tenant AND (:user IS NULL OR user = :user)"
        return self._remove(tenant, query, {"tenant": tenant, "user": user})

    def _remove(self, tenant: str, query: str, values: Mapping[str, Any]) -> int:
        with self.transaction():
            count = self._db.execute(query, values).rowcount
            if count:
                self._db.execute("UPDATE tenants SET epoch = ? WHERE tenant = ?", (secrets.token_hex(16), tenant))
                self._db.execute(
                    "DELETE FROM tenants WHERE tenant = :tenant AND NOT EXISTS "
                    "(SELECT 1 FROM records WHERE tenant = :tenant)",
                    {"tenant": tenant},
                )
        if count:
            with _store_errors(self.path):
                # The log of the transaction still holds the old pages: empty it too.
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return count

    # Vectors: for searching the rows themselves, and for an index that wants to catch up.

    def vectors(self, scope: Scope, types: Sequence[RecordType] | None) -> list[tuple[int, bytes]]:
        """Row number and vector of everything that a search of this scope may find."""
        query = (
            "SELECT n, vector FROM records WHERE {mine} AND embedder = :embedder AND {types} AND superseded = 0 "
            "ORDER BY n"
        )
        with _store_errors(self.path):
            return self._db.execute(_sql(query), _mine(scope, types) | {"embedder": self._embedder}).fetchall()

    def records(self, numbers: Sequence[int], scope: Scope) -> dict[int, tuple[Record, bytes]]:
        """Records and vectors of the rows among `numbers` that the scope may see."""
        query = (
            "SELECT n, vector, {columns} FROM records WHERE {mine} AND superseded = 0 AND embedder = :embedder "
            "AND n IN (SELECT value FROM json_each(:numbers))"
        )
        values = _mine(scope) | {"embedder": self._embedder, "numbers": json.dumps(list(numbers))}
        with _store_errors(self.path):
            return {n: (_record(row), vector) for n, vector, *row in self._db.execute(_sql(query), values)}

    def position(self, tenant: str) -> tuple[str, int] | None:
        """Epoch and latest change of the tenant; None for one that has no rows."""
        with _store_errors(self.path):
            row = self._db.execute("SELECT epoch, change FROM tenants WHERE tenant = ?", (tenant,)).fetchone()
            return (row[0], row[1]) if row else None

    def positions(self) -> dict[str, tuple[str, int]]:
        with _store_errors(self.path):
            return {tenant: (e, c) for tenant, e, c in self._db.execute("SELECT tenant, epoch, change FROM tenants")}

    def changes(self, tenant: str, since: int, size: int) -> Iterator[list[tuple[int, str, str, int, bytes]]]:
        """Rows of the tenant changed after `since`, in batches: number, user, type, superseded, vector."""
        with _store_errors(self.path):
            cursor = self._db.execute(
                "SELECT n, user, type, superseded, vector FROM records "
                "WHERE tenant = ? AND change > ? AND embedder = ? ORDER BY change",
                (tenant, since, self._embedder),
            )
            while batch := cursor.fetchmany(size):
                yield batch

    def foreign(self, scope: Scope, limit: int) -> list[Record]:
        query = _sql(
            "SELECT {columns} FROM records WHERE {mine} AND embedder <> :embedder AND superseded = 0 LIMIT :limit"
        )
        with _store_errors(self.path):
            rows = self._db.execute(query, _mine(scope) | {"embedder": self._embedder, "limit": limit})
            return [_record(row) for row in rows]

    def revector(self, vectors: Mapping[str, Sequence[float]], scope: Scope) -> None:
        with self.transaction():
            shared = _mine(scope) | {"embedder": self._embedder, "change": self._next_change(scope.tenant)}
            self._db.executemany(
                _sql(
                    "UPDATE records SET vector = :vector, embedder = :embedder, change = :change "
                    "WHERE {mine} AND id = :id"
                ),
                [shared | {"id": id_, "vector": _pack(vector)} for id_, vector in vectors.items()],
            )

    def counts(self) -> tuple[int, int]:
        """How many records that nothing superseded, of how many tenants."""
        with _store_errors(self.path):
            row = self._db.execute(
                "SELECT count(*), count(DISTINCT tenant) FROM records WHERE superseded = 0"
            ).fetchone()
            return row[0], row[1]

    def close(self) -> None:
        with _store_errors(self.path):
            self._db.close()

    def _next_change(self, tenant: str) -> int:
        # Only inside a write transaction, of which SQLite lets one run at a time: the order of changes is that of
        # commits, and an index that has seen number n has seen all before it.
        self._db.execute(
            "INSERT INTO tenants (tenant, epoch, change) VALUES (?, ?, 0) ON CONFLICT (tenant) DO NOTHING",
            (tenant, secrets.token_hex(16)),
        )
        self._db.execute("UPDATE tenants SET change = change + 1 WHERE tenant = ?", (tenant,))
        change: int = self._db.execute("SELECT change FROM tenants WHERE tenant = ?", (tenant,)).fetchone()[0]
        return change


def _mine(scope: Scope, types: Sequence[RecordType] | None = None) -> dict[str, Any]:
    return {"tenant": scope.tenant, "user": scope.user, "types": None if types is None else json.dumps(list(types))}


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _pack(vector: Sequence[float]) -> bytes:
    return array("f", vector).tobytes()


def _record(row: Sequence[Any]) -> Record:
    values = dict(zip(_COLUMNS.split(", "), row, strict=True))
    return Record(**{**values, "label": Label.parse(values["label"])})


@contextlib.contextmanager
def _store_errors(path: Path) -> Iterator[None]:
    """What SQLite and the file system say, as one line with the next step."""
    try:
        yield
    except sqlite3.Error as error:
        text = str(error)
        if "locked" in text or "busy" in text:
            hint, retryable = "another process has been writing for long; try again", True
        elif "full" in text:
            hint, retryable = "the disk is full: make room; nothing that was kept is lost", False
        elif "not a database" in text or "malformed" in text:
            hint, retryable = "move the file away, or restore it from a backup", False
        elif "readonly" in text or "unable to open" in text:
            hint, retryable = "make the folder writable, or name another", False
        else:
            hint, retryable = "", False
        raise StoreError(f"the memory in {path} cannot be used: {text}", hint=hint, retryable=retryable) from error
    except OSError as error:
        hint = "make the folder writable, or name another"
        raise StoreError(f"the memory in {path} cannot be used: {error.strerror}", hint=hint) from error
