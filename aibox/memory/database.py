"""A SQLite file that memory keeps rows in: durable, private to its owner, and overwriting what is deleted."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from aibox._sqlite import next_step, write_ahead
from aibox.errors import StoreError

_BUSY_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Schema:
    """The statements that make a file of one kind; `application_id` tells it from other programs' files."""

    application_id: int
    version: int
    statements: Sequence[str]


class Database:
    """One open file in WAL mode. One thread at a time may use it; any number of processes may use the file.

    Raises StoreError, also when the file cannot be opened, is another program's, or another version's.
    """

    def __init__(self, path: Path, schema: Schema) -> None:
        self.path = path
        self._schema = schema
        with self.errors():
            # SQLite gives its side files the mode of this one: what is remembered is for its owner's eyes.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self.db = sqlite3.connect(
                path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, cached_statements=128
            )
            try:
                self._prepare()
            except BaseException:
                self.db.close()
                raise

    def _prepare(self) -> None:
        write_ahead(self.db, wait_s=_BUSY_TIMEOUT_S)
        for pragma in ("synchronous = FULL", "secure_delete = ON", "foreign_keys = ON"):
            self.db.execute(f"PRAGMA {pragma}")
        version, wanted = self._version(), self._schema.version
        if version == wanted:
            return
        if version:
            newer = version > wanted
            raise StoreError(
                f"{self.path} was written by {'a newer' if newer else 'an older, unreleased'} aibox",
                hint="update aibox-sdk" if newer else "move the folder away: memory begins anew",
            )
        with self.transaction():
            # Another process may have made the tables while this one waited.
            if self._version() == 0:
                if self.db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                    raise StoreError(f"{self.path} is some other program's database", hint="name another folder")
                for statement in self._schema.statements:
                    self.db.execute(statement)
                self.db.execute(f"PRAGMA application_id = {self._schema.application_id}")
                self.db.execute(f"PRAGMA user_version = {wanted}")

    def _version(self) -> int:
        version: int = self.db.execute("PRAGMA user_version").fetchone()[0]
        return version

    @contextlib.contextmanager
    def transaction(self, kind: str = "IMMEDIATE", *, tenant: str = "") -> Iterator[None]:
        """All or nothing, for one tenant; `kind` DEFERRED is for several reads that must agree."""
        del tenant  # which is in every statement
        with self.errors():
            self.db.execute(f"BEGIN {kind}")
            try:
                yield
                self.db.execute("COMMIT")
            finally:
                if self.db.in_transaction:
                    self.db.execute("ROLLBACK")

    def reading(self, tenant: str) -> AbstractContextManager[None]:
        """Reads of a tenant's rows, inside a transaction or not."""
        del tenant
        return self.errors()

    def scrub(self) -> None:
        """Empty the log beside the file: it still holds the pages from before a deletion."""
        with self.errors():
            self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    def close(self) -> None:
        with self.errors():
            self.db.close()

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """What SQLite and the file system say, as one line with the next step."""
        try:
            yield
        except sqlite3.Error as error:
            hint, retryable = next_step(str(error))
            raise StoreError(
                f"the memory in {self.path} cannot be used: {error}", hint=hint, retryable=retryable
            ) from error
        except OSError as error:
            hint = "make the folder writable, or name another"
            raise StoreError(f"the memory in {self.path} cannot be used: {error.strerror}", hint=hint) from error
