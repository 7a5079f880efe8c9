"""`/v1/memory` and `/v1/knowledge`: what is remembered for the caller, and the documents that they may see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aibox.box import Box
from aibox.errors import AccessError, ConfigError
from aibox.memory.memory import Memory
from aibox.memory.record import Hit, Passage, Record
from aibox.server.principal import Principal
from aibox.server.route import ASKS, route
from aibox.server.shapes import memory as shapes
from aibox.server.shapes.shape import Id

MAX_DOCUMENT_BYTES = 32 << 20


class MemoryAPI:
    """Memories of the caller. What is somebody else's is not found."""

    def __init__(self, box: Box) -> None:
        self._box = box

    @route("POST", "/v1/memory", roles=ASKS, status=201, examples=[{"text": "I work in Vienna.", "type": "user"}])
    async def remember(self, who: Principal, body: shapes.NewMemory) -> shapes.MemoryShown:
        """Keep a text for the caller. What is kept already is not kept twice: it takes the higher label."""
        record = await memory_of(self._box).remember(scope=who.scope, **dict(body))
        return shapes.MemoryShown.model_validate(record)

    @route("POST", "/v1/memory/recall", roles=ASKS, records=True, examples=[{"query": "Where do I work?"}])
    async def recall(self, who: Principal, body: shapes.Query) -> shapes.FoundList:
        """What has to do with a query, memories and passages of documents in turn, best first."""
        found = await memory_of(self._box).recall(
            body.query, scope=who.scope, limit=body.limit, types=body.types, ceiling=body.ceiling
        )
        return _found(found)

    @route("GET", "/v1/memory", roles=ASKS)
    async def list_(self, who: Principal, query: shapes.KindsQuery) -> shapes.MemoryList:
        """Everything that is remembered for the caller, oldest first."""
        records = await memory_of(self._box).list(scope=who.scope, types=query.types)
        return shapes.MemoryList(data=[shapes.MemoryShown.model_validate(record) for record in records])

    @route("GET", "/v1/memory/export", roles=ASKS, media="application/x-ndjson")
    async def export(self, who: Principal) -> str:
        """The caller's memories as JSON lines, one a record, in the clear."""
        return await memory_of(self._box).export(scope=who.scope)

    @route("GET", "/v1/memory/{id}", roles=ASKS)
    async def get(self, who: Principal, id: Id) -> shapes.MemoryShown:  # noqa: A002 - as the path has it
        """One memory of the caller."""
        return shapes.MemoryShown.model_validate(await self._mine(who, id))

    @route("PATCH", "/v1/memory/{id}", roles=ASKS, examples=[{"text": "I work in Graz."}])
    async def update(self, who: Principal, id: Id, body: shapes.Changed) -> shapes.MemoryShown:  # noqa: A002 - likewise
        """Put another text in the place of a memory's. The answer has an id of its own."""
        older = await self._mine(who, id)
        record = await memory_of(self._box).update(older.id, body.text, scope=who.scope, label=body.label)
        return shapes.MemoryShown.model_validate(record)

    @route("DELETE", "/v1/memory/{id}", roles=ASKS)
    async def forget(self, who: Principal, id: Id) -> None:  # noqa: A002 - likewise
        """Forget one memory, with its older versions."""
        older = await self._mine(who, id)
        await memory_of(self._box).forget(scope=who.scope, ids=[older.id])

    @route("POST", "/v1/memory/forget", roles=ASKS, examples=[{"everything": True}])
    async def forget_everything(self, who: Principal, body: shapes.Everything) -> shapes.Forgotten:
        """Forget all that is remembered for the caller, and the documents that they added and did not share."""
        del body
        return shapes.Forgotten(gone=await memory_of(self._box).forget(scope=who.scope, subject=who.scope.user))

    async def _mine(self, who: Principal, id_: str) -> Record:
        found = await memory_of(self._box).get(id_, scope=who.scope)
        if not isinstance(found, Record):
            raise AccessError("there is no such memory", hint="GET /v1/memory lists yours", absent=True)
        return found


class KnowledgeAPI:
    """Documents that the caller may see."""

    def __init__(self, box: Box) -> None:
        self._box = box

    @route("POST", "/v1/knowledge", roles=ASKS, status=201, max_body_bytes=MAX_DOCUMENT_BYTES)
    async def add(self, who: Principal, query: shapes.Upload, body: bytes) -> shapes.Uploaded:
        """Read a document, so that its passages are found and cited. The body is the file as it is."""
        about: dict[str, Any] = {"label": query.label, "visibility": query.visibility, "groups": query.group}
        added = await memory_of(self._box).add(body, name=query.name, scope=who.scope, **about)
        document = next((shapes.DocumentShown.model_validate(one) for one in added), None)
        return shapes.Uploaded(document=document, unchanged=bool(added.unchanged))

    @route("GET", "/v1/knowledge", roles=ASKS)
    async def list_(self, who: Principal) -> shapes.DocumentList:
        """The documents that the caller may see, oldest first."""
        found = await memory_of(self._box).documents(scope=who.scope)
        return shapes.DocumentList(data=[shapes.DocumentShown.model_validate(one) for one in found])

    @route("POST", "/v1/knowledge/search", roles=ASKS, records=True, examples=[{"query": "terms of delivery"}])
    async def search(self, who: Principal, body: shapes.Search) -> shapes.FoundList:
        """Passages of documents that have to do with a query, best first, each with its citation."""
        # Memories and passages come in turn: among twice as many there are as many passages as were asked for.
        hits = await memory_of(self._box).recall(
            body.query, scope=who.scope, limit=2 * body.limit, ceiling=body.ceiling
        )
        return _found([hit for hit in hits if isinstance(hit.record, Passage)][: body.limit])

    @route("DELETE", "/v1/knowledge/{id}", roles=ASKS)
    async def remove(self, who: Principal, id: Id) -> None:  # noqa: A002 - as the path has it
        """Remove a document that the caller added."""
        memory = memory_of(self._box)
        mine = {document.id: document.mine for document in await memory.documents(scope=who.scope)}
        if id not in mine:
            raise AccessError("there is no such document", hint="GET /v1/knowledge lists what you may see", absent=True)
        if not mine[id]:
            raise AccessError("a document is removed by who added it")
        await memory.forget(scope=who.scope, ids=[id])


def memory_of(box: Box) -> Memory:
    """Raises ConfigError where the operator has turned memory off."""
    if not box.settings.memory.enabled:
        raise ConfigError("nothing is remembered here", hint="the operator has set memory.enabled = false")
    return box.memory


def _found(hits: Sequence[Hit]) -> shapes.FoundList:
    return shapes.FoundList(
        data=[
            shapes.Found(
                id=hit.record.id,
                kind="passage" if isinstance(hit.record, Passage) else "memory",
                text=hit.record.text,
                label=str(hit.label),
                citation=hit.citation,
                score=hit.score,
            )
            for hit in hits
        ]
    )
