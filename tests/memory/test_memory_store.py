"""The embedded store: the contract, with and without an index, and what it does when things go wrong."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aibox.errors import ConfigError, IntegrityError, StoreError
from aibox.memory.embedded_store import EmbeddedStore
from aibox.memory.folder import Folder
from aibox.memory.rows import Wanted
from aibox.memory.vector_index import hashed
from aibox.testing.memory_contract import DIMENSIONS, EVA, RIVAL, TOM, MemoryStoreContract, make, vector
from aibox.types import Label, Scope


def open_store(folder: Path | None, embedder: str = "test", **options: int) -> EmbeddedStore:
    return EmbeddedStore(folder, embedder=embedder, dimensions=DIMENSIONS, **options)


def shared_store(folder: Path, url: str) -> EmbeddedStore:
    folder = Folder(folder, key=bytes(32))  # type: ignore[assignment]  # with the key that all servers have
    return EmbeddedStore(folder, embedder="test", dimensions=DIMENSIONS, database=url)


async def texts(store: EmbeddedStore) -> list[str]:
    return [hit.record.text for hit in await store.search(vector(1), scope=EVA, limit=9, minimum=-1.0)]


class TestWithAnIndex(MemoryStoreContract):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[EmbeddedStore]:  # type: ignore[override]
        store = open_store(tmp_path / "memory")
        yield store
        await store.close()


class TestWithoutAnIndex(MemoryStoreContract):
    @pytest.fixture
    async def store(  # type: ignore[override]
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> AsyncIterator[EmbeddedStore]:
        monkeypatch.setitem(sys.modules, "qdrant_edge", None)
        store = open_store(tmp_path / "memory")
        yield store
        await store.close()


class TestInADatabase(MemoryStoreContract):
    @pytest.fixture
    async def store(self, tmp_path: Path, postgres_url: str) -> AsyncIterator[EmbeddedStore]:  # type: ignore[override]
        store = shared_store(tmp_path / "memory", postgres_url)
        yield store
        await store.close()


class TestInADatabaseWithoutAnIndex(MemoryStoreContract):
    @pytest.fixture
    async def store(  # type: ignore[override]
        self, tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> AsyncIterator[EmbeddedStore]:
        monkeypatch.setitem(sys.modules, "qdrant_edge", None)
        store = shared_store(tmp_path / "memory", postgres_url)
        yield store
        await store.close()


class TestWithOneOpenIndex(MemoryStoreContract):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[EmbeddedStore]:  # type: ignore[override]
        store = open_store(tmp_path / "memory", open_indexes=1)
        yield store
        await store.close()


@pytest.mark.anyio
async def test_it_is_there_after_reopening(tmp_path: Path) -> None:
    """What was added is found by a store opened later, with an index that was kept and not made again."""
    store = open_store(tmp_path)
    await store.add(make("fact"), vector(1))
    assert await texts(store) == ["fact"]
    await store.close()
    [shard] = tmp_path.glob("vectors/*/shard")
    inode = shard.stat().st_ino
    again = open_store(tmp_path)
    await again.add(make("later"), vector(1, 0.1))
    assert await texts(again) == ["fact", "later"]
    assert shard.stat().st_ino == inode
    await again.close()


@pytest.mark.anyio
@pytest.mark.parametrize("damage", ["missing", "state", "emptied", "garbage", "truncated", "uninvited"])
async def test_a_damaged_index_is_made_again(tmp_path: Path, damage: str) -> None:
    """Whatever happened to the index, a search finds what is in the rows."""
    store = open_store(tmp_path)
    for i in range(5):
        await store.add(make(f"fact {i}"), vector(1, i))
    before = await texts(store)
    await store.close()
    [index] = [path for path in (tmp_path / "vectors").iterdir() if path.is_dir()]
    files = [path for path in (index / "shard").rglob("*") if path.is_file()]
    if damage == "missing":
        subprocess.run(["rm", "-r", index], check=True)
    elif damage == "state":
        (index / "state.json").write_bytes(b'{"made_for": {}, "epoch": 7}')
    elif damage == "uninvited":
        subprocess.run(["rm", "-r", index], check=True)
        index.write_text("a file where the folder was")
    for path in files:
        if damage == "emptied":
            path.write_bytes(b"")
        elif damage == "garbage" and path.suffix == ".json":
            path.write_bytes(os.urandom(64))
        elif damage == "truncated":
            path.unlink()
    again = open_store(tmp_path)
    assert await texts(again) == before
    await again.close()


@pytest.mark.anyio
async def test_another_embedders_vectors_are_not_compared(tmp_path: Path) -> None:
    """Under another embedder old records are foreign, not found; given new vectors they are found again."""
    store = open_store(tmp_path)
    record = await store.add(make("fact"), vector(1))
    assert await texts(store) == ["fact"]
    await store.close()
    other = open_store(tmp_path, embedder="other")
    assert await texts(other) == []
    assert await other.foreign(scope=EVA, limit=9) == [record]
    await other.revector({record.id: vector(0, 1)}, scope=EVA)
    assert await other.foreign(scope=EVA, limit=9) == []
    [hit] = await other.search(vector(0, 1), scope=EVA, limit=9)
    assert hit.score == pytest.approx(1.0)
    await other.close()


@pytest.mark.anyio
async def test_two_stores_on_one_folder_agree(tmp_path: Path) -> None:
    """The second searches the rows, says so, sees what the first writes and removes, and takes over when it closes."""
    first, second = open_store(tmp_path), open_store(tmp_path)
    await first.add(make("one"), vector(1))
    assert await texts(first) == await texts(second) == ["one"]
    assert "another process holds the index" in repr(second)
    assert "another process holds the index" in (await second.health()).detail
    assert "qdrant-edge" in repr(first)
    two = await second.add(make("two"), vector(1, 0.1))
    assert await texts(first) == await texts(second) == ["one", "two"]
    await second.remove([two.id], scope=EVA)
    assert await texts(first) == await texts(second) == ["one"]
    await first.close()
    assert await texts(second) == ["one"]
    assert "qdrant-edge" in repr(second)
    await second.close()


WRITER = """
    import asyncio, sys
    from pathlib import Path
    from aibox.memory.embedded_store import EmbeddedStore
    from aibox.testing.memory_contract import EVA, make, vector

    async def main(folder, name, count):
        store = EmbeddedStore(Path(folder), embedder="test", dimensions=4)
        for i in range(count):
            await store.add(make(f"{name} {i}"), vector(1, i))
            if i % 5 == 0:
                await store.search(vector(1), scope=EVA, limit=3)
            print(i, flush=True)
        await store.close()

    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


