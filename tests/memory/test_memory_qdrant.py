"""Memory on a Qdrant server: the contract in the client's local mode, and where AIBOX_TEST_QDRANT_URL names one."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from memory_words import WordEmbedder

from aibox.errors import ConfigError, IntegrityError, StoreError
from aibox.memory.memory import Memory
from aibox.memory.qdrant_keys import collection
from aibox.memory.qdrant_store import QdrantStore
from aibox.memory.vector_index import hashed
from aibox.testing.memory_contract import DIMENSIONS, EVA, RIVAL, TOM, MemoryStoreContract, make, vector
from aibox.types import Label, Scope

pytest.importorskip("qdrant_client")
KEY = bytes(range(32))
EVA_LABEL = Label.parse("confidential")


def a_store(url: str = "qdrant://:memory:", embedder: str = "test") -> QdrantStore:
    return QdrantStore(url, key=KEY, embedder=embedder, dimensions=DIMENSIONS)


@pytest.fixture
async def store() -> AsyncIterator[QdrantStore]:
    store = a_store()
    yield store
    await store.close()


class TestInTheClientsLocalMode(MemoryStoreContract):
    @pytest.fixture
    async def store(self) -> AsyncIterator[QdrantStore]:  # type: ignore[override]
        store = a_store()
        yield store
        await store.close()


@pytest.mark.live
@pytest.mark.skipif("AIBOX_TEST_QDRANT_URL" not in os.environ, reason="AIBOX_TEST_QDRANT_URL names no server")
class TestOnAServer(MemoryStoreContract):
    @pytest.fixture
    async def store(self, socket_enabled: None) -> AsyncIterator[QdrantStore]:  # type: ignore[override]
        """Of a master key of its own, after whatever an earlier test left in these tenants was erased."""
        del socket_enabled
        store = a_store(os.environ["AIBOX_TEST_QDRANT_URL"])
        for tenant in (EVA.tenant, RIVAL.tenant):
            await store.remove_all(tenant=tenant, user=None)
        yield store
        await store.close()


@pytest.mark.anyio
async def test_the_server_sees_no_word_and_no_name(store: QdrantStore) -> None:
    """The server has numbers, types, labels and times; not the text, nor names of tenant, user, agent or session."""
    kept = await store.add(make("The CANARY sings.", source="turn-77"), vector(1))
    client, _ = await store._server.open()
    everything = ""
    for listed in (await client.get_collections()).collections:
        everything += f"{listed.name} {await client.scroll(listed.name, limit=100)}"
    assert kept.id in everything
    for word in ("CANARY", "turn-77", EVA.tenant, f"'{EVA.user}'", EVA.agent, f"'{EVA.session}'"):
        assert word not in everything


@pytest.mark.anyio
async def test_a_point_that_was_moved_does_not_open(store: QdrantStore) -> None:
    """A payload that was given to another user, or a lower label, is an IntegrityError and never somebody's memory."""
    mine = await store.add(make("fact", label=EVA_LABEL), vector(1))
    await store.add(make("other", TOM), vector(1))
    client, _ = await store._server.open()
    await client.set_payload(collection("acme"), {"label": "public"}, [mine.id])
    with pytest.raises(IntegrityError):
        await store.get(mine.id, scope=EVA)
    await client.set_payload(collection("acme"), {"label": str(EVA_LABEL), "user": hashed("tom")}, [mine.id])
    with pytest.raises((IntegrityError, StoreError)):
        await store.all(scope=TOM)


@pytest.mark.anyio
async def test_with_everything_of_a_user_the_key_goes(store: QdrantStore) -> None:
    """A copy of a point that was taken before opens no more once the user was erased, whatever is put back."""
    mine = await store.add(make("fact"), vector(1))
    client, models = await store._server.open()
    [copy] = await client.retrieve(collection("acme"), [mine.id], with_vectors=True)
    assert await store.remove_all(tenant="acme", user="eva") == 1
    await client.upsert(collection("acme"), [models.PointStruct(id=copy.id, vector=copy.vector, payload=copy.payload)])
    with pytest.raises(StoreError, match="key is gone"):
        await store.get(mine.id, scope=EVA)


@pytest.mark.anyio
async def test_another_master_key_opens_nothing(store: QdrantStore) -> None:
    """Who has the server and not the key reads nothing."""
    await store.add(make("fact"), vector(1))
    stranger = QdrantStore("qdrant://:memory:", key=bytes(32), embedder="test", dimensions=DIMENSIONS)
    stranger._server = store._server
    with pytest.raises(IntegrityError):
        await stranger.all(scope=EVA)


@pytest.mark.anyio
async def test_two_keys_drawn_at_once_both_open(store: QdrantStore) -> None:
    """Where two processes drew a user's key at the same moment, what was kept under either is read."""
    await store.add(make("first"), vector(1))
    client, models = await store._server.open()
    keys = store._keys._wrapping
    payload = {
        "tenant": hashed("acme"),
        "user": hashed("eva"),
        "wrapped": base64.b64encode(keys.draw(hashed("acme"), hashed("eva"))).decode(),
    }
    early = str(uuid.UUID(int=7))
    await client.upsert("aibox_keys", [models.PointStruct(id=early, vector={}, payload=payload)])
    await store.add(make("second"), vector(1, 0.1))
    assert {record.text for record in await store.all(scope=EVA)} == {"first", "second"}
    assert (await store.add(make("first"), vector(1))).text == "first"
    assert len(await store.all(scope=EVA)) == 2


