"""Both stores pass one contract; PostgreSQL's guards hold against the role that writes, and its owner is found out."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
from audit_parts import ACME, RIVAL, sealed_turns

from aibox.audit.chain import AuditChain
from aibox.audit.postgres import SCHEMA, PostgresStore
from aibox.audit.record import Row, log_id
from aibox.audit.report import BrokenEvidenceError
from aibox.audit.sqlite import _PRUNES, _REFUSE
from aibox.audit.store import LogName, Store, open_store
from aibox.audit.verify import verify
from aibox.errors import ConfigError, StoreError
from aibox.testing.audit_store_contract import AuditStoreContract


class TestSqlite(AuditStoreContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return str(tmp_path / "audit.db")


def begun_earlier(path: Path) -> Path:
    """A log as it was laid out before entries had places."""
    columns = "header BLOB NOT NULL, open BLOB, sealed BLOB, tag BLOB NOT NULL, PRIMARY KEY (log, seq)"
    prunes = _PRUNES.replace("AND NEW.place = OLD.place ", "")
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"CREATE TABLE entries (log BLOB NOT NULL, seq INTEGER NOT NULL, {columns}) WITHOUT ROWID")
        db.execute(f"CREATE TRIGGER entries_no_update BEFORE UPDATE ON entries WHEN NOT ({prunes}) {_REFUSE}")
        columns = "tenant TEXT NOT NULL UNIQUE, origin TEXT NOT NULL, public_key TEXT NOT NULL"
        db.execute(f"CREATE TABLE logs (log BLOB PRIMARY KEY, {columns}) WITHOUT ROWID")
    return path


class TestSqliteBegunEarlier(AuditStoreContract):
    """A file whose entries lie as versions before laid them out, which is never laid out anew."""

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return str(begun_earlier(tmp_path / "audit.db"))

    def test_it_stays_as_it_was(self, store: Store, url: str) -> None:
        """Opening it for writing has left the layout as it is."""
        with closing(sqlite3.connect(url)) as db:
            sql = [row[0] for row in db.execute("SELECT sql FROM sqlite_master WHERE name IN ('entries', 'logs')")]
        assert all(one.endswith("WITHOUT ROWID") and "place" not in one and "number" not in one for one in sql)


class TestPostgres(AuditStoreContract):
    @pytest.fixture
    def url(self, postgres_url: str) -> str:
        return postgres_url


def test_an_entry_takes_the_room_that_it_needs(tmp_path: Path) -> None:
    """300 entries of 1.2 KB take less than 500 KB in SQLite, and not a page of 4 KB each."""
    path = tmp_path / "audit.db"
    with closing(open_store(path)) as store:
        log, rows = log_id("a"), [Row(n, b"h" * 122, b"o" * 800, b"s" * 250, b"t" * 32) for n in range(300)]
        with store.transaction():
            store.add_log(LogName(log, "a", "a", "key"))
        for start in range(0, 300, 20):
            with store.transaction():
                store.add_entries(log, start, rows[start : start + 20])
        assert list(store.entries(log)) == rows
    assert path.stat().st_size < 500_000


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
async def test_the_owner_of_the_database_is_found_out(postgres_full: str, postgres_url: str, tmp_path: Path) -> None:
    """Attack: the superuser passes triggers and row-level security by; the verdict names what they changed."""
    log = (await write(postgres_url, tmp_path / "keys")).hex()
    chain = AuditChain(postgres_url, keys=tmp_path / "keys")
    off = "ALTER TABLE entries DISABLE TRIGGER USER"
    run(postgres_full, off, f"UPDATE entries SET open = '{{}}' WHERE log = '\\x{log}' AND seq = 3")
    with pytest.raises(BrokenEvidenceError, match="entry 3 of tenant acme: its body is not the one"):
        verify(postgres_url, keys=chain.keys)
    run(postgres_full, f"DELETE FROM entries WHERE log = '\\x{log}' AND seq >= 3")
    with pytest.raises(BrokenEvidenceError, match="acme"):
        verify(postgres_url, keys=chain.keys)


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


# Two processes, one history: there is no lease, so what a lease is for is tried here.

HOLDER = """
import asyncio, sys
import aibox
from aibox.audit.chain import AuditChain
from aibox.errors import StoreError

