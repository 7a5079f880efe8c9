"""What Memory asks of its stores: of memories every call sees one user's, of documents what one reader may see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from aibox.chat import Health
from aibox.memory.document import Document
from aibox.memory.reader import NewPassage, Reader
from aibox.memory.record import Hit, Passage, Record, RecordType, Within
from aibox.types import Label, Scope


class MemoryStore(Protocol):
    """Keeps records with their vectors. A store is made for one embedder and compares no others' vectors.

    Of a scope, `tenant` and `user` decide what is seen: nothing of another tenant or user is ever returned or removed.
    Every method raises StoreError when the store cannot do it, and then nothing has changed. The request that a scope
    names (`correlation`, where there is no scope) is named to a server that is asked.
    """

    async def add(self, record: Record, vector: Sequence[float], *, correlation: str = "") -> Record:
        """Durable when it returns. A record that the user has already, same type and text, is not kept twice.

        Then the kept one is returned, with the join of both labels and the higher confidence. Otherwise the record
        that `supersedes` names is no longer found or listed; the returned record names none where there was none.
        """
        ...

    async def find(self, text: str, *, type: RecordType, scope: Scope) -> Record | None:  # noqa: A002 - the field's name
        """The record with exactly this type and text."""
        ...

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
        """The `limit` records nearest to the vector by cosine, best first, none below `minimum`.

        With a `ceiling` only those whose label it may hold; `within` only what was told to the scope's agent, or in its
        session. What is not valid now is not found.
        """
        ...

    async def all(self, *, scope: Scope, types: Sequence[RecordType] | None = None) -> list[Record]:
        """Every record of the user that nothing superseded, oldest first."""
        ...

    async def get(self, id: str, *, scope: Scope) -> Record | None:  # noqa: A002 - the field's name
        """One record of the user, also one that was superseded."""
        ...

    async def remove(self, ids: Sequence[str], *, scope: Scope) -> int:
        """Remove records of the user and what they superseded; how many are gone. Unknown ids count as nothing."""
        ...

    async def remove_all(self, *, tenant: str, user: str | None, correlation: str = "") -> int:
        """Remove everything of a user of the tenant, or with None of the tenant; how many are gone."""
        ...

    async def foreign(self, *, scope: Scope, limit: int) -> list[Record]:
        """Records of the user whose vectors are another embedder's, which no search finds."""
        ...

    async def revector(self, vectors: Mapping[str, Sequence[float]], *, scope: Scope) -> None:
        """Give records of the user, by id, vectors of this store's embedder."""
        ...

    async def health(self) -> Health:
        """Never raises."""
        ...

    async def close(self) -> None:
        """Give back files, threads and locks. Closing twice is allowed."""
        ...


class DocumentStore(Protocol):
    """Keeps documents as passages with vectors and words. A store is made for one embedder.

    A reader sees what is theirs, shared with their tenant or with one of their groups, up to their ceiling, and nothing
    of another tenant. Every method raises StoreError when the store cannot do it.
    """

    @property
    def exists(self) -> bool:
        """Whether there may be anything to search."""
        ...

    async def unchanged(self, source: str, content: bytes, *, scope: Scope) -> bool:
        """Whether the user's document from this source is kept already, with this content."""
        ...

    async def label_of(self, source: str, *, scope: Scope) -> Label | None:
        """The label that the user's document from this source has."""
        ...

    async def put(self, document: Document, content: bytes, passages: Sequence[NewPassage], *, scope: Scope) -> None:
        """Keep a document, all or nothing; the user's former one from the same source goes."""
        ...

    async def search(
        self, text: str, vector: Sequence[float], *, reader: Reader, limit: int, minimum: float
    ) -> list[Hit]:
        """The passages that the reader may see and that have to do with the text, best first.

        One counts as such when its vector is at least `minimum` near, or when it has half of the question's words.
        Raises StoreError while vectors of another embedder are among them.
        """
        ...

    async def documents(self, *, reader: Reader) -> list[Document]:
        """Every document that the reader may see, oldest first."""
        ...

    async def passage(self, id: str, *, reader: Reader) -> Passage | None:  # noqa: A002 - the field's name
        """One passage by the id in its citation."""
        ...

    async def remove(self, ids: Sequence[str], *, scope: Scope) -> int:
        """Remove documents that the user added; how many are gone."""
        ...

    async def remove_all(self, *, tenant: str, user: str | None, correlation: str = "") -> int:
        """Of a user what is private, and the user's name from what is not; or with None everything of the tenant."""
        ...

    async def foreign(self, *, tenant: str) -> list[str]:
        """Ids of the tenant's documents whose vectors are another embedder's."""
        ...

    async def texts(self, document: str, *, tenant: str) -> list[tuple[int, str]]:
        """A document's passages by number, as they are searched, for whoever keeps the tenant's index."""
        ...

    async def revector(self, document: str, vectors: Mapping[int, Sequence[float]], *, tenant: str) -> None:
        """Give a document's passages, by the numbers of `texts`, vectors of this store's embedder."""
        ...

    async def health(self) -> Health:
        """Never raises."""
        ...

    async def close(self) -> None:
        """Closing twice is allowed."""
        ...
