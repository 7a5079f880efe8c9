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
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aibox.errors import AuthError, ConfigError
from aibox.server.principal import BY_KEY, Principal, Role
from aibox.server.scopes import hold
from aibox.tables import of_tenants, once, open_tables
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
    scopes: frozenset[str] | None = None
    """What it is for (`KeyScope`); None: all that its roles allow."""
    models: frozenset[str] | None = None
    """The models that it is for; None: any."""


class ApiKeys:
    """The keys in an SQLite file that processes may share, or in the database that servers share.

    An Authenticator, and an Erasable: what the program of an erased person asks would be kept anew, so its keys go too.
    """

    def __init__(self, place: str | Path, *, clock: Callable[[], float] = time.time) -> None:
        self._tables = open_tables(place, schema="aibox_server", made_by=_KEYS, what="the keys")
        self._clock = clock

    async def create(
        self,
        *,
        scope: Scope,
        roles: Sequence[Role] = (Role.SERVICE,),
        days: float = 90,
        note: str = "",
        scopes: Collection[str] = (),
        models: Collection[str] = (),
    ) -> str:
        """A new key for a tenant's user, for this once in the clear.

        `scopes` narrow it to groups of routes (`KeyScope`), `models` to models by the names that are asked for. Raises
        ConfigError for what there is not.
        """
        hold(scopes, models)
        if not 0 < days <= 3650 or not (life_s := round(days * DAY_S)):
            raise ConfigError("a key lives for at least a second and at most 3650 days")
        Principal(scope)  # refuses the local scope
        id_, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
        bounds = " ".join(sorted(scopes)), " ".join(sorted(models))
        now = int(self._clock())
        row = (
            id_,
            _hash(secret, *bounds),
            scope.tenant,
            scope.user,
            " ".join(sorted(roles)),
            note,
            now,
            now + life_s,
        )
        narrow = (id_, scope.tenant, *bounds)

        def insert() -> None:
            with self._tables.transaction(scope.tenant) as rows:
                rows.execute("INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL, 0)", row)
                if scopes or models:
                    rows.execute("INSERT INTO key_scopes VALUES (?, ?, ?, ?)", narrow)

        await asyncio.to_thread(insert)
        return f"aibox-{id_}-{secret}"

    async def list(self, tenant: str) -> list[ApiKey]:
        """A tenant's keys, newest first."""
        rows = await self._run(tenant, _SELECT + " WHERE k.tenant = ? ORDER BY k.created DESC, k.id", tenant)
        return [_key(row) for row in rows]

    async def rotate(self, id_: str, *, tenant: str, overlap_days: float = 1) -> str:
        """A new key in the place of an old one, which ends after the overlap, or before if it would have."""
        old = next((key for key in await self.list(tenant) if key.id == id_ and not key.revoked), None)
        if old is None:
            raise ConfigError(f"tenant {tenant} has no key {id_}")
        life_days = (old.expires - old.created) / DAY_S
        fresh = await self.create(
            scope=old.scope,
            roles=tuple(old.roles),
            days=life_days,
            note=old.note,
            scopes=old.scopes or (),
            models=old.models or (),
        )
        end = int(self._clock() + overlap_days * DAY_S)
        sql = "UPDATE keys SET expires = ? WHERE id = ? AND tenant = ? AND expires > ?"
        await self._run(tenant, sql, end, id_, tenant, end)
        return fresh

    async def revoke(self, id_: str, *, tenant: str) -> bool:
        """End a key now. False when the tenant has no such key."""
        sql = "UPDATE keys SET revoked = 1 WHERE id = ? AND tenant = ? RETURNING id"
        return bool(await self._run(tenant, sql, id_, tenant))

    async def erase(self, *, scope: Scope, subject: str | None = None) -> int:
        """Take a person's keys, with what was noted of them; with `subject` None all of the tenant's. How many."""
        which, values = "tenant = ?", [scope.tenant]
        if subject is not None:
            which, values = f'{which} AND "user" = ?', [scope.tenant, subject]

        def delete() -> int:
            with self._tables.transaction(scope.tenant) as rows:
                mine = f"SELECT id FROM keys WHERE {which}"  # noqa: S608 - names of our own
                rows.execute(f"DELETE FROM key_scopes WHERE tenant = ? AND id IN ({mine})", [scope.tenant, *values])  # noqa: S608
                gone: int = rows.execute(f"DELETE FROM keys WHERE {which}", values).rowcount  # noqa: S608
            if gone:
                self._tables.scrub()
            return gone

        return await asyncio.to_thread(delete)

    async def ended(self, keys: Mapping[str, Collection[str]]) -> set[str]:
        """Which of these keys, by tenant, somebody has ended, or erased with their person.

        One whose time is merely over is not among them.
        """
        sql = "SELECT id FROM keys WHERE tenant = ? AND revoked = 0 AND id IN ({marks})"
        found = await asyncio.to_thread(of_tenants, self._tables, sql, keys)
        return {id_ for ids in keys.values() for id_ in ids} - {row[0] for _, row in found}

    async def authenticate(self, token: str, *, correlation: str = "") -> Principal | None:  # noqa: ARG002 - nobody else is asked
        """The principal of a key; None for what is no key of this form. Raises AuthError for one that does not hold."""
        match = _KEY.fullmatch(token)
        if match is None:
            return None
        # Whose it is nobody knows yet: who names a key may look at that one.
        rows = await self._run("", _SELECT + " WHERE k.id = ?", match[1], key=match[1])
        # One answer for unknown, wrong, ended and revoked, and the same work: who guesses learns nothing.
        expected, bounds = (rows[0][1], rows[0][-2:]) if rows else (bytes(32), (None, None))
        fits = hmac.compare_digest(_hash(match[2], *bounds), expected)
        key = _key(rows[0]) if rows else None
        now = int(self._clock())
        if not fits or key is None or key.revoked or key.expires <= now:
            raise no_key()
        if key.last_used is None or now - key.last_used >= USED_EVERY_S:
            await self._run(key.scope.tenant, "UPDATE keys SET last_used = ? WHERE id = ?", now, key.id)
        return Principal(key.scope, key.roles, how=f"{BY_KEY}{key.id}", scopes=key.scopes, models=key.models)

    async def check(self) -> bool:
        """Whether they can be asked for. Raises StoreError otherwise."""
        await self._run("", "SELECT 1 FROM keys LIMIT 1")
        return True

    async def close(self) -> None:
        """Give back the file or the connections. Closing twice is allowed."""
        await asyncio.to_thread(self._tables.close)

    async def _run(self, tenant: str, sql: str, *values: object, key: str = "") -> Rows:
        return await asyncio.to_thread(once, self._tables, tenant, sql, values, key=key)


