"""Tenants and users as far as the operator's own store knows them: who was seen, and who is let in no more.

Whose someone is says the provider or the key; here stands who of them is refused. What is known is asked for again
after `FRESH_S`, so that every server of a shared database refuses within that time, and no request costs a question.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from aibox.errors import STATE, AccessError, ConfigError, StoreError
from aibox.server.principal import Principal, Role
from aibox.tables import of_tenants, once, open_tables
from aibox.types import Scope

State = Literal["active", "suspended", "deleted"]
FRESH_S = 3.0
"""How long it is believed that somebody is let in, or is not."""
STALE_S = 60.0
"""And how much longer while the store cannot be asked; after that nobody is let in."""
AGAIN_S = 1.0
"""How long a store that could not be asked is let alone, where something is known."""
SEEN_EVERY_S = 3600
"""How often, at most, it is written that somebody was there."""
KNOWN = 20_000
SUSPENDED = "policy.suspended"
BY_TENANT = "suspended by its tenant"
"""The state, as it is kept, of whom the tenant's own administrators suspended. Plain `suspended` is the operator's act,
and so is one of which nobody knows whose it was."""


@dataclass(frozen=True, slots=True)
class Known:
    """A tenant (`user` empty) or a user. Times are Unix seconds; `seen` is exact to an hour, None: never yet.

    `roles` are those that the user's tokens and keys have had here; `by` is whose act a suspension was.
    """

    tenant: str
    user: str
    state: State
    note: str
    roles: tuple[str, ...]
    since: int
    seen: int | None
    by: Role | None = None


class People:
    """In an SQLite file, or in the database that servers share. An Erasable."""

    def __init__(
        self,
        place: str | Path,
        *,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
        fresh_s: float = FRESH_S,
        stale_s: float = STALE_S,
    ) -> None:
        self._tables = open_tables(place, schema="aibox_server", made_by=(_PEOPLE,), what="tenants and users")
        self._clock, self._ticks = clock, ticks
        self._fresh_s, self._stale_s = fresh_s, stale_s
        self._believed: dict[tuple[str, str], tuple[float, str, frozenset[Role]]] = {}
        self._looking: dict[tuple[str, str, frozenset[Role]], asyncio.Task[str]] = {}
        self._changes = 0
        self._away_at = -math.inf
        self.on_look: Callable[[], None] = lambda: None
        """Called when the store is asked about somebody, and not for every request."""

    async def admit(self, who: Principal) -> None:
        """Raises AccessError for somebody who is suspended, or whose tenant is; StoreError when nobody can say."""
        key = who.scope.tenant, who.scope.user
        believed = self._believed.get(key)
        # By a clock that nobody sets: one that is put back would keep somebody in.
        if believed is not None and self._ticks() - believed[0] < self._fresh_s and who.roles <= believed[2]:
            refused = believed[1]
        else:
            refused = await self._look(key, who)
        if refused:
            raise refusal(refused)

    async def tenants(self) -> list[Known]:
        """Those that were seen, made or changed, by name."""
        # In the name of no tenant: the database shows such a transaction the rows of tenants, and none of a user.
        rows = await self._run("", _SELECT + " WHERE \"user\" = '' ORDER BY tenant")
        return [_known(row) for row in rows]

    async def users(self, tenant: str, *, after: str = "", limit: int = 1000) -> list[Known]:
        """A tenant's, by name; those after a name."""
        sql = _SELECT + ' WHERE tenant = ? AND "user" > ? ORDER BY "user" LIMIT ?'
        return [_known(row) for row in await self._run(tenant, sql, tenant, after, limit)]

    async def find(self, tenant: str, user: str = "") -> Known | None:
        """What is known of a user, or of a tenant."""
        rows = await self._run(tenant, _SELECT + ' WHERE tenant = ? AND "user" = ?', tenant, user)
        return _known(rows[0]) if rows else None

    async def create(self, tenant: str, *, note: str = "") -> Known:
        """Write a tenant down. Raises ConfigError for one that is there, or was: a name is not given twice."""
        Scope(tenant=tenant, user="-")  # refuses what is no name
        sql = _INSERT + " ON CONFLICT DO NOTHING RETURNING tenant"
        if not await self._run(tenant, sql, tenant, "", "active", note, "", int(self._clock()), None):
            found = await self.find(tenant)
            state = found.state if found else "there"
            raise ConfigError(f"there is a tenant {tenant}; it is {state}", hint="take another name", code=STATE)
        return Known(tenant, "", "active", note, (), int(self._clock()), None)

    async def put(
        self, tenant: str, user: str = "", *, state: State, note: str = "", by: Role = Role.PLATFORM_ADMIN
    ) -> Known:
        """Let a user or all of a tenant in or not, at once here, within `FRESH_S` elsewhere. No note keeps the old.

        Raises AccessError when `by` is the tenant's own administrator, for whom the operator has shut out; ConfigError
        for a tenant that was deleted, which stays so, and for one to be deleted that is not suspended.
        """
        own, now = by is not Role.PLATFORM_ADMIN, int(self._clock())
        stay = "'active'" if state == "deleted" else "'suspended', 'deleted'" if own else "'deleted'"
        sql = (
            _INSERT + ' ON CONFLICT (tenant, "user") DO UPDATE SET state = excluded.state, since = excluded.since, '
            "note = CASE WHEN excluded.note = '' THEN people.note ELSE excluded.note END"
            # In the statement itself: somebody else may be at it in this moment.
            f" WHERE people.state NOT IN ({stay}){_RETURNING}"
        )
        kept = BY_TENANT if own and state == "suspended" else state
        rows = await self._run(tenant, sql, tenant, user, kept, note, "", now, None)
        if not rows:
            if not user:
                why = "is not suspended" if state == "deleted" else "was deleted, and stays so"
                raise ConfigError(
                    f"the tenant {tenant} {why}", hint="GET /v1/admin/tenants tells the state of each", code=STATE
                )
            raise AccessError("a platform_admin shut them out, and only one lets them in again")
        self._forget(tenant, user)
        return _known(rows[0])

    async def shut_out(self, users: Mapping[str, Collection[str]]) -> dict[tuple[str, str], str]:
        """Who of these users, by tenant, is let in no more, and why: (tenant, user), or (tenant, "") for all of one.

        They are refused from now on, whatever was believed of them.
        """
        sql = 'SELECT "user", state, roles FROM people WHERE tenant = ? AND "user" IN ({marks}) AND state <> \'active\''
        asked = {tenant: ("", *names) for tenant, names in users.items()}
        rows = await asyncio.to_thread(of_tenants, self._tables, sql, asked)
        found = {
            (tenant, user): said
            for tenant, (user, state, roles) in rows
            if (said := _refused(user, state, roles.split()))
        }
        for tenant, user in found:
            self._forget(tenant, user)
        return found

    async def remove(self, tenant: str) -> None:
        """Take a tenant and its users out of the list, as if nobody of it had been here."""
        await self._run(tenant, "DELETE FROM people WHERE tenant = ?", tenant)

    async def erase(self, *, scope: Scope, subject: str | None = None) -> int:
        """Forget that a user was seen; with `subject` None all of the tenant's.

        Who is suspended stays so, by name, but where the whole tenant is deleted.
        """
        sql = (
            "DELETE FROM people WHERE tenant = ? AND \"user\" <> '' AND (state = 'active' OR EXISTS "
            "(SELECT 1 FROM people t WHERE t.tenant = ? AND t.\"user\" = '' AND t.state = 'deleted'))"
        )
        values = [scope.tenant, scope.tenant]
        if subject is not None:
            sql, values = f'{sql} AND "user" = ?', [*values, subject]
        return len(await self._run(scope.tenant, f"{sql} RETURNING tenant", *values))

    async def check(self) -> bool:
        """Whether they can be asked for. Raises StoreError otherwise."""
        await self._run("", "SELECT 1 FROM people LIMIT 1")
        return True

    async def close(self) -> None:
        """Give back the file or the connections. Closing twice is allowed."""
        await asyncio.to_thread(self._tables.close)

    def _forget(self, tenant: str, user: str) -> None:
        self._changes += 1
        for key in [key for key in self._believed if key[0] == tenant and user in ("", key[1])]:
            del self._believed[key]

    async def _look(self, key: tuple[str, str], who: Principal) -> str:
        """Why somebody is refused, empty for who is let in; asked once however many of their requests come."""
        self.on_look()
        this = (*key, who.roles)
        task = self._looking.get(this)
        if task is None:
            task = self._looking[this] = asyncio.create_task(self._asked(key, who))
            task.add_done_callback(lambda _: self._looking.pop(this, None))
        return await asyncio.shield(task)

    async def _asked(self, key: tuple[str, str], who: Principal) -> str:
        believed, now = self._believed.get(key), self._ticks()
        if believed is not None and now - believed[0] >= self._fresh_s + self._stale_s:
            believed = None
        if believed is not None and now - self._away_at < AGAIN_S:
            return believed[1]
        try:
            # What was read before somebody was shut out here is no answer any more.
            while True:
                changes, now = self._changes, self._ticks()
                refused = await asyncio.to_thread(self._seen, key, who.roles)
                if changes == self._changes:
                    break
        except StoreError:
            self._away_at = self._ticks()
            if believed is None:
                raise
            return believed[1]
        if len(self._believed) >= KNOWN:
            self._believed.clear()
        roles = who.roles if believed is None else who.roles | believed[2]
        self._believed[key] = now, refused, roles
        return refused

    def _seen(self, key: tuple[str, str], roles: frozenset[Role]) -> str:
        (tenant, user), now = key, int(self._clock())
        sql = 'SELECT "user", state, roles, seen FROM people WHERE tenant = ? AND "user" IN (\'\', ?)'
        found = {row[0]: row[1:] for row in once(self._tables, tenant, sql, (tenant, user))}
        for name, own_roles in (("", frozenset[Role]()), (user, roles)):
            state, has, _ = found.get(name, ("active", "", None))
            if said := _refused(name, state, {*own_roles, *has.split()}):
                return said
        for name, own_roles in (("", frozenset[Role]()), (user, roles)):
            row = found.get(name)
            has = " ".join(sorted({*own_roles, *(row[1].split() if row is not None else ())}))
            if row is None or row[1] != has or row[2] is None or now - row[2] >= SEEN_EVERY_S:
                # Whoever is suspended in this moment stays so: their state is not touched.
                sql = (
                    _INSERT + ' ON CONFLICT (tenant, "user") DO UPDATE SET seen = excluded.seen, roles = excluded.roles'
                )
                once(self._tables, tenant, sql, (tenant, name, "active", "", has, now, now))
        return ""

    async def _run(self, tenant: str, sql: str, *values: object) -> Sequence[tuple[Any, ...]]:
        return await asyncio.to_thread(once, self._tables, tenant, sql, values)


