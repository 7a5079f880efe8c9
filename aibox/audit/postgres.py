"""The log in PostgreSQL: a role that may only insert, rows behind forced row-level security, triggers that raise.

The owner of the tables is not the one who writes: `prepare` makes them once, as the owner, and gives a role its rights.
Two processes that write one log are kept apart by a compare-and-set on its size, and by the primary key under it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from aibox.audit.record import Row
from aibox.audit.store import FORMAT, Act, Conflict, LogName, Node
from aibox.errors import ConfigError, MissingExtraError, StoreError

if TYPE_CHECKING:
    from psycopg import Connection

SCHEMA = "aibox_audit"
IDLE_S = 30.0
"""How long a writer may fall silent inside a transaction, by the server's clock; then the server ends it."""
_TABLES = {
    "meta": "name text PRIMARY KEY, value text NOT NULL",
    "logs": "log bytea PRIMARY KEY, tenant text NOT NULL UNIQUE, origin text NOT NULL, public_key text NOT NULL",
    "heads": "log bytea PRIMARY KEY, size bigint NOT NULL",
    "entries": "log bytea NOT NULL, seq bigint NOT NULL, header bytea NOT NULL, open bytea, sealed bytea, "
    "tag bytea NOT NULL, PRIMARY KEY (log, seq)",
    "nodes": "log bytea NOT NULL, level int NOT NULL, idx bigint NOT NULL, hash bytea NOT NULL, "
    "PRIMARY KEY (log, level, idx)",
    "checkpoints": "log bytea NOT NULL, size bigint NOT NULL, note text NOT NULL, PRIMARY KEY (log, size)",
    "turns": "log bytea NOT NULL, turn text NOT NULL, seq bigint NOT NULL, PRIMARY KEY (log, turn)",
    "acts": "log bytea NOT NULL, seq bigint NOT NULL, kind text NOT NULL, first bigint NOT NULL, last bigint NOT NULL, "
    "PRIMARY KEY (log, seq)",
    "subjects": "log bytea NOT NULL, who bytea NOT NULL, id bytea NOT NULL, wrapped bytea NOT NULL, "
    "PRIMARY KEY (log, who)",
}
_SHARED = ("meta", "logs")
"""Read by whoever opens the store; every other table shows only the log that the transaction has named."""
_FREE = ("heads", "subjects")
"""No evidence: a size that is compared and set, and keys that are there to be destroyed."""

_REFUSE = f"""
CREATE OR REPLACE FUNCTION {SCHEMA}.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'evidence is never changed'; END $$;
CREATE OR REPLACE FUNCTION {SCHEMA}.refuse_but_pruning() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.open IS NULL AND NEW.sealed IS NULL AND NEW.log = OLD.log AND NEW.seq = OLD.seq AND NEW.header = OLD.header
     AND NEW.tag = OLD.tag AND EXISTS (SELECT 1 FROM {SCHEMA}.acts a WHERE a.log = OLD.log
       AND a.kind = 'bodies.pruned' AND OLD.seq BETWEEN a.first AND a.last)
  THEN RETURN NEW; END IF;
  RAISE EXCEPTION 'evidence is never changed';
END $$;
"""  # noqa: S608 - the schema is a constant


def prepare(url: str, *, role: str) -> None:
    """Make the tables as their owner, and let `role` read and insert. Done again it changes nothing.

    Raises StoreError; ConfigError for a role that owns the tables or passes row-level security by.
    """
    with _connect(url) as db, _mapped(url):
        found = db.execute("SELECT rolsuper OR rolbypassrls, current_user = %s FROM pg_roles WHERE rolname = %s",
                           (role, role)).fetchone()  # fmt: skip
        if found is None or found[0] or found[1]:
            raise ConfigError(
                f"the role {role} must be there, not own the tables, and not pass row-level security by",
                hint=f"CREATE ROLE {role} LOGIN NOSUPERUSER NOBYPASSRLS",
            )
        db.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
        db.execute(_REFUSE)
        name = f'"{role.replace(chr(34), chr(34) * 2)}"'
        for table, columns in _TABLES.items():
            _make(db, table, columns, name)
        db.execute(f"GRANT USAGE ON SCHEMA {SCHEMA} TO {name}")
        db.execute(f"INSERT INTO {SCHEMA}.meta VALUES ('format', %s) ON CONFLICT DO NOTHING", (FORMAT,))  # noqa: S608


