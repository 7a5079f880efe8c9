"""The keys of the subjects of a memory on a Qdrant server, and what its points are called and chosen by.

The client is given by the store, which alone imports it; `models` is its module of that name.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from aibox.memory.cipher import SubjectKey, Wrapping
from aibox.memory.qdrant_server import create
from aibox.memory.record import new_id, now_us
from aibox.memory.vector_index import hashed
from aibox.types import Scope

COLLECTION = "aibox_keys"
_MOST = 1_000


class QdrantKeys:
    """Points without vectors, each a user's key wrapped under the `master`.

    Two processes may draw a user's key at the same moment. Then both are kept, a row names its own, and the older one
    serves from then on. Nothing is cached but what was unwrapped: another process may erase a user.
    """

    def __init__(self, master: bytes, *, collection: str = COLLECTION) -> None:
        self._wrapping = Wrapping(master)
        self._collection = collection

    async def of(
        self, client: Any, models: Any, tenant: str, user: str, *, draw: bool = False
    ) -> list[tuple[str, SubjectKey]]:
        """The keys of a user by name, the one for new rows first; drawn where there is none, if asked to.

        `tenant` and `user` are hashes: who holds the master opens a tenant's rows without knowing the names in it.
        """
        if not await client.collection_exists(self._collection):
            if not draw:
                return []
            await create(client, self._collection, {})
        chosen = models.Filter(must=equal(models, tenant=tenant, user=user))
        points, _ = await client.scroll(self._collection, scroll_filter=chosen, limit=_MOST)
        if not points and draw:
            wrapped = base64.b64encode(self._wrapping.draw(tenant, user)).decode()
            payload = {"tenant": tenant, "user": user, "wrapped": wrapped}
            point = models.PointStruct(id=new_id(now_us()), vector={}, payload=payload)
            await client.upsert(self._collection, [point], wait=True)
            points, _ = await client.scroll(self._collection, scroll_filter=chosen, limit=_MOST)
        return [
            (str(p.id), self._wrapping.unwrap(base64.b64decode(p.payload["wrapped"]), tenant, user))
            for p in sorted(points, key=lambda p: str(p.id))
        ]

    async def forget(self, client: Any, models: Any, *, tenant: str, user: str | None) -> None:
        """Delete the keys of a user, or with None of everybody in the tenant."""
        whose = {"tenant": hashed(tenant)} | ({} if user is None else {"user": hashed(user)})
        if await client.collection_exists(self._collection):
            chosen = models.FilterSelector(filter=models.Filter(must=equal(models, **whose)))
            await client.delete(self._collection, chosen, wait=True)
        self.clear()

    def clear(self) -> None:
        """Let go of what was unwrapped."""
        self._wrapping.clear()


def collection(tenant: str) -> str:
    """One a tenant, so that no filter that was forgotten can cross to another."""
    return f"aibox_{hashed(tenant)}"


def is_collection(name: str) -> bool:
    """Whether it is some tenant's memories."""
    return name.startswith("aibox_") and len(name) == len(collection(""))


def equal(models: Any, **values: Any) -> list[Any]:
    """Conditions: each of these has this value."""
    return [models.FieldCondition(key=k, match=models.MatchValue(value=v)) for k, v in values.items()]


def any_of(models: Any, key: str, values: Sequence[str] | None) -> list[Any]:
    """A condition: it has one of these values; none where anything will do."""
    return [] if values is None else [models.FieldCondition(key=key, match=models.MatchAny(any=[*values]))]


def of_user(models: Any, scope: Scope, conditions: Sequence[Any], but: Sequence[Any] = ()) -> Any:
    """The user's points that have all of the conditions and none of `but`."""
    return models.Filter(must=[*equal(models, user=hashed(scope.user)), *conditions], must_not=[*but] or None)


def is_uuid(id_: str) -> bool:
    """Whether it can be the id of a point; a server refuses a call that has any other."""
    return len(id_) == 36 and all(c in "0123456789abcdef-" for c in id_) and id_.count("-") == 4
