"""What becomes of rows when the schema goes back and forwards again, by an owner whom row-level security holds too."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

import aibox
from aibox.errors import AuthError, StoreError
from aibox.migrations.run import downgrade, revisions, upgrade
from aibox.server.api_keys import ApiKeys

if TYPE_CHECKING:
    import psycopg

Content = dict[str, list[tuple[Any, ...]]]
ACME = aibox.Scope(tenant="acme", user="ci")


@pytest.fixture
def plain_owner(postgres_owner: str) -> Iterator[str]:
    """The empty database, as an owner who is no superuser; `postgres_owner` still sees all of it."""
    import psycopg

    name = "plain_" + uuid.uuid4().hex[:8]
    with psycopg.connect(postgres_owner, autocommit=True) as db:
        db.execute(f"CREATE ROLE {name} LOGIN NOSUPERUSER NOBYPASSRLS".encode())
        db.execute(f"ALTER DATABASE {db.info.dbname} OWNER TO {name}".encode())
        yield postgres_owner.replace("owner@", f"{name}@")
        db.execute(f"REASSIGN OWNED BY {name} TO owner".encode())
        db.execute(f"DROP OWNED BY {name}".encode())
        db.execute(f"DROP ROLE {name}".encode())


@pytest.mark.anyio
async def test_a_narrow_key_ends_where_nobody_knows_what_it_is_for_and_stays_ended(
    postgres_owner: str, plain_owner: str
) -> None:
    """Back before 0006 those with scopes or models are revoked and the others go on; forwards again nothing is wide."""
    import psycopg

    upgrade(plain_owner, role="writer")
    url = postgres_owner.replace("owner@", "writer@")
    keys = ApiKeys(url)
    wide = await keys.create(scope=ACME)
    narrow = [
        await keys.create(scope=ACME, scopes=("inference",)),
        await keys.create(scope=ACME, scopes=("inference",), models=("small",)),
        await keys.create(scope=aibox.Scope(tenant="rival", user="ci"), scopes=("memory:read",)),
        await keys.create(scope=ACME, scopes=("inference",)),
    ]
    for key in (wide, *narrow):
        assert await keys.authenticate(key)
    await keys.close()
    wide_id, *narrow_ids = [key.split("-")[1] for key in (wide, *narrow)]
    with psycopg.connect(postgres_owner, autocommit=True) as db:
        # As 0006 first made them: nothing but the row beside it says that this one is narrow.
        plain = hashlib.sha256(narrow[-1].split("-", 2)[2].encode()).digest()
        db.execute("UPDATE aibox_server.keys SET hash = %s WHERE id = %s", (plain, narrow_ids[-1]))
        downgrade(plain_owner, role="writer", revision="0005")
        found = db.execute("SELECT id, revoked FROM aibox_server.keys").fetchall()
        assert dict(found) == {wide_id: 0, **dict.fromkeys(narrow_ids, 1)}
        held = "SELECT relrowsecurity AND relforcerowsecurity FROM pg_class WHERE oid = 'aibox_server.keys'::regclass"
        assert db.execute(held).fetchone() == (True,)
    upgrade(plain_owner, role="writer")
    keys = ApiKeys(url)
    found_wide = await keys.authenticate(wide)
    assert found_wide is not None
    assert (found_wide.scopes, found_wide.models) == (None, None)
    for key in narrow:
        with pytest.raises(AuthError, match="was revoked"):
            await keys.authenticate(key)
    listed = [*await keys.list("acme"), *await keys.list("rival")]
    assert {key.id for key in listed if key.revoked} == {*narrow_ids}
    await keys.close()


VALUES = {"text": "x", "bytea": b"x", "bigint": 1, "integer": 1, "double precision": 0.5}
OF_THEIR_OWN = {
    ("aibox_server.keys", "revoked"): 0,
    ("aibox_server.policy_versions", "digest"): "",
}
"""A key that is in use; a policy that was withdrawn, for one that holds is not dropped."""


def content(db: psycopg.Connection) -> Content:
    """All rows of all tables."""
    named = db.execute(
        "SELECT table_schema || '.' || table_name FROM information_schema.tables "
        "WHERE table_schema LIKE 'aibox\\_%' AND table_type = 'BASE TABLE' ORDER BY 1"
    ).fetchall()
    return {table: db.execute(f"SELECT * FROM {table}".encode()).fetchall() for (table,) in named}


def fill(db: psycopg.Connection, table: str) -> None:
    """One row with something in every column that does not fill itself."""
    columns = db.execute(
        "SELECT column_name::text, data_type::text FROM information_schema.columns WHERE is_identity = 'NO' "
        "AND column_default IS NULL AND table_schema || '.' || table_name = %s",
        (table,),
    ).fetchall()
    names = ", ".join(f'"{name}"' for name, _ in columns)
    values = [OF_THEIR_OWN.get((table, name), VALUES[kind]) for name, kind in columns]
    db.execute(f"INSERT INTO {table} ({names}) VALUES ({', '.join(['%s'] * len(values))})".encode(), values)


def test_rows_of_every_table_are_kept_but_those_of_the_version_that_is_left(
    postgres_owner: str, plain_owner: str
) -> None:
    """Forwards every row stays as it was; back, what came with a version goes, and the rest stays but for the key."""
    import psycopg

    steps = [revision for revision, _ in revisions()]
    at: dict[str, Content] = {}
    before: Content = {}
    with psycopg.connect(postgres_owner, autocommit=True) as db:
        for step in steps:
            upgrade(plain_owner, role="writer", revision=step)
            now = content(db)
            assert {table: now.get(table) for table in before} == before
            for table in now.keys() - before.keys():
                fill(db, table)
            at[step] = before = content(db)
            assert all(before.values())
        for step in steps[-2::-1]:
            downgrade(plain_owner, role="writer", revision=step)
            kept = at[step]
            if "0002" <= step < "0006":
                # The row beside it said that it is narrow; `revoked` is its last column.
                kept["aibox_server.keys"] = [(*row[:-1], 1) for row in kept["aibox_server.keys"]]
            assert content(db) == kept
        with pytest.raises(StoreError, match="never dropped"):
            downgrade(plain_owner, role="writer", revision="base")
        assert content(db) == at["0001"]
        upgrade(plain_owner, role="writer")
        assert content(db) == {table: at["0001"].get(table, []) for table in at[steps[-1]]}
