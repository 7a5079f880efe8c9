"""Row-level security as it works: in one tenant's name, no row of another's is met, in any table and in any way.

The tables and their columns are the catalogue's, so one that a revision adds is tried without a word here; one that
cannot be filled from its column types fails.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import psycopg

OF_THE_BOX = {"aibox_audit.meta", "aibox_pseudonyms.keys", "aibox_memory.proofs", "aibox_documents.proofs"}
"""Nothing in them is any tenant's."""
NAMES = {"aibox_audit.logs", "aibox_memory.tenants", "aibox_documents.tenants"}
"""They say which tenants there are, to every server: their rows are read in any name, and changed in one."""
FAR = 1 << 40
"""A number that as a time is not over: an answer whose day is over may be cleared away in any name."""
VALUES: dict[str, Callable[[int], Any]] = {
    "text": lambda n: f"value {n}",
    "bytea": lambda n: b"value %d" % n,
    "bigint": lambda n: FAR + n,
    "integer": lambda n: n,
    "double precision": float,
}
"""A value of each type, for each number another one."""
COLUMNS = (
    "SELECT c.oid::regclass::text, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull AND NOT a.atthasdef, "
    "has_column_privilege(c.oid, a.attnum, 'UPDATE') "
    "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid "
    "WHERE c.relkind IN ('r', 'p') AND c.relrowsecurity AND n.nspname LIKE 'aibox%' "
    "AND a.attnum > 0 AND NOT a.attisdropped AND a.attidentity = '' AND a.attgenerated = '' ORDER BY 1, a.attnum"
)
NUMBERS = itertools.count(1)


@dataclass
class Column:
    name: str
    kind: str
    needed: bool
    """NOT NULL, and nothing stands there by itself."""
    changeable: bool
    """The server's role may change it."""


class Table:
    """A table and what is told of its columns, as the role that writes may use them."""

    def __init__(self, db: psycopg.Connection[Any], name: str, columns: list[Column]) -> None:
        self.db, self.name, self.columns = db, name, columns
        # A log is one tenant's, and its id is the tenant's in every table of evidence.
        self.owner = next(c for wanted in ("log", "tenant") for c in columns if c.name == wanted)

    def whose(self, tenant: str) -> Any:
        return tenant if self.owner.kind == "text" else tenant.encode()

    @contextmanager
    def named(self, tenant: str) -> Iterator[None]:
        """A transaction in that name."""
        value = tenant if self.owner.kind == "text" else tenant.encode().hex()
        with self.db.transaction():
            self.db.execute("SELECT set_config(%s, %s, true)", (f"aibox.{self.owner.name}", value))
            yield

    def add(self, whose: str, *, name: str) -> int:
        """A row of `whose`, in the name of `name`; how many were added."""
        columns = [column for column in self.columns if column.needed]
        values = [self.whose(whose) if c is self.owner else VALUES[c.kind](next(NUMBERS)) for c in columns]
        names = ", ".join(f'"{column.name}"' for column in columns)
        marks = ", ".join(["%s"] * len(columns))
        with self.named(name):
            return self.db.execute(f"INSERT INTO {self.name} ({names}) VALUES ({marks})".encode(), values).rowcount

    def change(self, columns: list[Column], whose: str, *, name: str) -> int:
        """How many rows were made to be of `whose`, or otherwise to be what they were not."""
        values = [self.whose(whose) if c is self.owner else VALUES[c.kind](next(NUMBERS)) for c in columns]
        sets = ", ".join(f'"{column.name}" = %s' for column in columns)
        with self.named(name):
            return self.db.execute(f"UPDATE {self.name} SET {sets}".encode(), values).rowcount

    def count(self, *, name: str) -> int:
        with self.named(name):
            return len(self.db.execute(f"SELECT * FROM {self.name}".encode()).fetchall())

    def own(self, tenant: str) -> list[tuple[Any, ...]]:
        """The rows of a tenant, to itself."""
        sql = f"SELECT * FROM {self.name} WHERE {self.owner.name} = %s"
        with self.named(tenant):
            return self.db.execute(sql.encode(), [self.whose(tenant)]).fetchall()


