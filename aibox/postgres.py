"""PostgreSQL for what several servers share: a schema a part, a role that owns nothing, one tenant a transaction.

Row-level security is forced on every table, and a transaction names its tenant to the server: rows of another one are
not there. `aibox db upgrade` makes the tables (`aibox.migrations`); a schema of another version is refused.
"""

from __future__ import annotations

import functools
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, cast

from aibox.errors import OPERATORS, ConfigError, MissingExtraError, StoreError

if TYPE_CHECKING:
    from psycopg import Connection as Connection  # noqa: PLC0414 - handed on

REVISION = "0007"
"""Of the schema that this version works with; the newest in `aibox/migrations/versions`."""
VERSIONS = "aibox.schema_version"
SILENT_S = 15.0
"""How long a server that has taken a question may say nothing before the connection is given up."""
_BEGIN = (
    "BEGIN; SELECT set_config('aibox.tenant', %s, true), set_config('aibox.key', %s, true), "
    "set_config('synchronous_commit', %s, true), "
    "CASE WHEN %s THEN pg_advisory_xact_lock(hashtextextended(current_schema() || '/' || %s, 0)) END"
)

_NAME = re.compile(r"(?<![:\w]):([a-z_]+)")

_FIT: set[str] = set()
"""Databases that this process has begun to work with. One that is upgraded meanwhile is worked with to the end: a step
adds and does not take away, so that servers can be replaced one after the other."""


class Rows(Protocol):
    """A transaction on the tables, of one tenant."""

    def execute(self, sql: str, values: Sequence[Any] = (), /) -> Any:
        """`sql` in the words that SQLite has too, with `?` for values. A cursor."""
        ...


def is_postgres(url: object) -> bool:
    return isinstance(url, str) and url.startswith(("postgresql://", "postgres://"))


def host(url: str) -> str:
    """For messages: never the password."""
    return url.rpartition("@")[2]


def shown(place: object) -> str:
    """A file as it is; of a url neither user nor password."""
    text = str(place)
    return f"postgresql://{host(text)}" if is_postgres(text) else text


class Postgres:
    """Transactions on the tables of one part, `schema`, through at most `connections`, made when they are needed.

    Blocking; any thread may use it. `what` is what is kept there, for messages. Raises StoreError, `retryable` when the
    server was not reached or was lost; on first use ConfigError for a schema of another version or a role that
    row-level security does not hold.
    """

    def __init__(self, url: str, *, schema: str, what: str, connections: int = 4) -> None:
        self.place = host(url)
        self._url = url
        self._schema = schema
        self._what = what
        self._free: list[Connection[Any]] = []
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(connections)
        self._closed = False

    @contextmanager
    def begun(
        self, tenant: str, *, durable: bool = True, alone: str = "", key: str = "", snapshot: bool = False
    ) -> Iterator[Statements]:
        """All or nothing. Transactions on this schema with the same word in `alone` go one after another.

        `durable`: on the disk when it ends. `key` names one row that may be read by who knows its name.
        `snapshot`: all that is read is of one moment. A connection that was lost before anything was done is made anew.
        """
        psycopg = driver()
        with self._slots:
            try:
                begin = _BEGIN.replace("BEGIN", "BEGIN ISOLATION LEVEL REPEATABLE READ", 1) if snapshot else _BEGIN
                db = self._begin(begin, (tenant, key, "on" if durable else "off", bool(alone), alone))
                try:
                    yield Statements(db)
                    db.execute("COMMIT")
                except BaseException:
                    _roll_back(db)
                    raise
                finally:
                    self._give_back(db)
            except psycopg.Error as error:
                lost = isinstance(error, psycopg.OperationalError)
                raise StoreError(f"{self._what} at {self.place}: {error}", retryable=lost) from error

    def _begin(self, begin: str, named: Sequence[Any]) -> Connection[Any]:
        """A connection inside a transaction that has said whose it is."""
        while True:
            db, fresh = self._take()
            try:
                db.execute(begin.encode(), named)
            except driver().OperationalError:
                db.close()
                if fresh:
                    raise
            except BaseException:
                db.close()
                raise
            else:
                return db

    def _take(self) -> tuple[Connection[Any], bool]:
        with self._lock:
            if self._closed:
                raise StoreError(f"{self._what} is closed")
            if self._free:
                return self._free.pop(), False
        db = connect(self._url)
        try:
            if self._url not in _FIT:
                check(db, self.place)
                _FIT.add(self._url)
            db.execute(f"SET search_path = {self._schema}".encode())
        except BaseException:
            db.close()
            raise
        return db, True

    def _give_back(self, db: Connection[Any]) -> None:
        with self._lock:
            if not self._closed and not db.closed:
                self._free.append(db)
                return
        db.close()

    def close(self) -> None:
        """Closing twice is allowed; whatever is under way ends by itself."""
        with self._lock:
            self._closed = True
            free, self._free = self._free, []
        for db in free:
            db.close()


