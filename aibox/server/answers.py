"""Answers kept for `Idempotency-Key`s, in an SQLite file or in the database that several servers share.

Names are keyed digests and answers are sealed: who takes them has neither. An answer is kept for a day; a request
that is under way holds its key, also when its process has died, until nobody can be at work on it any more.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from aibox.errors import ConfigError
from aibox.memory.cipher import SubjectKey
from aibox.postgres import Rows
from aibox.tables import once, open_tables
from aibox.types import Scope

KEPT_S = 24 * 3600
HELD_S = 3600
"""For how long a request may be under way."""
SWEEP_S = 60
_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    name BLOB PRIMARY KEY, tenant BLOB NOT NULL, user BLOB NOT NULL, request BLOB NOT NULL, expires INTEGER NOT NULL,
    done INTEGER NOT NULL, answer BLOB
) WITHOUT ROWID, STRICT
"""
T = TypeVar("T")


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """An answer as it was sent, and what the log said of it. What was kept before it said so has neither."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    route: str = ""
    code: str = ""


@dataclass(frozen=True, slots=True)
class Asking:
    """A request with a key: for whom, what is asked by which route, and the digest of all that was sent."""

    scope: Scope
    route: str
    key: str
    request: bytes


class Answers:
    """An Erasable. `key` is 32 bytes; `clock` counts Unix seconds."""

    def __init__(self, place: str | Path, *, key: bytes, clock: Callable[[], float] = time.time) -> None:
        self._tables = open_tables(place, schema="aibox_server", made_by=(_SCHEMA,), what="the answers")
        self._cipher = SubjectKey(key)
        self._names = hmac.digest(key, b"aibox idempotency names", "sha256")
        self._clock = clock
        self._swept = 0

    async def begin(self, asking: Asking) -> Answer | None:
        """None: it is yours to do, and to end by `keep` or `drop`. Else the answer that it had.

        Raises ConfigError when the key was used for something else, is in use, or had an answer too long to be kept.
        """
        name, now = self._name(asking), int(self._clock())

        def act(db: Rows) -> tuple[bytes, int, bytes | None] | None:
            db.execute("DELETE FROM answers WHERE name = ? AND expires <= ?", (name, now))
            row = db.execute("SELECT request, done, answer FROM answers WHERE name = ?", (name,)).fetchone()
            if row is None:
                who = self._hidden(asking.scope.tenant), self._hidden(asking.scope.tenant, asking.scope.user)
                db.execute(
                    "INSERT INTO answers VALUES (?, ?, ?, ?, ?, 0, NULL)", (name, *who, asking.request, now + HELD_S)
                )
                return None
            found: tuple[bytes, int, bytes | None] = row
            return found

        await self._sweep(now)
        row = await self._run(act, asking.scope, alone=name.hex())
        if row is None:
            return None
        request, done, sealed = row
        if not hmac.compare_digest(request, asking.request):
            raise ConfigError(
                "this Idempotency-Key was used for another request", hint="take a new key", code="config.key_reused"
            )
        if not done:
            raise ConfigError(
                "a request with this Idempotency-Key is under way", hint="ask again later", code="config.key_in_use"
            )
        if sealed is None:
            raise ConfigError(
                "this was done, and its answer was too long to be kept",
                hint="look for what it did",
                code="config.key_done",
            )
        return msgspec.msgpack.decode(self._cipher.open(sealed, name.hex()), type=Answer)

    async def keep(self, asking: Asking, answer: Answer | None) -> None:
        """It was done, and this is its answer; None is one that is too long."""
        name, until = self._name(asking), int(self._clock()) + KEPT_S
        sealed = None if answer is None else self._cipher.seal(msgspec.msgpack.encode(answer), name.hex())
        sql = "UPDATE answers SET done = 1, answer = ?, expires = ? WHERE name = ?"
        await self._run(lambda db: db.execute(sql, (sealed, until, name)), asking.scope)

    async def drop(self, asking: Asking) -> None:
        """It was not done, and may be tried again."""
        name = self._name(asking)
        await self._run(lambda db: db.execute("DELETE FROM answers WHERE name = ?", (name,)), asking.scope)

    async def erase(self, *, scope: Scope, subject: str | None = None) -> int:
        """Forget the answers to a person; with `subject` None to everybody of the tenant."""
        if subject is None:
            sql, whose = "DELETE FROM answers WHERE tenant = ?", self._hidden(scope.tenant)
        else:
            sql, whose = 'DELETE FROM answers WHERE "user" = ?', self._hidden(scope.tenant, subject)
        return await self._run(lambda db: int(db.execute(sql, (whose,)).rowcount), scope)

    async def close(self) -> None:
        """Give back the file or the connections. Closing twice is allowed."""
        await asyncio.to_thread(self._tables.close)

    async def _sweep(self, now: int) -> None:
        """Answers are kept for a day, whoever got them, and also when their tenant asks nothing any more."""
        if now - self._swept < SWEEP_S:
            return
        self._swept = now
        await asyncio.to_thread(once, self._tables, "", "DELETE FROM answers WHERE expires <= ?", (now,))

    def _name(self, asking: Asking) -> bytes:
        return self._hidden(asking.scope.tenant, asking.scope.user, asking.route, asking.key)

    def _hidden(self, *parts: str) -> bytes:
        return hmac.digest(self._names, msgspec.json.encode(parts), hashlib.sha256)

    async def _run(self, act: Callable[[Rows], T], scope: Scope, *, alone: str = "") -> T:
        def work() -> T:
            with self._tables.transaction(self._hidden(scope.tenant).hex(), alone=alone) as rows:
                return act(rows)

        return await asyncio.to_thread(work)


def of_request(
    scope: Scope, *, method: str, path: str, query: bytes, key: str, body: bytes, roles: Iterable[str] = ()
) -> Asking:
    """What a request asks for. Raises ConfigError for a key that is none.

    The roles are part of it: what an administrator was answered is nothing for the same user without that role. So is
    the case: what was said in one is nothing for another.
    """
    key = key.strip()
    if len(key) >= 2 and key[0] == key[-1] == '"':
        key = key[1:-1]
    if not (0 < len(key) <= 255 and key.isascii() and key.isprintable()):
        raise ConfigError("an Idempotency-Key has 1 to 255 printable ASCII characters", hint="a UUID is a good one")
    asked_as = ",".join(sorted(roles)).encode()
    # Without a case as before there were any, so that answers which are kept stay good.
    sent = (asked_as, query, body, *([scope.case.encode()] if scope.case else []))
    digest: Any = hashlib.sha256(b"".join(len(part).to_bytes(8) + part for part in sent))
    return Asking(scope, f"{method} {path}", key, digest.digest())
