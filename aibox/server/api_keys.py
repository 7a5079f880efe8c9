"""API keys of a tenant for programs: shown once, kept as hashes, found by a public prefix, with an end.

A fast hash is enough: the secret is 256 random bits and not a password.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aibox.errors import AuthError, ConfigError
from aibox.server.principal import Principal, Role
from aibox.tables import once, open_tables
from aibox.types import Scope

_KEY = re.compile(r"aibox-([0-9a-f]{12})-([A-Za-z0-9_-]{43})")
Rows = list[tuple[Any, ...]]
DAY_S = 86_400
USED_EVERY_S = 60
"""How often, at most, the time of last use is written: reading a key must not cost a commit each time."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is known of a key. Its secret is not. Times are Unix seconds; `last_used` is exact to a minute."""

    id: str
    scope: Scope
    roles: frozenset[Role]
    note: str
    created: int
    expires: int
    last_used: int | None
    revoked: bool


class ApiKeys:
    """The keys in an SQLite file that processes may share, or in the database that servers share. An Authenticator."""

    def __init__(self, place: str | Path, *, clock: Callable[[], float] = time.time) -> None:
        self._tables = open_tables(place, schema="aibox_server", made_by=(_KEYS,), what="the keys")
        self._clock = clock

    async def create(
        self, *, scope: Scope, roles: Sequence[Role] = (Role.SERVICE,), days: float = 90, note: str = ""
    ) -> str:
        """A new key for a tenant's user, for this once in the clear."""
        if not 0 < days <= 3650:
            raise ConfigError("a key lives for more than 0 and at most 3650 days")
        Principal(scope)  # refuses the local scope
        id_, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
        now = int(self._clock())
        row = (
            id_,
            _hash(secret),
            scope.tenant,
            scope.user,
            " ".join(sorted(roles)),
            note,
            now,
            now + int(days * DAY_S),
        )
        await self._run(scope.tenant, "INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL, 0)", *row)
        return f"aibox-{id_}-{secret}"

    async def list(self, tenant: str) -> list[ApiKey]:
        """A tenant's keys, newest first."""
        rows = await self._run(tenant, "SELECT * FROM keys WHERE tenant = ? ORDER BY created DESC, id", tenant)
        return [_key(row) for row in rows]

    async def rotate(self, id_: str, *, tenant: str, overlap_days: float = 1) -> str:
        """A new key in the place of an old one, which ends after the overlap, or before if it would have."""
        old = next((key for key in await self.list(tenant) if key.id == id_ and not key.revoked), None)
        if old is None:
            raise ConfigError(f"tenant {tenant} has no key {id_}")
        life_days = (old.expires - old.created) / DAY_S
        fresh = await self.create(scope=old.scope, roles=tuple(old.roles), days=life_days, note=old.note)
        end = int(self._clock() + overlap_days * DAY_S)
        sql = "UPDATE keys SET expires = ? WHERE id = ? AND tenant = ? AND expires > ?"
        await self._run(tenant, sql, end, id_, tenant, end)
        return fresh

    async def revoke(self, id_: str, *, tenant: str) -> bool:
        """End a key now. False when the tenant has no such key."""
        sql = "UPDATE keys SET revoked = 1 WHERE id = ? AND tenant = ? RETURNING id"
        return bool(await self._run(tenant, sql, id_, tenant))

    async def authenticate(self, token: str) -> Principal | None:
        """The principal of a key; None for what is no key of this form. Raises AuthError for one that does not hold."""
        match = _KEY.fullmatch(token)
        if match is None:
            return None
        # Whose it is nobody knows yet: who names a key may look at that one.
        rows = await self._run("", "SELECT * FROM keys WHERE id = ?", match[1], key=match[1])
        # One answer for unknown, wrong, ended and revoked, and the same work: who guesses learns nothing.
        expected = rows[0][1] if rows else bytes(32)
        fits = hmac.compare_digest(_hash(match[2]), expected)
        key = _key(rows[0]) if rows else None
        now = int(self._clock())
        if not fits or key is None or key.revoked or key.expires <= now:
            raise AuthError("the API key is unknown, was revoked or has ended", hint="ask your tenant's administrator")
        if key.last_used is None or now - key.last_used >= USED_EVERY_S:
            await self._run(key.scope.tenant, "UPDATE keys SET last_used = ? WHERE id = ?", now, key.id)
        return Principal(key.scope, key.roles, how=f"key:{key.id}")

    async def close(self) -> None:
        """Give back the file or the connections. Closing twice is allowed."""
        await asyncio.to_thread(self._tables.close)

    async def _run(self, tenant: str, sql: str, *values: object, key: str = "") -> Rows:
        return await asyncio.to_thread(once, self._tables, tenant, sql, values, key=key)


_KEYS = (
    "CREATE TABLE IF NOT EXISTS keys (id TEXT PRIMARY KEY, hash BLOB NOT NULL, tenant TEXT NOT NULL, "
    "user TEXT NOT NULL, roles TEXT NOT NULL, note TEXT NOT NULL, created INTEGER NOT NULL, "
    "expires INTEGER NOT NULL, last_used INTEGER, revoked INTEGER NOT NULL) STRICT"
)


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _key(row: tuple[Any, ...]) -> ApiKey:
    id_, _, tenant, user, roles, note, created, expires, last_used, revoked = row
    scope = Scope(tenant=tenant, user=user)
    return ApiKey(id_, scope, frozenset(map(Role, roles.split())), note, created, expires, last_used, bool(revoked))