def _make(db: Connection[Any], table: str, columns: str, role: str) -> None:
    full = f"{SCHEMA}.{table}"
    db.execute(f"CREATE TABLE IF NOT EXISTS {full} ({columns})")
    rights = "SELECT, INSERT"
    if table == "heads":
        rights += ", UPDATE (size)"
    elif table == "subjects":
        rights += ", DELETE"
    elif table == "entries":
        rights += ", UPDATE (open, sealed)"
    db.execute(f"GRANT {rights} ON {full} TO {role}")
    if table not in _FREE:
        update = "refuse_but_pruning" if table == "entries" else "refuse"
        for verb, act in (("UPDATE", update), ("DELETE", "refuse")):
            db.execute(
                f"CREATE OR REPLACE TRIGGER no_{verb.lower()} BEFORE {verb} ON {full} "
                f"FOR EACH ROW EXECUTE FUNCTION {SCHEMA}.{act}()"
            )
        db.execute(
            f"CREATE OR REPLACE TRIGGER no_truncate BEFORE TRUNCATE ON {full} "
            f"FOR EACH STATEMENT EXECUTE FUNCTION {SCHEMA}.refuse()"
        )
    if table not in _SHARED:
        db.execute(f"ALTER TABLE {full} ENABLE ROW LEVEL SECURITY")
        db.execute(f"ALTER TABLE {full} FORCE ROW LEVEL SECURITY")
        db.execute(f"DROP POLICY IF EXISTS one_log ON {full}")
        # Without missing_ok: a transaction that has named no log gets an error and no rows.
        mine = "log = decode(current_setting('aibox.log'), 'hex')"
        db.execute(f"CREATE POLICY one_log ON {full} USING ({mine}) WITH CHECK ({mine})")


class PostgresStore:
    """The tables that `prepare` made, through one connection of the writing role."""

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
            raise StoreError(
                f"{_host(url)} holds no audit log of this version", hint="aibox.audit.postgres.prepare, as the owner"
            )

    def _open(self) -> Connection[Any]:
        db = _connect(self.url)
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

    def entries(self, log: bytes, *, start: int = 0, limit: int = -1) -> Iterator[Row]:
        sql = "SELECT seq, header, open, sealed, tag FROM entries WHERE log = %s AND seq >= %s ORDER BY seq LIMIT %s"
        left = limit if limit >= 0 else 2**62
        while left > 0:
            rows = self._all(sql, (log, start, min(left, 10_000)), log=log)
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


def _connect(url: str) -> Connection[Any]:
    try:
        import psycopg
    except ImportError:
        raise MissingExtraError("a log in PostgreSQL", extra="postgres") from None
    try:
        return psycopg.connect(url, autocommit=True, connect_timeout=10)
    except psycopg.Error as error:
        raise StoreError(f"{_host(url)} cannot be reached: {error}", retryable=True) from None


@contextmanager
def _mapped(url: str) -> Iterator[None]:
    import psycopg

    try:
        yield
    except (psycopg.errors.UniqueViolation, psycopg.errors.DeadlockDetected):
        raise Conflict from None
    except psycopg.Error as error:
        away = isinstance(error, psycopg.OperationalError)
        raise StoreError(f"the audit log at {_host(url)}: {error}", retryable=away) from error


def _host(url: str) -> str:
    """For messages: never the password."""
    return url.rpartition("@")[2]
