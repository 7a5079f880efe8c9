"""Documents on a Qdrant server: a collection a tenant, and in it a point a passage and one a document, all sealed.

A document is there when its own point is: it is written last, so that a passage without one is of a run that was cut
off, and nobody's. Who may see a passage is decided by the document's point, of which all is authenticated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from aibox.chat import Health
from aibox.errors import ConfigError, IntegrityError, StoreError
from aibox.memory.cipher import SubjectKey
from aibox.memory.document import Document
from aibox.memory.fusion import PROPOSED, fuse, rarity
from aibox.memory.qdrant_keys import QdrantKeys, any_of, equal, is_uuid
from aibox.memory.qdrant_points import PLACE, bound, collection, may_see, point_id, seal, unseal, without_owner
from aibox.memory.qdrant_server import QdrantServer
from aibox.memory.reader import Candidate, NewPassage, Reader, readers
from aibox.memory.record import Hit, Passage
from aibox.memory.terms import Termer, Terms
from aibox.memory.vector_index import hashed
from aibox.types import Label, Scope

KEYS = "aibox_document_keys"
_PAGE = 256
_AT_ONCE = 16
Opener = Callable[[Mapping[str, Any]], Awaitable[list[Any]]]
_TENANT = ""
"""Whose key is the tenant's as a whole."""
_INDEXED = ("kind", "document", "user", "visibility", "reader", "source", "embedder")


