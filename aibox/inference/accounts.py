"""What model calls have used, for each tenant and user, by day and month (UTC), and whether there is any left.

A budget is looked at before a call and settled after it: calls that run at once overspend by what they use, no more.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from aibox._wal import write_ahead
from aibox.chat import Usage
from aibox.errors import LimitError, StoreError
from aibox.inference.background import Background
from aibox.policy.budgets import Budget, Budgets
from aibox.types import Scope

WRITE_S = 1.0
"""How long a spending may be in memory only. A crash forgets at most that much."""
BUSY_S = 10.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS spent (
    tenant TEXT NOT NULL, user TEXT NOT NULL, period TEXT NOT NULL,
    input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, calls INTEGER NOT NULL, micro_usd INTEGER NOT NULL,
    PRIMARY KEY (tenant, user, period)
) WITHOUT ROWID, STRICT
"""
_ADD = """
INSERT INTO spent VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
    input_tokens = input_tokens + excluded.input_tokens, output_tokens = output_tokens + excluded.output_tokens,
    calls = calls + excluded.calls, micro_usd = micro_usd + excluded.micro_usd
"""

Key = tuple[str, str, str]
"""Tenant, user (empty: all of the tenant), and a day or month such as `2026-03-01` or `2026-03`."""
Sums = tuple[int, int, int, int]
"""Input tokens, output tokens, calls, millionths of a USD."""


@dataclass(frozen=True, slots=True)
class Call:
    """One model call that has ended. Times are in seconds; `first_token_s` is None where none came.

    `counted` is False when the server gave no counts (a stream was left, or broke off): the usage is then an estimate.
    """

    scope: Scope
    model: str
    backend: str
    external: bool
    usage: Usage
    total_s: float
    first_token_s: float | None = None
    outcome: Literal["answered", "failed", "left"] = "answered"
    counted: bool = True


@dataclass(frozen=True, slots=True)
class Spent:
    """What was used in one day or month."""

    tokens: int = 0
    usd: float = 0.0
    calls: int = 0


