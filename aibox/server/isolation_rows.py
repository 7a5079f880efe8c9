"""Rows of the shared database, read as the server's own role reads them: in another tenant's name, and in nobody's.

Row-level security is what keeps them apart there, so no statement here asks for less than it can get.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aibox.errors import AIBoxError
from aibox.postgres import connect, driver, host
from aibox.server.isolation_report import Row

if TYPE_CHECKING:
    from aibox.postgres import Connection

AREA = "database"
OPEN = {
    "aibox_audit.logs": "it names the tenants that have a log, to every server",
    "aibox_memory.tenants": "it names the tenants that have memories, to every server",
    "aibox_documents.tenants": "it names the tenants that have documents, to every server",
    "aibox_server.answers": "its rows are under names that only the server's key makes",
}
"""Tables where a tenant's name is no bound, or is not known here."""
LISTED = {"aibox_server.people": """ AND "user" <> ''"""}
"""What may be read in nobody's name is taken out there: which tenants there are, for the operator."""
_TABLES = (
    "SELECT table_schema, table_name, column_name FROM information_schema.columns "
    "WHERE table_schema LIKE 'aibox%' AND column_name IN ('tenant', 'log') ORDER BY 1, 2"
)


@dataclass(frozen=True, slots=True)
class _Table:
    name: str
    column: str
    """Whose a row is: `tenant`, or `log` in the log, where each tenant has one."""
    mine: str
    theirs: str


def tried(databases: Sequence[str], owner: str, stranger: str) -> list[Row]:
    """Every table that says whose its rows are, where the owner has some. Blocking; raises nothing."""
    if not databases:
        why = "no PostgreSQL database is configured: what is kept lies in the server's files, which have no roles"
        return [Row(AREA, "rows", stranger, "not tried", why)]
    rows: list[Row] = []
    for url in databases:
        try:
            rows += _of_database(url, owner, stranger)
        except AIBoxError as error:
            rows.append(Row(AREA, "rows", stranger, "not tried", f"{error.code}: {error.message}"))
    return rows


def _of_database(url: str, owner: str, stranger: str) -> Iterator[Row]:
    empty: list[str] = []
    # The second connection never says whose it is; one that has said it once does not forget that there is a name.
    with connect(url) as db, connect(url) as nobody:
        try:
            for table in _tables(db, owner, stranger):
                if table.name in OPEN:
                    yield Row(AREA, table.name, stranger, "not tried", OPEN[table.name])
                elif not table.mine or not _reads(db, table, table.mine):
                    empty.append(table.name)
                elif _reads(db, table, table.theirs):
                    yield Row(AREA, table.name, stranger, "crossed", "rows are read in the other tenant's name")
                elif _reads(db, table, "") or _reads(nobody, table, None):
                    yield Row(AREA, table.name, stranger, "crossed", "rows are read in nobody's name")
                else:
                    yield Row(AREA, table.name, stranger, "held")
        except driver().Error as error:
            yield Row(AREA, "rows", stranger, "not tried", f"{host(url)}: {type(error).__name__}")
    if empty:
        yield Row(AREA, "rows elsewhere", stranger, "not tried", f"the owner has none in {', '.join(empty)}")


def _tables(db: Connection[Any], owner: str, stranger: str) -> Iterator[_Table]:
    logs = dict(db.execute(b"SELECT tenant, encode(log, 'hex') FROM aibox_audit.logs").fetchall())
    # Of a table with both the tenant is the one that counts.
    columns = {f"{schema}.{table}": column for schema, table, column in db.execute(_TABLES.encode()).fetchall()}
    for name, column in columns.items():
        of = logs if column == "log" else {owner: owner, stranger: stranger}
        yield _Table(name, column, of.get(owner, ""), of.get(stranger, ""))


def _reads(db: Connection[Any], table: _Table, named: str | None) -> bool:
    """Whether there are rows of the owner, to a transaction in that name; None says none at all."""
    mine = "decode(%s, 'hex')" if table.column == "log" else "%s"
    more = "" if named else LISTED.get(table.name, "")
    # The names are the catalogue's, and the table's own column.
    sql = f"SELECT EXISTS (SELECT 1 FROM {table.name} WHERE {table.column} = {mine}{more})"  # noqa: S608
    try:
        with db.transaction():
            if named is not None:
                db.execute(b"SELECT set_config(%s, %s, true)", (f"aibox.{table.column}", named))
            row = db.execute(sql.encode(), (table.mine,)).fetchone()
    except driver().errors.UndefinedObject:
        return False  # nobody was named, and that alone is refused
    return bool(row and row[0])