@pytest.mark.anyio
async def test_vectors_of_another_embedder_are_not_compared(store: QdrantStore) -> None:
    """Of the same length they are found again once they were made anew; of another length they are refused."""
    kept = await store.add(make("fact"), vector(1))
    other = a_store(embedder="other")
    other._server = store._server
    assert await other.search(vector(1), scope=EVA, limit=5, minimum=-1.0) == []
    assert [r.id for r in await other.foreign(scope=EVA, limit=9)] == [kept.id]
    await other.revector({kept.id: vector(0, 1)}, scope=EVA)
    assert [h.record.id for h in await other.search(vector(0, 1), scope=EVA, limit=5)] == [kept.id]
    longer = QdrantStore("qdrant://:memory:", key=KEY, embedder="long", dimensions=8)
    longer._server = store._server
    with pytest.raises(ConfigError, match="vectors of 4 numbers"):
        await longer.add(make("more"), [1.0] * 8)


@pytest.mark.anyio
async def test_a_server_that_does_not_answer_is_a_store_error(socket_enabled: None, free_tcp_port: int) -> None:
    """Nothing listens there: it says so, may be tried again, and health is bad."""
    del socket_enabled
    store = a_store(f"qdrant://127.0.0.1:{free_tcp_port}")
    with pytest.raises(StoreError, match="failed") as caught:
        await store.add(make("fact"), vector(1))
    assert caught.value.retryable
    assert not (await store.health()).ok
    await store.close()
    with pytest.raises(StoreError, match="closed"):
        await store.all(scope=EVA)


@pytest.mark.anyio
async def test_a_memory_at_a_url_is_on_the_server(tmp_path: Path, scope: Scope) -> None:
    """`Memory("qdrant://...")` remembers, recalls and forgets, documents too; a missing key is a clear error."""
    async with Memory("qdrant://:memory:", key=KEY, embedder=WordEmbedder()) as memory:
        await memory.remember("The heron nests in March.", scope=scope)
        [hit] = await memory.recall("heron", scope=scope)
        assert hit.record.text == "The heron nests in March."
        await memory.add(b"The heron eats frogs.", name="x.txt", scope=scope)
        assert len(await memory.recall("heron", scope=scope)) == 2
        assert "documents of 1 tenants" in (await memory.health()).detail
        assert await memory.forget(scope=scope, subject=scope.user) == 2
        assert await memory.recall("heron", scope=scope) == []
    with pytest.raises(ConfigError, match="needs a key"):
        Memory("qdrant://127.0.0.1:6333", embedder=WordEmbedder())
    for wrong in ("qdrant://", "qdrant://user:secret@host", "mem0://host"):
        with pytest.raises(ConfigError):
            Memory(wrong, key=KEY, embedder=WordEmbedder())


class Listener(ThreadingHTTPServer):
    """Stands where a server would for one claim, what each request to it says in its head. It keeps nothing."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Heads)
        self.named: list[str | None] = []
        self.url = f"qdrant://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()


class Heads(BaseHTTPRequestHandler):
    server: Listener

    def answer(self) -> None:
        self.rfile.read(int(self.headers["content-length"] or 0))
        self.server.named.append(self.headers["x-correlation-id"])
        body = b'{"result": {"exists": true, "points": []}, "status": "ok", "time": 0.0}'
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_DELETE = answer  # noqa: N815 - as its parent has them

    def log_message(self, *_: Any) -> None:
        """Nobody wants to read it."""


@pytest.fixture
def listener(socket_enabled: None) -> Iterator[Listener]:
    del socket_enabled
    found = Listener()
    yield found
    found.shutdown()
    found.server_close()


Act = Callable[[Memory, Scope], Coroutine[Any, Any, object]]
ID = str(uuid.UUID(int=1))
ACTS: dict[str, Act] = {
    "remember": lambda memory, scope: memory.remember("heron", scope=scope),
    "recall": lambda memory, scope: memory.recall("heron", scope=scope),
    "list": lambda memory, scope: memory.list(scope=scope),
    "get": lambda memory, scope: memory.get(ID, scope=scope),
    "get a passage": lambda memory, scope: memory.get(f"{ID}:0", scope=scope),
    "update": lambda memory, scope: memory.update(ID, "egret", scope=scope),
    "forget some": lambda memory, scope: memory.forget(scope=scope, ids=[ID]),
    "forget all": lambda memory, scope: memory.forget(scope=scope, subject=scope.user),
    "erase": lambda memory, scope: memory.erase(scope=scope),
    "add": lambda memory, scope: memory.add(b"heron", name="x.txt", scope=scope),
    "documents": lambda memory, scope: memory.documents(scope=scope),
}


@pytest.mark.anyio
@pytest.mark.parametrize("act", ACTS)
async def test_a_server_is_told_the_request_that_asks(listener: Listener, scope: Scope, act: str) -> None:
    """Every call that an act of a request needs names that request, of two at once too; an act of none names none."""
    async with Memory(listener.url, key=KEY, embedder=WordEmbedder()) as memory:

        async def asked(correlation: str) -> None:
            with contextlib.suppress(StoreError, ConfigError):  # the answers are those of an empty server, or none
                await ACTS[act](memory, scope.under(correlation))

        await asyncio.gather(asked("request-0001"), asked("request-0002"))
        assert set(listener.named) == {"request-0001", "request-0002"}
        listener.named.clear()
        await asked("")
        assert set(listener.named) == {None}