# There is a row of rival's, and acme tries. A statement has no WHERE: what that names would have to be read first, and
# hidden rows would be safe for that alone.
def reads(table: Table) -> bool:
    return table.name not in NAMES and table.count(name="acme") != 0


def updates(table: Table) -> bool:
    columns = [column for column in table.columns if column.changeable] or [table.owner]
    return passes(lambda: table.change(columns, "acme", name="acme"))


def deletes(table: Table) -> bool:
    def delete() -> int:
        with table.named("acme"):
            return table.db.execute(f"DELETE FROM {table.name}".encode()).rowcount

    return passes(delete)


def inserts(table: Table) -> bool:
    return passes(lambda: table.add("rival", name="acme"))


def moves(table: Table) -> bool:
    """A row of one's own is given to another. Where there is none to give, nothing was tried, which is no better."""
    table.add("acme", name="acme")
    assert len(table.own("acme")) == 1, table.name
    return passes(lambda: table.change([table.owner], "rival", name="acme") or 1)


def passes(act: Callable[[], int]) -> bool:
    """Whether it did anything, or was hindered by something else than by the role's rights and the tables' rules."""
    import psycopg

    try:
        return act() != 0
    except psycopg.errors.InsufficientPrivilege:
        return False
    except psycopg.Error:
        return True  # such as a trigger, which a row has met


def tables(db: psycopg.Connection[Any]) -> Iterator[Table]:
    found: dict[str, list[Column]] = {}
    for name, *column in db.execute(COLUMNS.encode()).fetchall():
        found.setdefault(name, []).append(Column(*column))
    assert len(found) > 25
    for name, columns in found.items():
        if name not in OF_THE_BOX:
            yield Table(db, name, columns)


def crossed(url: str, way: Callable[[Table], bool]) -> list[str]:
    """The tables in which one tenant passes that way into another, or the other does not find its row as it was."""
    import psycopg

    found = []
    with psycopg.connect(url, autocommit=True) as db:
        for table in tables(db):
            table.add("rival", name="rival")
            before = table.own("rival")
            assert len(before) == 1, table.name
            if way(table) or table.own("rival") != before:
                found.append(table.name)
    return found


WAYS = (reads, updates, deletes, inserts, moves)


@pytest.mark.parametrize("way", WAYS)
def test_in_one_tenants_name_no_row_of_another_is_met(postgres_url: str, way: Callable[[Table], bool]) -> None:
    """As the server's role, in every table: not read, changed or deleted, and none is put or moved there."""
    assert crossed(postgres_url, way) == []


ANY_NAME = "current_setting('aibox.tenant') <> ''"
ITS_OWN = "tenant = current_setting('aibox.tenant')"


@pytest.mark.parametrize(
    ("table", "rule", "found"),
    [
        ("aibox_server.spent", f"USING ({ANY_NAME}) WITH CHECK ({ANY_NAME})", {*WAYS}),
        ("aibox_memory.tenants", f"USING ({ANY_NAME}) WITH CHECK ({ITS_OWN})", {updates, deletes}),
        ("aibox_pseudonyms.owners", f"USING ({ITS_OWN}) WITH CHECK ({ANY_NAME})", {inserts, moves}),
    ],
)
def test_a_rule_that_any_name_satisfies_is_found(
    postgres_copy: Callable[[], str], table: str, rule: str, found: set[Any]
) -> None:
    """A rule that asks for a name and not for whose the row is opens its ways, and those of no other table."""
    import psycopg

    for way in WAYS:
        owner = postgres_copy()
        with psycopg.connect(owner, autocommit=True) as db:
            db.execute(f"ALTER POLICY one_tenant ON {table} {rule}".encode())
        assert crossed(owner.replace("owner@", "writer@"), way) == ([table] if way in found else []), way.__name__
