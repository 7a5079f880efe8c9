"""Conversations that survive the process: kept by tenant, user and agent, in order, with the label of all in them."""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec

from aibox.agents.exposure import Exposure
from aibox.agents.store import Store
from aibox.errors import AccessError
from aibox.postgres import Rows
from aibox.types import Label, Scope

KEPT_IN_MEMORY = 256
"""Conversations whose messages stay decoded in this process; each is checked against the file before it is used."""
TITLE_CHARS = 80
_ALL = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One conversation. `label` is the join of all that was ever in it; times are microseconds since 1970."""

    id: str
    agent: str
    title: str
    messages: int
    label: Label
    created_us: int
    updated_us: int


@dataclass(frozen=True, slots=True)
class Past:
    """What a new turn of a conversation begins with: a summary of what is older, the messages after it, their mark."""

    summary: str = ""
    messages: tuple[dict[str, Any], ...] = ()
    label: Label | None = None
    exposure: Exposure = field(default_factory=Exposure)
    seq: int = 0
    first_seq: int = 0


_Key = tuple[str, str, str, str]


class Sessions:
    """The conversations of a store. What belongs to another tenant, user or agent is not found, and not told of."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._cache: OrderedDict[_Key, Past] = OrderedDict()

    async def past(self, *, scope: Scope) -> Past:
        """Everything that a turn in this session needs to know of those before it; empty for a new one."""
        key = _key(scope)
        known = self._cache.get(key)

        def read(db: Rows) -> Past:
            row = db.execute(
                "SELECT seq, first_seq, label, exposure, summary FROM sessions "
                'WHERE tenant=? AND "user"=? AND agent=? AND id=?',
                key,
            ).fetchone()
            if row is None:
                return Past()
            # Another process may have gone on with it: only what the file says is the newest is.
            if known is not None and (known.seq, known.first_seq) == row[:2]:
                return known
            bodies = db.execute(
                'SELECT seq, body FROM messages WHERE tenant=? AND "user"=? AND agent=? AND session=? AND seq>=? '
                "ORDER BY seq",
                (*key, row[1]),
            ).fetchall()
            messages = [
                m
                for seq, body in bodies
                for m in msgspec.json.decode(self._store.open(body, "messages", *key, str(seq)))
            ]
            summary = self._store.open(row[4], "summary", *key).decode() if row[4] else ""
            return Past(summary, tuple(messages), _label(row[2]), Exposure.read(json.loads(row[3])), row[0], row[1])

        past = await self._store.run(read, tenant=scope.tenant, reads=True)
        self._remember(key, past)
        return past

    async def add(
        self, messages: Sequence[Mapping[str, Any]], *, scope: Scope, label: Label, exposure: Exposure
    ) -> None:
        """Append what one turn added, together or not at all. The conversation's label and exposure only ever rise."""
        key = _key(scope)
        now = time.time_ns() // 1000
        asked = next((m for m in messages if m.get("role") == "user"), {})
        title = " ".join(str(asked.get("content") or "").split())[:TITLE_CHARS]

        def write(db: Rows) -> tuple[int, Label, Exposure]:
            row = db.execute(
                'SELECT seq, label, exposure FROM sessions WHERE tenant=? AND "user"=? AND agent=? AND id=?', key
            ).fetchone()
            seq, joined, touched = 1, label, exposure
            if row is not None:
                seq, joined, touched = row[0] + 1, _label(row[1]) | label, Exposure.read(json.loads(row[2])) | exposure
                db.execute(
                    "UPDATE sessions SET seq=?, label=?, exposure=?, updated_us=? "
                    'WHERE tenant=? AND "user"=? AND agent=? AND id=?',
                    (seq, _text(joined), json.dumps(touched.as_dict()), now, *key),
                )
            else:
                db.execute(
                    'INSERT INTO sessions (tenant,"user",agent,id,title,label,exposure,seq,created_us,updated_us) '
                    "VALUES (?,?,?,?,?,?,?,1,?,?)",
                    (
                        *key,
                        self._store.seal(title.encode(), "title", *key),
                        _text(joined),
                        json.dumps(touched.as_dict()),
                        now,
                        now,
                    ),
                )
            body = self._store.seal(msgspec.json.encode(list(messages)), "messages", *key, str(seq))
            db.execute("INSERT INTO messages VALUES (?,?,?,?,?,?)", (*key, seq, body))
            return seq, joined, touched

        seq, joined, touched = await self._store.run(write, tenant=scope.tenant)
        known = self._cache.get(key, Past())
        if known.seq == seq - 1:
            added = (*known.messages, *(dict(m) for m in messages))
            self._remember(key, Past(known.summary, added, joined, touched, seq, known.first_seq))

    async def compact(self, summary: str, *, scope: Scope, keep: int) -> None:
        """Begin the conversation with `summary` from now on, and the last `keep` turns after it. Nothing is deleted."""
        key = _key(scope)

        def write(db: Rows) -> None:
            db.execute(
                "UPDATE sessions SET summary=?, "
                "first_seq=CASE WHEN first_seq > seq-?+1 THEN first_seq ELSE seq-?+1 END "
                'WHERE tenant=? AND "user"=? AND agent=? AND id=?',
                (self._store.seal(summary.encode(), "summary", *key), keep, keep, *key),
            )

        await self._store.run(write, tenant=scope.tenant)
        self._cache.pop(key, None)

    async def list(self, *, scope: Scope, limit: int = 100) -> list[Session]:
        """The user's conversations with the scope's agent (with "" all agents), the latest first."""
        return [*await self._select("", (), scope=scope, limit=limit)]

    async def named(self, id: str, *, scope: Scope) -> Sequence[Session]:  # noqa: A002 - what it is
        """Those of `list` with this id: at most one for each agent."""
        return await self._select("AND id=? ", (id,), scope=scope, limit=_ALL)

    async def _select(self, where: str, values: tuple[Any, ...], *, scope: Scope, limit: int) -> Sequence[Session]:
        def read(db: Rows) -> Any:
            return db.execute(
                "SELECT id, agent, title, seq, label, created_us, updated_us FROM sessions "  # noqa: S608 - from above
                f"WHERE tenant=? AND \"user\"=? AND (agent=? OR CAST(? AS TEXT)='') {where}"
                "ORDER BY updated_us DESC LIMIT ?",
                (scope.tenant, scope.user, scope.agent, scope.agent, *values, limit),
            ).fetchall()

        return [
            Session(
                id=row[0],
                agent=row[1],
                title=self._store.open(row[2], "title", scope.tenant, scope.user, row[1], row[0]).decode(),
                messages=row[3],
                label=_label(row[4]),
                created_us=row[5],
                updated_us=row[6],
            )
            for row in await self._store.run(read, tenant=scope.tenant, reads=True)
        ]

    async def rename(self, title: str, *, scope: Scope) -> None:
        """Give the scope's session a title. Raises AccessError where there is no such session of this user."""
        key = _key(scope)
        sealed = self._store.seal(title.strip()[:TITLE_CHARS].encode(), "title", *key)
        await self._changed(
            'UPDATE sessions SET title=? WHERE tenant=? AND "user"=? AND agent=? AND id=?', sealed, *key
        )

    async def export(self, *, scope: Scope) -> dict[str, Any]:
        """The whole conversation, also what was compacted, as the model saw it: JSON-ready."""
        key = _key(scope)

        def read(db: Rows) -> Any:
            return db.execute(
                'SELECT seq, body FROM messages WHERE tenant=? AND "user"=? AND agent=? AND session=? ORDER BY seq', key
            ).fetchall()

        found = [one for one in await self.named(scope.session, scope=scope) if one.agent == scope.agent]
        if not found:
            raise _unknown()
        session = found[0]
        messages = [
            m
            for seq, body in await self._store.run(read, tenant=scope.tenant, reads=True)
            for m in msgspec.json.decode(self._store.open(body, "messages", *key, str(seq)))
        ]
        head = {"id": session.id, "agent": session.agent, "title": session.title, "label": str(session.label)}
        return {**head, "created_us": session.created_us, "updated_us": session.updated_us, "messages": messages}

    async def texts(self, tenant: str) -> AsyncIterator[tuple[Scope, int, str, str]]:
        """Every message that is kept of a tenant: (scope, number of its turn, role, text). For the operator.

        A conversation at a time is read; nothing of it stays in memory.
        """

        def names(db: Rows) -> Any:
            found = 'SELECT tenant, "user", agent, id FROM sessions WHERE tenant=? ORDER BY 2, 3, 4'
            return db.execute(found, (tenant,)).fetchall()

        def read(db: Rows, key: _Key) -> Any:
            return db.execute(
                'SELECT seq, body FROM messages WHERE tenant=? AND "user"=? AND agent=? AND session=? ORDER BY seq', key
            ).fetchall()

        for key in await self._store.run(names, tenant=tenant, reads=True):
            scope = Scope(tenant=key[0], user=key[1], agent=key[2], session=key[3])
            for seq, body in await self._store.run(partial(read, key=key), tenant=tenant, reads=True):
                for message in msgspec.json.decode(self._store.open(body, "messages", *key, str(seq))):
                    yield scope, seq, str(message.get("role")), str(message.get("content") or "")

    async def delete(self, *, scope: Scope) -> None:
        """Let go of the scope's session. Raises AccessError where there is none."""
        key = _key(scope)
        await self._changed('DELETE FROM sessions WHERE tenant=? AND "user"=? AND agent=? AND id=?', *key)
        self._cache.pop(key, None)

    async def erase(self, *, scope: Scope, subject: str | None = None) -> int:
        """Forget every conversation of `subject`, or with None of everyone in the tenant; how many there were."""

        def write(db: Rows) -> int:
            who = (scope.tenant, subject, subject)
            db.execute('DELETE FROM messages WHERE tenant=? AND (CAST(? AS TEXT) IS NULL OR "user"=?)', who)
            gone = db.execute('DELETE FROM sessions WHERE tenant=? AND (CAST(? AS TEXT) IS NULL OR "user"=?)', who)
            return int(gone.rowcount)

        gone: int = await self._store.run(write, tenant=scope.tenant, durable=True)
        for key in [k for k in self._cache if k[0] == scope.tenant and subject in {None, k[1]}]:
            del self._cache[key]
        return gone

    async def _changed(self, statement: str, *values: Any) -> None:
        def write(db: Rows) -> int:
            changed = int(db.execute(statement, values).rowcount)
            if statement.startswith("DELETE"):
                db.execute('DELETE FROM messages WHERE tenant=? AND "user"=? AND agent=? AND session=?', values)
            return changed

        if not await self._store.run(write, tenant=values[-4], durable=True):
            raise _unknown()

    def _remember(self, key: _Key, past: Past) -> None:
        self._cache[key] = past
        self._cache.move_to_end(key)
        while len(self._cache) > KEPT_IN_MEMORY:
            self._cache.popitem(last=False)


def _key(scope: Scope) -> _Key:
    return (scope.tenant, scope.user, scope.agent, scope.session)


def _unknown() -> AccessError:
    return AccessError("there is no such session", hint="sessions.list(scope=...) names yours", absent=True)


def _text(label: Label) -> str:
    return json.dumps([str(label), *label.why[:16]])


def _label(text: str) -> Label:
    name, *why = json.loads(text)
    label = Label.parse(name)
    for reason in why:
        label = label.because(reason)
    return label
