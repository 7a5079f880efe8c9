"""The stores that the url of a memory names: a folder, or a Qdrant server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aibox.errors import ConfigError
from aibox.memory import accept
from aibox.memory.document_store import DocumentStore
from aibox.memory.embedded_store import EmbeddedStore
from aibox.memory.folder import Folder
from aibox.memory.qdrant_store import QdrantStore
from aibox.memory.store import MemoryStore
from aibox.protocols import Embedder


def stores(
    url: str | Path | None, *, key: bytes | None, api_key: str | None, embedder: Embedder
) -> tuple[MemoryStore, DocumentStore | None]:
    """Where memories go, and documents: a server keeps none of those. Raises ConfigError for any other url."""
    made_for: dict[str, Any] = {"embedder": embedder.name, "dimensions": embedder.dimensions}
    if isinstance(url, str) and url.startswith(("qdrant://", "qdrant+https://")):
        if key is None:
            raise ConfigError("a memory on a server needs a key of 32 bytes", hint="key=...; a box has one")
        return QdrantStore(url, key=key, api_key=api_key, **made_for), None
    folder = Folder(accept.folder(url), key=key)
    return EmbeddedStore(folder, **made_for), DocumentStore(folder, **made_for)
