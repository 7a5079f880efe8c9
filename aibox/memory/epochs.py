"""How far the rows of each tenant have come: what an index must know to be sure that it is of the same rows."""

from __future__ import annotations

import secrets
from typing import Any

TABLE = "CREATE TABLE tenants (tenant TEXT PRIMARY KEY NOT NULL, epoch TEXT NOT NULL, change INTEGER NOT NULL)"


class Epochs:
    """`epoch` is random, and a new one whenever something was erased: an index of another one is thrown away.

    `change` numbers the latest change: an index that has applied it is up to date. All but the reads run inside a write
    transaction, of which SQLite lets one run at a time: the order of changes is that of commits, and an index that has
    seen number n has seen all before it.
    """

    def __init__(self, db: Any) -> None:
        self._db = db

    def position(self, tenant: str) -> tuple[str, int] | None:
        """Epoch and latest change of the tenant; None for one that has no rows."""
        row = self._db.execute("SELECT epoch, change FROM tenants WHERE tenant = ?", (tenant,)).fetchone()
        return (row[0], row[1]) if row else None

    def all(self) -> dict[str, str]:
        """The epoch of each tenant."""
        return dict(self._db.execute("SELECT tenant, epoch FROM tenants").fetchall())

    def next_change(self, tenant: str) -> int:
        self._db.execute(
            "INSERT INTO tenants (tenant, epoch, change) VALUES (?, ?, 0) ON CONFLICT (tenant) DO NOTHING",
            (tenant, secrets.token_hex(16)),
        )
        self._db.execute("UPDATE tenants SET change = change + 1 WHERE tenant = ?", (tenant,))
        change: int = self._db.execute("SELECT change FROM tenants WHERE tenant = ?", (tenant,)).fetchone()[0]
        return change

    def begin_anew(self, tenant: str, *, empty: bool) -> None:
        """Something was erased; `empty` when the tenant has no rows left."""
        if empty:
            self._db.execute("DELETE FROM tenants WHERE tenant = ?", (tenant,))
        else:
            self._db.execute("UPDATE tenants SET epoch = ? WHERE tenant = ?", (secrets.token_hex(16), tenant))
