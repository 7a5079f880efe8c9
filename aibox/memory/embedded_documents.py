"""Documents in the folder of a memory, found by meaning and by words: rows are the truth, an index a tenant disposable.

Dense vectors and BM25 each propose; the rows decide who may see what, and both scores are fused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from aibox.chat import Health
from aibox.errors import AIBoxError, StoreError
from aibox.memory.cosine import cosines, nearest
from aibox.memory.document import Document
from aibox.memory.document_rows import DocumentRows
from aibox.memory.folder import Folder, Worker
from aibox.memory.fusion import MOST_PROPOSED, PROPOSED, fuse, rarity
from aibox.memory.indexes import Indexes
from aibox.memory.reader import Candidate, NewPassage, Reader
from aibox.memory.record import Hit, Passage
from aibox.memory.terms import Terms
from aibox.memory.vector_index import NoIndexError
from aibox.types import Label, Scope


class EmbeddedDocuments:
    """A DocumentStore: `documents.db` and `passages/` in the folder of a memory. Raises StoreError.

    With a `database`, at `postgresql://...`, its tables are in the place of the file.

    What is said of EmbeddedStore about removal, other processes and threads holds here too.
    """

    def __init__(
        self, folder: Folder, *, embedder: str, dimensions: int, open_indexes: int = 32, database: str | None = None
    ) -> None:
        self._folder = folder
        self._embedder = embedder
        self._dimensions = dimensions
        self._open_indexes = open_indexes
        self._database = database
        self._worker = Worker("aibox-documents")
        self._opened: tuple[DocumentRows, Indexes] | None = None
        self._without_index = ""

    @property
    def exists(self) -> bool:
        """Whether there is anything to search: a memory without documents opens no file."""
        given = self._folder.given
        shared = self._opened is not None or self._database is not None
        return shared or (given is not None and (given / "documents.db").exists())

    async def unchanged(self, source: str, content: bytes, *, scope: Scope) -> bool:
        """Whether the user's document from this source is kept already, with this content."""
        return await self._worker.do(lambda: self._rows().unchanged(source, content, scope))

    async def label_of(self, source: str, *, scope: Scope) -> Label | None:
        """The label that the user's document from this source has."""
        return await self._worker.do(lambda: self._rows().label_of(source, scope))

    async def put(self, document: Document, content: bytes, passages: Sequence[NewPassage], *, scope: Scope) -> None:
        """Keep a document, all or nothing; the user's former one from the same source goes."""
        await self._worker.do(lambda: self._rows().put(document, content, passages, scope))

    async def search(
        self, text: str, vector: Sequence[float], *, reader: Reader, limit: int, minimum: float
    ) -> list[Hit]:
        """The passages that the reader may see and that have to do with the text, best first.

        One counts as such when its vector is at least `minimum` near, or when it has half of the question's words.
        Raises StoreError while vectors of another embedder are among them.
        """
        if limit <= 0 or not self.exists:
            return []
        return await self._worker.do(self._search, text, vector, reader, limit, minimum)

    async def documents(self, *, reader: Reader) -> list[Document]:
        return await self._worker.do(lambda: self._rows().documents(reader)) if self.exists else []

    async def passage(self, id: str, *, reader: Reader) -> Passage | None:  # noqa: A002 - the field's name
        return await self._worker.do(lambda: self._rows().passage(id, reader)) if self.exists else None

    async def remove(self, ids: Sequence[str], *, scope: Scope) -> int:
        return await self._remove(scope.tenant, lambda rows: rows.remove(ids, scope))

    async def remove_all(self, *, tenant: str, user: str | None, correlation: str = "") -> int:  # noqa: ARG002 - nothing is asked over a wire
        return await self._remove(tenant, lambda rows: rows.remove_all(tenant, user))

    async def foreign(self, *, tenant: str) -> list[str]:
        """Ids of the tenant's documents whose vectors are another embedder's."""
        if not self.exists:
            return []
        return [id_ for id_, _ in await self._worker.do(lambda: self._rows().foreign(tenant))]

    async def texts(self, document: str, *, tenant: str) -> list[tuple[int, str]]:
        return await self._worker.do(lambda: self._rows().texts(document, tenant))

    async def revector(self, document: str, vectors: Mapping[int, Sequence[float]], *, tenant: str) -> None:
        await self._worker.do(lambda: self._rows().revector(document, vectors, tenant))

    async def health(self) -> Health:
        if not self.exists:
            return Health(ok=True, detail="no documents")
        try:
            counts = await self._worker.do(lambda: self._rows().counts())
        except AIBoxError as error:
            return Health(ok=False, detail=str(error))
        how = f", searched exactly: {self._without_index}" if self._without_index else ""
        more = self._opened[1].complaints if self._opened is not None else ""
        held = "documents" if counts is None else f"{counts[0]} documents in {counts[1]} passages"
        return Health(ok=True, detail=f"{held}{how}{more}")

    async def close(self) -> None:
        await self._worker.close(self._close)

    # The rest runs in the worker's thread only.

    def _open(self) -> tuple[DocumentRows, Indexes]:
        if self._opened is None:
            folder = self._folder.make()
            rows = DocumentRows(
                self._database or folder / "documents.db", embedder=self._embedder, key=self._folder.key()
            )
            indexes = Indexes(
                folder / "passages",
                embedder=self._embedder,
                dimensions=self._dimensions,
                filters=("reader",),
                words=True,
                most_open=self._open_indexes,
            )
            indexes.sweep(rows.epochs())
            self._opened = rows, indexes
        return self._opened

    def _rows(self) -> DocumentRows:
        return self._open()[0]

    def _search(self, text: str, vector: Sequence[float], reader: Reader, limit: int, minimum: float) -> list[Hit]:
        rows = self._rows()
        tenant = reader.scope.tenant
        with rows.transaction("DEFERRED", tenant=reader.scope.tenant):
            if rows.position(tenant) is None:
                return []
            if foreign := rows.foreign(tenant):
                raise StoreError(
                    f"{len(foreign)} documents have vectors of {foreign[0][1]}, and the embedder is {self._embedder}",
                    hint=f"aibox memory reindex --tenant {tenant} reads them anew; or use the former embedder",
                )
            terms = rows.query_terms(text, tenant)
            try:
                found, scores = self._proposed(vector, terms, reader, limit)
                self._without_index = ""
            except NoIndexError as error:
                self._without_index = str(error)
                found = None
            if found is None:
                found, scores = _exact(vector, terms, rows, reader, limit)
        near = cosines(vector, [candidate.vector for candidate in found.values()])
        return fuse(found, dict(zip(found, near, strict=True)), scores, terms, minimum=minimum)[:limit]

    def _proposed(
        self, vector: Sequence[float], terms: Terms, reader: Reader, limit: int
    ) -> tuple[dict[int, Candidate] | None, dict[int, float]]:
        rows, indexes = self._open()
        index = indexes.get(reader.scope.tenant, rows)
        asked = max(PROPOSED, 4 * limit)
        while True:
            near = [n for n, _ in index.search(vector, asked, reader=reader.names)]
            scores = dict(index.search_words(terms, asked, reader=reader.names))
            found = rows.candidates({*near, *scores}, reader)
            if len(found) >= limit or (len(near) < asked and len(scores) < asked):
                return found, scores
            if asked >= MOST_PROPOSED:
                return None, {}
            asked = min(asked * 4, MOST_PROPOSED)

    async def _remove(self, tenant: str, remove: Callable[[DocumentRows], int]) -> int:
        def work() -> int:
            rows, indexes = self._open()
            if count := remove(rows):
                indexes.delete(tenant)
            return count

        return await self._worker.do(work) if self.exists else 0

    def _close(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            rows, indexes = opened
            try:
                indexes.close(rows.epochs())
            finally:
                rows.close()


def _exact(
    vector: Sequence[float], terms: Terms, rows: DocumentRows, reader: Reader, limit: int
) -> tuple[dict[int, Candidate], dict[int, float]]:
    """As the index does it, over everything that the reader may see."""
    every = rows.every(reader)
    holding = Counter(term for _, _, held in every for term in terms if term in held)
    rare = {t: rarity(len(every), n) for t, n in holding.items()}
    scores = {n: sum(rare[t] * held[t] for t in rare if t in held) for n, _, held in every}
    best = sorted((n for n in scores if scores[n] > 0), key=lambda n: (-scores[n], n))[: max(PROPOSED, 4 * limit)]
    near = [n for n, _ in nearest(vector, [(n, packed) for n, packed, _ in every], max(PROPOSED, 4 * limit))]
    return rows.candidates({*near, *best}, reader), {n: scores[n] for n in best}
