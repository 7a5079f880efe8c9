"""Policies that administrators wrote for tenants, every version of them: who, when, and what it said.

Two may be written for one tenant, which are joined: `operator` by the platform's administrators, `own` by the tenant's.
A version is written once. One that withdraws what was there before has no text.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from aibox.errors import ConfigError
from aibox.postgres import Rows
from aibox.tables import once, open_tables
from aibox.types import Scope

Level = Literal["operator", "own"]
KEPT = 50
"""So many versions of a level are kept; older ones go when another is written. The evidence has the digest of each."""
ANY = "*"
CHANGED, UNNAMED = "config.policy_changed", "config.policy_unnamed"


@dataclass(frozen=True, slots=True)
class Version:
    """One version. `digest` and `text` (JSON) are empty where it withdraws; `written` is in Unix seconds.

    `author` is empty for a version that somebody of another tenant wrote, or somebody who was erased.
    """

    level: str
    version: int
    digest: str
    text: str
    author: str
    written: int


class Policies:
    """In an SQLite file, or in the database that servers share. An Erasable. Raises StoreError."""

    def __init__(self, place: str | Path, *, clock: Callable[[], float] = time.time) -> None:
        made_by = (_HEADS, _VERSIONS)
        self._tables = open_tables(place, schema="aibox_server", made_by=made_by, what="the tenants' policies")
        self._clock = clock

    async def heads(self) -> dict[str, dict[str, int]]:
        """The newest version of each level of every tenant that has one."""
        found: dict[str, dict[str, int]] = {}
        # In the name of no tenant: the database shows such a transaction the numbers, and none of the texts.
        for tenant, level, version in await self._run("", "SELECT tenant, level, version FROM policy_heads"):
            found.setdefault(tenant, {})[level] = version
        return found

    async def newest(self, tenant: str) -> dict[str, Version]:
        """The newest version of each level of a tenant, those that withdraw too."""
        return {row[0]: Version(*row) for row in await self._run(tenant, _NEWEST, tenant)}

    async def versions(self, tenant: str, level: Level) -> list[Version]:
        """The versions of a level that are kept, the newest first."""
        sql = _SELECT + " WHERE tenant = ? AND level = ? ORDER BY version DESC"
        return [Version(*row) for row in await self._run(tenant, sql, tenant, level)]

    async def write(
        self, tenant: str, level: Level, *, text: str, digest: str, author: str, match: str | None
    ) -> Version:
        """The next version of a level; an empty text withdraws it. As `hold` raises, and then nothing was written."""

        def act(db: Rows) -> Version:
            head = "SELECT version FROM policy_heads WHERE tenant = ? AND level = ?"
            row = db.execute(head, (tenant, level)).fetchone()
            last = 0 if row is None else row[0]
            found = "SELECT digest FROM policy_versions WHERE tenant = ? AND level = ? AND version = ?"
            now = db.execute(found, (tenant, level, last)).fetchone()
            hold(match, "" if now is None else now[0])
            made = Version(level, last + 1, digest, text, author, int(self._clock()))
            values = (tenant, level, made.version, digest, text, author, made.written)
            db.execute(_INSERT, values)
            db.execute(
                "INSERT INTO policy_heads (tenant, level, version) VALUES (?, ?, ?) "
                "ON CONFLICT (tenant, level) DO UPDATE SET version = excluded.version",
                (tenant, level, made.version),
            )
            old = "DELETE FROM policy_versions WHERE tenant = ? AND level = ? AND version <= ?"
            db.execute(old, (tenant, level, made.version - KEPT))
            return made

        def write() -> Version:
            with self._tables.transaction(tenant, alone=f"policy/{tenant}") as db:
                return act(db)

        return await asyncio.to_thread(write)

    async def erase(self, *, scope: Scope, subject: str | None = None) -> int:
        """Forget who wrote what; what was written stays. With `subject` None all of the tenant's goes."""
        scrap = "UPDATE policy_versions SET author = '' WHERE tenant = ? AND author = ?"
        values = (scope.tenant, subject)

        def act() -> int:
            with self._tables.transaction(scope.tenant) as db:
                if subject is not None:
                    return int(db.execute(scrap, values).rowcount)
                db.execute("DELETE FROM policy_heads WHERE tenant = ?", values[:1])
                return int(db.execute("DELETE FROM policy_versions WHERE tenant = ?", values[:1]).rowcount)

        gone = await asyncio.to_thread(act)
        await asyncio.to_thread(self._tables.scrub)
        return gone

    async def close(self) -> None:
        """Give back the file or the connections. Closing twice is allowed."""
        await asyncio.to_thread(self._tables.close)

    async def _run(self, tenant: str, sql: str, *values: object) -> Sequence[tuple[Any, ...]]:
        return await asyncio.to_thread(once, self._tables, tenant, sql, values)


def hold(match: str | None, digest: str) -> None:
    """Whether somebody who saw the digest `match` (an entity tag; None: none) may replace what has `digest`, "" none.

    Raises ConfigError. `*` replaces whatever is there.
    """
    if match is None:
        if digest:
            raise ConfigError(
                "there is a policy already, and it is not said which one this is to replace",
                hint=f'send its digest: If-Match: "{digest}"',
                code=UNNAMED,
            )
        return
    tags = [tag.strip() for tag in match.split(",")]
    if digest and (ANY in tags or f'"{digest}"' in tags):
        return
    now = f"it is {digest} now" if digest else "there is none now"
    raise ConfigError(f"the policy was changed meanwhile: {now}", hint="look at it, and write again", code=CHANGED)


_SELECT = "SELECT level, version, digest, text, author, written FROM policy_versions"
_NEWEST = (
    "SELECT v.level, v.version, v.digest, v.text, v.author, v.written FROM policy_versions v JOIN policy_heads h "
    "ON h.tenant = v.tenant AND h.level = v.level AND h.version = v.version WHERE v.tenant = ?"
)
_INSERT = (
    "INSERT INTO policy_versions (tenant, level, version, digest, text, author, written) VALUES (?, ?, ?, ?, ?, ?, ?)"
)
_HEADS = (
    "CREATE TABLE IF NOT EXISTS policy_heads (tenant TEXT NOT NULL, level TEXT NOT NULL, version INTEGER NOT NULL, "
    "PRIMARY KEY (tenant, level)) STRICT"
)
_VERSIONS = (
    "CREATE TABLE IF NOT EXISTS policy_versions (tenant TEXT NOT NULL, level TEXT NOT NULL, version INTEGER NOT NULL, "
    "digest TEXT NOT NULL, text TEXT NOT NULL, author TEXT NOT NULL, written INTEGER NOT NULL, "
    "PRIMARY KEY (tenant, level, version)) STRICT"
)
