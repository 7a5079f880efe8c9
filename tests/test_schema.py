"""The schema in PostgreSQL: every table behind row-level security, versions forwards and back, no other one used."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import aibox
from aibox.agents.store import TABLES
from aibox.cli.app import app
from aibox.errors import ConfigError, StoreError
from aibox.guardrails import vault
from aibox.inference import ledger
from aibox.memory import document_schema
from aibox.memory import rows as memory_rows
from aibox.migrations.run import current, downgrade, revisions, upgrade
from aibox.postgres import REVISION, check_url
from aibox.server import answers, api_keys, people, policies
from aibox.settings import Settings

OF_THE_BOX = {"aibox.schema_version", "aibox_audit.meta", "aibox_pseudonyms.keys", "aibox_memory.proofs"}
OF_THE_BOX |= {"aibox_documents.proofs"}
"""Tables that hold nothing of any tenant: which format and version it is, and the proof of a key."""
NAMES = "('aibox_audit.logs', 'aibox_memory.tenants', 'aibox_documents.tenants')"
"""Tables that say which tenants there are, to whoever keeps logs and indexes."""


def rows(url: str, sql: str) -> list[tuple[Any, ...]]:
    import psycopg

    with psycopg.connect(url) as db:
        return db.execute(sql.encode()).fetchall()


def test_every_table_belongs_to_tenants_and_row_security_is_forced(postgres_full: str) -> None:
    """From the catalogue: a table without a tenant's column, without forced security or without a rule fails this."""
    found = rows(
        postgres_full,
        "SELECT n.nspname || '.' || c.relname, c.relrowsecurity AND c.relforcerowsecurity, "
        "array(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0), "
        "(SELECT count(*) FROM pg_policy p WHERE p.polrelid = c.oid) "
        "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p') "
        "AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg_toast%'",
    )
    assert len(found) > 15
    for name, forced, columns, rules in found:
        if name != "aibox.schema_version":
            assert forced, f"row-level security is not forced on {name}"
            assert rules, f"no rule says who sees rows of {name}"
        if name not in OF_THE_BOX:
            # A log is one tenant's, and its id is the tenant's in every table of evidence.
            assert {"tenant", "log"} & {*columns}, f"{name} does not say whose its rows are"


def test_the_role_that_writes_sees_nothing_without_a_tenant(postgres_url: str) -> None:
    """In every table that has one: an error, and not an empty answer that would hide the mistake."""
    import psycopg

    named = rows(
        postgres_url,
        "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant' "
        "WHERE c.relkind = 'r' AND n.nspname LIKE 'aibox%' AND c.oid::regclass::text NOT IN " + NAMES,
    )
    with psycopg.connect(postgres_url, autocommit=True) as db:
        db.execute("SET enable_seqscan = on")
        for (table,) in named:
            with pytest.raises(psycopg.Error, match=r"aibox\.tenant"):
                db.execute(f"SELECT * FROM {table}".encode())


MADE = {
    "aibox_agents": [f"CREATE TABLE {name} ({columns})" for name, columns in TABLES.items()],
    "aibox_pseudonyms": vault._SCHEMA,
    "aibox_memory": memory_rows._SCHEMA.statements,
    "aibox_documents": document_schema.SCHEMA.statements,
    "aibox_server": [
        *(*api_keys._KEYS, people._PEOPLE, answers._SCHEMA, ledger._SPENT, ledger._BY_MODEL),
        *(policies._HEADS, policies._VERSIONS),
    ],
}
"""What makes the tables of each schema where they are in a file."""


@pytest.mark.parametrize("schema", MADE)
def test_both_databases_have_the_same_columns(postgres_full: str, schema: str) -> None:
    """What SQLite makes and what the revisions make: the same tables, and columns in the same order."""
    made = sqlite3.connect(":memory:")
    for statement in MADE[schema]:
        made.execute(statement)
    names = [
        row[0]
        for row in made.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'")
    ]
    ours = {name: [row[1] for row in made.execute(f"PRAGMA table_info({name})")] for name in names}
    made.close()
    theirs: dict[str, list[str]] = {}
    for table, column in rows(
        postgres_full,
        "SELECT table_name::text, column_name::text FROM information_schema.columns "
        f"WHERE table_schema = '{schema}' AND column_name <> 'one' ORDER BY table_name, ordinal_position",
    ):
        theirs.setdefault(table, []).append(column)
    assert theirs == ours