class QdrantDocuments:
    """A DocumentStore on a server. What is said of QdrantStore about keys, removal and the server's view holds here.

    It sees numbers: of passages, of their words, and how often each keyed hash of a word occurs.
    """

    exists = True

    def __init__(self, server: QdrantServer, *, key: bytes, embedder: str, dimensions: int) -> None:
        self._server = server
        self._keys = QdrantKeys(key, collection=KEYS)
        self._embedder = embedder
        self._dimensions = dimensions
        self._writing = asyncio.Lock()

    async def unchanged(self, source: str, content: bytes, *, scope: Scope) -> bool:
        async with self._server.asked(scope.correlation) as (client, models):
            opened = await self._tenant(client, models, scope.tenant)
            heads = await self._mine(client, models, source, scope, opened)
            # Two are what a run that was cut off left: keeping the document again tidies up.
            [head] = heads if len(heads) == 1 else [None]
            same = [key.digest(content.hex()).hex() for key in opened.values()]
            return head is not None and head.payload["content"] in same and head.payload["embedder"] == self._embedder

    async def label_of(self, source: str, *, scope: Scope) -> Label | None:
        async with self._server.asked(scope.correlation) as (client, models):
            opened = await self._tenant(client, models, scope.tenant)
            label = None
            for head in await self._mine(client, models, source, scope, opened):
                found = Label.parse(head.payload["label"])
                label = found if label is None else label | found
            return label

    async def put(self, document: Document, content: bytes, passages: Sequence[NewPassage], *, scope: Scope) -> None:
        if any(len(p.vector) != self._dimensions for p in passages):
            raise ConfigError(f"a vector of another length than the {self._dimensions} of {self._embedder}")
        async with self._writing, self._server.asked(scope.correlation) as (client, models):
            await self._make(models, scope.tenant)
            tenant, user = hashed(scope.tenant), hashed(scope.user)
            [(name, key), *_] = shared = await self._keys.of(client, models, tenant, hashed(_TENANT), draw=True)
            source, said = key.digest(document.source).hex(), key.digest(content.hex()).hex()
            termer = self._termer(scope.tenant, key)
            if document.visibility == "private":
                [(name, key), *_] = await self._keys.of(client, models, tenant, user, draw=True)
            place = {
                "document": document.id,
                "user": user,
                "visibility": document.visibility,
                "groups": sorted(hashed(f"group|{group}") for group in document.groups),
                "label": str(document.label),
            }
            about = [document.name, document.source, document.pages, document.size, document.added_us,
                     sorted(document.groups)]  # fmt: skip
            common = place | {"source": source, "embedder": self._embedder, "key": name}
            common["reader"] = readers(scope.user, document.visibility, msgspec.json.encode(document.groups).decode())
            points = []
            for number, p in enumerate(passages):
                terms = termer.passage(p.for_search)
                text = [p.text, p.heading, p.page, p.start, p.end, p.about]
                payload = {"kind": "passage", "number": number, "terms": [*terms], **common}
                payload["sealed"] = seal(text, key, bound(tenant, place, number))
                words = models.SparseVector(indices=[*terms], values=[*terms.values()])
                vectors = {"": [*p.vector], "words": words}
                points.append(models.PointStruct(id=point_id(document.id, number), vector=vectors, payload=payload))
            name_ = collection(scope.tenant)
            for start in range(0, len(points), _PAGE):
                await client.upsert(name_, points[start : start + _PAGE], wait=True)
            head = {"kind": "document", "content": said, "passages": len(passages), **common}
            head["sealed"] = seal(about, key, bound(tenant, place))
            await client.upsert(name_, [models.PointStruct(id=document.id, vector={}, payload=head)], wait=True)
            former = models.Filter(
                must=[
                    *equal(models, user=user),
                    *any_of(models, "source", [k.digest(document.source).hex() for _, k in shared]),
                ],
                must_not=equal(models, document=document.id),
            )
            await client.delete(name_, models.FilterSelector(filter=former), wait=True)

    async def search(
        self, text: str, vector: Sequence[float], *, reader: Reader, limit: int, minimum: float
    ) -> list[Hit]:
        """As DocumentStore has it. How rare a word is, is counted over what the reader may see."""
        tenant = reader.scope.tenant
        async with self._server.asked(reader.scope.correlation) as (client, models):
            if limit <= 0 or not await client.collection_exists(collection(tenant)):
                return []
            if foreign := await self._foreign(client, models, tenant):
                raise StoreError(
                    f"{len(foreign)} documents have vectors of {foreign[0].payload['embedder']}, and the embedder is "
                    f"{self._embedder}",
                    hint=f"aibox memory reindex --tenant {tenant} reads them anew; or use the former embedder",
                )
            keys = await self._tenant(client, models, tenant)
            opened = self._opener(client, models, tenant, keys)
            terms = self._termer(tenant, next(iter(keys.values()))).query(text) if keys else {}
            visible = [*equal(models, kind="passage"), *any_of(models, "reader", reader.names)]
            rare = await self._rare(client, models, tenant, terms, visible)
            asked = max(PROPOSED, 4 * limit)
            while True:
                near, words = await self._proposed(client, models, tenant, vector, rare, visible, asked)
                found = await self._candidates(client, {**near, **words}.values(), reader, opened)
                if len(found) >= limit or (len(near) < asked and len(words) < asked):
                    break
                asked *= 4
            nearness = {id_: point.score for id_, point in near.items() if id_ in found}
            if rest := [id_ for id_ in found if id_ not in nearness]:
                only = models.Filter(must=[models.HasIdCondition(has_id=rest)])
                points = await client.query_points(collection(tenant), query=[*vector], query_filter=only,
                                                   limit=len(rest), with_payload=False)  # fmt: skip
                nearness |= {str(point.id): point.score for point in points.points}
        scores = {id_: point.score for id_, point in words.items()}
        return fuse(found, nearness, scores, terms, minimum=minimum)[:limit]

    async def documents(self, *, reader: Reader) -> list[Document]:
        async with self._server.asked(reader.scope.correlation) as (client, models):
            visible = [*equal(models, kind="document"), *any_of(models, "reader", reader.names)]
            heads = await self._scroll(client, models, reader.scope.tenant, visible)
            opened = self._opener(client, models, reader.scope.tenant)
            return [
                _document(head.payload, await opened(head.payload), reader)
                for head in sorted(heads, key=lambda head: str(head.id))
                if may_see(head.payload, reader)
            ]

    async def passage(self, id: str, *, reader: Reader) -> Passage | None:  # noqa: A002 - the field's name
        document, _, number = id.rpartition(":")
        if not is_uuid(document) or not number.isdecimal() or len(number) > 9:
            return None
        async with self._server.asked(reader.scope.correlation) as (client, models):
            name = collection(reader.scope.tenant)
            if not await client.collection_exists(name):
                return None
            points = await client.retrieve(name, [point_id(document, int(number))])
            opened = self._opener(client, models, reader.scope.tenant)
            found = await self._candidates(client, points, reader, opened)
            return next((candidate.passage for candidate in found.values()), None)

    async def remove(self, ids: Sequence[str], *, scope: Scope) -> int:
        async with self._writing, self._server.asked(scope.correlation) as (client, models):
            mine = [*any_of(models, "document", ids), *equal(models, user=hashed(scope.user))]
            heads = await self._scroll(client, models, scope.tenant, [*mine, *equal(models, kind="document")])
            if heads:
                chosen = models.FilterSelector(filter=models.Filter(must=mine))
                await client.delete(collection(scope.tenant), chosen, wait=True)
            return len(heads)

    async def remove_all(self, *, tenant: str, user: str | None, correlation: str = "") -> int:
        """Of a user what is private, and the user's name from what is not; or with None everything of the tenant."""
        async with self._writing, self._server.asked(correlation) as (client, models):
            theirs = equal(models, kind="document", **({} if user is None else {"user": hashed(user)}))
            heads = await self._scroll(client, models, tenant, theirs)
            if user is None and await client.collection_exists(collection(tenant)):
                await client.delete_collection(collection(tenant))
                self._server.unmade(collection(tenant))
            elif user is not None and heads:
                private = models.Filter(must=equal(models, user=hashed(user), visibility="private"))
                await client.delete(collection(tenant), models.FilterSelector(filter=private), wait=True)
                for head in heads:
                    if head.payload["visibility"] != "private":
                        await self._disown(client, models, tenant, head.payload)
            await self._keys.forget(client, models, tenant=tenant, user=user)
            return len(heads)

    async def foreign(self, *, tenant: str) -> list[str]:
        async with self._server.asked() as (client, models):
            return [str(head.id) for head in await self._foreign(client, models, tenant)]

    async def texts(self, document: str, *, tenant: str) -> list[tuple[int, str]]:
        async with self._server.asked() as (client, models):
            points = await self._passages(client, models, tenant, document)
            opened = self._opener(client, models, tenant)
            said = [(p.payload["number"], await opened(p.payload)) for p in points]
            return [(n, "\n".join(filter(None, [about, heading, text]))) for n, (text, heading, _, _, _, about) in said]

    async def revector(self, document: str, vectors: Mapping[int, Sequence[float]], *, tenant: str) -> None:
        async with self._writing, self._server.asked() as (client, models):
            ids = [point_id(document, number) for number in vectors]
            fresh = [
                models.PointVectors(id=id_, vector={"": [*vector]})
                for id_, vector in zip(ids, vectors.values(), strict=True)
            ]
            for start in range(0, len(fresh), _PAGE):
                await client.update_vectors(collection(tenant), fresh[start : start + _PAGE], wait=True)
            # The document's own point last: until then it counts as another embedder's.
            for points in (ids, [document]):
                await client.set_payload(collection(tenant), {"embedder": self._embedder}, points, wait=True)

    async def health(self) -> Health:
        return await self._server.health(
            lambda name: name.startswith("aibox_documents_"), lambda tenants: f"documents of {tenants} tenants"
        )

    async def close(self) -> None:
        self._keys.clear()
        await self._server.close()

    # Points.

    async def _make(self, models: Any, tenant: str) -> None:
        await self._server.make(
            collection(tenant),
            dimensions=self._dimensions,
            embedder=self._embedder,
            indexed=dict.fromkeys(_INDEXED, "keyword") | {"terms": "integer"},
            sparse_vectors_config={"words": models.SparseVectorParams()},
        )

    async def _tenant(self, client: Any, models: Any, tenant: str) -> dict[str, SubjectKey]:
        """The tenant's own keys by name, the one for new rows first."""
        return dict(await self._keys.of(client, models, hashed(tenant), hashed(_TENANT)))

    def _termer(self, tenant: str, key: SubjectKey) -> Termer:
        return Termer(key.digest(f"words|{tenant}"))

    async def _rare(
        self, client: Any, models: Any, tenant: str, terms: Terms, visible: Sequence[Any]
    ) -> dict[int, float]:
        """BM25's weight of each word that some visible passage has."""

        async def count(*more: Any) -> int:
            counted = await client.count(
                collection(tenant), count_filter=models.Filter(must=[*visible, *more]), exact=True
            )
            number: int = counted.count
            return number

        every, holding, words = await count(), [], [*terms]
        for start in range(0, len(words), _AT_ONCE):
            some = words[start : start + _AT_ONCE]
            holding += await asyncio.gather(*(count(*equal(models, terms=term)) for term in some))
        return {term: rarity(every, n) for term, n in zip(words, holding, strict=True) if n}

    async def _proposed(  # noqa: PLR0917 - a part of `search`
        self, client: Any, models: Any, tenant: str, vector: Sequence[float], rare: Terms, visible: Any, limit: int
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The nearest points, and those that share most with the words, by id."""
        shared = {"query_filter": models.Filter(must=[*visible]), "limit": limit}
        near = (await client.query_points(collection(tenant), query=[*vector], **shared)).points
        words = []
        if rare:
            query = models.SparseVector(indices=[*rare], values=[*rare.values()])
            words = (await client.query_points(collection(tenant), query=query, using="words", **shared)).points
        return {str(p.id): p for p in near}, {str(p.id): p for p in words if p.score > 0}

    async def _candidates(
        self, client: Any, points: Iterable[Any], reader: Reader, opened: Opener
    ) -> dict[str, Candidate]:
        """Of the passages those whose document is there and may be seen."""
        tenant = reader.scope.tenant
        listed = [*points]
        ids = {point.payload["document"] for point in listed}
        heads = {str(h.id): h.payload for h in await client.retrieve(collection(tenant), [*ids])} if ids else {}
        shown = {id_: head for id_, head in heads.items() if may_see(head, reader)}
        about = {id_: await opened(head) for id_, head in shown.items()}
        found = {}
        for point in listed:
            payload = point.payload
            if (id_ := payload["document"]) in shown:
                # The name of who shared it goes from the passages first, see `_disown`.
                if any(payload[field] != shown[id_][field] for field in PLACE if field != "user"):
                    raise IntegrityError("a passage of a document was changed or moved behind our back")
                text, heading, page, start, end, _ = await opened(payload)
                passage = Passage(
                    id=f"{id_}:{payload['number']}",
                    document=id_,
                    name=about[id_][0],
                    text=text,
                    page=page,
                    heading=heading,
                    start=start,
                    end=end,
                    label=Label.parse(payload["label"]),
                )
                found[str(point.id)] = Candidate(passage, b"", dict.fromkeys(payload["terms"], 0.0))
        return found

    def _opener(self, client: Any, models: Any, tenant: str, shared: Mapping[str, SubjectKey] | None = None) -> Opener:
        """What points of the tenant say; keys that are not given, such as the `shared` ones, are asked for once."""
        tenant_ = hashed(tenant)
        known = {} if shared is None else {hashed(_TENANT): dict(shared)}

        async def opened(payload: Mapping[str, Any]) -> list[Any]:
            whose = payload["user"] if payload["visibility"] == "private" else hashed(_TENANT)
            if whose not in known:
                known[whose] = dict(await self._keys.of(client, models, tenant_, whose))
            key = known[whose].get(payload["key"])
            if key is None:
                hint = "forget it: nobody can read it any more"
                raise StoreError("a document's key is gone from the server", hint=hint)
            return unseal(payload, key, tenant_)

        return opened

    async def _disown(self, client: Any, models: Any, tenant: str, head: Mapping[str, Any]) -> None:
        """A shared document outlives who added it, without the name, and without the path, which often tells it."""
        opened = self._opener(client, models, tenant)
        name, _, *rest = await opened(head)
        [(_, key), *_] = await self._keys.of(client, models, hashed(tenant), hashed(_TENANT))
        for point in await self._passages(client, models, tenant, head["document"]):
            nobodys = {**point.payload, "user": ""}
            said = await opened(point.payload)
            nobodys["sealed"] = seal(said, key, bound(hashed(tenant), nobodys, nobodys["number"]))
            await client.overwrite_payload(collection(tenant), without_owner(nobodys, key), [point.id], wait=True)
        nobodys = {**head, "user": ""}
        nobodys["sealed"] = seal([name, name, *rest], key, bound(hashed(tenant), nobodys))
        await client.overwrite_payload(collection(tenant), without_owner(nobodys, key), [head["document"]], wait=True)

    async def _mine(
        self, client: Any, models: Any, source: str, scope: Scope, opened: Mapping[str, SubjectKey]
    ) -> list[Any]:
        """The points of the user's documents from this source."""
        digests = [key.digest(source).hex() for key in opened.values()]
        mine = equal(models, kind="document", user=hashed(scope.user))
        return await self._scroll(client, models, scope.tenant, [*mine, *any_of(models, "source", digests)])

    async def _foreign(self, client: Any, models: Any, tenant: str) -> list[Any]:
        ours = equal(models, embedder=self._embedder)
        return await self._scroll(client, models, tenant, equal(models, kind="document"), but=ours)

    async def _passages(self, client: Any, models: Any, tenant: str, document: str) -> list[Any]:
        return await self._scroll(client, models, tenant, equal(models, kind="passage", document=document))

    async def _scroll(
        self, client: Any, models: Any, tenant: str, conditions: Sequence[Any], but: Sequence[Any] = ()
    ) -> list[Any]:
        name = collection(tenant)
        if not await client.collection_exists(name):
            return []
        found: list[Any] = []
        offset = None
        chosen = models.Filter(must=[*conditions], must_not=[*but] or None)
        while True:
            points, offset = await client.scroll(name, scroll_filter=chosen, limit=_PAGE, offset=offset)
            found += points
            if offset is None:
                return found


def _document(head: Mapping[str, Any], said: Sequence[Any], reader: Reader) -> Document:
    name, source, pages, size, added_us, groups = said
    return Document(
        id=head["document"],
        name=name,
        source=source,
        visibility=head["visibility"],
        groups=tuple(groups),
        label=Label.parse(head["label"]),
        pages=pages,
        passages=head["passages"],
        size=size,
        added_us=added_us,
        mine=head["user"] == hashed(reader.scope.user),
    )
