"""Both stores pass one contract; PostgreSQL's guards hold against the role that writes, and its owner is found out."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from audit_parts import ACME, RIVAL, sealed_turns

from aibox.audit.chain import AuditChain
from aibox.audit.postgres import SCHEMA, prepare
from aibox.audit.report import BrokenEvidenceError
from aibox.audit.verify import verify
from aibox.errors import ConfigError, StoreError
from aibox.testing.audit_store_contract import AuditStoreContract


class TestSqlite(AuditStoreContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return str(tmp_path / "audit.db")


class TestPostgres(AuditStoreContract):
    @pytest.fixture
    def url(self, postgres_url: str) -> str:
        return postgres_url


def run(url: str, *statements: str, log: bytes | None = None) -> None:
    import psycopg

    with psycopg.connect(url, autocommit=True) as db:
        db.execute(f"SET search_path = {SCHEMA}".encode())
        if log is not None:
            db.execute("SELECT set_config('aibox.log', %s, false)", (log.hex(),))
        for statement in statements:
            db.execute(statement.encode())


async def write(url: str, keys: Path) -> bytes:
    async with AuditChain(url, keys=keys) as chain:
        await sealed_turns(chain, ACME, 2)
        await sealed_turns(chain, RIVAL, 2)
        log = await chain._do(lambda ledger: ledger.log("acme"))
    assert verify(url, keys=chain.keys).entries == 12
    return log


@pytest.mark.anyio
async def test_the_writing_role_may_not_change_anything(postgres_url: str, tmp_path: Path) -> None:
    """Attack: UPDATE, DELETE, TRUNCATE, DROP and switching triggers off as the role that writes all raise."""
    log = await write(postgres_url, tmp_path / "keys")
    for sql in (
        "UPDATE entries SET header = ''", "UPDATE entries SET open = NULL, sealed = NULL", "DELETE FROM entries",
        "TRUNCATE entries", "DROP TABLE entries", "ALTER TABLE entries DISABLE TRIGGER ALL",
        "ALTER TABLE entries DISABLE ROW LEVEL SECURITY", "DELETE FROM checkpoints", "UPDATE logs SET tenant = 'x'",
        "SET session_replication_role = replica", "DELETE FROM acts", "UPDATE turns SET seq = 0",
    ):  # fmt: skip
        with pytest.raises(Exception, match=r"permission denied|never changed|must be owner"):
            run(postgres_url, sql, log=log)
    assert verify(postgres_url, keys=AuditChain(postgres_url, keys=tmp_path / "keys").keys).ok


@pytest.mark.anyio
async def test_a_session_sees_the_log_that_it_has_named_and_no_other(postgres_url: str, tmp_path: Path) -> None:
    """Attack: a session that names no log gets an error from every table of evidence; one that names its own."""
    import psycopg

    log = await write(postgres_url, tmp_path / "keys")
    with psycopg.connect(postgres_url, autocommit=True) as db:
        db.execute(f"SET search_path = {SCHEMA}".encode())
        for table in ("entries", "nodes", "checkpoints", "turns", "acts", "subjects", "heads"):
            with pytest.raises(psycopg.Error, match=r"aibox\.log|invalid"):
                db.execute(f"SELECT count(*) FROM {table}".encode())
        db.execute("SELECT set_config('aibox.log', %s, false)", (log.hex(),))
        assert db.execute("SELECT count(*) FROM entries").fetchone() == (6,)
        with pytest.raises(psycopg.Error, match="row-level security"):
            db.execute("INSERT INTO entries VALUES ('\\x00', 99, '', '', '', '')")


@pytest.mark.anyio
async def test_the_owner_of_the_database_is_found_out(postgres_owner: str, postgres_url: str, tmp_path: Path) -> None:
    """Attack: the superuser passes triggers and row-level security by; the verdict names what they changed."""
    log = (await write(postgres_url, tmp_path / "keys")).hex()
    chain = AuditChain(postgres_url, keys=tmp_path / "keys")
    off = "ALTER TABLE entries DISABLE TRIGGER USER"
    run(postgres_owner, off, f"UPDATE entries SET open = '{{}}' WHERE log = '\\x{log}' AND seq = 3")
    with pytest.raises(BrokenEvidenceError, match="entry 3 of tenant acme: its body is not the one"):
        verify(postgres_url, keys=chain.keys)
    run(postgres_owner, f"DELETE FROM entries WHERE log = '\\x{log}' AND seq >= 3")
    with pytest.raises(BrokenEvidenceError, match="acme"):
        verify(postgres_url, keys=chain.keys)


def test_a_role_that_could_pass_the_guards_is_not_prepared(postgres_owner: str) -> None:
    """The owner, a superuser or a role that is not there may not become the one that writes."""
    for role in ("owner", "nobody_there"):
        with pytest.raises(ConfigError, match="row-level security"):
            prepare(postgres_owner, role=role)


def test_a_database_without_tables_and_a_server_that_is_away(postgres_owner: str, tmp_path: Path) -> None:
    """Both are told in a sentence, without the password of the URL."""
    keys = tmp_path / "keys"
    writer = postgres_owner.replace("owner@", "writer@")
    with pytest.raises(StoreError, match="no audit log"):
        asyncio.run(AuditChain(writer, keys=keys).flush())
    away = "postgresql://writer:secret@/x?host=/nowhere"
    with pytest.raises(StoreError, match="cannot be reached") as caught:
        asyncio.run(AuditChain(away, keys=keys).flush())
    assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError, match="folder for its keys"):
        AuditChain(away)
