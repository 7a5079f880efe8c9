"""Memory on a Qdrant server, for many processes at once: a collection a tenant, and in it points with sealed payloads.

What was said is sealed under its user's key as in the embedded store; names are hashes. The keys are points too,
wrapped under the master key, which the server never sees.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from aibox.chat import Health
from aibox.errors import ConfigError, StoreError
from aibox.memory.cipher import SubjectKey
from aibox.memory.qdrant_keys import QdrantKeys, any_of, collection, equal, is_collection, is_uuid, of_user
from aibox.memory.qdrant_server import QdrantServer
from aibox.memory.record import Hit, Record, RecordType, Within, now_us
from aibox.memory.rows import Wanted, seal, unseal
from aibox.memory.vector_index import hashed
from aibox.types import Label, Scope

_PAGE = 1_000
_ROUNDING = 1e-6
"""Of a cosine that a server works out in floats of 32 bits."""
_CLEAR = ("id", "type", "confidence", "created_us", "valid_from_us", "valid_until_us", "supersedes")
_INDEXED = ("user", "type", "digest", "superseded", "embedder", "agent", "session", "supersedes")


class QdrantStore:
    """A MemoryStore at `qdrant://host:6333`, `qdrant+https://...`, or `qdrant://:memory:` for a try in this process.

    `key` is the master key of 32 bytes that all processes share; `api_key` the server's. Vectors are those of one
    embedder, of `dimensions` numbers. Two processes that keep the same text at the same moment may keep it twice. What
    is removed is deleted on the server, which overwrites its files when it next tidies up, not at once; when everything
    of a user is removed the key goes too, and no copy of what was said opens any more.

    Raises ConfigError for a wrong url or a collection of another size, StoreError when the server fails, IntegrityError
    for points that were changed or moved on it, MissingExtraError without the extra `qdrant`.
    """

    def __init__(
        self,
        url: str | QdrantServer,
        *,
        key: bytes,
        embedder: str,
        dimensions: int,
        api_key: str | None = None,
        timeout_s: float = 10.0,
    ) -> None:
        self._server = url if isinstance(url, QdrantServer) else QdrantServer(url, api_key=api_key, timeout_s=timeout_s)
        self._keys = QdrantKeys(key)
        self._embedder = embedder
        self._dimensions = dimensions
        self._writing = asyncio.Lock()

    def __repr__(self) -> str:
        return f"QdrantStore({self._server.where})"

    # What MemoryStore asks for.

    async def add(self, record: Record, vector: Sequence[float], *, correlation: str = "") -> Record:
        if len(vector) != self._dimensions:
            raise ConfigError(f"a vector of {len(vector)} numbers, where {self._embedder} has {self._dimensions}")
        scope = Scope(tenant=record.tenant, user=record.user)
        async with self._writing, self._server.asked(correlation) as (client, models):
            await self._make(record.tenant)
            [(name, key), *_] = await self._keys_of(client, models, scope, draw=True)
            if (kept := await self._find(client, models, record.text, record.type, scope)) is not None:
                met = replace(kept, label=kept.label | record.label, confidence=max(kept.confidence, record.confidence))
                if met != kept:
                    payload = self._payload(met, name, key)
                    await client.set_payload(collection(record.tenant), payload, [met.id], wait=True)
                return met
            older = [] if not record.supersedes else await self._read(
                client, models, scope, equal(models, superseded=False), ids=[record.supersedes]
            )  # fmt: skip
            record = record if older else replace(record, supersedes="")
            point = models.PointStruct(id=record.id, vector=[*vector], payload=self._payload(record, name, key))
            # The newer one first: a process that dies in between leaves both, and not neither.
            await client.upsert(collection(record.tenant), [point], wait=True)
            if older:
                await client.set_payload(collection(record.tenant), {"superseded": True}, [older[0].id], wait=True)
        return record

    async def find(self, text: str, *, type: RecordType, scope: Scope) -> Record | None:  # noqa: A002 - the field's name
        async with self._server.asked(scope.correlation) as (client, models):
            return await self._find(client, models, text, type, scope)

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
        if limit <= 0:
            return []
        async with self._server.asked(scope.correlation) as (client, models):
            if not await self._exists(client, scope.tenant):
                return []
            keys = dict(await self._keys_of(client, models, scope))
            wanted, hits, asked = Wanted(types, ceiling, within), [], limit
            conditions = self._findable(models, wanted, scope, [*keys.values()])
            while True:
                points = (
                    await client.query_points(
                        collection(scope.tenant),
                        query=[*vector],
                        query_filter=of_user(models, scope, conditions),
                        limit=asked,
                        score_threshold=minimum - _ROUNDING,
                    )
                ).points
                # Labels are no order that a server knows: what a ceiling leaves out is made up for by asking for more.
                hits = [point for point in points if wanted.admits(point.payload["label"])]
                if len(hits) >= limit or len(points) < asked:
                    break
                asked *= 8
            return [
                Hit(self._record(point.payload, scope, keys), min(max(point.score, 0.0), 1.0)) for point in hits[:limit]
            ]

    async def all(self, *, scope: Scope, types: Sequence[RecordType] | None = None) -> list[Record]:
        async with self._server.asked(scope.correlation) as (client, models):
            conditions = [*equal(models, superseded=False), *any_of(models, "type", types)]
            return await self._read(client, models, scope, conditions)

    async def get(self, id: str, *, scope: Scope) -> Record | None:  # noqa: A002 - the field's name
        async with self._server.asked(scope.correlation) as (client, models):
            found = await self._read(client, models, scope, [], ids=[id])
            return found[0] if found else None

    async def remove(self, ids: Sequence[str], *, scope: Scope) -> int:
        async with self._writing, self._server.asked(scope.correlation) as (client, models):
            gone: dict[str, Record] = {}
            wanted = [*ids]
            while wanted:
                found = await self._read(client, models, scope, [], ids=wanted)
                gone |= {record.id: record for record in found}
                wanted = [r.supersedes for r in found if r.supersedes and r.supersedes not in gone]
            if gone:
                await client.delete(collection(scope.tenant), [*gone], wait=True)
            return len(gone)

    async def remove_all(self, *, tenant: str, user: str | None, correlation: str = "") -> int:
        async with self._writing, self._server.asked(correlation) as (client, models):
            if not await self._exists(client, tenant):
                return 0
            if user is None:
                count: int = (await client.count(collection(tenant), exact=True)).count
                await client.delete_collection(collection(tenant))
                self._server.unmade(collection(tenant))
            else:
                scope = Scope(tenant=tenant, user=user)
                count = await self._count(client, models, scope)
                chosen = models.FilterSelector(filter=of_user(models, scope, []))
                await client.delete(collection(tenant), chosen, wait=True)
            await self._keys.forget(client, models, tenant=tenant, user=user)
            return count

    async def foreign(self, *, scope: Scope, limit: int) -> list[Record]:
        async with self._server.asked(scope.correlation) as (client, models):
            ours = equal(models, embedder=self._embedder)
            return await self._read(client, models, scope, equal(models, superseded=False), but=ours, limit=limit)

    async def revector(self, vectors: Mapping[str, Sequence[float]], *, scope: Scope) -> None:
        async with self._writing, self._server.asked(scope.correlation) as (client, models):
            mine = await self._read(client, models, scope, [], ids=[*vectors])
            points = [models.PointVectors(id=record.id, vector=[*vectors[record.id]]) for record in mine]
            if points:
                await client.update_vectors(collection(scope.tenant), points, wait=True)
                about = {"embedder": self._embedder}
                await client.set_payload(collection(scope.tenant), about, [r.id for r in mine], wait=True)

    async def health(self) -> Health:
        return await self._server.health(
            is_collection, lambda tenants: f"Qdrant at {self._server.where}, {tenants} tenants"
        )

    async def close(self) -> None:
        self._keys.clear()
        await self._server.close()

    # Points, and the server.

    async def _find(self, client: Any, models: Any, text: str, kind: RecordType, scope: Scope) -> Record | None:
        if not await self._exists(client, scope.tenant):
            return None
        digests = [key.digest(text).hex() for _, key in await self._keys_of(client, models, scope)]
        same = [*equal(models, superseded=False, type=kind), *any_of(models, "digest", digests)]
        found = await self._read(client, models, scope, same, limit=1)
        return found[0] if found else None

    async def _read(
        self,
        client: Any,
        models: Any,
        scope: Scope,
        conditions: Sequence[Any],
        *,
        ids: Sequence[str] | None = None,
        but: Sequence[Any] = (),
        limit: int | None = None,
    ) -> list[Record]:
        """The user's records that the conditions let through, oldest first."""
        if not await self._exists(client, scope.tenant):
            return []
        if ids is not None:
            named = [id_ for id_ in ids if is_uuid(id_)]
            if not named:
                return []
            conditions = [*conditions, models.HasIdCondition(has_id=named)]
        keys = dict(await self._keys_of(client, models, scope))
        found: list[Record] = []
        offset = None
        while True:
            size = _PAGE if limit is None else min(limit - len(found), _PAGE)
            points, offset = await client.scroll(
                collection(scope.tenant),
                scroll_filter=of_user(models, scope, conditions, but),
                limit=size,
                offset=offset,
            )
            found += [self._record(point.payload, scope, keys) for point in points]
            if offset is None or (limit is not None and len(found) >= limit):
                return sorted(found, key=lambda record: (record.created_us, record.id))

    async def _count(self, client: Any, models: Any, scope: Scope) -> int:
        counted = await client.count(collection(scope.tenant), count_filter=of_user(models, scope, []), exact=True)
        count: int = counted.count
        return count

    def _findable(self, models: Any, wanted: Wanted, scope: Scope, keys: Sequence[SubjectKey]) -> list[Any]:
        now = now_us()
        session = f"session|{scope.agent}|{scope.session}"
        ended = models.Filter(
            should=[
                models.FieldCondition(key="valid_until_us", match=models.MatchValue(value=0)),
                models.FieldCondition(key="valid_until_us", range=models.Range(gt=now)),
            ]
        )
        return [
            *equal(models, superseded=False, embedder=self._embedder),
            models.FieldCondition(key="valid_from_us", range=models.Range(lte=now)),
            ended,
            *any_of(models, "type", wanted.types),
            *any_of(
                models,
                "agent",
                [k.digest(f"agent|{scope.agent}").hex() for k in keys] if wanted.within == "agent" else None,
            ),
            *any_of(models, "session", [k.digest(session).hex() for k in keys] if wanted.within == "session" else None),
        ]

    def _payload(self, record: Record, name: str, key: SubjectKey) -> dict[str, Any]:
        return {
            **{field: getattr(record, field) for field in _CLEAR},
            "user": hashed(record.user),
            "agent": key.digest(f"agent|{record.agent}").hex(),
            "session": key.digest(f"session|{record.agent}|{record.session}").hex(),
            "digest": key.digest(record.text).hex(),
            "label": str(record.label),
            "superseded": False,
            "embedder": self._embedder,
            "key": name,
            "sealed": base64.b64encode(seal(record, key)).decode(),
        }

    def _record(self, payload: Mapping[str, Any], scope: Scope, keys: Mapping[str, SubjectKey]) -> Record:
        key = keys.get(payload["key"])
        if key is None:
            raise StoreError("a memory's key is gone from the server", hint="forget it: nobody can read it any more")
        clear = {field: payload[field] for field in _CLEAR} | {"tenant": scope.tenant, "user": scope.user}
        return unseal(clear, payload["label"], base64.b64decode(payload["sealed"]), key)

    async def _keys_of(
        self, client: Any, models: Any, scope: Scope, *, draw: bool = False
    ) -> list[tuple[str, SubjectKey]]:
        return await self._keys.of(client, models, hashed(scope.tenant), hashed(scope.user), draw=draw)

    async def _make(self, tenant: str) -> None:
        indexed = dict.fromkeys(_INDEXED, "keyword") | {"superseded": "bool"}
        made_for: dict[str, Any] = {"dimensions": self._dimensions, "embedder": self._embedder}
        await self._server.make(collection(tenant), indexed=indexed, **made_for)

    async def _exists(self, client: Any, tenant: str) -> bool:
        return bool(await client.collection_exists(collection(tenant)))
