"""What agents keep beyond one turn: `sessions`, `runs` and `approvals`, in one file or one database."""

from __future__ import annotations

from pathlib import Path

from aibox.agents.approvals import Approvals
from aibox.agents.postgres import PostgresStore
from aibox.agents.runs import Runs
from aibox.agents.sessions import Sessions
from aibox.agents.store import SqliteStore, Store
from aibox.postgres import Rows, is_postgres
from aibox.protocols import Recorder
from aibox.types import Scope


class AgentState:
    """The state of agents. `path` None keeps it in memory; `key` is 32 bytes and encrypts every text at rest.

    A file for the processes of one machine, or `postgresql://...` for those of many; its tables are made beforehand, by
    `aibox db upgrade`. Without a key conversations are readable there, and no approval can wait. `audit`
    gets the answers of people. Erasable: `erase` forgets the conversations of a user.
    """

    def __init__(
        self, path: str | Path | None = None, *, key: bytes | None = None, audit: Recorder | None = None
    ) -> None:
        shared = isinstance(path, str) and is_postgres(path)
        self.store: Store = PostgresStore(str(path), key=key) if shared else SqliteStore(path, key=key)
        self.sessions = Sessions(self.store)
        self.runs = Runs(self.store)
        self.approvals = Approvals(self.store, audit=audit)

    async def erase(self, *, scope: Scope, subject: str | None = None) -> int:
        """Forget the conversations, waiting runs and questions of `subject` in the tenant; None is everyone.

        With None what is nobody's in particular goes too: calls, the digests of tools, events that wait to be told.
        """

        gone = await self.sessions.erase(scope=scope, subject=subject)
        who = (scope.tenant, subject, subject)
        whose = 'tenant=? AND (CAST(? AS TEXT) IS NULL OR "user"=?)'
        runs = f"SELECT id FROM runs WHERE {whose}"  # noqa: S608 - written above

        def work(db: Rows) -> int:
            execute = db.execute
            for name in ("votes", "approvals", "calls", "tools_seen", "webhooks") if subject is None else ():
                execute(f"DELETE FROM {name} WHERE tenant=?", (scope.tenant,))  # noqa: S608 - written above
            asked = f"tenant=? AND run IN ({runs})"
            votes = f"DELETE FROM votes WHERE tenant=? AND approval IN (SELECT id FROM approvals WHERE {asked})"  # noqa: S608
            execute(votes, (scope.tenant, scope.tenant, *who))
            execute(f"DELETE FROM approvals WHERE {asked}", (scope.tenant, *who))  # noqa: S608 - written above
            for (run,) in execute(runs, who).fetchall():
                execute("DELETE FROM calls WHERE tenant=? AND key LIKE ?", (scope.tenant, f"{run}/%"))
            return int(execute(f"DELETE FROM runs WHERE {whose}", who).rowcount)  # noqa: S608 - written above

        return gone + await self.store.run(work, tenant=scope.tenant, durable=True)

    async def close(self) -> None:
        """Give back the file or the connection. Closing twice is allowed."""
        self.runs.close()
        await self.store.close()

    def __repr__(self) -> str:
        return f"AgentState({self.store})"
