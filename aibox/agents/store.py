"""Where agents keep what they must not lose: conversations, runs that wait, calls that may happen once.

With a key every text is AES-256-GCM, bound to its table and its owner: a row that is copied to another tenant, user or
place does not open. Columns that are searched (tenant, user, agent, ids, times) stay readable. The SQL of whoever uses
a store is what SQLite and PostgreSQL have in common, with `?` for values.
"""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from aibox._sqlite import next_step, open_private
from aibox.errors import IntegrityError, StoreError
from aibox.postgres import Rows

T = TypeVar("T")

_BUSY_S = 30.0

TABLES = {
    "sessions": 'tenant TEXT, "user" TEXT, agent TEXT, id TEXT, title BLOB NOT NULL, label TEXT NOT NULL, '
    "exposure TEXT NOT NULL, summary BLOB, first_seq INTEGER NOT NULL DEFAULT 0, seq INTEGER NOT NULL DEFAULT 0, "
    'created_us INTEGER NOT NULL, updated_us INTEGER NOT NULL, PRIMARY KEY (tenant, "user", agent, id)',
    "messages": 'tenant TEXT, "user" TEXT, agent TEXT, session TEXT, seq INTEGER, body BLOB NOT NULL, '
    'PRIMARY KEY (tenant, "user", agent, session, seq)',
    "runs": 'tenant TEXT, id TEXT, "user" TEXT NOT NULL, agent TEXT NOT NULL, session TEXT NOT NULL, '
    "version TEXT NOT NULL, turn TEXT NOT NULL, status TEXT NOT NULL, state BLOB, created_us INTEGER NOT NULL, "
    "lease_us INTEGER NOT NULL, PRIMARY KEY (tenant, id)",
    "approvals": "tenant TEXT, id TEXT, run TEXT NOT NULL, call TEXT NOT NULL, tool TEXT NOT NULL, "
    "shown BLOB NOT NULL, digest TEXT NOT NULL, people INTEGER NOT NULL, status TEXT NOT NULL, "
    "expires_us INTEGER NOT NULL, PRIMARY KEY (tenant, id)",
    "votes": "tenant TEXT, approval TEXT, person TEXT, reason BLOB NOT NULL, at_us INTEGER NOT NULL, "
    "PRIMARY KEY (tenant, approval, person)",
    "calls": "tenant TEXT, key TEXT, tool TEXT NOT NULL, result BLOB, ok INTEGER, PRIMARY KEY (tenant, key)",
    "webhooks": "tenant TEXT, endpoint TEXT, id TEXT, type TEXT NOT NULL, body BLOB NOT NULL, status TEXT NOT NULL, "
    "attempts INTEGER NOT NULL, answered TEXT NOT NULL, created_us INTEGER NOT NULL, due_us INTEGER NOT NULL, "
    "PRIMARY KEY (tenant, endpoint, id)",
    "webhook_cursors": "tenant TEXT, seq INTEGER NOT NULL, PRIMARY KEY (tenant)",
    "tools_seen": "tenant TEXT, server TEXT, name TEXT, digest TEXT NOT NULL, PRIMARY KEY (tenant, server, name)",
}
"""In the words of SQLite. The tenant is the first part of every key."""


class Store(Protocol):
    """Transactions of one tenant at a time, and the sealing of texts."""

    @property
    def encrypted(self) -> bool: ...

    async def run(self, work: Callable[[Rows], T], *, tenant: str, durable: bool = False, reads: bool = False) -> T:
        """Do `work` in one transaction, in a thread; no other one that writes for this tenant goes on meanwhile.

        `durable`: it is on the disk when this returns. `reads`: it writes nothing. Raises StoreError; AIBoxErrors of
        `work` as they come, and then nothing has been changed.
        """
        ...

    def seal(self, text: bytes, *bound: str) -> bytes:
        """The text as it is stored; it opens again only with the same `bound` values."""
        ...

    def open(self, data: bytes, *bound: str) -> bytes:
        """Raises IntegrityError for what was changed, moved or sealed under another key."""
        ...

    async def close(self) -> None:
        """Closing twice is allowed; all else is refused afterwards."""
        ...