scope = aibox.Scope(tenant="acme", user="eva")

def stop(ledger):
    with ledger.transaction():
        entry = ledger.add("tool.called", scope=scope, turn="", detail={"by": "the one that stops"})
        ledger.flush()
        if sys.argv[3] == "impatient":
            ledger.store._db.execute("SET LOCAL idle_in_transaction_session_timeout = '100ms'")
        print("holds", entry.seq, flush=True)
        sys.stdin.readline()

async def main():
    async with AuditChain(sys.argv[1], keys=sys.argv[2]) as chain:
        try:
            await chain._do(stop, own_transaction=True)
            print("written", flush=True)
        except StoreError:
            print("refused", flush=True)
        entry = await chain.append("tool.called", scope=scope, detail={"by": "the one that stopped"})
        print("then", entry.seq, flush=True)

asyncio.run(main())
"""


def holder(url: str, keys: Path, server: str = "patient") -> subprocess.Popen[str]:
    """A writer that takes the log, has put an entry into its transaction, and stops until it is told to go on."""
    command = [sys.executable, "-c", HOLDER, url, str(keys), server]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "holds 1\n"
    return process


async def begun(url: str, keys: Path) -> None:
    async with AuditChain(url, keys=keys) as chain:
        await chain.append("tool.called", scope=ACME, detail={"by": "the first"})


async def writers(url: str, keys: Path) -> list[str]:
    """Who wrote each entry, in order; the whole verifies."""
    async with AuditChain(url, keys=keys) as chain:
        assert (await chain.verify()).ok
        return [entry.detail["by"] async for entry in chain.entries("acme")]


@pytest.mark.anyio
async def test_a_writer_that_stops_in_the_middle_is_put_out_by_the_server(postgres_url: str, tmp_path: Path) -> None:
    """It holds the log and falls silent: the server ends its session, another writes, and what it held never comes."""
    keys = tmp_path / "keys"
    await begun(postgres_url, keys)
    process = await asyncio.to_thread(holder, postgres_url, keys, "impatient")
    async with AuditChain(postgres_url, keys=keys) as chain:
        entry = await chain.append("tool.called", scope=ACME, detail={"by": "the other"})
    assert entry.seq == 1
    said, _ = await asyncio.to_thread(process.communicate, "go on\n", 60)
    assert said.split() == ["refused", "then", "2"]
    assert await writers(postgres_url, keys) == ["the first", "the other", "the one that stopped"]


@pytest.mark.anyio
async def test_a_writer_that_goes_on_in_time_is_waited_for(postgres_url: str, tmp_path: Path) -> None:
    """The other waits for the row of the log, then reads the head anew: both are in, in this order, and none twice."""
    keys = tmp_path / "keys"
    await begun(postgres_url, keys)
    process = await asyncio.to_thread(holder, postgres_url, keys)
    async with AuditChain(postgres_url, keys=keys) as chain:
        waiting = asyncio.create_task(chain.append("tool.called", scope=ACME, detail={"by": "the other"}))
        said, _ = await asyncio.to_thread(process.communicate, "go on\n", 60)
        assert said.split()[0] == "written"
        assert {1, (await waiting).seq, int(said.split()[-1])} == {1, 2, 3}
    assert (await writers(postgres_url, keys))[:2] == ["the first", "the one that stops"]


@pytest.mark.anyio
async def test_a_file_that_is_held_is_refused_and_free_when_its_holder_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite: nobody writes past a holder, however long it sleeps; killed, it leaves nothing, and the log goes on."""
    path, keys = str(tmp_path / "audit.db"), tmp_path / "keys"
    await begun(path, keys)
    process = await asyncio.to_thread(holder, path, keys)
    with monkeypatch.context() as patched:
        patched.setattr("aibox.audit.sqlite.BUSY_S", 0.2)
        async with AuditChain(path, keys=keys) as chain:
            with pytest.raises(StoreError, match="locked"):
                await chain.append("tool.called", scope=ACME, detail={"by": "the other"})
    process.kill()
    await asyncio.to_thread(process.communicate)
    async with AuditChain(path, keys=keys) as chain:
        assert (await chain.append("tool.called", scope=ACME, detail={"by": "the other"})).seq == 1
    assert await writers(path, keys) == ["the first", "the other"]


