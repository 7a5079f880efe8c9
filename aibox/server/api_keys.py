"""API keys of a tenant for programs: shown once, kept as hashes, found by a public prefix, with an end.

A fast hash is enough: the secret is 256 random bits and not a password.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aibox._wal import write_ahead
from aibox.errors import AuthError, ConfigError, StoreError
from aibox.server.principal import Principal, Role
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
    """The keys in an SQLite file that several processes may share. An Authenticator."""

    def __init__(self, path: str | Path, *, clock: Callable[[], float] = time.time) -> None:
        self._path = Path(path)
        self._clock = clock
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None

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
        await self._run("INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL, 0)", *row)
        return f"aibox-{id_}-{secret}"

    async def list(self, tenant: str) -> list[ApiKey]:
        """A tenant's keys, newest first."""
        rows = await self._run("SELECT * FROM keys WHERE tenant = ? ORDER BY created DESC, id", tenant)
        return [_key(row) for row in rows]

    async def rotate(self, id_: str, *, tenant: str, overlap_days: float = 1) -> str:
        """A new key in the place of an old one, which ends after the overlap, or before if it would have."""
        old = next((key for key in await self.list(tenant) if key.id == id_ and not key.revoked), None)
        if old is None:
            raise ConfigError(f"tenant {tenant} has no key {id_}")
        life_days = (old.expires - old.created) / DAY_S
        fresh = await self.create(scope=old.scope, roles=tuple(old.roles), days=life_days, note=old.note)
        end = int(self._clock() + overlap_days * DAY_S)
        await self._run("UPDATE keys SET expires = min(expires, ?) WHERE id = ? AND tenant = ?", end, id_, tenant)
        return fresh

    async def revoke(self, id_: str, *, tenant: str) -> bool:
        """End a key now. False when the tenant has no such key."""
        sql = "UPDATE keys SET revoked = 1 WHERE id = ? AND tenant = ? RETURNING id"
        return bool(await self._run(sql, id_, tenant))

    async def authenticate(self, token: str) -> Principal | None:
        """The principal of a key; None for what is no key of this form. Raises AuthError for one that does not hold."""
        match = _KEY.fullmatch(token)
        if match is None:
            return None
        rows = await self._run("SELECT * FROM keys WHERE id = ?", match[1])
        # One answer for unknown, wrong, ended and revoked, and the same work: who guesses learns nothing.
        expected = rows[0][1] if rows else bytes(32)
        fits = hmac.compare_digest(_hash(match[2]), expected)
        key = _key(rows[0]) if rows else None
        now = int(self._clock())
        if not fits or key is None or key.revoked or key.expires <= now:
            raise AuthError("the API key is unknown, was revoked or has ended", hint="ask your tenant's administrator")
        if key.last_used is None or now - key.last_used >= USED_EVERY_S:
            await self._run("UPDATE keys SET last_used = ? WHERE id = ?", now, key.id)
        return Principal(key.scope, key.roles, how=f"key:{key.id}")

    async def close(self) -> None:
        """Give back the file. Closing twice is allowed."""
        with self._lock:
            db, self._db = self._db, None
            if db is not None:
                db.close()

    async def _run(self, sql: str, *values: object) -> Rows:
        def work() -> Rows:
            with self._lock, self._told():
                if self._db is None:
                    self._db = _open(self._path)
                with self._db:
                    return self._db.execute(sql, values).fetchall()

        return await asyncio.to_thread(work)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"the keys in {self._path} cannot be used: {error}") from None


_BUSY_S = 10.0


def _open(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o600)
    db = sqlite3.connect(path, timeout=_BUSY_S, check_same_thread=False)
    write_ahead(db, wait_s=_BUSY_S)
    db.execute("PRAGMA synchronous=FULL")
    db.execute(
        "CREATE TABLE IF NOT EXISTS keys (id TEXT PRIMARY KEY, hash BLOB NOT NULL, tenant TEXT NOT NULL, "
        "user TEXT NOT NULL, roles TEXT NOT NULL, note TEXT NOT NULL, created INTEGER NOT NULL, "
        "expires INTEGER NOT NULL, last_used INTEGER, revoked INTEGER NOT NULL) STRICT"
    )
    return db


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _key(row: tuple[Any, ...]) -> ApiKey:
    id_, _, tenant, user, roles, note, created, expires, last_used, revoked = row
    scope = Scope(tenant=tenant, user=user)
    return ApiKey(id_, scope, frozenset(map(Role, roles.split())), note, created, expires, last_used, bool(revoked))