def test_forwards_back_and_forwards_again(postgres_owner: str) -> None:
    """Each version can be reached and left; all the way back nothing is there; done again it changes nothing."""
    assert current(postgres_owner) is None
    for revision, _ in [*revisions(), *revisions()]:
        upgrade(postgres_owner, role="writer", revision=revision)
    upgrade(postgres_owner, role="writer")
    assert current(postgres_owner) == REVISION == revisions()[-1][0]
    for revision in [*[name for name, _ in revisions()][-2::-1], "base"]:
        downgrade(postgres_owner, role="writer", revision=revision)
        assert current(postgres_owner) == (None if revision == "base" else revision)
    left = "SELECT nspname::text FROM pg_namespace WHERE nspname LIKE 'aibox%'"
    assert rows(postgres_owner, left) == [("aibox",)]
    upgrade(postgres_owner, role="writer")
    check_url(postgres_owner.replace("owner@", "writer@"))


@pytest.mark.anyio
async def test_policies_that_hold_are_not_dropped(postgres_full: str, postgres_url: str) -> None:
    """Back to a version that does not know them is refused until they are withdrawn: else more would be allowed."""
    store, text = policies.Policies(postgres_url), '{"tools": {"deny": ["x"]}}'
    await store.write("acme", "own", text=text, digest="sha256:x", author="boss", match=None)
    with pytest.raises(StoreError, match="withdraw each first"):
        downgrade(postgres_full, role="writer", revision="0006")
    assert (await store.newest("acme"))["own"].text == text
    await store.write("acme", "own", text="", digest="", author="boss", match="*")
    await store.close()
    downgrade(postgres_full, role="writer", revision="0006")
    assert current(postgres_full) == "0006"
    upgrade(postgres_full, role="writer")
    store = policies.Policies(postgres_url)
    assert await store.heads() == {}
    await store.close()


@pytest.mark.anyio
async def test_evidence_is_never_dropped(postgres_full: str, postgres_url: str, tmp_path: Path) -> None:
    """Back to nothing is refused where a log has entries, and then everything stays as it was."""
    async with aibox.AuditChain(postgres_url, keys=tmp_path / "keys") as chain:
        await chain.append("tool.called", scope=aibox.Scope(tenant="acme", user="eva"), detail={"by": "eva"})
    with pytest.raises(StoreError, match="never dropped"):
        downgrade(postgres_full, role="writer", revision="base")
    assert current(postgres_full) == REVISION
    async with aibox.AuditChain(postgres_url, keys=tmp_path / "keys") as chain:
        assert (await chain.verify()).ok


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("version", "said", "hint"), [("0000", "an older", "db upgrade"), ("9999", "a newer", "update")]
)
async def test_another_version_is_refused_before_anything_begins(
    postgres_full: str, postgres_url: str, tmp_path: Path, version: str, said: str, hint: str
) -> None:
    """A box on an older or a newer schema does not open, and says what mends it."""
    import psycopg

    with psycopg.connect(postgres_full, autocommit=True) as db:
        db.execute("UPDATE aibox.schema_version SET version_num = %s", (version,))
    with pytest.raises(ConfigError, match=said) as caught:
        async with aibox.open(settings=Settings(home=tmp_path, database=postgres_url)):
            pass
    assert hint in caught.value.hint


@pytest.mark.anyio
async def test_a_role_that_owns_the_tables_is_refused(postgres_full: str, postgres_owner: str, tmp_path: Path) -> None:
    """The owner may switch the security off, so no box runs as the owner; nor on a database without tables."""
    for url, said in ((postgres_full, "owns the tables"), (postgres_owner, "no tables")):
        with pytest.raises(ConfigError, match=said):
            async with aibox.open(settings=Settings(home=tmp_path, database=url)):
                pass


