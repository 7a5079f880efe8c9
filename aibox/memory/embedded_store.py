"""Memory in one folder: rows in SQLite are the truth, an index of vectors a tenant (qdrant-edge) is disposable.

The index proposes and the rows decide: what is returned was read, scored and checked for tenant and user in the rows.
Where there is no index to be had (another process holds it, the disk is nearly full), the rows are searched exactly.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from aibox.chat import Health
from aibox.errors import AIBoxError, ConfigError, MissingExtraError, StoreError
from aibox.memory.record import Hit, Record, RecordType
from aibox.memory.rows import Rows
from aibox.memory.vector_index import NoIndexError, VectorIndex, hashed
from aibox.types import Scope

P = ParamSpec("P")
T = TypeVar("T")


class EmbeddedStore:
    """A MemoryStore in `folder`: `memory.db` and `vectors/`. None is a private temporary folder, removed by `close`.

    Vectors are those of the embedder called `embedder`, of `dimensions` numbers. At most `open_indexes` tenants have
    their index open at a time, each costs a thread and about 3 MB. Two processes may use one folder: the second one
    searches the rows of a user exactly, which takes longer with many memories and finds the same.

    What is removed is overwritten in the rows, and the tenant's index is deleted and made again by the next search.
    An index that another process holds open is deleted by that process, at its next search of that tenant or at its
    close. All work happens in one thread of its own, in turn. Raises StoreError.
    """

    def __init__(self, folder: Path | None, *, embedder: str, dimensions: int, open_indexes: int = 32) -> None:
        self._given = folder
        self._embedder = embedder
        self._dimensions = dimensions
        self._open_indexes = open_indexes
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="aibox-memory")
        self._folder: Path | None = None
        self._rows: Rows | None = None
        self._indexes: OrderedDict[str, VectorIndex] = OrderedDict()
        self._remove_folder: Callable[[], object] = lambda: None
        self._without_index = ""
        self._closed = False

    def __repr__(self) -> str:
        where = f"{str(self._given)!r}" if self._given else "a temporary folder"
        how = f"exact, {self._without_index}" if self._without_index else "qdrant-edge"
        return f"EmbeddedStore({where}, search: {how})"

    async def add(self, record: Record, vector: Sequence[float]) -> Record:
        self._must_fit(vector)
        return await self._do(lambda: self._open().add(record, vector))

    async def find(self, text: str, *, type: RecordType, scope: Scope) -> Record | None:  # noqa: A002 - the field's name
        return await self._do(lambda: self._open().find(text, type, scope))

    async def search(
        self,
        vector: Sequence[float],
        *,
        scope: Scope,
        limit: int,
        types: Sequence[RecordType] | None = None,
        minimum: float = 0.0,
    ) -> list[Hit]:
        self._must_fit(vector)
        return await self._do(self._search, vector, scope, limit, types, minimum) if limit > 0 else []

    async def all(self, *, scope: Scope, types: Sequence[RecordType] | None = None) -> list[Record]:
        return await self._do(lambda: self._open().all(scope, types))

    async def get(self, id: str, *, scope: Scope) -> Record | None:  # noqa: A002 - the field's name
        return await self._do(lambda: self._open().get(id, scope))

    async def remove(self, ids: Sequence[str], *, scope: Scope) -> int:
        return await self._do(self._remove, scope.tenant, lambda rows: rows.remove(ids, scope))

    async def remove_all(self, *, tenant: str, user: str | None) -> int:
        return await self._do(self._remove, tenant, lambda rows: rows.remove_all(tenant, user))

    async def foreign(self, *, scope: Scope, limit: int) -> list[Record]:
        return await self._do(lambda: self._open().foreign(scope, limit))

    async def revector(self, vectors: Mapping[str, Sequence[float]], *, scope: Scope) -> None:
        for vector in vectors.values():
            self._must_fit(vector)
        await self._do(lambda: self._open().revector(vectors, scope))

    async def health(self) -> Health:
        try:
            records, tenants = await self._do(lambda: self._open().counts())
        except AIBoxError as error:
            return Health(ok=False, detail=str(error))
        how = f"searched exactly: {self._without_index}" if self._without_index else "indexed by qdrant-edge"
        return Health(ok=True, detail=f"{records} memories of {tenants} tenants, {how}")

    async def close(self) -> None:
        if not self._closed:
            await self._do(self._close)
            self._closed = True
            self._worker.shutdown(wait=False)

    async def _do(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._closed:
            raise StoreError("the memory is closed", hint="open it again, or do this before closing")
        return await asyncio.get_running_loop().run_in_executor(self._worker, lambda: function(*args, **kwargs))

    def _must_fit(self, vector: Sequence[float]) -> None:
        if len(vector) != self._dimensions:
            raise ConfigError(
                f"a vector of {len(vector)} numbers, where {self._embedder} has {self._dimensions}",
                hint="use one embedder with one memory",
            )

    # The rest runs in the worker's thread only.

    def _open(self) -> Rows:
        if self._rows is None:
            folder = self._given
            try:
                if folder is None:
                    folder = Path(tempfile.mkdtemp(prefix="aibox-memory-"))
                    self._remove_folder = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
                else:
                    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                hint = "name a folder that can be written"
                raise StoreError(f"the folder {folder} cannot be made: {error.strerror}", hint=hint) from error
            self._rows = Rows(folder / "memory.db", embedder=self._embedder)
            self._folder = folder
            self._sweep(folder / "vectors", self._rows)
        return self._rows

    def _sweep(self, vectors: Path, rows: Rows) -> None:
        """Delete the indexes that no tenant can use any more, such as one that a removal was cut off before."""
        current = {hashed(tenant): epoch for tenant, (epoch, _) in rows.positions().items()}
        for lock in vectors.glob("*.lock"):
            index = VectorIndex(lock.with_suffix(""), embedder=self._embedder, dimensions=self._dimensions)
            with contextlib.suppress(NoIndexError):
                index.acquire()
                if index.saved_epoch() is None or index.saved_epoch() != current.get(lock.stem):
                    index.delete()
                index.close()

    def _search(
        self,
        vector: Sequence[float],
        scope: Scope,
        limit: int,
        types: Sequence[RecordType] | None,
        minimum: float,
    ) -> list[Hit]:
        rows = self._open()
        # One transaction, so that the index and the rows that confirm it are of the same moment.
        with rows.transaction("DEFERRED"):
            if rows.position(scope.tenant) is None:
                return []
            try:
                numbers = self._index(scope.tenant, rows).search(vector, scope, limit, types)
                self._without_index = ""
            except NoIndexError as error:
                self._without_index = str(error)
                numbers = _nearest(vector, rows.vectors(scope, types), limit)
            found = rows.records(numbers, scope)
        scores = {n: _cosine(vector, packed) for n, (_, packed) in found.items()}
        best = sorted((n for n in found if scores[n] >= minimum), key=lambda n: (-scores[n], n))
        return [Hit(found[n][0], min(max(scores[n], 0.0), 1.0)) for n in best]

    def _index(self, tenant: str, rows: Rows) -> VectorIndex:
        """The tenant's index, open and up to date. Raises NoIndexError."""
        index = self._indexes.get(tenant)
        if index is None:
            index = self._make_index(tenant)
            index.acquire()
            self._indexes[tenant] = index
        self._indexes.move_to_end(tenant)
        while len(self._indexes) > self._open_indexes:
            self._indexes.popitem(last=False)[1].close()
        index.catch_up(tenant, rows)
        return index

    def _remove(self, tenant: str, remove: Callable[[Rows], int]) -> int:
        count = remove(self._open())
        if not count:
            return 0
        index = self._indexes.pop(tenant, None)
        if index is None:
            index = self._make_index(tenant)
            try:
                index.acquire()
            except NoIndexError:
                return count  # who holds it deletes it: the rows have a new epoch
        try:
            index.delete()
        except NoIndexError as error:
            hint = "delete that folder by hand: it holds vectors of what was removed"
            raise StoreError(f"the memories are removed, but {error}", hint=hint) from error
        finally:
            index.close()
        return count

    def _make_index(self, tenant: str) -> VectorIndex:
        assert self._folder is not None
        folder = self._folder / "vectors" / hashed(tenant)
        return VectorIndex(folder, embedder=self._embedder, dimensions=self._dimensions)

    def _close(self) -> None:
        rows, self._rows = self._rows, None
        if rows is None:
            return
        try:
            for tenant, index in self._indexes.items():
                position = rows.position(tenant)
                with contextlib.suppress(NoIndexError):  # the next start sweeps again
                    if position is None or position[0] != index.epoch:
                        index.delete()
                    index.close()
            self._indexes.clear()
        finally:
            rows.close()
            self._remove_folder()


def _numpy() -> Any:
    try:
        import numpy as np
    except ImportError:
        raise MissingExtraError("the embedded memory", extra="embedded") from None
    return np


def _nearest(vector: Sequence[float], rows: Sequence[tuple[int, bytes]], limit: int) -> list[int]:
    """Numbers of the rows nearest by cosine, compared with every one of them."""
    if not rows:
        return []
    np = _numpy()
    matrix = np.frombuffer(b"".join(packed for _, packed in rows), np.float32).reshape(len(rows), -1)
    scores = matrix @ np.asarray(vector, np.float32) / np.maximum(np.linalg.norm(matrix, axis=1), 1e-9)
    return [rows[i][0] for i in np.argsort(-scores, kind="stable")[:limit]]


def _cosine(vector: Sequence[float], packed: bytes) -> float:
    np = _numpy()
    a, b = np.asarray(vector, np.float32), np.frombuffer(packed, np.float32)
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-9))
