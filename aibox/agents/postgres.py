"""The state of agents in PostgreSQL: the same tables, a role that owns none of them, forced row-level security.

The tenant is in every key and named to the server for each transaction: rows of another one are not there. Transactions
that write for one tenant wait for each other, as all do in SQLite.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from aibox.agents.store import TABLES, Rows, Sealing
from aibox.errors import ConfigError, MissingExtraError, StoreError

if TYPE_CHECKING:
    from psycopg import Connection

T = TypeVar("T")

SCHEMA = "aibox_agents"
_BEGIN = (
    "SELECT set_config('aibox.tenant', %s, true), set_config('synchronous_commit', %s, true), "
    "CASE WHEN %s THEN pg_advisory_xact_lock(hashtextextended('aibox_agents/' || %s, 0)) END"
)


def prepare(url: str, *, role: str) -> None:
    """Make the tables as their owner, and give `role` its rights. Done again it changes nothing.

    Raises StoreError; ConfigError for a role that owns the tables or passes row-level security by.
    """
    psycopg = _driver()
    try:
        with _connect(url) as db:
            asked = "SELECT rolsuper OR rolbypassrls OR rolname = current_user FROM pg_roles WHERE rolname = %s"
            found = db.execute(asked, (role,)).fetchone()
            if found is None or found[0]:
                raise ConfigError(
                    f"the role {role} must be there, not own the tables, and not pass row-level security by",
                    hint=f"CREATE ROLE {role} LOGIN NOSUPERUSER NOBYPASSRLS",
                )
            name = f'"{role.replace(chr(34), chr(34) * 2)}"'
            db.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
            for table, columns in TABLES.items():
                _make(db, f"{SCHEMA}.{table}", columns, name)
            db.execute(f"GRANT USAGE ON SCHEMA {SCHEMA} TO {name}")
    except psycopg.Error as error:
        raise StoreError(f"the tables at {_host(url)} could not be made: {error}") from error


def _make(db: Connection[Any], table: str, columns: str, role: str) -> None:
    columns = columns.replace("BLOB", "BYTEA").replace("INTEGER", "BIGINT")
    db.execute(f"CREATE TABLE IF NOT EXISTS {table} ({columns})")
    db.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {role}")
    db.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    db.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
    db.execute(f"DROP POLICY IF EXISTS one_tenant ON {table}")
    # Without missing_ok: a transaction that has named no tenant gets an error and no rows.
    mine = "tenant = current_setting('aibox.tenant')"
    db.execute(f"CREATE POLICY one_tenant ON {table} USING ({mine}) WITH CHECK ({mine})")


class PostgresStore(Sealing):
    """The tables that `prepare` made, through one connection of the writing role, made on first use."""

    def __init__(self, url: str, *, key: bytes | None = None) -> None:
        super().__init__(key, place=_host(url))
        self._url = url
        self._lock = threading.Lock()
        self._db: Connection[Any] | None = None
        self._closed = False

    async def run(self, work: Callable[[Rows], T], *, tenant: str, durable: bool = False, reads: bool = False) -> T:
        """As the protocol says. A connection that was lost before anything was done is made anew."""
        return await asyncio.shield(asyncio.to_thread(self._work, work, tenant, durable, reads))

    async def close(self) -> None:
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        with self._lock:
            self._closed = True
            self._drop()

    def _drop(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def _work(self, work: Callable[[Rows], T], tenant: str, durable: bool, reads: bool) -> T:
        psycopg = _driver()
        begin = (tenant, "on" if durable else "off", not reads, tenant)
        with self._lock:
            for last in (False, True):
                db = self._open()
                begun = False
                try:
                    with db.transaction():
                        db.execute(_BEGIN, begin)
                        begun = True
                        return work(_Rows(db))
                except psycopg.OperationalError as error:
                    self._drop()
                    if begun or last:
                        raise StoreError(f"the state at {self._place}: {error}", retryable=True) from error
                except psycopg.Error as error:
                    raise StoreError(f"the state at {self._place}: {error}", hint=_HINT) from error
        raise StoreError(f"the state at {self._place} cannot be reached", retryable=True)

    def _open(self) -> Connection[Any]:
        if self._closed:
            raise StoreError("the state of the agents is closed")
        if self._db is None:
            db = _connect(self._url)
            db.execute(f"SET search_path = {SCHEMA}")
            self._db = db
        return self._db

    def __repr__(self) -> str:
        return f"PostgresStore({self._place}, {'encrypted' if self.encrypted else 'readable'})"


class _Rows:
    """Statements with `?`, as the protocol has them."""

    def __init__(self, db: Connection[Any]) -> None:
        self._db = db

    def execute(self, sql: str, values: Sequence[Any] = (), /) -> Any:
        return self._db.execute(_translated(sql), values)


@functools.cache
def _translated(sql: str) -> bytes:
    return sql.replace("%", "%%").replace("?", "%s").encode()


_HINT = "aibox.agents.postgres.prepare, as the owner, makes the tables"


def _driver() -> Any:
    try:
        import psycopg
    except ImportError:
        raise MissingExtraError("agents' state in PostgreSQL", extra="postgres") from None
    return psycopg


def _connect(url: str) -> Connection[Any]:
    psycopg = _driver()
    try:
        db: Connection[Any] = psycopg.connect(url, autocommit=True, connect_timeout=10)
    except psycopg.Error as error:
        raise StoreError(f"{_host(url)} cannot be reached: {error}", retryable=True) from None
    return db


def _host(url: str) -> str:
    """For messages: never the password."""
    return url.rpartition("@")[2]
