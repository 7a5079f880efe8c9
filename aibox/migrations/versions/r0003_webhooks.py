"""Webhooks: what waits to be delivered, and how far each tenant's log was read for it."""

from __future__ import annotations

from aibox.migrations.secure import execute, table

revision = "0003"
down_revision = "0002"

TABLES = {
    "webhooks": "tenant text NOT NULL, endpoint text NOT NULL, id text NOT NULL, type text NOT NULL, "
    "body bytea NOT NULL, status text NOT NULL, attempts bigint NOT NULL, answered text NOT NULL, "
    "created_us bigint NOT NULL, due_us bigint NOT NULL, PRIMARY KEY (tenant, endpoint, id)",
    "webhook_cursors": "tenant text NOT NULL, seq bigint NOT NULL, PRIMARY KEY (tenant)",
}


def upgrade() -> None:
    for name, columns in TABLES.items():
        table(f"aibox_agents.{name}", columns)


def downgrade() -> None:
    for name in TABLES:
        execute(f"DROP TABLE aibox_agents.{name}")