class Sealing:
    """Texts under a key, or readable where there is none. `place` is for messages."""

    def __init__(self, key: bytes | None, *, place: str) -> None:
        self._cipher = AESGCM(key) if key else None
        self._place = place

    @property
    def encrypted(self) -> bool:
        return self._cipher is not None

    def seal(self, text: bytes, *bound: str) -> bytes:
        if self._cipher is None:
            return b"\x00" + text
        nonce = secrets.token_bytes(12)
        return b"\x01" + nonce + self._cipher.encrypt(nonce, text, "\x1f".join(bound).encode())

    def open(self, data: bytes, *bound: str) -> bytes:
        # With a key nothing is taken that anybody without it could have written.
        if data[:1] == b"\x00" and self._cipher is None:
            return data[1:]
        if data[:1] == b"\x01" and self._cipher is not None:
            try:
                return self._cipher.decrypt(data[1:13], data[13:], "\x1f".join(bound).encode())
            except InvalidTag:
                pass
        raise IntegrityError(f"a row of {self._place} does not belong where it lies, or to this key")


async def to_the_end(work: Callable[[], T]) -> T:
    """Work in a thread that ends as it would, whatever becomes of who waits for it."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_unheard)
        raise


def _unheard(task: asyncio.Task[Any]) -> None:
    """Who waited has left, and need not hear that the store was closed before their work began. A bug is still told."""
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, StoreError):
        raise error


class SqliteStore(Sealing):
    """One file, opened on first use. `path` None keeps everything in memory. Any thread may use it."""

    def __init__(self, path: str | Path | None, *, key: bytes | None = None) -> None:
        self.path = None if path is None else Path(path)
        # What is only in memory is nobody's to read, and sealing it costs nothing that anyone would notice.
        key = secrets.token_bytes(32) if path is None and not key else key
        super().__init__(key, place=str(self.path or "the state"))
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._closed = False
        self._durable = False

    async def run(self, work: Callable[[Rows], T], *, tenant: str, durable: bool = False, reads: bool = False) -> T:  # noqa: ARG002 - in the key of every row
        """As the protocol says; here the whole file is one writer's at a time."""
        return await to_the_end(lambda: self._work(work, durable, reads))

    async def close(self) -> None:
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        with self._lock:
            self._closed = True
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _work(self, work: Callable[[Rows], T], durable: bool, reads: bool) -> T:
        with self._lock:
            try:
                connection = self._open()
                if not reads and durable != self._durable:
                    connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
                    self._durable = durable
                connection.execute("BEGIN" if reads else "BEGIN IMMEDIATE")
                try:
                    result = work(connection)
                except BaseException:
                    connection.execute("ROLLBACK")
                    raise
                connection.execute("COMMIT")
            except sqlite3.Error as error:
                hint, retryable = next_step(str(error))
                what = f"the state of the agents in {self.path} cannot be used: {error}"
                raise StoreError(what, hint=hint, retryable=retryable) from None
            return result

    def _open(self) -> sqlite3.Connection:
        if self._closed:
            raise StoreError("the state of the agents is closed")
        if self._connection is None:
            connection = open_private(self.path, wait_s=_BUSY_S)
            connection.execute("PRAGMA secure_delete=ON")
            connection.execute("PRAGMA synchronous=NORMAL")
            for name, columns in TABLES.items():
                connection.execute(f"CREATE TABLE IF NOT EXISTS {name} ({columns}) WITHOUT ROWID")
            self._connection = connection
        assert self._connection is not None
        return self._connection

    def __repr__(self) -> str:
        return f"SqliteStore({self.path or 'in memory'}, {'encrypted' if self.encrypted else 'readable'})"