_KEYS = (
    (
        "CREATE TABLE IF NOT EXISTS keys (id TEXT PRIMARY KEY, hash BLOB NOT NULL, tenant TEXT NOT NULL, "
        "user TEXT NOT NULL, roles TEXT NOT NULL, note TEXT NOT NULL, created INTEGER NOT NULL, "
        "expires INTEGER NOT NULL, last_used INTEGER, revoked INTEGER NOT NULL) STRICT"
    ),
    (
        "CREATE TABLE IF NOT EXISTS key_scopes (id TEXT PRIMARY KEY, tenant TEXT NOT NULL, scopes TEXT NOT NULL, "
        "models TEXT NOT NULL) STRICT"
    ),
)
_SELECT = "SELECT k.*, n.scopes, n.models FROM keys k LEFT JOIN key_scopes n ON n.id = k.id"


def no_key() -> AuthError:
    """What whoever shows a key that does not hold is told."""
    return AuthError("the API key is unknown, was revoked or has ended", hint="ask your tenant's administrator")


def _hash(secret: str, scopes: str | None = None, models: str | None = None) -> bytes:
    """Of a narrow key with what it is for: where that was lost or is not known of, the key is refused, and not wide."""
    bounds = f" {scopes} / {models}" if scopes or models else ""
    return hashlib.sha256((secret + bounds).encode()).digest()


def _key(row: tuple[Any, ...]) -> ApiKey:
    id_, _, tenant, user, roles, note, created, expires, last_used, revoked, scopes, models = row
    return ApiKey(
        id_, Scope(tenant=tenant, user=user), frozenset(map(Role, roles.split())), note, created, expires, last_used,
        bool(revoked), _named(scopes), _named(models),
    )  # fmt: skip


def _named(text: str | None) -> frozenset[str] | None:
    return frozenset(text.split()) if text else None
