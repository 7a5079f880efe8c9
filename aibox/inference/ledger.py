"""Where accounts are kept: an SQLite file that processes share, or the database that servers share."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from aibox.postgres import Rows
from aibox.tables import once, open_tables

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
INSERT INTO spent VALUES {rows} ON CONFLICT (tenant, "user", period) DO UPDATE SET
    input_tokens = spent.input_tokens + excluded.input_tokens,
    output_tokens = spent.output_tokens + excluded.output_tokens,
    calls = spent.calls + excluded.calls, micro_usd = spent.micro_usd + excluded.micro_usd
RETURNING *
"""
_ADD_BY_MODEL = """
INSERT INTO spent_by_model VALUES {rows} ON CONFLICT (tenant, day, "user", model) DO UPDATE SET
    input_tokens = spent_by_model.input_tokens + excluded.input_tokens,
    output_tokens = spent_by_model.output_tokens + excluded.output_tokens,
    calls = spent_by_model.calls + excluded.calls, micro_usd = spent_by_model.micro_usd + excluded.micro_usd
"""
_AT_ONCE = 100
"""Rows in one statement."""
_SUMS = "sum(input_tokens), sum(output_tokens), sum(calls), sum(micro_usd)"
By = Literal["user", "model", "user_model"]
_COLUMNS: dict[By, tuple[str, ...]] = {"user": ('"user"',), "model": ("model",), "user_model": ('"user"', "model")}

T = TypeVar("T")
Key = tuple[str, str, str]
"""Tenant, user (empty: all of the tenant; or `of_model`), and a day or month such as `2026-03-01` or `2026-03`."""
ModelKey = tuple[str, str, str, str]
"""Tenant, day, user, and model as `backend/model`."""
Sums = tuple[int, int, int, int]
"""Input tokens, output tokens, calls, millionths of a USD."""


def of_model(name: str) -> str:
    """In the place of a user: what all of a tenant have used of a model. No user's name has a space."""
    return f" {name}"


def is_name(user: str) -> bool:
    """Whether what stands in the place of a user is one."""
    return user[:1] not in ("", " ")


class Ledger:
    """Sums that everybody adds to. Blocking; raises StoreError, and then nothing was added."""

    def __init__(self, place: str | Path | None) -> None:
        self._tables = open_tables(place, schema="aibox_server", made_by=(_SPENT, _BY_MODEL), what="the accounts")
        self._one_adds = threading.Lock()

    def add(self, added: Mapping[Key, Sums], by_model: Mapping[ModelKey, Sums]) -> dict[Key, Sums]:
        """Add what is new. What everybody has spent by now, of the keys that were added to."""
        work: dict[str, tuple[list[Key], list[ModelKey]]] = {}
        for key in added:
            work.setdefault(key[0], ([], []))[0].append(key)
        for one in by_model:
            work.setdefault(one[0], ([], []))[1].append(one)
        found: dict[Key, Sums] = {}
        with self._one_adds:
            if not work:
                return found
            with self._tables.transaction("") as rows:
                # In one order for all who add, so that no two wait for each other.
                for tenant, (keys, ones) in sorted(work.items()):
                    self._tables.turn_to(rows, tenant)
                    for some in _parts(sorted(keys)):
                        values = [v for key in some for v in (*key, *added[key])]
                        known = rows.execute(_ADD.format(rows=_places(7, some)), values).fetchall()
                        for _, user, period, *sums in known:
                            found[tenant, user, period] = (sums[0], sums[1], sums[2], sums[3])
                    _add_by_model(rows, {one: by_model[one] for one in ones})
        return found

    def spent(self, tenant: str, user: str, periods: Sequence[str]) -> dict[Key, Sums]:
        """What the tenant and this user of it have spent in some periods."""
        marks = ", ".join("?" * len(periods))
        asked = f"SELECT * FROM spent WHERE tenant = ? AND \"user\" IN ('', ?) AND period IN ({marks})"  # noqa: S608
        found = once(self._tables, tenant, asked, (tenant, user, *periods))
        return {(tenant, whose, period): (a, b, c, d) for _, whose, period, a, b, c, d in found}

    def forget(self, tenant: str, *, user: str | None, before: str | None = None, but: Sequence[str] = ()) -> int:
        """Take the name of a user, None: of each, from what was used: all, or what was `before` a day.

        What the tenant has used stays, of each model too. Not touched: the sums of the periods in `but`, by which
        budgets are kept. Returns from how many sums a name went.
        """
        which, values = "tenant = ? AND substr(\"user\", 1, 1) NOT IN ('', ' ')", [tenant]
        if user is not None:
            which, values = f'{which} AND "user" = ?', [*values, user]
        days, periods = which, which
        if before is not None:
            days, periods = f"{which} AND day < ?", f"{which} AND period < ?"
            values = [*values, before]
        if but:
            periods = f"{periods} AND period NOT IN ({', '.join('?' * len(but))})"
        with self._tables.transaction(tenant, alone=tenant) as rows:
            # In the order of those who add. What they add meanwhile is in what a deletion gives back, or stays.
            gone: int = rows.execute(f"DELETE FROM spent WHERE {periods}", [*values, *but]).rowcount  # noqa: S608
            taken = rows.execute(f"DELETE FROM spent_by_model WHERE {days} RETURNING *", values).fetchall()  # noqa: S608
            nameless: dict[ModelKey, Sums] = {}
            for _, day, _, model, *sums in taken:
                key = (tenant, day, "", model)
                a, b, c, d = nameless.get(key, (0, 0, 0, 0))
                nameless[key] = a + sums[0], b + sums[1], c + sums[2], d + sums[3]
            _add_by_model(rows, nameless)
            gone += len(taken)
        if gone:
            self._tables.scrub()
        return gone

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


def _add_by_model(rows: Rows, added: Mapping[ModelKey, Sums]) -> None:
    for some in _parts(sorted(added)):
        rows.execute(_ADD_BY_MODEL.format(rows=_places(8, some)), [v for key in some for v in (*key, *added[key])])


def _parts(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    return (rows[start : start + _AT_ONCE] for start in range(0, len(rows), _AT_ONCE))


def _places(columns: int, rows: Sequence[object]) -> str:
    """For the values of so many rows."""
    return ", ".join(["(" + ", ".join("?" * columns) + ")"] * len(rows))
