"""What was accepted of each tool that a server offers: a description that changed since then is found out."""

from __future__ import annotations

from collections.abc import Mapping

from aibox.agents.store import Store
from aibox.postgres import Rows

_EVERYBODY = "*"


class Pins:
    """Of one server, by its name: the digest of each tool's description as it was accepted."""

    def __init__(self, store: Store, *, server: str) -> None:
        self._store = store
        self._server = server

    async def of(self, digests: Mapping[str, str]) -> dict[str, str]:
        """What was accepted of each tool. One that was never seen is accepted as it is."""

        def work(db: Rows) -> dict[str, str]:
            for name, digest in digests.items():
                row = (_EVERYBODY, self._server, name, digest)
                db.execute("INSERT INTO tools_seen VALUES (?,?,?,?) ON CONFLICT DO NOTHING", row)
            who = (_EVERYBODY, self._server)
            return dict(db.execute("SELECT name, digest FROM tools_seen WHERE tenant=? AND server=?", who).fetchall())

        return await self._store.run(work, tenant=_EVERYBODY, durable=True)

    async def accept(self, name: str, digest: str) -> None:
        """Somebody looked at what a tool says now, and agrees."""
        row = (_EVERYBODY, self._server, name, digest)
        await self._store.run(
            lambda db: db.execute(
                "INSERT INTO tools_seen VALUES (?,?,?,?) "
                "ON CONFLICT (tenant, server, name) DO UPDATE SET digest=excluded.digest",
                row,
            ),
            tenant=_EVERYBODY,
            durable=True,
        )
