"""The rows of the embedded memory: one SQLite file that is the truth about every record and its vector.

Every statement names the tenant, and all but the two for an index and for erasing a tenant name the user. What was said
is sealed under its user's key; what is removed is overwritten in the file, and with a user's last row the key.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from aibox.memory.cipher import TABLES, SubjectKey
from aibox.memory.database import Schema
from aibox.memory.epochs import TABLE as EPOCHS
from aibox.memory.record import Record, RecordType, Within, now_us
from aibox.memory.shared_database import opened
from aibox.memory.vector_index import Change, hashed
from aibox.types import Label, Scope

_SCHEMA = Schema(
    application_id=0x61624D31,  # "abM1"
    version=2,
    statements=(
        *TABLES,
        EPOCHS,
        # `n` is never used again, so that an old index cannot name another row. `agent`, `session` and `digest` are
        # keyed digests; the names and the text are in `sealed`.
        """
        CREATE TABLE records (
            n INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL UNIQUE,
            tenant TEXT NOT NULL,
            user TEXT NOT NULL,
            agent BLOB NOT NULL,
            session BLOB NOT NULL,
            type TEXT NOT NULL,
            digest BLOB NOT NULL,
            label TEXT NOT NULL,
            confidence REAL NOT NULL,
            created_us INTEGER NOT NULL,
            valid_from_us INTEGER NOT NULL,
            valid_until_us INTEGER NOT NULL,
            supersedes TEXT NOT NULL,
            superseded INTEGER NOT NULL DEFAULT 0,
            sealed BLOB NOT NULL,
            embedder TEXT NOT NULL,
            vector BLOB NOT NULL,
            change INTEGER NOT NULL
        )
        """,
        "CREATE UNIQUE INDEX records_once ON records (tenant, user, type, digest) WHERE superseded = 0",
        "CREATE INDEX records_changes ON records (tenant, change)",
        "CREATE INDEX records_user ON records (tenant, user, embedder)",
    ),
)

_CLEAR = ("id", "type", "tenant", "user", "confidence", "created_us", "valid_from_us", "valid_until_us", "supersedes")
_SEALED = ("text", "agent", "session", "source")
_COLUMNS = ", ".join(f"records.{name}" for name in (*_CLEAR, "label", "sealed"))
_MINE = 'tenant = :tenant AND "user" = :user'
_TYPES = "(:types IS NULL OR records.type IN (SELECT value FROM json_each(:types)))"
_VALID = "valid_from_us <= :now AND (valid_until_us = 0 OR valid_until_us > :now)"
_WITHIN = "(:agent IS NULL OR agent = :agent) AND (:session IS NULL OR session = :session)"

_INSERT = """
INSERT INTO records (id, type, tenant, "user", confidence, created_us, valid_from_us, valid_until_us, supersedes, label,
                     agent, session, digest, sealed, embedder, vector, change)
VALUES (:id, :type, :tenant, :user, :confidence, :created_us, :valid_from_us, :valid_until_us, :supersedes, :label,
        :agent, :session, :digest, :sealed, :embedder, :vector, :change)
"""


def _sql(template: str) -> str:
    """A statement with its constant parts put in. Values are only ever bound."""
    return template.format(columns=_COLUMNS, mine=_MINE, types=_TYPES, valid=_VALID, within=_WITHIN)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a search may find besides being of the scope's user: types, a ceiling of labels, told to whom."""

    types: Sequence[RecordType] | None = None
    ceiling: Label | None = None
    within: Within = "user"

    def admits(self, label: str) -> bool:
        return self.ceiling is None or Label.parse(label) <= self.ceiling


