"""Where accounts are kept: an SQLite file that processes share, or the database that servers share."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal

from aibox.tables import open_tables

_SPENT = """
CREATE TABLE IF NOT EXISTS spent (
    tenant TEXT NOT NULL, user TEXT NOT NULL, period TEXT NOT NULL,
    input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, calls INTEGER NOT NULL, micro_usd INTEGER NOT NULL,
    PRIMARY KEY (tenant, user, period)
) WITHOUT ROWID, STRICT
"""
_BY_MODEL = """
CREATE TABLE IF NOT EXISTS spent_by_model (
    tenant TEXT NOT NULL, day TEXT NOT NULL, user TEXT NOT NULL, model TEXT NOT NULL,
    input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, calls INTEGER NOT NULL, micro_usd INTEGER NOT NULL,
    PRIMARY KEY (tenant, day, user, model)
) WITHOUT ROWID, STRICT
"""
_ADD = """
INSERT INTO spent VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (tenant, "user", period) DO UPDATE SET
    input_tokens = spent.input_tokens + excluded.input_tokens,
    output_tokens = spent.output_tokens + excluded.output_tokens,
    calls = spent.calls + excluded.calls, micro_usd = spent.micro_usd + excluded.micro_usd
"""
_ADD_BY_MODEL = """
INSERT INTO spent_by_model VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (tenant, day, "user", model) DO UPDATE SET
    input_tokens = spent_by_model.input_tokens + excluded.input_tokens,
    output_tokens = spent_by_model.output_tokens + excluded.output_tokens,
    calls = spent_by_model.calls + excluded.calls, micro_usd = spent_by_model.micro_usd + excluded.micro_usd
"""
_SUMS = "sum(input_tokens), sum(output_tokens), sum(calls), sum(micro_usd)"
By = Literal["user", "model", "user_model"]
_COLUMNS: dict[By, tuple[str, ...]] = {"user": ('"user"',), "model": ("model",), "user_model": ('"user"', "model")}

Key = tuple[str, str, str]
"""Tenant, user (empty: all of the tenant), and a day or month such as `2026-03-01` or `2026-03`."""
ModelKey = tuple[str, str, str, str]
"""Tenant, day, user, and model as `backend/model`."""
Sums = tuple[int, int, int, int]
"""Input tokens, output tokens, calls, millionths of a USD."""


class Ledger:
    """Sums that everybody adds to. Blocking; raises StoreError, and then nothing was added."""

    def __init__(self, place: str | Path | None) -> None:
        self._tables = open_tables(place, schema="aibox_server", made_by=(_SPENT, _BY_MODEL), what="the accounts")

    @property
    def shared(self) -> bool:
        """Whether other machines add to it."""
        return self._tables.shared

    def exchange(
        self,
        added: Mapping[Key, Sums],
        by_model: Mapping[ModelKey, Sums],
        periods: tuple[str, str],
        tenants: Collection[str],
    ) -> dict[Key, Sums]:
        """Add what is new, and read what everybody has spent in two periods, for these tenants or more of them."""
        work: dict[str, tuple[list[Key], list[ModelKey]]] = {tenant: ([], []) for tenant in tenants}
        for key in added:
            work.setdefault(key[0], ([], []))[0].append(key)
        for one in by_model:
            work.setdefault(one[0], ([], []))[1].append(one)
        found: dict[Key, Sums] = {}
        with self._tables.transaction("") as rows:
            # In one order for all who add, so that no two wait for each other.
            for tenant, (keys, ones) in sorted(work.items()):
                self._tables.turn_to(rows, tenant)
                for key in sorted(keys):
                    rows.execute(_ADD, (*key, *added[key]))
                for one in sorted(ones):
                    rows.execute(_ADD_BY_MODEL, (*one, *by_model[one]))
                asked = "SELECT * FROM spent WHERE tenant = ? AND period IN (?, ?)"
                for _, user, period, *sums in rows.execute(asked, (tenant, *periods)).fetchall():
                    found[tenant, user, period] = (sums[0], sums[1], sums[2], sums[3])
        return found

    def by_model(
        self,
        tenant: str,
        days: tuple[str, str],
        *,
        by: By,
        user: str | None,
        model: str | None,
        after: Sequence[str] | None,
        limit: int,
    ) -> list[tuple[tuple[str, ...], Sums]]:
        """Sums from the first of two days to the last, in the order of the names that they are `by`."""
        columns = ", ".join(_COLUMNS[by])
        where, values = "tenant = ? AND day >= ? AND day <= ?", [tenant, *days]
        for column, value in (('"user"', user), ("model", model)):
            if value is not None:
                where, values = f"{where} AND {column} = ?", [*values, value]
        if after is not None:
            where, values = f"{where} AND ({columns}) > ({', '.join('?' * len(after))})", [*values, *after]
        asked = f"SELECT {columns}, {_SUMS} FROM spent_by_model WHERE {where} "  # noqa: S608 - names of our own
        asked += f"GROUP BY {columns} ORDER BY {columns} LIMIT ?"
        with self._tables.transaction(tenant, reads=True) as rows:
            found = rows.execute(asked, (*values, limit)).fetchall()
        width = len(_COLUMNS[by])
        return [(tuple(row[:width]), (int(row[-4]), int(row[-3]), int(row[-2]), int(row[-1]))) for row in found]

    def close(self) -> None:
        """Closing twice is allowed."""
        self._tables.close()
