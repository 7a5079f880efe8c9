"""The stores that the url of a memory names: a folder, or a Qdrant server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aibox.errors import ConfigError
from aibox.memory import accept
from aibox.memory.embedded_documents import EmbeddedDocuments
from aibox.memory.embedded_store import EmbeddedStore
from aibox.memory.folder import Folder
from aibox.memory.store import DocumentStore, MemoryStore
from aibox.postgres import is_postgres
from aibox.protocols import Embedder


def stores(
    url: str | Path | None, *, key: bytes | None, api_key: str | None, embedder: Embedder, folder: Path | None = None
) -> tuple[MemoryStore, DocumentStore]:
    """Where memories go, and documents; `folder` is for indexes of a database. Raises ConfigError for any other url."""
    made_for: dict[str, Any] = {"embedder": embedder.name, "dimensions": embedder.dimensions}
    if isinstance(url, str) and url.startswith(("qdrant://", "qdrant+https://")):
        # Who keeps memories in a folder has no use for them.
        from aibox.memory.qdrant_documents import QdrantDocuments
        from aibox.memory.qdrant_server import QdrantServer
        from aibox.memory.qdrant_store import QdrantStore

        if key is None:
            raise ConfigError("a memory on a server needs a key of 32 bytes", hint="key=...; a box has one")
        server = QdrantServer(url, api_key=api_key)
        return QdrantStore(server, key=key, **made_for), QdrantDocuments(server, key=key, **made_for)
    if isinstance(url, str) and is_postgres(url):
        if key is None:
            raise ConfigError("a memory in a database needs a key of 32 bytes", hint="key=...; a box has one")
        made_for["database"] = url
        place = Folder(folder, key=key)
    else:
        place = Folder(accept.folder(url), key=key)
    return EmbeddedStore(place, **made_for), EmbeddedDocuments(place, **made_for)
