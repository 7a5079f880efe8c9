"""Deliveries that wait, beside what agents keep: they survive the process, and are there once for all processes.

An event is taken out of the log in one transaction with how far the log was read: none is lost between the two.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from aibox.agents.store import Store
from aibox.outbound.events import Event
from aibox.postgres import Rows

WAITING = 10_000
"""Deliveries that wait for one address. What comes then is given up, and counted so."""
KEPT = 500
"""Deliveries of a tenant that are over and can still be looked at."""
LEASE_S = 60.0
"""For so long a delivery is somebody's who has taken it; then it is anybody's again."""

Status = Literal["waiting", "delivered", "given_up"]


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event for one address. `attempts` counts the present one; `answered` says what became of the last."""

    endpoint: str
    id: str
    type: str
    body: bytes
    status: Status
    attempts: int
    answered: str
    created_us: int
    due_us: int


class Outbox:
    """On the store of the agents' state."""

    def __init__(self, store: Callable[[], Store]) -> None:
        self._store = store

    async def begin(self, tenant: str, size: int) -> int:
        """From which entry on a tenant's log is still to be read: from now on, where it never was. Durable."""

        def work(db: Rows) -> int:
            insert = "INSERT INTO webhook_cursors VALUES (?,?) ON CONFLICT DO NOTHING"
            db.execute(insert, (tenant, size))
            # A log that was put back is shorter than it was.
            db.execute("UPDATE webhook_cursors SET seq=? WHERE tenant=? AND seq>?", (size, tenant, size))
            return int(db.execute("SELECT seq FROM webhook_cursors WHERE tenant=?", (tenant,)).fetchone()[0])

        return await self._store().run(work, tenant=tenant, durable=True)

    async def take(self, tenant: str, events: Mapping[str, Sequence[Event]], *, upto: int) -> int:
        """Put events, by address, that nobody has put there yet; the log is then read `upto`. How many had no room."""
        store = self._store()

        def work(db: Rows) -> int:
            lost = 0
            seq = int(db.execute("SELECT seq FROM webhook_cursors WHERE tenant=?", (tenant,)).fetchone()[0])
            db.execute("UPDATE webhook_cursors SET seq=? WHERE tenant=?", (max(seq, upto), tenant))
            for endpoint, found in events.items():
                count = "SELECT count(*) FROM webhooks WHERE tenant=? AND endpoint=? AND status='waiting'"
                waiting = int(db.execute(count, (tenant, endpoint)).fetchone()[0])
                for event in found:
                    if event.seq < seq:
                        continue
                    status = "waiting" if waiting < WAITING else "given_up"
                    body = store.seal(event.body, "webhooks", tenant, endpoint, event.id)
                    row = (tenant, endpoint, event.id, event.type, body, status, 0, "", event.ts_us, 0)
                    insert = "INSERT INTO webhooks VALUES (?,?,?,?,?,?,?,?,?,?) ON CONFLICT DO NOTHING"
                    if db.execute(insert, row).rowcount:
                        waiting, lost = waiting + 1, lost + (status == "given_up")
            over = "SELECT created_us FROM webhooks WHERE tenant=? AND status<>'waiting' ORDER BY created_us DESC "
            last = db.execute(over + "LIMIT 1 OFFSET ?", (tenant, KEPT)).fetchone()
            if last is not None:
                old = "DELETE FROM webhooks WHERE tenant=? AND status<>'waiting' AND created_us<=?"
                db.execute(old, (tenant, last[0]))
            return lost

        return await store.run(work, tenant=tenant, durable=True)

    async def due(self, tenant: str, *, limit: int) -> list[Delivery]:
        """Deliveries whose time has come; they are the caller's until the lease is over. The attempt is counted."""
        store, now = self._store(), _now_us()

        def work(db: Rows) -> list[Delivery]:
            sql = f"SELECT {_COLUMNS} FROM webhooks WHERE tenant=? AND status='waiting' AND due_us<=? "  # noqa: S608
            rows = db.execute(sql + "ORDER BY due_us, created_us LIMIT ?", (tenant, now, limit)).fetchall()
            take = "UPDATE webhooks SET due_us=?, attempts=attempts+1 WHERE tenant=? AND endpoint=? AND id=?"
            for row in rows:
                db.execute(take, (now + round(LEASE_S * 1e6), tenant, row[0], row[1]))
            return [_delivery(store, tenant, row, attempts=1) for row in rows]

        return await store.run(work, tenant=tenant, durable=True)

    async def settle(
        self, tenant: str, delivery: Delivery, *, status: Status, answered: str, wait_s: float = 0.0
    ) -> None:
        """What became of an attempt, and when the next one is due. What is over stays: a lease may have run out."""
        where = (status, answered[:200], _now_us() + round(wait_s * 1e6), tenant, delivery.endpoint, delivery.id)
        sql = "UPDATE webhooks SET status=?, answered=?, due_us=? WHERE tenant=? AND endpoint=? AND id=? "
        sql += "AND status='waiting'"

        def work(db: Rows) -> None:
            db.execute(sql, where)

        await self._store().run(work, tenant=tenant, durable=True)

    async def list(
        self, tenant: str, *, limit: int = 100, after: tuple[int, str, str] | None = None, status: Status | None = None
    ) -> list[Delivery]:
        """A tenant's deliveries, the newest first; of those `after` one, by its time, endpoint and id."""
        store = self._store()
        where, values = "tenant=?", list[str | int]([tenant])
        if status is not None:
            where, values = f"{where} AND status=?", [*values, status]
        if after is not None:
            where += " AND (created_us<? OR created_us=? AND (endpoint, id)>(?,?))"
            values += [after[0], *after]
        sql = f"SELECT {_COLUMNS} FROM webhooks WHERE {where} ORDER BY created_us DESC, endpoint, id LIMIT ?"  # noqa: S608

        def work(db: Rows) -> list[Delivery]:
            return [_delivery(store, tenant, row) for row in db.execute(sql, (*values, limit)).fetchall()]

        return await store.run(work, tenant=tenant, reads=True)


_COLUMNS = "endpoint, id, type, body, status, attempts, answered, created_us, due_us"


def _delivery(store: Store, tenant: str, row: Sequence[Any], *, attempts: int = 0) -> Delivery:
    endpoint, id_, type_, body, status, made, answered, created_us, due_us = row
    opened = store.open(bytes(body), "webhooks", tenant, endpoint, id_)
    return Delivery(
        endpoint=endpoint,
        id=id_,
        type=type_,
        body=opened,
        status=status,
        attempts=made + attempts,
        answered=answered,
        created_us=created_us,
        due_us=due_us,
    )


def _now_us() -> int:
    return time.time_ns() // 1000
