"""Runs that are under way or wait, and calls that may happen once: what a restart finds again.

A run is taken up by one process at a time. A call is written down before it begins and when it ended; one that began
and has no end is never begun again, because nobody can know how far it came.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from aibox.agents.alive import Alive
from aibox.agents.store import SqliteStore, Store
from aibox.errors import AccessError
from aibox.postgres import Rows
from aibox.types import Scope

LEASE_S = 30.0
"""Beyond the time limit of a turn: after that a run that says nothing belongs to nobody."""


_COLUMNS = (
    "tenant",
    "id",
    '"user"',
    "agent",
    "session",
    "version",
    "turn",
    "status",
    "state",
    "created_us",
    "lease_us",
)
_KEEP = (
    f"INSERT INTO runs ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))}) "  # noqa: S608 - names from above
    f"ON CONFLICT (tenant, id) DO UPDATE SET {', '.join(f'{name}=excluded.{name}' for name in _COLUMNS[2:])}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run that waits for people, or whose process is gone. `state` is what it needs to go on."""

    id: str
    user: str
    agent: str
    session: str
    version: str
    turn: str
    status: str
    state: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Begun:
    """What is on record of a call with this key: `result` None means that it began and never ended."""

    result: str | None
    ok: bool


class Runs:
    """The runs and calls of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        path = getattr(store, "path", None)
        self._alive = Alive(None if path is None else path.with_suffix(".running"))

    async def keep(
        self,
        run: str,
        *,
        scope: Scope,
        version: str,
        turn: str,
        status: str,
        state: Mapping[str, Any] | None,
        lease_s: float = 0.0,
    ) -> None:
        """Write down where a run stands, durably."""
        sealed = None if state is None else self._store.seal(msgspec.json.encode(state), *self._bound(scope, run))
        now = time.time_ns() // 1000
        row = (scope.tenant, run, scope.user, scope.agent, scope.session, version, turn, status, sealed, now)
        lease = now + round((lease_s + LEASE_S) * 1e6) if status == "running" else 0
        if lease:
            self._alive.hold(run)
        await self._store.run(lambda db: db.execute(_KEEP, (*row, lease)), tenant=scope.tenant, durable=True)
        if not lease:
            self._alive.let_go(run)

    async def take(self, run: str, *, scope: Scope, turn: str, lease_s: float, left: str = "") -> Run:
        """Take a waiting or abandoned run up in `turn`; nobody else gets it meanwhile. Raises AccessError.

        `left` is a turn that is known to have broken off: its run is taken whatever its time says, and only while it is
        still that turn's.
        """

        def work(db: Rows) -> Any:
            now = time.time_ns() // 1000
            row = db.execute(
                'SELECT "user", agent, session, version, turn, status, state, lease_us '
                "FROM runs WHERE tenant=? AND id=?",
                (scope.tenant, run),
            ).fetchone()
            if row is None or row[0] != scope.user:
                raise _unknown()
            if row[5] not in ("waiting", "running") or row[6] is None:
                raise AccessError(f"the run cannot go on: it is {row[5]}")
            if left and (row[5], row[4]) != ("running", left):
                raise AccessError("the run was taken up, or has ended, meanwhile")
            if row[5] == "running" and row[7] > now and not left:
                raise AccessError("the run is under way in another process", hint="wait for it to end")
            lease = now + round((lease_s + LEASE_S) * 1e6)
            db.execute(
                "UPDATE runs SET status='running', turn=?, lease_us=? WHERE tenant=? AND id=?",
                (turn, lease, scope.tenant, run),
            )
            return row

        row = await self._store.run(work, tenant=scope.tenant, durable=True)
        self._alive.hold(run)
        return self._run(scope, run, row)

    async def agent_of(self, run: str, *, scope: Scope) -> str:
        """The name of the agent whose run it is. Raises AccessError for one that the scope's user did not begin."""

        def read(db: Rows) -> Any:
            return db.execute('SELECT "user", agent FROM runs WHERE tenant=? AND id=?', (scope.tenant, run)).fetchone()

        row = await self._store.run(read, tenant=scope.tenant, reads=True)
        if row is None or row[0] != scope.user:
            raise _unknown()
        return str(row[1])

    async def release(self, run: str, *, scope: Scope, status: str) -> None:
        """Put a run back (`waiting`), or end it (`done`, `failed`); an ended one keeps no text."""
        ended = status not in ("waiting", "running")

        def work(db: Rows) -> None:
            where = (scope.tenant, run)
            db.execute("UPDATE runs SET status=?, lease_us=0 WHERE tenant=? AND id=?", (status, *where))
            if ended:
                db.execute("UPDATE runs SET state=NULL WHERE tenant=? AND id=?", where)
                db.execute("UPDATE approvals SET status='used' WHERE tenant=? AND run=? AND status='approved'", where)

        await self._store.run(work, tenant=scope.tenant, durable=True)
        self._alive.let_go(run)

    async def tenants(self) -> list[str] | None:
        """Whose runs are under way, or were when a process ended. None where a database shows one tenant at a time."""
        if not isinstance(self._store, SqliteStore):
            return None
        if self._store.path is not None and not self._store.path.exists():
            return []

        def read(db: Rows) -> Any:
            return db.execute("SELECT DISTINCT tenant FROM runs WHERE status='running' ORDER BY 1").fetchall()

        return [row[0] for row in await self._store.run(read, tenant="", reads=True)]

    def close(self) -> None:
        self._alive.close()

    async def interrupted(self, *, scope: Scope, agent: str, now: bool = False) -> list[Run]:
        """Runs of the tenant with this agent that have no end, and whose time is over or whose process is gone.

        With `now` all that have no end.
        """

        def read(db: Rows) -> Any:
            return db.execute(
                'SELECT "user", agent, session, version, turn, status, state, id, lease_us FROM runs '
                "WHERE tenant=? AND agent=? AND status='running' ORDER BY created_us",
                (scope.tenant, agent),
            ).fetchall()

        rows, clock = await self._store.run(read, tenant=scope.tenant, reads=True), time.time_ns() // 1000
        return [self._run(scope, row[7], row) for row in rows if now or row[8] <= clock or self._alive.gone(row[7])]

    async def begin(self, key: str, tool: str, *, scope: Scope) -> Begun | None:
        """Write down that a call begins: None when it is the first of its key, else what became of that one."""

        def work(db: Rows) -> Begun | None:
            row = db.execute("SELECT result, ok FROM calls WHERE tenant=? AND key=?", (scope.tenant, key)).fetchone()
            if row is None:
                db.execute("INSERT INTO calls VALUES (?,?,?,NULL,NULL)", (scope.tenant, key, tool))
                return None
            if row[0] is None:
                return Begun(None, False)
            return Begun(self._store.open(row[0], "calls", scope.tenant, key).decode(), bool(row[1]))

        return await self._store.run(work, tenant=scope.tenant, durable=True)

    async def ended(self, key: str, result: str, *, ok: bool, scope: Scope) -> None:
        """Write down what a call gave, before anybody is told."""
        sealed = self._store.seal(result.encode(), "calls", scope.tenant, key)
        values = (sealed, int(ok), scope.tenant, key)
        await self._store.run(
            lambda db: db.execute("UPDATE calls SET result=?, ok=? WHERE tenant=? AND key=?", values),
            tenant=scope.tenant,
            durable=True,
        )

    def _bound(self, scope: Scope, run: str) -> tuple[str, ...]:
        return ("runs", scope.tenant, scope.user, run)

    def _run(self, scope: Scope, run: str, row: Any) -> Run:
        user, agent, session, version, turn, status, sealed, *_ = row
        state = None
        if sealed is not None:
            state = msgspec.json.decode(self._store.open(sealed, "runs", scope.tenant, user, run))
        return Run(
            id=run, user=user, agent=agent, session=session, version=version, turn=turn, status=status, state=state
        )


def _unknown() -> AccessError:
    return AccessError("there is no such run", hint="a run belongs to the user who began it", absent=True)
