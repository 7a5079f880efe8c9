"""Several servers over one database remember together, each with indexes of its own; the server keeps tenants apart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from memory_words import WordEmbedder

from aibox.errors import ConfigError, StoreError
from aibox.memory.memory import Memory
from aibox.memory.record import Passage
from aibox.postgres import Statements
from aibox.types import Scope

pytestmark = pytest.mark.anyio
KEY = bytes(range(32))
HANDBOOK = b"# Handbook\n\n## Travel\n\nTrips abroad need an approval.\n\n## Equipment\n\nThe autoclave is ZX-4471.\n"


def server(url: str, folder: Path, *, key: bytes = KEY) -> Memory:
    return Memory(url, folder=folder, key=key, embedder=WordEmbedder())


@pytest.fixture
async def both(postgres_url: str, tmp_path: Path) -> AsyncIterator[tuple[Memory, Memory]]:
    async with server(postgres_url, tmp_path / "one") as one, server(postgres_url, tmp_path / "other") as other:
        yield one, other


async def texts(memory: Memory, query: str, scope: Scope) -> list[str]:
    return [hit.record.text for hit in await memory.recall(query, scope=scope)]


async def test_what_one_keeps_the_other_recalls_and_lets_go_of(
    both: tuple[Memory, Memory], scope: Scope, other_scope: Scope
) -> None:
    """Found by each through its own index, as soon as it is kept; gone for both once either forgot it."""
    one, other = both
    for number, memory in enumerate((one, other, one, other)):
        await memory.remember(f"The key of locker {number} is blue", scope=scope)
        for each in both:
            assert len(await texts(each, "locker key blue", scope)) == number + 1
    assert await texts(other, "locker key blue", other_scope) == []
    records = await one.list(scope=scope)
    assert await other.forget(scope=scope, ids=[records[0].id]) == 1
    for each in both:
        assert sorted(await texts(each, "locker key blue", scope)) == [
            f"The key of locker {n} is blue" for n in (1, 2, 3)
        ]
    assert await one.erase(scope=scope, subject=scope.user) == 3
    assert await texts(other, "locker key blue", scope) == []


async def test_documents_of_one_are_cited_by_the_other(
    both: tuple[Memory, Memory], scope: Scope, other_scope: Scope
) -> None:
    """By words and vectors; a newer file takes the place of the older for both; private is private on every server."""
    one, other = both
    [document] = await one.add(HANDBOOK, name="handbook.md", scope=scope)
    hit = (await other.recall("autoclave ZX-4471", scope=scope))[0].record
    assert isinstance(hit, Passage)
    assert hit.citation.startswith("handbook.md")
    assert await other.get(hit.id, scope=scope) == hit
    tom = Scope(tenant=scope.tenant, user="tom")
    for stranger in (tom, other_scope):
        assert await texts(other, "autoclave ZX-4471", stranger) == []
        assert await other.documents(scope=stranger) == []
    [newer] = await other.add(HANDBOOK.replace(b"ZX-4471", b"ZX-5512"), name="handbook.md", scope=scope)
    assert [found.id for found in await one.documents(scope=scope)] == [newer.id]
    assert newer.id != document.id
    assert "ZX-5512" in (await texts(one, "autoclave ZX-5512", scope))[0]
    await one.add(b"All may know that lunch is at noon.", name="lunch.txt", scope=scope, visibility="shared")
    assert await texts(other, "lunch noon", tom) == ["All may know that lunch is at noon."]
    assert await other.forget(scope=scope, ids=[newer.id]) == 1
    assert await texts(one, "autoclave", scope) == []


async def test_passages_go_over_together(
    both: tuple[Memory, Memory], scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A document of many passages takes a few statements, and each passage is there for the other server."""
    one, other = both
    await one.add(b"Nothing yet.", name="first.txt", scope=scope)
    execute, said = Statements.execute, []
    monkeypatch.setattr(Statements, "execute", lambda *asked: (said.append(asked[1]), execute(*asked))[1])
    rooms = "\n\n".join(f"# Room {n}\n\n" + f"Room {n} has the lamp L{n}. " * 20 for n in range(120))
    [document] = await one.add(rooms.encode(), name="rooms.md", scope=scope)
    assert document.passages >= 120
    assert len([sql for sql in said if "INSERT INTO passages" in sql]) == -(-document.passages // 50)
    for n in (0, 49, 50, 119):
        assert f"L{n}." in (await texts(other, f"Room {n} lamp L{n}", scope))[0]


async def test_many_who_keep_the_same_at_once_keep_it_once(both: tuple[Memory, Memory], scope: Scope) -> None:
    """Both servers, eight times each, in the same moment: one memory, and every call has it."""
    kept = await asyncio.gather(*(m.remember("The door is green", scope=scope) for m in both * 8))
    assert len({record.id for record in kept}) == 1
    assert len(await both[0].list(scope=scope)) == 1


async def test_the_server_keeps_tenants_apart_and_reads_nothing(
    both: tuple[Memory, Memory], scope: Scope, other_scope: Scope, postgres_url: str, postgres_full: str
) -> None:
    """SQL of the writing role sees the named tenant's rows; text and names of agents lie nowhere in the clear."""
    import psycopg

    for who in (scope, other_scope):
        await both[0].remember("Quokkas are shy", scope=who)
        await both[0].add(b"Quokkas eat leaves.", name="quokka.txt", scope=who)
    tables = ["aibox_memory.records", "aibox_memory.subjects", "aibox_documents.documents", "aibox_documents.passages"]
    with psycopg.connect(postgres_url, autocommit=True) as db:
        db.execute("SELECT set_config('aibox.tenant', %s, false)", (scope.tenant,))
        for table in tables:
            assert {row[0] for row in db.execute(f"SELECT tenant FROM {table}".encode())} == {scope.tenant}
            assert db.execute(f"UPDATE {table} SET tenant = tenant WHERE tenant = 'rival'".encode()).rowcount == 0
            assert db.execute(f"DELETE FROM {table} WHERE tenant = 'rival'".encode()).rowcount == 0
    with psycopg.connect(postgres_full) as db:
        rows = [str(row) for table in tables for row in db.execute(f"SELECT * FROM {table}".encode())]
    assert len(rows) == 2 * len(tables)
    assert not any("uokka" in row or b"uokka".hex() in row for row in rows)


async def test_another_key_and_a_server_that_is_away_are_told(
    both: tuple[Memory, Memory], scope: Scope, postgres_url: str, tmp_path: Path
) -> None:
    """The first server's key is the key; a database that cannot be reached is a StoreError that may be tried again."""
    await both[0].remember("The door is green", scope=scope)
    async with server(postgres_url, tmp_path / "third", key=bytes(32)) as stranger:
        with pytest.raises(ConfigError, match="another key"):
            await stranger.list(scope=scope)
    async with server(f"postgresql://writer:hunter22@/none?host={tmp_path}", tmp_path / "fourth") as away:
        with pytest.raises(StoreError, match="reached") as caught:
            await away.list(scope=scope)
        assert caught.value.retryable
        assert "hunter22" not in str(caught.value)
        assert not (await away.health()).ok