class Accounts:
    """Keeps the sums in memory, and with a `path` in an SQLite file that several processes may share.

    They see each other's spending within a second or two.
    """

    def __init__(self, path: str | Path | None = None, *, now: Callable[[], float] = time.time) -> None:
        self._path = Path(path) if path is not None else None
        self._now = now
        self._sums: dict[Key, Sums] = {}
        self._unwritten: dict[Key, Sums] = {}
        self._background = Background()
        self._loaded = self._path is None
        self._day = -1, ("", "")

    async def admit(self, scope: Scope, budgets: Budgets) -> None:
        """Raises LimitError, with the time until the budget is renewed, when nothing is left."""
        if not budgets.bounded:
            return
        if not self._loaded:
            await self._write()
        day, month = self._periods()
        now = datetime.fromtimestamp(self._now(), UTC)
        for budget, user, who in (
            (budgets.tenant, "", f"the tenant {scope.tenant}"),
            (budgets.user, scope.user, "you"),
        ):
            for period, tokens, usd, ends in _bounds(budget, day, month, now):
                spent = self._spent((scope.tenant, user, period))
                if (tokens is not None and spent.tokens >= tokens) or (usd is not None and spent.usd >= usd):
                    raise LimitError(
                        f"the budget of {who} for {period} is spent",
                        hint="wait until it is renewed, or raise budgets in the policy",
                        retry_after_s=ends,
                    )

    def settle(self, call: Call) -> None:
        """Add what a call has used."""
        usage = call.usage
        # Rounded up: what is cheaper than a millionth of a dollar must not be free for ever.
        micro_usd = -int(-(usage.cost_usd or 0.0) * 1e6 // 1) if usage.cost_usd else 0
        day, month = self._periods()
        for user in ("", call.scope.user):
            for period in (day, month):
                key = (call.scope.tenant, user, period)
                added = (usage.input_tokens, usage.output_tokens, 1, micro_usd)
                _add(self._sums, key, added)
                if self._path is not None:
                    _add(self._unwritten, key, added)
        if self._path is not None and not self._background.running("accounts"):
            self._background.start("accounts", self._write_soon())

    async def spent(self, tenant: str, *, user: str | None = None, period: str | None = None) -> Spent:
        """What a tenant, or a user of it, has used in a day (`2026-03-01`) or month (`2026-03`); None is today."""
        if self._path is not None:
            await self._write()
        return self._spent((tenant, user or "", period or self._periods()[0]))

    async def close(self) -> None:
        """Write what is in memory only. Raises StoreError when it cannot be."""
        await self._background.stop()
        if self._unwritten:
            await self._write()

    def _spent(self, key: Key) -> Spent:
        incoming, outgoing, calls, micro_usd = self._sums.get(key, (0, 0, 0, 0))
        return Spent(incoming + outgoing, micro_usd / 1e6, calls)

    def _periods(self) -> tuple[str, str]:
        """The day and the month that it is."""
        number = int(self._now() // 86_400)
        if number != self._day[0]:
            day = datetime.fromtimestamp(number * 86_400, UTC).date().isoformat()
            self._day = number, (day, day[:7])
        return self._day[1]

    async def _write_soon(self) -> None:
        await asyncio.sleep(WRITE_S)
        try:
            await self._write()
        except StoreError:
            # Kept in memory and counted there; the next spending, or `close`, tries again and `close` tells.
            return

    async def _write(self) -> None:
        day, month = self._periods()
        added, self._unwritten = self._unwritten, {}
        try:
            rows = await asyncio.to_thread(self._exchange, added, (day, month))
        except BaseException:
            for key, sums in added.items():
                _add(self._unwritten, key, sums)
            raise
        self._sums = rows
        for key, sums in self._unwritten.items():
            _add(self._sums, key, sums)
        self._loaded = True

    def _exchange(self, added: dict[Key, Sums], periods: tuple[str, str]) -> dict[Key, Sums]:
        """Write what is new and read what all processes have spent in the present day and month. In a thread."""
        assert self._path is not None
        try:
            database = sqlite3.connect(self._path, timeout=BUSY_S, isolation_level=None)
            try:
                write_ahead(database, wait_s=BUSY_S)
                database.execute(_SCHEMA)
                database.execute("BEGIN IMMEDIATE")
                database.executemany(_ADD, [(*key, *sums) for key, sums in added.items()])
                database.execute("COMMIT")
                rows: Iterable[tuple[str, str, str, int, int, int, int]] = database.execute(
                    "SELECT * FROM spent WHERE period IN (?, ?)", periods
                )
                return {(tenant, user, period): tuple(sums) for tenant, user, period, *sums in rows}  # type: ignore[misc]  # four of them
            finally:
                database.close()
        except sqlite3.Error as error:
            raise StoreError(f"the accounts in {self._path} cannot be used: {error}", retryable=True) from error


def _add(sums: dict[Key, Sums], key: Key, added: Sums) -> None:
    a, b, c, d = sums.get(key, (0, 0, 0, 0))
    sums[key] = (a + added[0], b + added[1], c + added[2], d + added[3])


def _bounds(
    budget: Budget, day: str, month: str, now: datetime
) -> Iterable[tuple[str, int | None, float | None, float]]:
    """The bounds that are set: period, tokens, USD, seconds until it ends."""
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if budget.tokens_per_day is not None or budget.usd_per_day is not None:
        yield day, budget.tokens_per_day, budget.usd_per_day, (midnight + timedelta(days=1) - now).total_seconds()
    if budget.tokens_per_month is not None or budget.usd_per_month is not None:
        following = (midnight.replace(day=1) + timedelta(days=32)).replace(day=1)
        yield month, budget.tokens_per_month, budget.usd_per_month, (following - now).total_seconds()