@pytest.mark.anyio
async def test_a_chain_goes_on_when_its_server_was_away(postgres_url: str, postgres_full: str, tmp_path: Path) -> None:
    """Its session is ended by the server's owner: one append is told so or none, the next one is in its place."""
    async with AuditChain(postgres_url, keys=tmp_path / "keys") as chain:
        await chain.append("tool.called", scope=ACME, detail={"by": "before"})
        run(postgres_full, "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE usename = 'writer'")
        with pytest.raises(StoreError):
            await chain.append("tool.called", scope=ACME, detail={"by": "lost"})
        assert (await chain.append("tool.called", scope=ACME, detail={"by": "after"})).seq == 1
        patience = "SHOW idle_in_transaction_session_timeout"
        assert await chain._do(lambda ledger: ledger.store._one(patience)) == ("30s",)  # type: ignore[attr-defined]  # it is one
    assert await writers(postgres_url, tmp_path / "keys") == ["before", "after"]


@pytest.mark.anyio
async def test_a_log_that_others_write_to_while_it_is_opened_was_not_put_back(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever opens it reads one moment of it: the mark of what was written meanwhile does not speak against that."""
    keys = tmp_path / "keys"
    async with AuditChain(postgres_url, keys=keys) as first:
        await first.append("tool.called", scope=ACME, detail={"by": "first"})

    async def other() -> None:
        async with AuditChain(postgres_url, keys=keys) as chain:
            await chain.append("tool.called", scope=ACME, detail={"by": "other"})

    writing = threading.Thread(target=asyncio.run, args=(other(),))
    head = PostgresStore.head

    def slowly(store: PostgresStore, log: bytes) -> Row | None:
        found = head(store, log)
        if writing.ident is None:
            writing.start()
            writing.join(2.0)  # as long as it may: a lock keeps it from writing
        return found

    monkeypatch.setattr(PostgresStore, "head", slowly)
    async with AuditChain(postgres_url, keys=keys) as chain:
        await chain.append("tool.called", scope=ACME, detail={"by": "slow"})
    await asyncio.to_thread(writing.join, 30)
    assert await writers(postgres_url, keys) == ["first", "slow", "other"]


@pytest.mark.anyio
async def test_two_processes_write_one_history_in_postgres(postgres_url: str, tmp_path: Path) -> None:
    """Every acknowledged entry of both is at its place, none twice and none missing, and all verifies."""
    code = (
        "import asyncio, sys, aibox\n"
        "async def main():\n"
        "    async with aibox.AuditChain(sys.argv[1], keys=sys.argv[2]) as chain:\n"
        "        scope = aibox.Scope(tenant='acme', user=sys.argv[3])\n"
        "        async def work(n):\n"
        "            for _ in range(5):\n"
        "                entry = await chain.append('tool.called', scope=scope, detail={'by': sys.argv[3]})\n"
        "                print(entry.seq, flush=True)\n"
        "        await asyncio.gather(*(work(n) for n in range(8)))\n"
        "asyncio.run(main())\n"
    )
    keys = tmp_path / "keys"
    commands = [[sys.executable, "-c", code, postgres_url, str(keys), who] for who in ("eva", "tom")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    said = [(await asyncio.to_thread(process.communicate, None, 120))[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(int(seq) for text in said for seq in text.split()) == list(range(80))
    assert sorted(await writers(postgres_url, keys)) == ["eva"] * 40 + ["tom"] * 40
