"""Run by Alembic: on the connection that `aibox.migrations.run` has opened, in its transaction."""

from __future__ import annotations

from alembic import context

given = context.config.attributes
context.configure(
    connection=given["connection"],
    version_table=given["version_table"],
    version_table_schema=given["version_table_schema"],
)
context.run_migrations()
