"""What agents keep beyond one turn: `sessions`, `runs` and `approvals`, in one file."""

from __future__ import annotations

from pathlib import Path

from aibox.agents.approvals import Approvals
from aibox.agents.runs import Runs
from aibox.agents.sessions import Sessions
from aibox.agents.store import Store
from aibox.protocols import Recorder
from aibox.types import Scope


class AgentState:
    """The state of agents. `path` None keeps it in memory; `key` is 32 bytes and encrypts every text at rest.

    Without a key conversations are readable in the file, and no approval can wait there. `audit` gets the answers of
    people. Erasable: `erase` forgets the conversations of a user.
    """

    def __init__(
        self, path: str | Path | None = None, *, key: bytes | None = None, audit: Recorder | None = None
    ) -> None:
        self.store = Store(path, key=key)
        self.sessions = Sessions(self.store)
        self.runs = Runs(self.store)
        self.approvals = Approvals(self.store, audit=audit)

    async def erase(self, *, scope: Scope, subject: str | None = None) -> int:
        """Forget the conversations, waiting runs and questions of `subject` in the tenant; None is everyone."""

        gone = await self.sessions.erase(scope=scope, subject=subject)
        who = (scope.tenant, subject, subject)
        runs = "SELECT id FROM runs WHERE tenant=? AND (? IS NULL OR user=?)"

        def work(db: object) -> int:
            execute = db.execute  # type: ignore[attr-defined]  # a sqlite3.Connection
            asked = f"tenant=? AND run IN ({runs})"
            votes = f"DELETE FROM votes WHERE tenant=? AND approval IN (SELECT id FROM approvals WHERE {asked})"  # noqa: S608
            execute(votes, (scope.tenant, scope.tenant, *who))
            execute(f"DELETE FROM approvals WHERE {asked}", (scope.tenant, *who))  # noqa: S608 - written above
            for (run,) in execute(runs, who).fetchall():
                execute("DELETE FROM calls WHERE tenant=? AND key LIKE ?", (scope.tenant, f"{run}/%"))
            return int(execute("DELETE FROM runs WHERE tenant=? AND (? IS NULL OR user=?)", who).rowcount)

        return gone + await self.store.run(work, durable=True)

    async def close(self) -> None:
        """Give back the file. Closing twice is allowed."""
        await self.store.close()

    def __repr__(self) -> str:
        return f"AgentState({self.store})"