def start_writer(folder: Path, name: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(WRITER), str(folder), name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.anyio
async def test_a_kill_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """After SIGKILL in the middle of writing, every record whose `add` returned is listed and found."""
    with start_writer(tmp_path, "killed", 10_000) as writer:
        assert writer.stdout is not None
        acknowledged = [int(writer.stdout.readline()) for _ in range(60)][-1]
        writer.send_signal(signal.SIGKILL)
        acknowledged = max([acknowledged, *map(int, writer.stdout.read().split())])
    assert writer.returncode == -signal.SIGKILL
    store = open_store(tmp_path)
    kept = [record.text for record in await store.all(scope=EVA)]
    assert kept[: acknowledged + 1] == [f"killed {i}" for i in range(acknowledged + 1)]
    hits = await store.search(vector(1), scope=EVA, limit=100_000, minimum=-1.0)
    assert {hit.record.text for hit in hits} == set(kept)
    await store.close()


@pytest.mark.anyio
async def test_two_processes_write_at_once(tmp_path: Path) -> None:
    """Two processes that write and search the same folder both come through, and nothing of either is lost."""
    with start_writer(tmp_path, "a", 40) as first, start_writer(tmp_path, "b", 40) as second:
        assert [await asyncio.to_thread(writer.wait) for writer in (first, second)] == [0, 0]
    store = open_store(tmp_path)
    assert len(await store.all(scope=EVA)) == 80
    assert len(await store.search(vector(1), scope=EVA, limit=100, minimum=-1.0)) == 80
    await store.close()


def bytes_in(folder: Path) -> bytes:
    return b"\n".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


@pytest.mark.anyio
@pytest.mark.parametrize("by", ["ids", "user", "tenant"])
async def test_what_was_removed_leaves_the_disk(tmp_path: Path, by: str) -> None:
    """After a removal neither the text nor the numbers of the vector are in any file of the folder."""
    canary = vector(0.123456, 0.654321, 0.111222, 0.333444)
    store = open_store(tmp_path)
    record = await store.add(make("CANARY " * 900, source="CANARYturn"), canary)
    if by != "tenant":
        await store.add(make("stays", TOM), vector(1))
    await store.search(vector(1), scope=EVA, limit=9)
    await store._worker.do(store._open()[1].flush)
    stored = await store._worker.do(lambda: store._rows().vectors(EVA, Wanted())[0][1])
    [sealed] = await store._worker.do(
        lambda: [row[0] for row in store._rows()._db.execute("SELECT sealed FROM records WHERE user = 'eva'")]
    )
    before = bytes_in(tmp_path)
    assert b"CANARY" not in before
    assert stored in before
    assert sealed[:64] in before
    if by == "ids":
        assert await store.remove([record.id], scope=EVA) == 1
    else:
        assert await store.remove_all(tenant="acme", user="eva" if by == "user" else None) == 1
    await store.search(vector(1), scope=TOM, limit=9)
    after = bytes_in(tmp_path)
    assert sealed[:16] not in after
    assert stored[:8] not in after
    await store.close()
    assert sealed[:16] not in bytes_in(tmp_path)


@pytest.mark.anyio
@pytest.mark.parametrize("user", ["eva", None])
async def test_with_the_last_row_the_key_is_lost(tmp_path: Path, user: str | None) -> None:
    """After a user or a tenant is erased the wrapped key is in no file, so that not even a copy of the rows opens."""
    store = open_store(tmp_path)
    await store.add(make("fact"), vector(1))
    await store.add(make("fact", RIVAL), vector(1))
    wrapped = await store._worker.do(
        lambda: dict(store._rows()._db.execute("SELECT tenant, wrapped FROM subjects").fetchall())
    )
    assert wrapped["acme"][:32] in bytes_in(tmp_path)
    await store.remove_all(tenant="acme", user=user)
    assert wrapped["acme"][:16] not in bytes_in(tmp_path)
    assert wrapped["rival"][:16] in bytes_in(tmp_path)
    await store.add(make("anew"), vector(1))
    assert await texts(store) == ["anew"]
    await store.close()


@pytest.mark.anyio
async def test_a_key_is_drawn_anew_under_an_open_store(tmp_path: Path) -> None:
    """What one store erased and wrote again another one, open all the while, reads with the new key."""
    first, second = open_store(tmp_path), open_store(tmp_path)
    await first.add(make("old"), vector(1))
    assert await texts(second) == ["old"]
    await first.remove_all(tenant="acme", user="eva")
    await first.add(make("new"), vector(1))
    assert await texts(second) == ["new"]
    await first.close()
    await second.close()


@pytest.mark.anyio
async def test_nothing_said_is_legible(tmp_path: Path) -> None:
    """Text, source, agent and session of a record are in no file of the folder."""
    store = open_store(tmp_path)
    scope = Scope(tenant="acme", user="eva", agent="CANARYagent", session="CANARYsession")
    await store.add(make("CANARYtext", scope, source="CANARYsource"), vector(1))
    await store.search(vector(1), scope=scope, limit=1)
    await store.close()
    assert b"CANARY" not in bytes_in(tmp_path)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "change",
    [
        "UPDATE records SET sealed = x'00'",
        "UPDATE records SET sealed = (SELECT sealed FROM records WHERE user = 'tom') WHERE user = 'eva'",
        "UPDATE records SET label = 'public'",
        "UPDATE records SET user = 'eva' WHERE user = 'tom'",
        "UPDATE records SET type = 'feedback'",
    ],
)
async def test_a_row_that_was_tampered_with_is_not_believed(tmp_path: Path, change: str) -> None:
    """A text moved to another user, a label lowered or a type changed in the file is an IntegrityError."""
    store = open_store(tmp_path)
    await store.add(make("Eva's", label=Label.parse("confidential")), vector(1))
    await store.add(make("Tom's", TOM, label=Label.parse("confidential")), vector(1))
    with sqlite3.connect(tmp_path / "memory.db") as rows:
        rows.execute(change)
    rows.close()
    with pytest.raises(IntegrityError):
        await store.all(scope=EVA)
    await store.close()


