"""Agents' state in SQLite and in a real PostgreSQL: one suite, and what only a server can be asked."""

from __future__ import annotations

import asyncio
import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import aibox
from aibox.agents.postgres import SCHEMA
from aibox.agents.state import AgentState
from aibox.agents.store import TABLES, SqliteStore
from aibox.errors import ConfigError, StoreError
from aibox.outbound.events import Event
from aibox.outbound.outbox import Outbox
from aibox.settings import Settings
from aibox.testing import ScriptedBackend, call
from aibox.testing.agent_state_contract import EVA, KEY, AgentStateContract, keep, question, talk
from aibox.types import Scope


class TestSqlite(AgentStateContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Path:
        return tmp_path / "agents.db"


@pytest.mark.anyio
async def test_who_left_does_not_hear_that_the_store_was_closed(tmp_path: Path) -> None:
    """Work that was given up before it began fails for nobody when the store is closed first; a bug is still told."""
    loop, store = asyncio.get_running_loop(), SqliteStore(tmp_path / "agents.db")
    told: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: told.append(context))
    loop.set_default_executor(ThreadPoolExecutor(1))
    for bug in (False, True):
        busy, begun = threading.Event(), threading.Event()
        first = asyncio.create_task(asyncio.to_thread(lambda b=busy, g=begun: (g.set(), b.wait(30))))
        while not begun.is_set():
            await asyncio.sleep(0.01)
        closing = None if bug else asyncio.create_task(store.close())
        await asyncio.sleep(0)
        left = asyncio.create_task(store.run(lambda _, bug=bug: 1 // (not bug), tenant="t"))
        for _ in range(3):
            await asyncio.sleep(0)
        left.cancel()
        busy.set()
        await asyncio.gather(*filter(None, (first, closing)))
        with pytest.raises(asyncio.CancelledError):
            await left
        await asyncio.to_thread(int)
        gc.collect()
        if not bug:
            assert told == []
            store = SqliteStore(tmp_path / "agents.db")
    await asyncio.sleep(0)
    assert [type(one["exception"]) for one in told] == [ZeroDivisionError]
    await store.close()


@pytest.fixture
def place(postgres_url: str) -> str:
    return postgres_url


class TestPostgres(AgentStateContract):
    @pytest.fixture
    def place(self, postgres_url: str) -> str:
        return postgres_url


async def filled(place: str) -> None:
    state = AgentState(place, key=KEY)
    for tenant in ("acme", "rival"):
        scope = Scope(tenant=tenant, user="eva", agent="books", session="s1")
        await talk(state, 1, scope=scope)
        await keep(state, "r1", scope=scope)
        await state.approvals.ask(question("a1"), scope=scope)
        await state.approvals.reject("a1", "no", scope=Scope(tenant=tenant, user="boss"))
        await state.runs.begin("k", "pay", scope=scope)
        outbox = Outbox(lambda: state.store)
        await outbox.begin(tenant, 0)
        await outbox.take(tenant, {"ops": [Event("msg_1", "turn.blocked", b"Quokka", 1, 0)]}, upto=1)
    await state.close()


@pytest.mark.anyio
async def test_the_server_itself_keeps_tenants_apart(place: str, postgres_full: str) -> None:
    """Whatever SQL runs as the writing role: without a tenant an error, with one its rows only, in every table."""
    import psycopg

    await filled(place)
    with psycopg.connect(place, autocommit=True) as db:
        for table in TABLES:
            with pytest.raises(psycopg.Error):
                db.execute(f"SELECT * FROM {SCHEMA}.{table}")
        for tenant, known in (("acme", True), ("nobody", False)):
            db.execute("SELECT set_config('aibox.tenant', %s, false)", (tenant,))
            for table in TABLES:
                rows = db.execute(f"SELECT tenant FROM {SCHEMA}.{table}").fetchall()
                assert {row[0] for row in rows} <= {tenant}, table
                assert bool(rows) is (known and table != "tools_seen"), table
        db.execute("SELECT set_config('aibox.tenant', 'acme', false)")
        assert db.execute(f"UPDATE {SCHEMA}.runs SET status='done' WHERE tenant='rival'").rowcount == 0
        assert db.execute(f"DELETE FROM {SCHEMA}.sessions WHERE tenant='rival'").rowcount == 0
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            db.execute(f"INSERT INTO {SCHEMA}.calls VALUES ('rival', 'k2', 'pay', NULL, NULL)")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            db.execute(f"UPDATE {SCHEMA}.runs SET tenant='rival'")
        for statement in (f"ALTER TABLE {SCHEMA}.runs DISABLE ROW LEVEL SECURITY", f"DROP TABLE {SCHEMA}.runs"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                db.execute(statement)
    with psycopg.connect(postgres_full) as db:
        asked = (
            "SELECT relname, relrowsecurity AND relforcerowsecurity FROM pg_class "
            "WHERE relnamespace = %s::regnamespace AND relkind = 'r'"
        )
        forced = db.execute(asked, (SCHEMA,)).fetchall()
    assert dict(forced) == dict.fromkeys(TABLES, True)


@pytest.mark.anyio
async def test_no_text_lies_on_the_server_readably(place: str, postgres_full: str) -> None:
    """Messages, titles, arguments and reasons are sealed; who copies a row to another tenant gets an error."""
    import psycopg

    await filled(place)
    with psycopg.connect(postgres_full, autocommit=True) as db:
        everything = "".join(str(row) for t in TABLES for row in db.execute(f"SELECT * FROM {SCHEMA}.{t}").fetchall())
        assert "acme" in everything
        for text in ("question 1", "Quokka", "answer 1"):
            assert text not in everything
            assert text.encode().hex() not in everything
        db.execute(f"UPDATE {SCHEMA}.messages m SET body = o.body FROM {SCHEMA}.messages o "
                   "WHERE m.tenant = 'rival' AND o.tenant = 'acme'")  # fmt: skip
    state = AgentState(place, key=KEY)
    with pytest.raises(aibox.IntegrityError):
        await state.sessions.past(scope=Scope(tenant="rival", user="eva", agent="books", session="s1"))
    await state.close()


@pytest.mark.anyio
async def test_a_lost_connection_is_made_anew(place: str, postgres_full: str) -> None:
    """The server ends our session: the next call works, and nothing that was kept is gone."""
    import psycopg

    state = AgentState(place, key=KEY)
    await talk(state, 1)
    ended = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE usename = 'writer' AND datname = current_database()"
    )
    with psycopg.connect(postgres_full, autocommit=True) as db:
        assert db.execute(ended).fetchall() == [(True,)]
    await talk(state, 2)
    assert len((await state.sessions.past(scope=EVA)).messages) == 4
    await state.close()


@pytest.mark.anyio
async def test_a_server_that_is_not_ready_is_told(postgres_owner: str, tmp_path: Path) -> None:
    """Without tables, and without a server: an error with what to do, and no password in it."""
    bare = AgentState(postgres_owner, key=KEY)
    with pytest.raises(ConfigError, match="no tables") as error:
        await bare.sessions.list(scope=EVA)
    assert "aibox db upgrade" in error.value.hint
    await bare.close()
    away = AgentState(f"postgresql://writer:hunter22@/none?host={tmp_path}", key=KEY)
    with pytest.raises(StoreError, match="reached") as gone:
        await away.sessions.list(scope=EVA)
    assert gone.value.retryable
    assert "hunter22" not in f"{gone.value}{away!r}"
    await away.close()


@pytest.mark.anyio
async def test_a_box_keeps_its_agents_state_where_the_settings_say(place: str, tmp_path: Path) -> None:
    """A turn that waits there is answered by another box on the same database, and goes on in a third."""
    paid: list[str] = []

    @aibox.tool(approve=True, side_effects=True)
    def pay(to: str) -> str:
        """Pay."""
        paid.append(to)
        return "paid"

    def settings() -> Settings:
        return Settings(home=tmp_path / "home", agents={"url": place}, memory={"enabled": False})

    def made(box: aibox.Box, answer: Any) -> aibox.Agent:
        return box.agent("x", router=ScriptedBackend(answer), tools=[pay])

    async with aibox.open(settings=settings()) as box:
        assert place not in repr(box.settings)
        reply = await made(box, call("pay", {"to": "Acme"})).run("go", scope=EVA)
        assert not (tmp_path / "home" / "agents.db").exists()
    async with aibox.open(settings=settings()) as box:
        (asked,) = await box.state.approvals.pending(scope=EVA)
        await box.state.approvals.approve(asked.id, digest=asked.digest, scope=Scope(tenant="acme", user="boss"))
    async with aibox.open(settings=settings()) as box:
        assert (await made(box, "Done.").resume(reply.run, scope=EVA)).text == "Done."
        past = await box.state.sessions.past(scope=EVA.narrow(agent="default"))
    assert paid == ["Acme"]
    assert [m["content"] for m in past.messages] == ["go", "Done."]
