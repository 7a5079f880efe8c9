"""What model calls have used, for each tenant, user and model, by day and month (UTC), and whether there is any left.

A budget is looked at before a call and settled after it: calls that run at once overspend by what they use, no more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from aibox.chat import MOST_USD, Usage
from aibox.errors import LimitError, StoreError
from aibox.inference.background import Background
from aibox.inference.ledger import By, Key, Ledger, ModelKey, Sums, is_name, of_model
from aibox.policy.budgets import Budget, Budgets
from aibox.policy.retention import Retention
from aibox.types import Scope

K = TypeVar("K")
_NOTHING: Sums = (0, 0, 0, 0)
WRITE_S = 1.0
"""How long a spending may be in memory only. A crash forgets at most that much."""
STALE_S = 2.0
"""How old a look at what other servers have spent may be before a call with a budget is let through."""
SPENT, SPENT_BY_USER = "policy.limit.budget", "policy.limit.budget_user"
SPENT_BY_MODEL = "policy.limit.budget_model"
"""Codes of a refusal: the tenant's budget is spent, the user's, or the model's."""

_LIKE = "model.answered"
"""Who used what is kept for as long as the entry that says it of one call."""


class Call(msgspec.Struct, frozen=True):
    """One model call that has ended. Times are in seconds; `first_token_s` is None where none came.

    `counted` is False when the server gave no counts, or none of a part (a call was left, a stream broke off, it says
    0): the usage is then an estimate.
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


@dataclass(frozen=True, slots=True)
class Share:
    """What one user has used of one model (`backend/model`) in a day or month; a name is empty where all are meant.

    So is the user's where somebody was erased, or their time is over.
    """

    user: str
    model: str
    input_tokens: int
    output_tokens: int
    calls: int
    usd: float


class Accounts:
    """Keeps the sums in memory, and with a `place` in an SQLite file or the database that several processes share.

    They see each other's spending within a second or two. An Erasable. `retention` is a tenant's: who used what loses
    the name when the body of a `model.answered` would go, on the first day after it on which the tenant uses any.
    """

    def __init__(
        self,
        place: str | Path | None = None,
        *,
        retention: Callable[[str], Retention] | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._ledger = Ledger(place) if place is not None else None
        self._retention = retention
        self._swept: set[str] = set()
        # Tenant and user, to when what everybody has spent was last read for them. Of this day; so are the sums.
        self._read: dict[tuple[str, str], float] = {}
        self._now = now
        self._sums: dict[Key, Sums] = {}
        # What is not written yet. Who used which model is read where somebody looks.
        self._by_model: dict[ModelKey, Sums] = {}
        self._here = self._ledger or Ledger(None)
        self._background = Background()
        self._day = -1, ("", "")

    async def admit(self, scope: Scope, budgets: Budgets) -> None:
        """Raises LimitError, with the time until the budget is renewed, when nothing is left."""
        if not budgets.bounded:
            return
        if self._ledger is not None:
            await self._look(self._ledger, scope.tenant, scope.user)
        self._hold(scope.tenant, "", budgets.tenant, f"the tenant {scope.tenant}", SPENT)
        self._hold(scope.tenant, scope.user, budgets.user, "you", SPENT_BY_USER)

    async def admit_model(self, model: str, budgets: Budgets, *, tenant: str) -> None:
        """As `admit`, for the tenant's budget of a model, as `backend/model`."""
        budget, key = budgets.models.get(model), of_model(model)
        if budget is None or not budget.bounded:
            return
        if self._ledger is not None:
            await self._look(self._ledger, tenant, key)
        self._hold(tenant, key, budget, f"the model {model}", SPENT_BY_MODEL)

    def _hold(self, tenant: str, user: str, budget: Budget, whose: str, code: str) -> None:
        day, month = self._periods()
        for period, tokens, usd in (
            (day, budget.tokens_per_day, budget.usd_per_day),
            (month, budget.tokens_per_month, budget.usd_per_month),
        ):
            if tokens is None and usd is None:
                continue
            incoming, outgoing, _, micro_usd = self._sums.get((tenant, user, period), _NOTHING)
            if (tokens is not None and incoming + outgoing >= tokens) or (usd is not None and micro_usd / 1e6 >= usd):
                raise LimitError(
                    f"the budget of {whose} for {period} is spent",
                    hint="wait until it is renewed, or raise budgets in the policy",
                    retry_after_s=self._ends_s(period),
                    code=code,
                )

    def settle(self, call: Call) -> None:
        """Add what a call has used."""
        usage = call.usage
        # Rounded up: what is cheaper than a millionth of a dollar must not be free for ever.
        micro_usd = -int(-min(usage.cost_usd, MOST_USD) * 1e6 // 1) if usage.cost_usd else 0
        added = (usage.input_tokens, usage.output_tokens, 1, micro_usd)
        tenant, user, day, model = (
            call.scope.tenant,
            call.scope.user,
            self._periods()[0],
            f"{call.backend}/{call.model}",
        )
        _spread(self._sums, (tenant, day, user, model), added)
        _add(self._by_model, (tenant, day, user, model), added)
        if self._ledger is not None and not self._background.running("accounts"):
            self._background.start("accounts", self._write_soon())

    async def spent(
        self, tenant: str, *, user: str | None = None, model: str | None = None, period: str | None = None
    ) -> Spent:
        """What a tenant, or a user of it, has used in a day (`2026-03-01`) or month (`2026-03`); None is today.

        With `model` (`backend/model`) what all of the tenant have used of it, whoever the user is. With a place: what
        others have spent in the last two seconds may not be in it. Raises StoreError.
        """
        periods = self._periods()
        key = (tenant, of_model(model) if model else user or "", period or periods[0])
        if self._ledger is not None:
            await self._write()
            if key[2] not in periods:
                return _spent(await asyncio.to_thread(self._ledger.spent, tenant, key[1], key[2:]), key)
            await self._look(self._ledger, tenant, key[1])
        return _spent(self._sums, key)

    async def shares(
        self,
        tenant: str,
        *,
        period: str | None = None,
        by: By = "user_model",
        user: str | None = None,
        model: str | None = None,
        after: tuple[str, str] | None = None,
        limit: int = 1000,
    ) -> list[Share]:
        """Who has used which model in a day or month (None: this month), in the order of their names.

        At most `limit`, of those that come `after` a user and model. Raises StoreError.
        """
        await self._write()
        period = period or self._periods()[1]
        days = (period, period) if period.count("-") == 2 else (f"{period}-01", f"{period}-31")
        last = None if after is None else {"user": after[:1], "model": after[1:], "user_model": after}[by]
        read = partial(self._here.by_model, tenant, days, by=by, user=user, model=model, after=last, limit=limit)
        found = []
        for names, (incoming, outgoing, calls, micro_usd) in await asyncio.to_thread(read):
            who, what = names if by == "user_model" else (*names, "") if by == "user" else ("", *names)
            found.append(Share(who, what, incoming, outgoing, calls, micro_usd / 1e6))
        return found

    async def erase(self, *, scope: Scope, subject: str | None = None) -> int:
        """Take a user's name, None: everybody's of the tenant, from what was used; the tenant's sums stay as they are.

        From how many sums it went. A budget of the user's own begins anew. Raises StoreError.
        """
        await self._write()
        gone = await asyncio.to_thread(self._here.forget, scope.tenant, user=subject)
        mine = [key for key in self._sums if key[0] == scope.tenant and is_name(key[1]) and subject in (None, key[1])]
        for key in mine:
            del self._sums[key]
            self._read.pop(key[:2], None)
        return gone

    async def close(self) -> None:
        """Write what is in memory only. Raises StoreError when it cannot be."""
        await self._background.stop()
        try:
            if self._ledger is not None and self._by_model:
                await self._write()
        finally:
            await asyncio.to_thread(self._here.close)

    def _ends_s(self, period: str) -> float:
        """Seconds until this day or month is over."""
        now = datetime.fromtimestamp(self._now(), UTC)
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        day = period.count("-") == 2
        ends = midnight + timedelta(days=1) if day else (midnight.replace(day=1) + timedelta(days=32)).replace(day=1)
        return (ends - now).total_seconds()

    async def _look(self, ledger: Ledger, tenant: str, user: str) -> None:
        """See what others have spent of what this user may spend, unless that was done lately."""
        periods, now = self._periods(), time.monotonic()
        read_at = self._read.get((tenant, user))
        if read_at is not None:
            if now - read_at <= STALE_S:
                return
            self._read[tenant, user] = now  # those who come meanwhile need not look too
        try:
            rows = await asyncio.to_thread(ledger.spent, tenant, user, periods)
        except StoreError:
            if read_at is None:
                raise
            return  # what is known here still holds; without evidence nothing is answered anyway
        self._learn(rows)
        self._read[tenant, user] = now

    def _periods(self) -> tuple[str, str]:
        """The day and the month that it is."""
        number = int(self._now() // 86_400)
        if number != self._day[0]:
            day = datetime.fromtimestamp(number * 86_400, UTC).date().isoformat()
            self._day = number, (day, day[:7])
            if self._ledger is not None:
                self._sums = {key: sums for key, sums in self._sums.items() if key[2] in self._day[1]}
                self._read.clear()
            self._swept.clear()
        return self._day[1]

    async def _write_soon(self) -> None:
        await asyncio.sleep(WRITE_S)
        try:
            await self._write()
        except StoreError:
            # Kept in memory and counted there; the next spending, or `close`, tries again and `close` tells.
            return

    async def _write(self) -> None:
        by_model, self._by_model = self._by_model, {}
        added = {} if self._ledger is None else _totals(by_model)
        now = time.monotonic()
        writing = asyncio.ensure_future(asyncio.to_thread(self._here.add, added, by_model))
        try:
            rows = await asyncio.shield(writing)
        except BaseException:
            # Who is cancelled waits too: a thread goes on, and what it has written must not be added once more.
            await asyncio.wait([writing])
            if writing.cancelled() or writing.exception() is not None:
                for one, sums in by_model.items():
                    _add(self._by_model, one, sums)
            raise
        if self._ledger is not None:  # else the sums are here alone
            self._learn(rows)
            for tenant, user, period in rows:
                if user and period == self._day[1][0]:
                    self._read[tenant, user] = now
        await self._sweep({key[0] for key in by_model})

    async def _sweep(self, tenants: set[str]) -> None:
        """Names that have been kept for as long as the policy says, once a day."""
        periods = self._periods()
        for tenant in tenants - self._swept:
            days = self._retention(tenant).days(_LIKE) if self._retention is not None else None
            if days is not None:
                before = (date.fromisoformat(periods[0]) - timedelta(days=days)).isoformat()
                await asyncio.to_thread(self._here.forget, tenant, user=None, before=before, but=periods)
            self._swept.add(tenant)

    def _learn(self, rows: Mapping[Key, Sums]) -> None:
        periods, unwritten = self._periods(), _totals(self._by_model)
        for key, told in rows.items():
            if key[2] in periods:
                here, known = unwritten.get(key, _NOTHING), self._sums.get(key, _NOTHING)
                # Of two who read at once the one who read first may be the last to hand on: sums only grow.
                a, b, c, d = (max(one + two, three) for one, two, three in zip(told, here, known, strict=True))
                self._sums[key] = a, b, c, d


def _spent(sums: Mapping[Key, Sums], key: Key) -> Spent:
    incoming, outgoing, calls, micro_usd = sums.get(key, _NOTHING)
    return Spent(incoming + outgoing, micro_usd / 1e6, calls)


def _totals(by_model: Mapping[ModelKey, Sums]) -> dict[Key, Sums]:
    totals: dict[Key, Sums] = {}
    for one, added in by_model.items():
        _spread(totals, one, added)
    return totals


def _spread(sums: dict[Key, Sums], one: ModelKey, added: Sums) -> None:
    """To what the tenant and the user have used, and all of the model, on that day and in its month."""
    tenant, day, user, model = one
    for whose in ("", user, of_model(model)):
        _add(sums, (tenant, whose, day), added)
        _add(sums, (tenant, whose, day[:7]), added)


def _add(sums: dict[K, Sums], key: K, added: Sums) -> None:
    a, b, c, d = sums.get(key, _NOTHING)
    sums[key] = (a + added[0], b + added[1], c + added[2], d + added[3])
