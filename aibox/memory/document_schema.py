"""The tables of `documents.db`."""

from __future__ import annotations

from aibox.memory.cipher import TABLES
from aibox.memory.database import Schema
from aibox.memory.epochs import TABLE as EPOCHS

SCHEMA = Schema(
    application_id=0x61624431,  # "abD1"
    version=1,
    statements=(
        *TABLES,
        EPOCHS,
        # `user` is who added it, and empty once that user was erased. `source` and `content` are keyed digests.
        """
        CREATE TABLE documents (
            n INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL UNIQUE,
            tenant TEXT NOT NULL,
            user TEXT NOT NULL,
            visibility TEXT NOT NULL,
            groups TEXT NOT NULL,
            label TEXT NOT NULL,
            source BLOB NOT NULL,
            content BLOB NOT NULL,
            passages INTEGER NOT NULL,
            embedder TEXT NOT NULL,
            sealed BLOB NOT NULL
        )
        """,
        "CREATE UNIQUE INDEX documents_once ON documents (tenant, user, source) WHERE user <> ''",
        "CREATE INDEX documents_embedder ON documents (tenant, embedder)",
        # A row that is `gone` is empty and tells the index so; it goes itself with the next erasure.
        """
        CREATE TABLE passages (
            n INTEGER PRIMARY KEY AUTOINCREMENT,
            tenant TEXT NOT NULL,
            document TEXT NOT NULL,
            number INTEGER NOT NULL,
            gone INTEGER NOT NULL DEFAULT 0,
            sealed BLOB NOT NULL,
            vector BLOB NOT NULL,
            terms BLOB NOT NULL,
            change INTEGER NOT NULL
        )
        """,
        "CREATE INDEX passages_changes ON passages (tenant, change)",
        "CREATE INDEX passages_document ON passages (document, number)",
    ),
)
