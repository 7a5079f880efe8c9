"""Memories and documents. Vectors are kept with their rows; each server makes an index of its own from them."""

from __future__ import annotations

from aibox.migrations.secure import execute, policy, schema, secure, table

revision = "0004"
down_revision = "0003"

SUBJECTS = 'tenant text NOT NULL, "user" text NOT NULL, wrapped bytea NOT NULL, PRIMARY KEY (tenant, "user")'
EPOCHS = "tenant text PRIMARY KEY, epoch text NOT NULL, change bigint NOT NULL"
RECORDS = (
    "n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, id text NOT NULL UNIQUE, tenant text NOT NULL, "
    '"user" text NOT NULL, agent bytea NOT NULL, session bytea NOT NULL, type text NOT NULL, digest bytea NOT NULL, '
    "label text NOT NULL, confidence double precision NOT NULL, created_us bigint NOT NULL, "
    "valid_from_us bigint NOT NULL, valid_until_us bigint NOT NULL, supersedes text NOT NULL, "
    "superseded bigint NOT NULL DEFAULT 0, sealed bytea NOT NULL, embedder text NOT NULL, vector bytea NOT NULL, "
    "change bigint NOT NULL"
)
DOCUMENTS = (
    "n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, id text NOT NULL UNIQUE, tenant text NOT NULL, "
    '"user" text NOT NULL, visibility text NOT NULL, groups text NOT NULL, label text NOT NULL, source bytea NOT NULL, '
    "content bytea NOT NULL, passages bigint NOT NULL, embedder text NOT NULL, sealed bytea NOT NULL"
)
PASSAGES = (
    "n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, tenant text NOT NULL, document text NOT NULL, "
    "number bigint NOT NULL, gone bigint NOT NULL DEFAULT 0, sealed bytea NOT NULL, vector bytea NOT NULL, "
    "terms bytea NOT NULL, change bigint NOT NULL"
)
INDEXES = {
    "aibox_memory.records": (
        'UNIQUE INDEX records_once ON aibox_memory.records (tenant, "user", type, digest) WHERE superseded = 0',
        "INDEX records_changes ON aibox_memory.records (tenant, change)",
        'INDEX records_user ON aibox_memory.records (tenant, "user", embedder)',
    ),
    "aibox_documents.documents": (
        'UNIQUE INDEX documents_once ON aibox_documents.documents (tenant, "user", source) WHERE "user" <> \'\'',
        "INDEX documents_embedder ON aibox_documents.documents (tenant, embedder)",
    ),
    "aibox_documents.passages": (
        "INDEX passages_changes ON aibox_documents.passages (tenant, change)",
        "INDEX passages_document ON aibox_documents.passages (document, number)",
    ),
}


def upgrade() -> None:
    for part, tables in (
        ("aibox_memory", {"records": RECORDS}),
        ("aibox_documents", {"documents": DOCUMENTS, "passages": PASSAGES}),
    ):
        schema(part)
        # What SQLite calls so, for lists that are bound as one value.
        execute(
            f"CREATE FUNCTION {part}.json_each(list text) RETURNS TABLE (value text) LANGUAGE sql IMMUTABLE AS "
            "'SELECT jsonb_array_elements_text(list::jsonb)'"
        )
        execute(f"CREATE TABLE {part}.proofs (proof bytea PRIMARY KEY, one boolean NOT NULL DEFAULT true UNIQUE)")
        secure(f"{part}.proofs", rights="SELECT, INSERT")
        policy(f"{part}.proofs", "anybody_reads", "FOR SELECT USING (true)")
        policy(f"{part}.proofs", "the_first_adds", "FOR INSERT WITH CHECK (one)")
        table(f"{part}.subjects", SUBJECTS)
        table(f"{part}.tenants", EPOCHS)
        # Whoever keeps indexes asks at the start which tenants' are still of any use.
        policy(f"{part}.tenants", "anybody_reads", "FOR SELECT USING (true)")
        for name, columns in tables.items():
            full = f"{part}.{name}"
            table(full, columns)
            for index in INDEXES[full]:
                execute(f"CREATE {index}")


def downgrade() -> None:
    execute("DROP SCHEMA aibox_documents CASCADE")
    execute("DROP SCHEMA aibox_memory CASCADE")
