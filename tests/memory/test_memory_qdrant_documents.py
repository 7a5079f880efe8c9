"""Documents on a Qdrant server: what is peculiar to it. What every store does is in test_memory_documents.py."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from memory_words import WordEmbedder

from aibox.errors import IntegrityError, StoreError
from aibox.memory.memory import Memory
from aibox.memory.qdrant_documents import QdrantDocuments
from aibox.memory.qdrant_points import collection
from aibox.memory.record import Passage
from aibox.memory.vector_index import hashed
from aibox.types import Scope

pytest.importorskip("qdrant_client")
KEY = bytes(range(32))
LIVE = "AIBOX_TEST_QDRANT_URL"


@pytest.fixture(
    params=[
        "qdrant://:memory:",
        pytest.param(
            os.environ.get(LIVE),
            marks=[pytest.mark.live, pytest.mark.skipif(LIVE not in os.environ, reason=f"{LIVE} names no server")],
        ),
    ],
    ids=["in the client", "on a server"],
)
async def memory(request: pytest.FixtureRequest, scope: Scope, other_scope: Scope) -> AsyncIterator[Memory]:
    if request.param != "qdrant://:memory:":
        request.getfixturevalue("socket_enabled")
    groups = lambda scope: {"nurses"} if scope.user == "tom" else set()  # noqa: E731 - the whole rule
    async with Memory(request.param, embedder=WordEmbedder(), key=KEY, groups=groups) as memory:
        for tenant in (scope, other_scope):
            await memory.erase(scope=tenant)
        yield memory


def store_of(memory: Memory) -> QdrantDocuments:
    assert isinstance(memory._documents, QdrantDocuments)
    return memory._documents


async def found(memory: Memory, query: str, scope: Scope) -> list[Passage]:
    return [hit.record for hit in await memory.recall(query, scope=scope) if isinstance(hit.record, Passage)]


@pytest.mark.anyio
async def test_the_server_sees_no_word_and_no_name(memory: Memory, scope: Scope) -> None:
    """Neither text, file, path, group, user nor tenant is legible on the server; visibility and label are."""
    await memory.add(
        b"The CANARY sings.",
        name="CANARY.txt",
        scope=scope,
        visibility="restricted",
        groups=["canaries"],
        label="public",
    )
    client, _ = await store_of(memory)._server.open()
    everything = ""
    for listed in (await client.get_collections()).collections:
        everything += f"{listed.name} {await client.scroll(listed.name, limit=100)}"
    assert "restricted" in everything
    for word in ("CANARY", "canar", "sings", scope.tenant, f"'{scope.user}'"):
        assert word not in everything


@pytest.mark.anyio
async def test_rights_that_were_tampered_with_are_not_believed(memory: Memory, scope: Scope) -> None:
    """A server that shows a private passage to all, or lowers a label, gives nobody anything but an IntegrityError."""
    [document] = await memory.add(b"The vault code is heron.", name="v.txt", scope=scope, label="confidential")
    client, models = await store_of(memory)._server.open()
    tom, name = replace(scope, user="tom"), collection(scope.tenant)
    chosen = models.Filter(must=[models.FieldCondition(key="document", match=models.MatchValue(value=document.id))])
    await client.set_payload(name, {"reader": ["*"]}, chosen)
    assert await found(memory, "vault", tom) == []
    await client.set_payload(name, {"label": "public"}, chosen)
    with pytest.raises(IntegrityError):
        await found(memory, "vault", scope)
    await client.set_payload(name, {"label": "confidential", "visibility": "shared"}, chosen)
    with pytest.raises((IntegrityError, StoreError)):
        await found(memory, "vault", tom)
    await client.set_payload(name, {"visibility": "private", "user": hashed("tom")}, chosen)
    with pytest.raises((IntegrityError, StoreError)):
        await found(memory, "vault", tom)


@pytest.mark.anyio
async def test_a_document_that_was_cut_off_is_not_there(memory: Memory, scope: Scope) -> None:
    """Passages whose document was not written yet are not found, and keeping it again leaves no copy of them."""
    [document] = await memory.add(b"The heron nests.", name="h.txt", scope=scope)
    store = store_of(memory)
    client, _ = await store._server.open()
    await client.delete(collection(scope.tenant), [document.id])
    assert await found(memory, "heron", scope) == []
    assert await memory.documents(scope=scope) == []
    await memory.add(b"The heron nests.", name="h.txt", scope=scope)
    assert [passage.text for passage in await found(memory, "heron", scope)] == ["The heron nests."]
    assert (await client.count(collection(scope.tenant))).count == 2


@pytest.mark.anyio
async def test_erasing_a_user_leaves_what_was_shared_without_the_name(memory: Memory, scope: Scope) -> None:
    """Private documents are gone with their key, shared and restricted ones stay for those who may see them."""
    tom, ann = replace(scope, user="tom"), replace(scope, user="ann")
    await memory.add(b"The vault code is heron.", name="private.txt", scope=scope)
    await memory.add(b"The vault opens at noon.", name="shared.txt", scope=scope, visibility="shared")
    await memory.add(b"The vault hums.", name="r.txt", scope=scope, visibility="restricted", groups=["nurses"])
    assert await memory.erase(scope=scope, subject=scope.user) == 3
    assert {p.name for p in await found(memory, "vault", scope)} == {"shared.txt"}
    assert {p.name for p in await found(memory, "vault", tom)} == {"shared.txt", "r.txt"}
    assert {p.name for p in await found(memory, "vault", ann)} == {"shared.txt"}
    assert not any(document.mine for document in await memory.documents(scope=scope))
    client, _ = await store_of(memory)._server.open()
    assert hashed(scope.user) not in f"{await client.scroll(collection(scope.tenant), limit=100)}"
    assert await memory.erase(scope=scope) == 2
    assert await found(memory, "vault", tom) == []


@pytest.mark.anyio
async def test_another_embedder_reads_the_documents_anew(memory: Memory, scope: Scope) -> None:
    """With vectors of another embedder recall is refused; after `reindex`, by anybody of the tenant, all is found."""
    tom = replace(scope, user="tom")
    await memory.add(b"The heron nests.", name="h.txt", scope=scope)
    await memory.add(b"The heron sleeps.", name="s.txt", scope=tom, visibility="shared")
    store = store_of(memory)
    memory.embedder = WordEmbedder("other")
    store._embedder = "other"
    with pytest.raises(StoreError, match="aibox memory reindex"):
        await memory.recall("heron", scope=scope)
    assert await memory.reindex(scope=tom) == 2
    assert {p.name for p in await found(memory, "heron", scope)} == {"h.txt", "s.txt"}


@pytest.mark.anyio
async def test_it_ranks_as_the_store_in_a_folder_does(memory: Memory, scope: Scope) -> None:
    """The same documents and questions give the same passages with the same scores; others' words change nothing."""
    texts = ["The heron nests in March.", "The heron eats frogs and fish.", "Frogs sing at night.", "A boat is grey."]
    async with Memory(embedder=WordEmbedder()) as folder:
        for number, text in enumerate(texts):
            for kept in (memory, folder):
                await kept.add(text.encode(), name=f"{number}.txt", scope=scope)
        for number in range(5):
            await memory.add(b"frogs frogs", name=f"{number}.txt", scope=replace(scope, user="tom"))
        for query in ("heron", "frogs", "Where do herons nest?", "a grey boat at night"):
            ours, theirs = [await kept.recall(query, scope=scope) for kept in (memory, folder)]
            assert [hit.record.text for hit in ours] == [hit.record.text for hit in theirs]
            assert [hit.score for hit in ours] == pytest.approx([hit.score for hit in theirs], abs=1e-5)
