"""A Qdrant server, or the client's own engine in its place: one connection, which the stores on it share."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from aibox.chat import Health
from aibox.errors import AIBoxError, ConfigError, MissingExtraError, StoreError

IN_PROCESS = ":memory:"
"""The client's own engine in place of a server: slow, forgotten at the end, and without indexes."""


class QdrantServer:
    """At `qdrant://host:6333`, `qdrant+https://...`, or `qdrant://:memory:`. Raises ConfigError for another url."""

    def __init__(self, url: str, *, api_key: str | None = None, timeout_s: float = 10.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("qdrant", "qdrant+https") or not parts.netloc or parts.password is not None:
            raise ConfigError(
                "a memory on a server is at qdrant://host:6333 or qdrant+https://host", hint="the key goes in api_key"
            )
        self.where = parts.netloc
        self._https = parts.scheme == "qdrant+https"
        self._api_key = api_key
        self._timeout_s = timeout_s
        self._client: Any = None
        self._closed = False
        self._known: dict[str, int] = {}

    @contextlib.asynccontextmanager
    async def asked(self, correlation: str = "") -> AsyncIterator[tuple[Any, Any]]:
        """The client and its module `models`. What goes wrong inside is a StoreError.

        What is asked inside is part of the request of this id, and says so to the server.
        """
        client, models = await self.open()
        from qdrant_client.context_headers import headers

        try:
            with headers({"X-Correlation-ID": correlation} if correlation else {}):
                yield client, models
        except AIBoxError:
            raise
        except Exception as error:  # the client raises its own, httpx2's, httpx's and ValueError
            said = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise StoreError(
                f"Qdrant at {self.where} failed: {said}", hint="is it running, and is api_key right?", retryable=True
            ) from error

    async def open(self) -> tuple[Any, Any]:
        """Raises StoreError once it is closed, MissingExtraError without the extra `qdrant`."""
        if self._closed:
            raise StoreError("the memory is closed", hint="open it again, or do this before closing")
        try:
            from qdrant_client import AsyncQdrantClient, models
        except ImportError:
            raise MissingExtraError("a memory on a Qdrant server", extra="qdrant") from None
        if self._client is None:
            if self.where == IN_PROCESS:
                self._client = AsyncQdrantClient(IN_PROCESS)
            else:
                self._client = AsyncQdrantClient(
                    url=f"http{'s' if self._https else ''}://{self.where}",
                    api_key=self._api_key,
                    timeout=round(self._timeout_s),
                    check_compatibility=False,
                )
        return self._client, models

    async def make(self, name: str, *, dimensions: int, embedder: str, indexed: Mapping[str, str], **more: Any) -> None:
        """A collection for vectors of so many numbers, with what is filtered by indexed, by field and kind.

        Raises ConfigError where there is one for vectors of another length.
        """
        client, models = await self.open()
        if not await client.collection_exists(name):
            await create(client, name, models.VectorParams(size=dimensions, distance=models.Distance.COSINE), **more)
            for field, kind in indexed.items() if self.where != IN_PROCESS else ():
                await client.create_payload_index(name, field, models.PayloadSchemaType(kind), wait=True)
            self.unmade(name)
        if self._known.get(name) != dimensions:
            has = (await client.get_collection(name)).config.params.vectors.size
            if has != dimensions:
                raise ConfigError(
                    f"the collection has vectors of {has} numbers, and {embedder} makes {dimensions}",
                    hint="export with the former embedder, erase, and import with this one",
                )
            self._known[name] = dimensions

    async def health(self, ours: Callable[[str], bool], say: Callable[[int], str]) -> Health:
        """Whether it answers; what to `say` of the number of collections that are `ours`. Never raises AIBoxError."""
        try:
            async with self.asked() as (client, _):
                named = [c.name for c in (await client.get_collections()).collections]
        except AIBoxError as error:
            return Health(ok=False, detail=error.message)
        return Health(ok=True, detail=say(sum(map(ours, named))))

    def unmade(self, name: str) -> None:
        """A collection that was deleted."""
        self._known.pop(name, None)

    async def close(self) -> None:
        """Closing twice is allowed."""
        client, self._client, self._closed = self._client, None, True
        if client is not None:
            await client.close()


async def create(client: Any, name: str, vectors: Any, **more: Any) -> None:
    """Make a collection, unless another process was faster."""
    try:
        await client.create_collection(name, vectors_config=vectors, **more)
    except Exception:
        if not await client.collection_exists(name):
            raise
