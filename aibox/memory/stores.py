"""The stores that the url of a memory names: a folder, or a Qdrant server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aibox.errors import ConfigError
from aibox.memory import accept
from aibox.memory.embedded_documents import EmbeddedDocuments
from aibox.memory.embedded_store import EmbeddedStore
from aibox.memory.folder import Folder
from aibox.memory.qdrant_documents import QdrantDocuments
from aibox.memory.qdrant_server import QdrantServer
from aibox.memory.qdrant_store import QdrantStore
from aibox.memory.store import DocumentStore, MemoryStore
from aibox.protocols import Embedder


def stores(
    url: str | Path | None, *, key: bytes | None, api_key: str | None, embedder: Embedder
) -> tuple[MemoryStore, DocumentStore]:
    """Where memories go, and documents. Raises ConfigError for any other url."""
    made_for: dict[str, Any] = {"embedder": embedder.name, "dimensions": embedder.dimensions}
    if isinstance(url, str) and url.startswith(("qdrant://", "qdrant+https://")):
        if key is None:
            raise ConfigError("a memory on a server needs a key of 32 bytes", hint="key=...; a box has one")
        server = QdrantServer(url, api_key=api_key)
        return QdrantStore(server, key=key, **made_for), QdrantDocuments(server, key=key, **made_for)
    folder = Folder(accept.folder(url), key=key)
    return EmbeddedStore(folder, **made_for), EmbeddedDocuments(folder, **made_for)
