"""Where accounts are kept: an SQLite file that processes share, or the database that servers share."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from aibox.tables import open_tables

_SPENT = """
CREATE TABLE IF NOT EXISTS spent (
    tenant TEXT NOT NULL, user TEXT NOT NULL, period TEXT NOT NULL,
    input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, calls INTEGER NOT NULL, micro_usd INTEGER NOT NULL,
    PRIMARY KEY (tenant, user, period)
) WITHOUT ROWID, STRICT
"""
_ADD = """
INSERT INTO spent VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (tenant, "user", period) DO UPDATE SET
    input_tokens = spent.input_tokens + excluded.input_tokens,
    output_tokens = spent.output_tokens + excluded.output_tokens,
    calls = spent.calls + excluded.calls, micro_usd = spent.micro_usd + excluded.micro_usd
"""

Key = tuple[str, str, str]
"""Tenant, user (empty: all of the tenant), and a day or month such as `2026-03-01` or `2026-03`."""
Sums = tuple[int, int, int, int]
"""Input tokens, output tokens, calls, millionths of a USD."""


class Ledger:
    """Sums that everybody adds to. Blocking; raises StoreError, and then nothing was added."""

    def __init__(self, place: str | Path) -> None:
        self._tables = open_tables(place, schema="aibox_server", made_by=(_SPENT,), what="the accounts")

    @property
    def shared(self) -> bool:
        """Whether other machines add to it."""
        return self._tables.shared

    def exchange(
        self, added: Mapping[Key, Sums], periods: tuple[str, str], tenants: Collection[str]
    ) -> dict[Key, Sums]:
        """Add what is new, and read what everybody has spent in two periods, for these tenants or more of them."""
        found: dict[Key, Sums] = {}
        with self._tables.transaction("") as rows:
            # In one order for all who add, so that no two wait for each other.
            for tenant in sorted({*tenants, *(key[0] for key in added)}):
                self._tables.turn_to(rows, tenant)
                for key in sorted(key for key in added if key[0] == tenant):
                    rows.execute(_ADD, (*key, *added[key]))
                asked = "SELECT * FROM spent WHERE tenant = ? AND period IN (?, ?)"
                for _, user, period, *sums in rows.execute(asked, (tenant, *periods)).fetchall():
                    found[tenant, user, period] = (sums[0], sums[1], sums[2], sums[3])
        return found

    def close(self) -> None:
        """Closing twice is allowed."""
        self._tables.close()