@pytest.mark.anyio
async def test_another_key_is_refused(tmp_path: Path) -> None:
    """A folder opened with a master key that is not its own is a ConfigError; a key of its own is drawn with 0600."""
    store = open_store(tmp_path)
    await store.add(make("fact"), vector(1))
    await store.close()
    assert (tmp_path / "keys" / "memory.key").stat().st_mode & 0o077 == 0
    other = EmbeddedStore(tmp_path, embedder="test", dimensions=DIMENSIONS, key=os.urandom(32))
    with pytest.raises(ConfigError, match="written with another key"):
        await other.all(scope=EVA)
    await other.close()


@pytest.mark.anyio
async def test_what_the_rows_refuse_does_not_hide_the_rest(tmp_path: Path) -> None:
    """Hundreds of nearer records above the ceiling leave the few below it to be found."""
    store = open_store(tmp_path)
    for i in range(300):
        await store.add(make(f"secret {i}", label=Label.parse("restricted")), vector(1, i / 1000))
    await store.add(make("open"), vector(1, 1))
    hits = await store.search(vector(1), scope=EVA, limit=3, ceiling=Label.parse("internal"))
    assert [hit.record.text for hit in hits] == ["open"]
    await store.close()


@pytest.mark.anyio
async def test_no_text_and_no_name_is_in_the_index(tmp_path: Path) -> None:
    """The index holds numbers, the type and a hash of the user; neither text nor the names of user and tenant."""
    store = open_store(tmp_path)
    scope = Scope(tenant="CANARYtenant", user="CANARYuser")
    await store.add(make("CANARYtext", scope), vector(1))
    await store.search(vector(1), scope=scope, limit=1)
    await store.close()
    assert b"CANARY" not in bytes_in(tmp_path / "vectors")
    assert not list((tmp_path / "vectors").rglob("*CANARY*"))