class Rows:
    """The open file `memory.db`, or the database that servers share, for vectors of one embedder.

    Raises StoreError, also when it cannot be opened.
    """

    def __init__(self, place: Path | str, *, embedder: str, key: bytes) -> None:
        self._embedder = embedder
        self._file = opened(place, _SCHEMA, key=key, schema="aibox_memory")
        self._db, self._keys, self._epochs = self._file.db, self._file.keys, self._file.epochs
        self.transaction = self._file.transaction
        self.position = self._file.position
        self.epochs = self._file.every_epoch

    def add(self, record: Record, vector: Sequence[float]) -> Record:
        with self.transaction(tenant=record.tenant):
            key = self._keys.get(record.tenant, record.user)
            mine = {"tenant": record.tenant, "user": record.user}
            kept = self._find(record.text, record.type, mine, key)
            if kept is not None:
                return self._met_again(kept, record, key)
            change = self._epochs.next_change(record.tenant)
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
            self._insert(record, vector, key, change)
        return record

    def _insert(self, record: Record, vector: Sequence[float], key: SubjectKey, change: int) -> None:
        values = {
            **{name: getattr(record, name) for name in _CLEAR},
            "agent": key.digest(f"agent|{record.agent}"),
            "session": key.digest(f"session|{record.agent}|{record.session}"),
            "digest": key.digest(record.text),
            "label": str(record.label),
            "sealed": seal(record, key),
            "embedder": self._embedder,
            "vector": pack(vector),
            "change": change,
        }
        self._db.execute(_INSERT, values)

    def _met_again(self, kept: Record, record: Record, key: SubjectKey) -> Record:
        met = replace(kept, label=kept.label | record.label, confidence=max(kept.confidence, record.confidence))
        if met != kept:
            self._db.execute(
                _sql(
                    "UPDATE records SET label = :label, confidence = :confidence, sealed = :sealed "
                    "WHERE {mine} AND id = :id"
                ),
                {"tenant": met.tenant, "user": met.user, "id": met.id}
                | {"label": str(met.label), "confidence": met.confidence, "sealed": seal(met, key)},
            )
        return met

    def find(self, text: str, kind: RecordType, scope: Scope) -> Record | None:
        with self._file.reading(scope.tenant):
            key = self._keys.find(scope.tenant, scope.user)
            return self._find(text, kind, _mine(scope), key) if key else None

    def _find(self, text: str, kind: RecordType, mine: Mapping[str, Any], key: SubjectKey) -> Record | None:
        row = self._db.execute(
            _sql("SELECT {columns} FROM records WHERE {mine} AND type = :type AND digest = :digest AND superseded = 0"),
            {**mine, "type": kind, "digest": key.digest(text)},
        ).fetchone()
        return _record(row, key) if row else None

    def all(self, scope: Scope, types: Sequence[RecordType] | None) -> list[Record]:
        return self._read(
            "SELECT {columns} FROM records WHERE {mine} AND {types} AND superseded = 0 ORDER BY n",
            _mine(scope) | _types(types),
            scope,
        )

    def get(self, id_: str, scope: Scope) -> Record | None:
        found = self._read("SELECT {columns} FROM records WHERE {mine} AND id = :id", _mine(scope) | {"id": id_}, scope)
        return found[0] if found else None

    def foreign(self, scope: Scope, limit: int) -> list[Record]:
        return self._read(
            "SELECT {columns} FROM records WHERE {mine} AND embedder <> :embedder AND superseded = 0 LIMIT :limit",
            _mine(scope) | {"embedder": self._embedder, "limit": limit},
            scope,
        )

    def _read(self, query: str, values: Mapping[str, Any], scope: Scope) -> list[Record]:
        with self._file.reading(scope.tenant):
            key = self._keys.find(scope.tenant, scope.user)
            return [_record(row, key) for row in self._db.execute(_sql(query), values)] if key else []

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
        query = 'DELETE FROM records WHERE tenant = :tenant AND (:user IS NULL OR "user" = :user)'
        return self._remove(tenant, query, {"tenant": tenant, "user": user})

    def _remove(self, tenant: str, query: str, values: Mapping[str, Any]) -> int:
        with self.transaction(tenant=tenant):
            count = self._db.execute(query, values).rowcount
            if count:
                left = self._db.execute("SELECT 1 FROM records WHERE tenant = ? LIMIT 1", (tenant,)).fetchone()
                self._epochs.begin_anew(tenant, empty=left is None)
                kept = self._db.execute(
                    'SELECT 1 FROM records WHERE tenant = :tenant AND (:user IS NULL OR "user" = :user) LIMIT 1', values
                ).fetchone()
                if kept is None:
                    self._keys.destroy(tenant, values["user"])
        if count:
            self._file.scrub()
        return count

    # Vectors: for searching the rows themselves, and for an index that wants to catch up.

    def vectors(self, scope: Scope, wanted: Wanted) -> list[tuple[int, bytes]]:
        """Row number and vector of everything that a search of this scope may find."""
        query = (
            "SELECT n, vector, label FROM records WHERE {mine} AND embedder = :embedder AND {types} AND {valid} "
            "AND {within} AND superseded = 0 ORDER BY n"
        )
        with self._file.reading(scope.tenant):
            key = self._keys.find(scope.tenant, scope.user)
            if key is None:
                return []
            rows = self._db.execute(_sql(query), self._values(scope, wanted, key))
            return [(n, vector) for n, vector, label in rows if wanted.admits(label)]

    def records(self, numbers: Sequence[int], scope: Scope, wanted: Wanted) -> dict[int, Record]:
        """Records of the rows among `numbers` that a search of the scope may find."""
        # CROSS JOIN binds SQLite to begin with the few numbers: it would rather read all of the user's rows.
        query = (
            "SELECT n, {columns} FROM "
            "(SELECT CAST(value AS BIGINT) AS value FROM json_each(:numbers)) AS given CROSS JOIN records WHERE "
            "n = value AND {mine} AND superseded = 0 AND embedder = :embedder AND {types} AND {valid} AND {within}"
        )
        with self._file.reading(scope.tenant):
            key = self._keys.find(scope.tenant, scope.user)
            if key is None:
                return {}
            values = self._values(scope, wanted, key) | {"numbers": json.dumps(list(numbers))}
            rows = self._db.execute(_sql(query), values).fetchall()
            return {n: _record(row, key) for n, *row in rows if wanted.admits(row[-2])}

    def _values(self, scope: Scope, wanted: Wanted, key: SubjectKey) -> dict[str, Any]:
        agent = key.digest(f"agent|{scope.agent}") if wanted.within == "agent" else None
        session = key.digest(f"session|{scope.agent}|{scope.session}") if wanted.within == "session" else None
        bound = {"embedder": self._embedder, "now": now_us(), "agent": agent, "session": session}
        return _mine(scope) | _types(wanted.types) | bound

    def changes(self, tenant: str, since: int, size: int) -> Iterator[list[Change]]:
        """Rows of the tenant changed after `since`, in batches."""
        with self._file.reading(tenant):
            cursor = self._db.execute(
                'SELECT n, "user", type, superseded, vector FROM records '
                "WHERE tenant = ? AND change > ? AND embedder = ? ORDER BY change",
                (tenant, since, self._embedder),
            )
            while batch := cursor.fetchmany(size):
                yield [
                    Change(n, bool(superseded), vector, {"user": hashed(user), "type": kind})
                    for n, user, kind, superseded, vector in batch
                ]

    def revector(self, vectors: Mapping[str, Sequence[float]], scope: Scope) -> None:
        with self.transaction(tenant=scope.tenant):
            change = self._epochs.next_change(scope.tenant)
            self._db.executemany(
                'UPDATE records SET vector = ?, embedder = ?, change = ? WHERE tenant = ? AND "user" = ? AND id = ?',
                [
                    (pack(vector), self._embedder, change, scope.tenant, scope.user, id_)
                    for id_, vector in vectors.items()
                ],
            )

    def counts(self) -> tuple[int | None, int]:
        """How many records that nothing superseded, of how many tenants; None where only each tenant's can be seen."""
        if self._file.shared:
            return None, len(self._file.every_epoch())
        with self._file.errors():
            row = self._db.execute(
                "SELECT count(*), count(DISTINCT tenant) FROM records WHERE superseded = 0"
            ).fetchone()
            return row[0], row[1]

    def close(self) -> None:
        self._file.close()