def _roll_back(db: Connection[Any]) -> None:
    """Also where the connection is what was lost: then the server does it."""
    try:
        if not db.closed:
            db.execute("ROLLBACK")
    except driver().Error:
        db.close()


class Statements:
    """Statements with `?` or `:name`, as SQLite has them."""

    def __init__(self, db: Connection[Any]) -> None:
        self._db = db

    def execute(self, sql: str, values: Sequence[Any] | Mapping[str, Any] = (), /) -> Any:
        return self._db.execute(_translated(sql), values)


@functools.cache
def _translated(sql: str) -> bytes:
    return _NAME.sub(r"%(\1)s", sql.replace("%", "%%").replace("?", "%s")).encode()


def version(db: Connection[Any]) -> str | None:
    """Of the schema; None where there is none, or none that this role may see."""
    errors = driver().errors
    try:
        row = db.execute(f"SELECT version_num FROM {VERSIONS}".encode()).fetchone()  # noqa: S608 - a constant
    except (errors.UndefinedTable, errors.InvalidSchemaName, errors.InsufficientPrivilege):
        return None
    return row[0] if row else None


def check(db: Connection[Any], place: str) -> None:
    """Raises ConfigError for a schema of another version, and for a role that row-level security would not hold."""
    found = version(db)
    if found != REVISION:
        raise ConfigError(_unfit(found, place), hint=_MEND[found is None or found < REVISION], code=OPERATORS)
    free = db.execute("SELECT rolname, rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user").fetchone()
    owns = db.execute(
        "SELECT 1 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname LIKE 'aibox%' AND c.relkind = 'r' AND pg_has_role(current_user, c.relowner, 'MEMBER') LIMIT 1"
    ).fetchone()
    if free is None or free[1] or owns:
        raise ConfigError(
            f"the role {free[0] if free else '?'} at {place} owns the tables or passes row-level security by",
            hint="take the role that `aibox db upgrade --role` gave its rights to",
            code=OPERATORS,
        )


def check_url(url: str) -> None:
    """Whether the database is fit to be used. Raises as `check`, StoreError when it is not reached."""
    with connect(url) as db:
        check(db, host(url))
    _FIT.add(url)


def _unfit(found: str | None, place: str) -> str:
    if found is None:
        return f"{place} has no tables of aibox"
    age = "an older" if found < REVISION else "a newer"
    return f"{place} has {age} schema, {found}; this version works with {REVISION}"


_MEND = {
    True: "as its owner: aibox db upgrade --owner postgresql://owner@host/name --role ROLE",
    False: f"update aibox-sdk; or, as its owner: aibox db downgrade {REVISION} --owner postgresql://owner@host/name",
}


def driver() -> Any:
    try:
        import psycopg
    except ImportError:
        raise MissingExtraError("PostgreSQL", extra="postgres") from None
    return psycopg


def connect(url: str, *, client_side: bool = True, silent_s: float = SILENT_S) -> Connection[Any]:
    """A connection that commits by itself, and gives up a server that falls silent. Raises StoreError.

    `client_side`: values are written into the statement here, so that each has its type and none must be guessed.
    """
    psycopg = driver()
    try:
        cursor = psycopg.ClientCursor if client_side else psycopg.Cursor
        db: Any = _patient().connect(url, autocommit=True, connect_timeout=10, cursor_factory=cursor)
        db.silent_s = silent_s
    except psycopg.Error as error:
        raise StoreError(f"{host(url)} cannot be reached: {error}", retryable=True) from None
    return cast("Connection[Any]", db)


@functools.cache
def _patient() -> Any:
    """The class of a connection that waits for an answer for so long and no longer."""
    psycopg = driver()

    class Patient(psycopg.Connection):  # type: ignore[misc,name-defined]  # of a package that may be missing
        silent_s = SILENT_S

        def wait(self, gen: Any, interval: float = 0.5, timeout: float | None = None) -> Any:
            until = time.monotonic() + self.silent_s
            try:
                return super().wait(gen, interval, self.silent_s if timeout is None else timeout)
            except psycopg.Error:
                if timeout is None and time.monotonic() >= until:
                    # Nothing can be known of what was asked, so nothing more is asked here.
                    self.pgconn.finish()
                    raise psycopg.OperationalError(f"no answer for {self.silent_s:g} s") from None
                raise

    return Patient
