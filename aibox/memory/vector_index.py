"""A tenant's index of vectors and words (qdrant-edge): disposable, made from rows, and made again when in doubt.

Up to 10,000 rows without a graph are compared one by one; of more, a graph finds nearly all of the nearest in a tenth
of the time (`docs/memory.md` says how nearly).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

from aibox.errors import StoreError
from aibox.memory.graph import GraphBuild
from aibox.memory.terms import Terms, unpack_terms

_FORMAT = 4
_BATCH = 1000
GRAPH_FROM = 10_000
"""Rows outside of the graph from which on one is built, anew when they are a third of those inside."""
# Edges of a row in the graph, and how many rows are looked at for each edge while it is built.
_EDGES, _EDGES_CHOSEN_FROM = 32, 200
# How many rows are looked at for one question. More finds more of the nearest and takes longer, in proportion.
_LOOKED_AT = 192
# In the graph rows are compared by half bytes in place of floats; so many times more are compared again exactly.
_COMPARED_AGAIN = 3.0
# The index is memory-mapped: a page that the disk has no room for ends the process instead of raising an error.
_SPARE_BYTES = 128 * 1024 * 1024
_STATES_KNOWN = 1_000
_LARGE_BYTES = 1024 * 1024


class Change(NamedTuple):
    """What became of row `n`: it is gone, or has this vector, these words (see `terms`), and what is filtered by."""

    n: int
    gone: bool
    vector: bytes
    payload: Mapping[str, str | list[str]]
    terms: bytes = b""


class Feed(Protocol):
    """The rows that an index is made from."""

    def position(self, tenant: str) -> tuple[str, int] | None: ...

    def changes(self, tenant: str, since: int, size: int) -> Iterator[list[Change]]: ...


class NoIndexError(Exception):
    """There is no index to search now; the message says why. Never leaves the store."""


class VectorIndex:
    """One tenant's qdrant-edge shard in `<folder>/`, with its lock beside it and in it how far it has come.

    The state is written after a flush and deleted before the next change: a shard without it was cut off and is made
    again. The payload, by the keys of `filters`, is hashes of users and names of types; words are keyed hashes; no text
    is ever in it.
    """

    def __init__(
        self, folder: Path, *, embedder: str, dimensions: int, filters: Sequence[str], words: bool = False
    ) -> None:
        self.epoch = ""
        self._folder = folder
        self._shard_folder = folder / "shard"
        self._state_file = folder / "state.json"
        self._made_for = {"format": _FORMAT, "embedder": embedder, "dimensions": dimensions, "words": words}
        self._filters = filters
        self._words = words
        self._dimensions = dimensions
        self._lock: IO[bytes] | None = None
        self._shard: Any = None
        self._change = 0
        self._saved = False
        self._outside = 0
        """Rows that were written since the graph was made, or ever."""
        self._build = GraphBuild(folder)
        self._outside_most = GRAPH_FROM
        self._all_had: dict[tuple[str, int, str], bool] = {}
        self.complaint = ""
        """Why there is no graph where there should be one."""

    def acquire(self) -> None:
        """Take the lock. Raises NoIndexError when another process has it."""
        try:
            import fcntl

            self._folder.parent.mkdir(mode=0o700, exist_ok=True)
            self._lock = self._folder.with_suffix(".lock").open("ab")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._build.stop()  # of a process that was killed while it built
        except ImportError:
            raise NoIndexError("this system has no file locks") from None
        except OSError as error:
            self._release()
            if isinstance(error, BlockingIOError):
                raise NoIndexError("another process holds the index") from error
            raise NoIndexError(f"its lock cannot be taken: {error.strerror}") from error

    def saved_epoch(self) -> str | None:
        """Under which epoch the shard on the disk is whole; None when it is not, or was made for other vectors."""
        state = self._read_state()
        return state["epoch"] if state else None

    def _read_state(self) -> dict[str, Any] | None:
        try:
            state = json.loads(self._state_file.read_bytes())
            whole = state["made_for"] == self._made_for and isinstance(state["epoch"], str)
            counted = {name: int(state[name]) for name in ("change", "outside")}
            return {"epoch": state["epoch"], **counted} if whole else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def catch_up(self, tenant: str, rows: Feed) -> None:
        """Apply what has changed in the rows; from the start where the shard cannot be used."""
        epoch, change = rows.position(tenant) or ("", 0)
        try:
            if self._shard is None:
                self._must_have_room()
                self._load(epoch)
            if self._shard is None or self.epoch != epoch:
                self._start_again(epoch)
            self._take_graph()
            if self._change < change:
                self._apply(tenant, rows, change)
                self._want_graph()
        except (StoreError, NoIndexError):
            raise
        except BaseException as error:  # a panic in qdrant-edge is no Exception; rows serve instead
            self.delete()
            raise NoIndexError(f"the index could not be made: {_first_line(error)}") from error

    def search(self, vector: Sequence[float], limit: int, **any_of: Sequence[str]) -> list[tuple[int, float]]:
        """Numbers of the nearest rows whose payload has one of the values given, and their cosines, best first.

        What is in the graph was compared again exactly. Where as good as every row has one of the values, the others
        are not sorted out: that costs more than the search itself, and the rows decide anyway. Raises NoIndexError.
        """
        edge = _edge()
        params = edge.SearchParams(
            hnsw_ef=max(_LOOKED_AT, 2 * limit),
            quantization=edge.QuantizationSearchParams(rescore=True, oversampling=_COMPARED_AGAIN),
        )
        points = self._ask(edge.Query.Nearest([*vector]), limit, any_of, params, unless_all=True)
        return [(int(point.id), float(point.score)) for point in points]

    def search_words(self, terms: Terms, limit: int, **any_of: Sequence[str]) -> list[tuple[int, float]]:
        """Numbers of the rows that share most with the words, and their BM25 scores. Raises NoIndexError.

        How rare a word is is counted over the rows that the filter lets through, so that it tells nothing of others.
        """
        edge = _edge()
        if not terms:
            return []
        query = edge.Query.Nearest(edge.SparseVector(list(terms), [1.0] * len(terms)), using="words")
        params = edge.SearchParams(idf=edge.IdfParams(corpus=_filter(any_of)))
        points = self._ask(query, limit, any_of, params)
        return [(int(point.id), float(point.score)) for point in points]

    def _ask(
        self, query: Any, limit: int, any_of: Mapping[str, Sequence[str]], params: Any, *, unless_all: bool = False
    ) -> list[Any]:
        edge = _edge()
        try:
            chosen = None if unless_all and self._all_have(any_of) else _filter(any_of)
            request = edge.QueryRequest(
                limit=limit, query=query, filter=chosen, with_payload=False, with_vector=False, params=params
            )
            points: list[Any] = self._shard.query(request)
        except BaseException as error:  # as above; the next search makes the index again
            self.delete()
            raise NoIndexError(f"the index could not be searched: {_first_line(error)}") from error
        return points

    def _all_have(self, any_of: Mapping[str, Sequence[str]]) -> bool:
        """Whether every row has one of these values, as the index estimates it: asked once in each state of it."""
        state = self.epoch, self._change, repr(any_of)
        if (all_have := self._all_had.get(state)) is None:
            request = _edge().CountRequest(exact=False, filter=_filter(any_of))
            all_have = self._shard.count(request) >= self._shard.info().points_count
            if len(self._all_had) >= _STATES_KNOWN:
                self._all_had.clear()
            self._all_had[state] = all_have
        return all_have

    def _must_have_room(self) -> None:
        if shutil.disk_usage(self._folder.parent).free < _SPARE_BYTES:
            raise NoIndexError("the disk is nearly full")

    def _load(self, epoch: str) -> None:
        state = self._read_state()
        if state is None or state["epoch"] != epoch:
            return
        try:
            self._shard = _open_shard(self._shard_folder)
        except NoIndexError:
            raise
        except BaseException:  # noqa: BLE001 - whatever is wrong with it, it is made again from the rows
            self._shard = None
            return
        self.epoch, self._change, self._outside, self._saved = state["epoch"], state["change"], state["outside"], True
        self._want_graph()

    def _start_again(self, epoch: str) -> None:
        edge = _edge()
        self.delete()
        self._shard_folder.mkdir(mode=0o700, parents=True)
        # No log of its own: what it holds can be had again from the rows. Half bytes for floats are for the graph.
        config = edge.EdgeConfig(
            vectors={"": edge.EdgeVectorParams(size=self._dimensions, distance=edge.Distance.Cosine)},
            hnsw_config=edge.HnswIndexConfig(
                _EDGES, _EDGES_CHOSEN_FROM, full_scan_threshold=10_000, max_indexing_threads=2
            ),
            quantization_config=edge.TurboQuantQuantizationConfig(bits=edge.TurboQuantBitSize.Bits4),
            sparse_vectors={"words": edge.EdgeSparseVectorParams(modifier=edge.Modifier.Idf)} if self._words else None,
            max_search_threads=1,
            wal_enabled=False,
        )
        self._shard = edge.EdgeShard.create(str(self._shard_folder), config)
        for name in self._filters:
            self._shard.update(edge.UpdateOperation.create_field_index(name, edge.PayloadSchemaType.Keyword))
        self.epoch = epoch

    def _apply(self, tenant: str, rows: Feed, change: int) -> None:
        edge = _edge()
        self._state_file.unlink(missing_ok=True)
        self._saved = False
        for batch in rows.changes(tenant, self._change, _BATCH):
            self._must_have_room()
            points = [self._point(change) for change in batch if not change.gone]
            hidden = [change.n for change in batch if change.gone]
            if points:
                self._shard.update(edge.UpdateOperation.upsert_points(points))
                self._outside += len(points)
            if hidden:
                self._shard.update(edge.UpdateOperation.delete_points(hidden))
        self._change = change

    def _want_graph(self) -> None:
        """Begin to build a graph where too many rows are in none."""
        inside = self._shard.info().points_count - self._outside
        if self._build.under_way or self._outside < max(self._outside_most, inside // 3):
            return
        self._shard.flush()
        size = sum(file.stat().st_blocks * 512 for file in self._shard_folder.rglob("*") if file.is_file())
        if shutil.disk_usage(self._folder).free < 3 * size + _SPARE_BYTES:
            self._no_graph(OSError("the disk has no room to build it"))
            return
        try:
            self._build.start(self._shard_folder, self._change)
        except OSError as error:
            self._no_graph(error)

    def _take_graph(self) -> None:
        """Go on with the copy that has been given its graph, and what has changed since it was made."""
        if not self._build.under_way:
            return
        try:
            built = self._build.done()
        except OSError as error:
            self._no_graph(error)
            return
        if built is None:
            return
        self._state_file.unlink(missing_ok=True)
        self._saved = False
        self._shard.close()
        shutil.rmtree(self._shard_folder)
        built.shard.rename(self._shard_folder)
        self._shard = _open_shard(self._shard_folder)
        # What was written since is applied again, and then counted as outside again.
        self._change, self._outside, self.complaint = built.change, 0, ""
        self._build.stop()
        self._want_graph()

    def _no_graph(self, error: OSError) -> None:
        """It is tried again when twice as many rows are outside of it. Until then they are compared one by one."""
        self.complaint = f"an index has no graph: {error.strerror or error}"
        self._outside_most *= 2

    def _point(self, change: Change) -> Any:
        edge = _edge()
        vectors: dict[str, Any] = {"": array("f", change.vector).tolist()}
        if change.terms:
            terms = unpack_terms(change.terms)
            vectors["words"] = edge.SparseVector(list(terms), list(terms.values()))
        return edge.Point(change.n, vectors, dict(change.payload))

    def delete(self) -> None:
        """Close the shard and remove its files; the lock stays. Raises NoIndexError when they cannot be removed."""
        shard, self._shard = self._shard, None
        self._change, self._outside, self._saved = 0, 0, False
        if shard is not None:
            with contextlib.suppress(BaseException):  # a panic too: its files go anyway
                shard.close()
        try:
            self._build.stop()
            if self._folder.is_dir():
                shutil.rmtree(self._folder)
            else:
                self._folder.unlink(missing_ok=True)
        except OSError as error:
            raise NoIndexError(f"the index {self._folder} cannot be deleted: {error.strerror}") from error

    def flush(self) -> None:
        if self._shard is not None:
            self._shard.flush()

    def close(self) -> None:
        """Flush what changed, note how far it came, give the lock back."""
        try:
            self._build.stop()
            if self._shard is not None:
                if not self._saved:
                    self._shard.flush()
                    self._save()
                self._shard.close()
        except BaseException:  # noqa: BLE001 - a panic too: an index that cannot be kept is made again from the rows
            self.delete()
        finally:
            self._shard = None
            self._release()

    def _save(self) -> None:
        state = {"made_for": self._made_for, "epoch": self.epoch, "change": self._change, "outside": self._outside}
        fresh = self._state_file.with_suffix(".new")
        fresh.write_text(json.dumps(state), "utf-8")
        fresh.replace(self._state_file)

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _open_shard(folder: Path) -> Any:
    """Open a shard. Its large files are read before: qdrant-edge waits for the disk while it holds Python's lock.

    For 100,000 rows from a disk that took all threads two seconds away, and takes a fifth of one.
    """
    buffer = bytearray(_LARGE_BYTES)
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_size >= _LARGE_BYTES:
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
    return _edge().EdgeShard.load(str(folder))


def build_graph(shard: str) -> None:
    """Give the shard in this folder a graph and a table of words; it returns when both are on the disk."""
    built = _edge().EdgeShard.load(shard)
    built.optimize()
    built.flush()
    built.close()


def _filter(any_of: Mapping[str, Sequence[str]]) -> Any:
    edge = _edge()
    return edge.Filter(
        must=[edge.FieldCondition(key, match=edge.MatchAny([*values])) for key, values in any_of.items()]
    )


def _edge() -> Any:
    try:
        import qdrant_edge
    except ImportError:
        raise NoIndexError("qdrant-edge-py is not installed") from None
    return qdrant_edge


def hashed(name: str) -> str:
    """A name as part of a path or of a payload: it says nothing to who does not know the name already."""
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
