"""The rows of a memory in the PostgreSQL database that several servers share; each has an index of its own of them.

The statements are those for the file. One thread at a time may use it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from aibox.errors import StoreError
from aibox.memory.cipher import SubjectKeys
from aibox.memory.database import Schema
from aibox.memory.epochs import Epochs
from aibox.memory.sealed_database import SealedDatabase
from aibox.postgres import Postgres, Rows

_AT_ONCE = 50
"""Statements that go over together."""


def opened(place: Path | str, made_by: Schema, *, key: bytes, schema: str) -> SealedDatabase | SharedDatabase:
    """The file at a path, made where there is none; at `postgresql://...` the tables of `schema`."""
    if isinstance(place, Path):
        return SealedDatabase(place, made_by, key=key)
    return SharedDatabase(place, key=key, schema=schema)


class SharedDatabase:
    """The face of SealedDatabase, on tables that `aibox db` makes. `key` is the master key of all servers."""

    shared = True

    def __init__(self, url: str, *, key: bytes, schema: str) -> None:
        self._postgres = Postgres(url, schema=schema, what="the memory", connections=1)
        self._rows: Rows | None = None
        self.db = _Spoken(self)
        try:
            with self.transaction():
                self.keys = SubjectKeys(self.db, self._postgres.place, master=key)
        except BaseException:
            self.close()
            raise
        self.epochs = Epochs(self.db)

    @contextmanager
    def transaction(self, kind: str = "IMMEDIATE", *, tenant: str = "") -> Iterator[None]:
        """All or nothing, for one tenant; `kind` DEFERRED is for several reads that must agree."""
        writes = kind == "IMMEDIATE"
        with self._postgres.begun(tenant, alone=tenant if writes else "", snapshot=not writes) as rows:
            self._rows = rows
            try:
                yield
            finally:
                self._rows = None

    @contextmanager
    def reading(self, tenant: str) -> Iterator[None]:
        """Reads of a tenant's rows: in the transaction that goes on, or in one of their own."""
        with nullcontext() if self._rows is not None else self.transaction("DEFERRED", tenant=tenant):
            yield

    @contextmanager
    def errors(self) -> Iterator[None]:
        """What the server says is a StoreError already."""
        yield

    @property
    def now(self) -> Rows:
        """The transaction that goes on."""
        if self._rows is None:
            raise StoreError("the memory was asked outside a transaction")
        return self._rows

    def position(self, tenant: str) -> tuple[str, int] | None:
        """Epoch and latest change of the tenant; None for one that has no rows."""
        with self.reading(tenant):
            return self.epochs.position(tenant)

    def every_epoch(self) -> dict[str, str]:
        with self.reading(""):
            return self.epochs.all()

    def scrub(self) -> None:
        """Dead rows and the server's journal are its owner's: vacuum, and let old journals expire."""

    def close(self) -> None:
        self._postgres.close()


class _Spoken:
    """Statements for the file, in the transaction that goes on."""

    def __init__(self, database: SharedDatabase) -> None:
        self._database = database

    def execute(self, sql: str, values: Sequence[Any] | Mapping[str, Any] = (), /) -> Any:
        return self._database.now.execute(sql, values)  # type: ignore[arg-type]  # by place or by name

    def executemany(self, sql: str, rows: Sequence[Sequence[Any]], /) -> None:
        for start in range(0, len(rows), _AT_ONCE):
            some = rows[start : start + _AT_ONCE]
            self.execute("; ".join([sql] * len(some)), [value for row in some for value in row])
