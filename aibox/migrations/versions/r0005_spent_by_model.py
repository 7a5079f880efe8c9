"""What each user has used of each model, by day."""

from __future__ import annotations

from aibox.migrations.secure import execute, table

revision = "0005"
down_revision = "0004"

COLUMNS = (
    'tenant text NOT NULL, day text NOT NULL, "user" text NOT NULL, model text NOT NULL, '
    "input_tokens bigint NOT NULL, output_tokens bigint NOT NULL, calls bigint NOT NULL, micro_usd bigint NOT NULL, "
    'PRIMARY KEY (tenant, day, "user", model)'
)


def upgrade() -> None:
    table("aibox_server.spent_by_model", COLUMNS)


def downgrade() -> None:
    execute("DROP TABLE aibox_server.spent_by_model")
