"""The state of agents in PostgreSQL: the same tables, a role that owns none of them, forced row-level security.

The tenant is in every key and named to the server for each transaction: rows of another one are not there. Transactions
that write for one tenant wait for each other, as all do in SQLite.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from aibox.agents.store import Sealing, to_the_end
from aibox.postgres import Postgres, Rows

T = TypeVar("T")

SCHEMA = "aibox_agents"


class PostgresStore(Sealing):
    """The tables of `aibox.migrations`, through connections of the writing role."""

    def __init__(self, url: str, *, key: bytes | None = None) -> None:
        self._postgres = Postgres(url, schema=SCHEMA, what="the state of the agents")
        super().__init__(key, place=self._postgres.place)

    async def run(self, work: Callable[[Rows], T], *, tenant: str, durable: bool = False, reads: bool = False) -> T:
        """As the protocol says. A connection that was lost before anything was done is made anew."""

        def act() -> T:
            with self._postgres.begun(tenant, durable=durable, alone="" if reads else tenant) as rows:
                return work(rows)

        return await to_the_end(act)

    async def close(self) -> None:
        await asyncio.to_thread(self._postgres.close)

    def __repr__(self) -> str:
        return f"PostgresStore({self._place}, {'encrypted' if self.encrypted else 'readable'})"