_PEOPLE = (
    'CREATE TABLE IF NOT EXISTS people (tenant TEXT NOT NULL, "user" TEXT NOT NULL, state TEXT NOT NULL, '
    "note TEXT NOT NULL, roles TEXT NOT NULL, since INTEGER NOT NULL, seen INTEGER, "
    'PRIMARY KEY (tenant, "user")) STRICT'
)
_SELECT = 'SELECT tenant, "user", state, note, roles, since, seen FROM people'
_INSERT = 'INSERT INTO people (tenant, "user", state, note, roles, since, seen) VALUES (?, ?, ?, ?, ?, ?, ?)'
_RETURNING = ' RETURNING tenant, "user", state, note, roles, since, seen'


def refusal(said: str) -> AccessError:
    """What whoever is shut out is told."""
    return AccessError(said, hint="ask your administrator", code=SUSPENDED)


def _refused(user: str, state: str, roles: Collection[str]) -> str:
    """Why a user with these roles, or a tenant, of this state is refused; empty for who is let in."""
    # A tenant's administrator shuts out no platform_admin, also not one whom nobody had seen here by then.
    if state == "active" or (state == BY_TENANT and Role.PLATFORM_ADMIN in roles):
        return ""
    if user:
        return "this user is suspended"
    return "this tenant is suspended" if state == "suspended" else "this tenant is not there any more"


def _known(row: Sequence[Any]) -> Known:
    tenant, user, state, note, roles, since, seen = row
    by = {BY_TENANT: Role.TENANT_ADMIN, "suspended": Role.PLATFORM_ADMIN}.get(state)
    shown: State = "suspended" if state == BY_TENANT else state
    return Known(tenant, user, shown, note, tuple(roles.split()), since, seen, by)
