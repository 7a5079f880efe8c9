"""What every revision does to a table: forced row-level security, and no right more than the writing role needs."""

from __future__ import annotations

from alembic import context, op

from aibox.migrations.run import quoted

TENANT = "tenant = current_setting('aibox.tenant')"
"""Without missing_ok: a transaction that has named no tenant gets an error and no rows."""


def execute(sql: str) -> None:
    """One statement as it stands: no parameters, no percent signs to be doubled."""
    op.get_bind().exec_driver_sql(sql)


def schema(name: str) -> None:
    execute(f"CREATE SCHEMA IF NOT EXISTS {name}")
    execute(f"GRANT USAGE ON SCHEMA {name} TO {_role()}")


def table(name: str, columns: str, *, rights: str = "SELECT, INSERT, UPDATE, DELETE", mine: str = TENANT) -> None:
    """A table of which a transaction sees the rows that fit `mine`. One that is there already stays."""
    execute(f"CREATE TABLE IF NOT EXISTS {name} ({columns})")
    secure(name, rights=rights)
    policy(name, "one_tenant", f"USING ({mine}) WITH CHECK ({mine})")


def secure(name: str, *, rights: str) -> None:
    """No row is seen until a policy says which."""
    execute(f"GRANT {rights} ON {name} TO {_role()}")
    execute(f"ALTER TABLE {name} ENABLE ROW LEVEL SECURITY")
    execute(f"ALTER TABLE {name} FORCE ROW LEVEL SECURITY")


def policy(name: str, title: str, rule: str) -> None:
    execute(f"DROP POLICY IF EXISTS {title} ON {name}")
    execute(f"CREATE POLICY {title} ON {name} {rule}")


def _role() -> str:
    return quoted(context.config.attributes["role"])
