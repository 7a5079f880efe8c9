"""Memory in one folder: rows in SQLite are the truth, an index of vectors a tenant (qdrant-edge) is disposable.

The index proposes and the rows decide: what is returned was read and checked for tenant and user in the rows.
Where there is no index to be had (another process holds it, the disk is nearly full), the rows are searched exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from aibox.chat import Health
from aibox.errors import AIBoxError, ConfigError
from aibox.memory.cosine import nearest
from aibox.memory.folder import Folder, Worker
from aibox.memory.indexes import Indexes
from aibox.memory.record import Hit, Record, RecordType, Within
from aibox.memory.rows import Rows, Wanted
from aibox.memory.vector_index import NoIndexError, hashed
from aibox.types import Label, Scope

MOST_PROPOSED = 2_000
"""How many rows an index is asked to propose before the rows are searched exactly."""


class EmbeddedStore:
    """A MemoryStore in `folder`: `memory.db` and `vectors/`. None is a private temporary folder, removed by `close`.

    With a `database`, at `postgresql://...`, its tables are in the place of the file, and several servers, each with a
    folder of its own for `vectors/`, remember together.

    Vectors are those of the embedder called `embedder`, of `dimensions` numbers. `key` is the master key that the
    subjects' keys are wrapped under, see `Folder`. At most `open_indexes` tenants have their index open at a time. Two
    processes may use one folder: the second one searches the rows of a user exactly, which takes longer with many
    memories and finds the same.

    What is removed is overwritten in the rows, and the tenant's index is deleted and made again by the next search.
    An index that another process holds open is deleted by that process, at its next search of that tenant or at its
    close. All work happens in one thread of its own, in turn. Raises StoreError.
    """

    def __init__(
        self,
        folder: Path | Folder | None,
        *,
        embedder: str,
        dimensions: int,
        key: bytes | None = None,
        open_indexes: int = 32,
        database: str | None = None,
    ) -> None:
        self._folder = folder if isinstance(folder, Folder) else Folder(folder, key=key)
        self._embedder = embedder
        self._dimensions = dimensions
        self._open_indexes = open_indexes
        self._database = database
        self._worker = Worker("aibox-memory")
        self._opened: tuple[Rows, Indexes] | None = None
        self._without_index = ""

    def __repr__(self) -> str:
        how = f"exact, {self._without_index}" if self._without_index else "qdrant-edge"
        return f"EmbeddedStore({self._folder}, search: {how})"

    async def add(self, record: Record, vector: Sequence[float], *, correlation: str = "") -> Record:  # noqa: ARG002 - nothing is asked over a wire
        self._must_fit(vector)
        return await self._worker.do(lambda: self._rows().add(record, vector))

    async def find(self, text: str, *, type: RecordType, scope: Scope) -> Record | None:  # noqa: A002 - the field's name
        return await self._worker.do(lambda: self._rows().find(text, type, scope))

    async def search(
        self,
        vector: Sequence[float],
        *,
        scope: Scope,
        limit: int,
        types: Sequence[RecordType] | None = None,
        minimum: float = 0.0,
        ceiling: Label | None = None,
        within: Within = "user",
    ) -> list[Hit]:
        self._must_fit(vector)
        if limit <= 0:
            return []
        return await self._worker.do(self._search, vector, scope, limit, minimum, Wanted(types, ceiling, within))

    async def all(self, *, scope: Scope, types: Sequence[RecordType] | None = None) -> list[Record]:
        return await self._worker.do(lambda: self._rows().all(scope, types))

    async def get(self, id: str, *, scope: Scope) -> Record | None:  # noqa: A002 - the field's name
        return await self._worker.do(lambda: self._rows().get(id, scope))

    async def remove(self, ids: Sequence[str], *, scope: Scope) -> int:
        return await self._worker.do(self._remove, scope.tenant, lambda rows: rows.remove(ids, scope))

    async def remove_all(self, *, tenant: str, user: str | None, correlation: str = "") -> int:  # noqa: ARG002 - nothing is asked over a wire
        return await self._worker.do(self._remove, tenant, lambda rows: rows.remove_all(tenant, user))

    async def foreign(self, *, scope: Scope, limit: int) -> list[Record]:
        return await self._worker.do(lambda: self._rows().foreign(scope, limit))

    async def revector(self, vectors: Mapping[str, Sequence[float]], *, scope: Scope) -> None:
        for vector in vectors.values():
            self._must_fit(vector)
        await self._worker.do(lambda: self._rows().revector(vectors, scope))

    async def health(self) -> Health:
        try:
            records, tenants = await self._worker.do(lambda: self._rows().counts())
        except AIBoxError as error:
            return Health(ok=False, detail=str(error))
        held = "memories" if records is None else f"{records} memories"
        how = f"searched exactly: {self._without_index}" if self._without_index else "indexed by qdrant-edge"
        more = self._opened[1].complaints if self._opened is not None else ""
        return Health(ok=True, detail=f"{held} of {tenants} tenants, {how}{more}")

    async def close(self) -> None:
        await self._worker.close(self._close)

    def _must_fit(self, vector: Sequence[float]) -> None:
        if len(vector) != self._dimensions:
            raise ConfigError(
                f"a vector of {len(vector)} numbers, where {self._embedder} has {self._dimensions}",
                hint="use one embedder with one memory",
            )

    # The rest runs in the worker's thread only.

    def _open(self) -> tuple[Rows, Indexes]:
        if self._opened is None:
            folder = self._folder.make()
            rows = Rows(self._database or folder / "memory.db", embedder=self._embedder, key=self._folder.key())
            indexes = Indexes(
                folder / "vectors",
                embedder=self._embedder,
                dimensions=self._dimensions,
                filters=("user", "type"),
                most_open=self._open_indexes,
            )
            indexes.sweep(rows.epochs())
            self._opened = rows, indexes
        return self._opened

    def _rows(self) -> Rows:
        return self._open()[0]

    def _search(self, vector: Sequence[float], scope: Scope, limit: int, minimum: float, wanted: Wanted) -> list[Hit]:
        rows = self._rows()
        # One transaction, so that the index and the rows that confirm it are of the same moment.
        with rows.transaction("DEFERRED", tenant=scope.tenant):
            if rows.position(scope.tenant) is None:
                return []
            try:
                found = self._proposed(vector, scope, limit, wanted)
                self._without_index = ""
            except NoIndexError as error:
                self._without_index = str(error)
                found = None
            if found is None:
                near = nearest(vector, rows.vectors(scope, wanted), limit)
                found = near, rows.records([n for n, _ in near], scope, wanted)
        near, records = found
        best = sorted((-score, n) for n, score in near if n in records and score >= minimum)
        return [Hit(records[n], min(max(-score, 0.0), 1.0)) for score, n in best[:limit]]

    def _proposed(
        self, vector: Sequence[float], scope: Scope, limit: int, wanted: Wanted
    ) -> tuple[list[tuple[int, float]], dict[int, Record]] | None:
        """What the index proposes, and of that what the rows admit; None where too much of it is not admitted.

        The index knows user and type. Labels, validity, agent and session are the rows' to judge.
        """
        rows, indexes = self._open()
        any_of = {"user": [hashed(scope.user)]}
        if wanted.types is not None:
            any_of["type"] = [*map(str, wanted.types)]
        index = indexes.get(scope.tenant, rows)
        asked = limit
        while True:
            near = index.search(vector, asked, **any_of)
            records = rows.records([n for n, _ in near], scope, wanted)
            if len(records) >= limit or len(near) < asked:
                return near, records
            if asked >= MOST_PROPOSED:
                return None
            asked = min(asked * 8, MOST_PROPOSED)

    def _remove(self, tenant: str, remove: Callable[[Rows], int]) -> int:
        rows, indexes = self._open()
        count = remove(rows)
        if count:
            indexes.delete(tenant)
        return count

    def _close(self) -> None:
        opened, self._opened = self._opened, None
        if opened is None:
            self._folder.remove()
            return
        rows, indexes = opened
        try:
            indexes.close(rows.epochs())
        finally:
            rows.close()
            self._folder.remove()
