"""The graph of a large index: built by a process of its own, while everything is found without it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import anyio
import pytest

from aibox.memory import graph as graph_module
from aibox.memory import vector_index
from aibox.memory.embedded_store import EmbeddedStore
from aibox.memory.graph import GraphBuild
from aibox.testing.memory_contract import EVA, make

np = pytest.importorskip("numpy")
pytest.importorskip("qdrant_edge")

ROWS = 7_000
"""More than qdrant-edge compares one by one even where it has a graph: ten megabytes of vectors."""
DIMENSIONS = 384
DRAW = np.random.default_rng(5)
# As texts are: near one another in groups, and none like another.
VECTORS = DRAW.standard_normal((70, DIMENSIONS))[np.arange(ROWS) % 70] + DRAW.standard_normal((ROWS, DIMENSIONS))


def a_store(folder: Path) -> EmbeddedStore:
    return EmbeddedStore(folder, embedder="test", dimensions=DIMENSIONS)


async def fill(store: EmbeddedStore, rows: Sequence[int]) -> None:
    """In one transaction, where `add` makes one a record."""

    def write() -> None:
        kept = store._rows()
        with kept.transaction():
            for number in rows:
                made = make(f"fact {number}")
                key = kept._keys.get(made.tenant, made.user)
                kept._insert(made, VECTORS[number].tolist(), key, kept._epochs.next_change(made.tenant))

    await store._worker.do(write)


async def found(store: EmbeddedStore, number: int) -> list[str]:
    hits = await store.search(VECTORS[number].tolist(), scope=EVA, limit=8, minimum=-1.0)
    return [hit.record.text for hit in hits]


def nearest(number: int, among: int) -> set[str]:
    unit = VECTORS[:among] / np.linalg.norm(VECTORS[:among], axis=1, keepdims=True)
    return {f"fact {i}" for i in np.argsort(-(unit @ VECTORS[number]))[:8]}


def index_of(store: EmbeddedStore) -> vector_index.VectorIndex:
    assert store._opened is not None
    return store._opened[1]._open["acme"]


async def until_built(store: EmbeddedStore) -> None:
    with anyio.fail_after(300):
        while index_of(store)._build.under_way:
            await anyio.sleep(0.05)
            await found(store, 0)


@pytest.fixture
def early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_index, "GRAPH_FROM", 6_000)


@pytest.mark.anyio
@pytest.mark.usefixtures("early")
async def test_the_graph_finds_what_comparing_every_vector_finds(tmp_path: Path) -> None:
    """While the graph is built all is found exactly; with it nine of ten of the nearest are, and what came since.

    The scores are the cosines of the vectors as they were kept, not of the bytes that the graph compares.
    """
    store = a_store(tmp_path)
    await fill(store, range(ROWS - 200))
    assert set(await found(store, 3)) == nearest(3, ROWS - 200)
    index = index_of(store)
    assert index._build.under_way
    await fill(store, range(ROWS - 200, ROWS))
    assert (await found(store, ROWS - 1))[0] == f"fact {ROWS - 1}"
    await until_built(store)
    assert (index.complaint, index._shard.info().indexed_vectors_count, index._outside) == ("", ROWS - 200, 200)
    assert not [*tmp_path.glob("vectors/*/graph")]
    asked = range(0, ROWS, 100)
    right = [len(nearest(number, ROWS).intersection(await found(store, number))) for number in asked]
    assert sum(right) >= 0.9 * 8 * len(asked)
    query = VECTORS[7] / np.linalg.norm(VECTORS[7])
    for hit in await store.search(query.tolist(), scope=EVA, limit=8, minimum=-1.0):
        near = VECTORS[int(hit.record.text.split()[1])]
        assert hit.score == pytest.approx(query @ near / np.linalg.norm(near), abs=1e-5)
    await store.close()

    again = a_store(tmp_path)
    assert (await found(again, 5))[0] == "fact 5"
    assert index_of(again)._shard.info().indexed_vectors_count == ROWS - 200
    assert index_of(again)._outside == 200
    await again.close()


@pytest.mark.anyio
@pytest.mark.usefixtures("early")
async def test_forgetting_ends_the_build_and_removes_its_copy(tmp_path: Path) -> None:
    """What is forgotten while a graph is built leaves no vector behind and no process that could write one."""
    store = a_store(tmp_path)
    await fill(store, range(6_100))
    await found(store, 3)
    child = index_of(store)._build._child
    assert child is not None
    assert [*tmp_path.glob("vectors/*/graph/shard")]
    assert await store.remove_all(tenant="acme", user="eva") == 6_100
    assert child.returncode is not None
    assert not [*tmp_path.glob("vectors/*/*")]
    await store.close()


@pytest.mark.anyio
@pytest.mark.usefixtures("early")
async def test_a_build_that_fails_is_said_and_costs_only_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its graph the index is searched exactly, its health says why, and a close leaves no copy behind."""

    def lost(_: Path, copy: Path) -> None:
        copy.mkdir(parents=True)

    monkeypatch.setattr(graph_module.shutil, "copytree", lost)
    store = a_store(tmp_path)
    await fill(store, range(6_100))
    await found(store, 3)
    await until_built(store)
    assert set(await found(store, 3)) == nearest(3, 6_100)
    assert "has no graph" in (await store.health()).detail
    await store.close()
    assert not [*tmp_path.glob("vectors/*/graph")]


def test_a_child_ends_without_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build whose parent is not the process that began it does nothing: it was started by one that is gone."""
    shard = tmp_path / "shard"
    shard.mkdir()
    monkeypatch.setattr(graph_module, "getpid", lambda: 1 if os.getpid() != 1 else 2)
    build = GraphBuild(tmp_path)
    build.start(shard, 7)
    assert build._child is not None
    assert build._child.wait(120) == 0  # a folder without a shard would be an error
    built = build.done()
    assert built is not None
    assert built.change == 7
    build.stop()
    assert not (tmp_path / "graph").exists()


def test_a_child_that_cannot_do_it_is_an_error(tmp_path: Path) -> None:
    """A copy that is no shard makes the build fail, and nothing of it stays."""
    shard = tmp_path / "shard"
    shard.mkdir()
    build = GraphBuild(tmp_path)
    build.start(shard, 7)
    child: subprocess.Popen[bytes] | None = build._child
    assert child is not None
    assert child.wait(120) != 0
    with pytest.raises(ChildProcessError, match="ended with"):
        build.done()
    assert not (tmp_path / "graph").exists()