def test_the_commands(postgres_owner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Upgrade, current, downgrade: what a person types, what it says, and what it refuses without --yes."""
    writer = postgres_owner.replace("owner@", "writer@")
    (tmp_path / "aibox.toml").write_text(f'database = "{writer}"\n')
    monkeypatch.chdir(tmp_path)

    def typed(*words: str) -> Any:
        return CliRunner().invoke(app, ["db", *words], standalone_mode=False)

    assert typed("current").return_value == 1
    made = typed("upgrade", "--owner", postgres_owner)
    assert f"nothing -> {REVISION}" in made.stdout
    assert f"{REVISION} already" in typed("upgrade", "--owner", postgres_owner).stdout
    shown = typed("current")
    assert shown.return_value == 0
    assert "<- here" in shown.stdout
    refused = typed("downgrade", "base", "--owner", postgres_owner)
    assert isinstance(refused.exception, ConfigError)
    assert "--yes" in refused.exception.hint
    assert f"{REVISION} -> nothing" in typed("downgrade", "base", "--owner", postgres_owner, "--yes").stdout
    wrong = typed("upgrade", "0042", "--owner", postgres_owner)
    assert "this version knows" in str(wrong.exception)


def test_a_role_that_could_pass_the_guards_is_not_prepared(postgres_owner: str) -> None:
    """The owner, a superuser or a role that is not there may not become the one that writes."""
    for role in ("owner", "nobody_there"):
        with pytest.raises(ConfigError, match="row-level security"):
            upgrade(postgres_owner, role=role)
    assert current(postgres_owner) is None


@pytest.fixture
def bypassing(postgres_full: str) -> Iterator[str]:
    """A role with all the rights of the one that writes, which row-level security does not hold."""
    import psycopg

    name = "passer_" + uuid.uuid4().hex[:8]
    with psycopg.connect(postgres_full, autocommit=True) as db:
        db.execute(f"CREATE ROLE {name} LOGIN NOSUPERUSER BYPASSRLS IN ROLE writer".encode())
        yield name
        db.execute(f"DROP OWNED BY {name}".encode())
        db.execute(f"DROP ROLE {name}".encode())


@pytest.mark.anyio
async def test_a_role_that_passes_row_security_by_opens_no_box(
    postgres_full: str, postgres_url: str, bypassing: str, tmp_path: Path
) -> None:
    """It owns nothing and is no superuser: BYPASSRLS alone is why it is refused, and without it the box opens."""
    import psycopg

    settings = Settings(home=tmp_path, database=postgres_url.replace("writer@", f"{bypassing}@"))
    with pytest.raises(ConfigError, match=f"the role {bypassing} .* passes row-level security by") as caught:
        async with aibox.open(settings=settings):
            pass
    assert "aibox db upgrade --role" in caught.value.hint
    with psycopg.connect(postgres_full, autocommit=True) as db:
        db.execute(f"ALTER ROLE {bypassing} NOBYPASSRLS".encode())
    async with aibox.open(settings=settings) as box:
        assert await box.state.sessions.list(scope=aibox.Scope(tenant="acme", user="eva")) == []


def test_a_role_that_passes_row_security_by_is_not_prepared(postgres_owner: str, bypassing: str) -> None:
    """`aibox db upgrade --role` says what it would take, and has made nothing; without BYPASSRLS the role is taken."""
    import psycopg

    def typed() -> Any:
        words = ["db", "upgrade", "--owner", postgres_owner, "--role", bypassing]
        return CliRunner().invoke(app, words, standalone_mode=False)

    refused = typed().exception
    assert isinstance(refused, ConfigError)
    assert f"the role {bypassing} must" in refused.message
    assert refused.hint == f"CREATE ROLE {bypassing} LOGIN NOSUPERUSER NOBYPASSRLS"
    assert current(postgres_owner) is None
    assert rows(postgres_owner, "SELECT nspname::text FROM pg_namespace WHERE nspname LIKE 'aibox%'") == []
    with psycopg.connect(postgres_owner, autocommit=True) as db:
        db.execute(f"ALTER ROLE {bypassing} NOBYPASSRLS".encode())
        made = typed()
        assert f"nothing -> {REVISION}" in made.stdout
        check_url(postgres_owner.replace("owner@", f"{bypassing}@"))
        db.execute(f"DROP OWNED BY {bypassing}".encode())


@pytest.mark.anyio
async def test_a_server_that_runs_goes_on_when_the_schema_is_upgraded(
    postgres_full: str, postgres_url: str, tmp_path: Path
) -> None:
    """Parts that it makes only then work too; a server that starts then, of the version before, is refused."""
    import psycopg

    code = "import sys; from aibox.postgres import check_url; check_url(sys.argv[1])"
    async with aibox.open(settings=Settings(home=tmp_path, database=postgres_url)) as box:
        with psycopg.connect(postgres_full, autocommit=True) as db:
            db.execute("UPDATE aibox.schema_version SET version_num = '9999'")
        assert await box.state.sessions.list(scope=aibox.Scope(tenant="acme", user="eva")) == []
        done = subprocess.run([sys.executable, "-c", code, postgres_url], capture_output=True, text=True, check=False)
    assert "a newer schema" in done.stderr