@pytest.mark.anyio
async def test_a_removal_that_was_cut_off_is_finished_at_the_next_start(tmp_path: Path) -> None:
    """An index from before a removal is deleted when the store is opened, before anybody searches."""
    store = open_store(tmp_path)
    await store.add(make("fact"), vector(1))
    await store.add(make("stays"), vector(1))
    await store.search(vector(1), scope=EVA, limit=9)
    await store.close()
    with sqlite3.connect(tmp_path / "memory.db") as rows:
        rows.execute("DELETE FROM records WHERE n = 1")
        rows.execute("UPDATE tenants SET epoch = 'another'")
    rows.close()
    again = open_store(tmp_path)
    await again.all(scope=EVA)
    assert not [path for path in (tmp_path / "vectors").iterdir() if path.is_dir()]
    assert await texts(again) == ["stays"]
    await again.close()


@pytest.mark.anyio
async def test_a_tenant_without_memories_costs_nothing(tmp_path: Path) -> None:
    """Searching for a tenant that has nothing makes no index."""
    store = open_store(tmp_path)
    await store.add(make("fact"), vector(1))
    assert await store.search(vector(1), scope=RIVAL, limit=9) == []
    assert not (tmp_path / "vectors").exists()
    await store.close()


@pytest.mark.anyio
async def test_files_are_for_their_owner_only(tmp_path: Path) -> None:
    """The folder that was made and the file in it can be read by nobody else."""
    store = open_store(tmp_path / "deep" / "memory")
    await store.add(make("fact"), vector(1))
    assert (tmp_path / "deep" / "memory").stat().st_mode & 0o077 == 0
    for path in (tmp_path / "deep" / "memory").glob("memory.db*"):
        assert path.stat().st_mode & 0o077 == 0
    await store.close()


@pytest.mark.anyio
async def test_a_temporary_folder_goes_with_the_store() -> None:
    """Without a folder a private one is made at first use and removed by `close`."""
    store = open_store(None)
    await store.add(make("fact"), vector(1))
    assert await texts(store) == ["fact"]
    folder = store._folder.make()
    assert folder.stat().st_mode & 0o077 == 0
    await store.close()
    assert not folder.exists()