_label = lru_cache(maxsize=1_000)(Label.parse)


def pack(vector: Sequence[float]) -> bytes:
    return array("f", vector).tobytes()


def _mine(scope: Scope) -> dict[str, Any]:
    return {"tenant": scope.tenant, "user": scope.user}


def _types(types: Sequence[RecordType] | None) -> dict[str, Any]:
    return {"types": None if types is None else json.dumps(list(types))}


def _place(clear: Mapping[str, Any], label: str) -> str:
    """What a sealed text is bound to: it opens in no other row, under no other user and no lower label."""
    return "|".join((clear["tenant"], clear["user"], clear["id"], clear["type"], label))


def seal(record: Record, key: SubjectKey) -> bytes:
    """What a record says, and to which agent and session and in which turn, bound to its row."""
    clear = {name: getattr(record, name) for name in _CLEAR}
    plain = msgspec.json.encode([getattr(record, name) for name in _SEALED])
    return key.seal(plain, _place(clear, str(record.label)))


def _record(row: Sequence[Any], key: SubjectKey) -> Record:
    *values, label, sealed = row
    return unseal(dict(zip(_CLEAR, values, strict=True)), label, sealed, key)


def unseal(clear: Mapping[str, Any], label: str, sealed: bytes, key: SubjectKey) -> Record:
    """The record of a row. Raises IntegrityError where it was changed, or moved to another user or label."""
    text, agent, session, source = msgspec.json.decode(key.open(sealed, _place(clear, label)))
    return Record(**clear, text=text, agent=agent, session=session, source=source, label=_label(label))