@pytest.mark.anyio
async def test_a_folder_that_cannot_be_made_is_said_in_one_line(tmp_path: Path) -> None:
    """A path below a file is a StoreError with the path and what to do; health says the same without raising."""
    (tmp_path / "file").write_text("")
    store = open_store(tmp_path / "file" / "memory")
    with pytest.raises(StoreError, match="cannot be made: Not a directory") as caught:
        await store.add(make("fact"), vector(1))
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    health = await store.health()
    assert not health.ok
    assert "Not a directory" in health.detail
    await store.close()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("content", "said"),
    [(b"This is a letter, not a database. " * 200, "not a database"), (None, "some other program's database")],
)
async def test_a_file_that_is_not_ours_is_left_alone(tmp_path: Path, content: bytes | None, said: str) -> None:
    """A memory.db that is no database, or another program's, is a StoreError, and its bytes stay."""
    path = tmp_path / "memory.db"
    if content is None:
        with sqlite3.connect(path) as other:
            other.execute("CREATE TABLE theirs (x)")
        other.close()
    else:
        path.write_bytes(content)
    store = open_store(tmp_path)
    with pytest.raises(StoreError, match=said):
        await store.all(scope=EVA)
    await store.close()
    if content is not None:
        assert path.read_bytes() == content
    else:
        with sqlite3.connect(path) as other:
            assert other.execute("SELECT name FROM sqlite_master").fetchall() == [("theirs",)]
        other.close()


@pytest.mark.anyio
async def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """When SQLite has no room left, adding is a StoreError that says so, and what was kept is found."""
    store = open_store(tmp_path)
    await store.add(make("kept"), vector(1))
    await store._worker.do(lambda: store._rows()._db.execute("PRAGMA max_page_count = 20").fetchall())
    with pytest.raises(StoreError, match="the disk is full"):
        await store.add(make("large " * 20_000), vector(0, 1))
    assert (await texts(store))[0] == "kept"
    await store.close()


@pytest.mark.anyio
async def test_a_nearly_full_disk_is_searched_without_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk has no room for an index, the rows are searched and the health says why."""
    from aibox.memory import vector_index

    monkeypatch.setattr(vector_index, "_SPARE_BYTES", 1 << 62)
    store = open_store(tmp_path)
    await store.add(make("fact"), vector(1))
    assert await texts(store) == ["fact"]
    assert "the disk is nearly full" in (await store.health()).detail
    await store.close()


@pytest.mark.anyio
async def test_a_search_sorts_out_whose_rows_they_are_only_where_they_differ(tmp_path: Path) -> None:
    """With one user's rows alone the index is asked for the nearest of all; with another's, for the user's again."""
    store = open_store(tmp_path)
    nearest = [f"mine {number}" for number in range(9)]
    for number in range(20):
        await store.add(make(f"mine {number}"), vector(1, number))
    assert await texts(store) == nearest
    assert store._opened is not None
    index = store._opened[1]._open["acme"]
    mine = {"user": [hashed(EVA.user)]}
    assert index._all_have(mine)
    for number in range(20):
        await store.add(make(f"theirs {number}", TOM), vector(1, number / 2))
    assert await texts(store) == nearest
    assert not index._all_have(mine)
    await store.remove_all(tenant="acme", user="tom")
    assert await texts(store) == nearest
    await store.close()


@pytest.mark.anyio
async def test_a_newer_file_is_not_touched(tmp_path: Path) -> None:
    """A file of a later version is refused with the advice to update."""
    store = open_store(tmp_path)
    await store.add(make("fact"), vector(1))
    await store.close()
    with sqlite3.connect(tmp_path / "memory.db") as rows:
        rows.execute("PRAGMA user_version = 99")
    rows.close()
    newer = open_store(tmp_path)
    with pytest.raises(StoreError, match="newer aibox"):
        await newer.all(scope=EVA)
    await newer.close()


@pytest.mark.anyio
async def test_misuse_is_said(tmp_path: Path) -> None:
    """A vector of another length and a closed store are errors with the next step."""
    store = open_store(tmp_path)
    with pytest.raises(ConfigError, match="a vector of 2 numbers"):
        await store.search([1.0, 0.0], scope=EVA, limit=1)
    await store.close()
    with pytest.raises(StoreError, match="the memory is closed"):
        await store.all(scope=EVA)
