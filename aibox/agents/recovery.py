"""What killed processes left under way is ended in the background, once for each agent, while its box is open.

A run goes on where it stood, or is on record as failed; `resume.recover` says how. Who closes the box meanwhile breaks
a run off like any other, on record, and it can be resumed. What the log holds without an end is ended by whoever has it
open, when its time has come: a server opens it when it starts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from aibox.agents.agent import Agent
from aibox.agents.events import Failed
from aibox.audit.chain import AuditChain
from aibox.errors import AIBoxError
from aibox.types import Scope

_log = logging.getLogger(__name__)
_USER = "recovery"
"""Whose name stands in the scope that looks; each run goes on as the user who began it."""


class Recovery:
    """The recoveries of a box. `tenants` are looked at where a database does not show whose runs there are."""

    def __init__(self, tenants: Iterable[str] = ()) -> None:
        self._tenants = tuple(tenants)
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._opening: asyncio.Task[None] | None = None

    def start(self, agent: Agent) -> None:
        """Look for what was left behind of this agent. Nothing where it keeps no state, was seen, or no loop runs."""
        if agent.parts.state is None or (agent.name, agent.version) in self._tasks:
            return
        try:
            task = asyncio.get_running_loop().create_task(self._recover(agent), name=f"recovery of {agent.name}")
        except RuntimeError:
            return
        self._tasks[agent.name, agent.version] = task

    def look(self, audit: AuditChain) -> None:
        """Open the log, so that turns and acts in it that nobody ended have their end, also where nothing is asked."""
        self._opening = asyncio.get_running_loop().create_task(self._open(audit), name="recovery of the log")

    async def done(self) -> None:
        """Wait until all that was begun has ended."""
        await asyncio.gather(*self._all)

    async def close(self) -> None:
        for task in self._all:
            task.cancel()
        await asyncio.gather(*self._all, return_exceptions=True)

    @property
    def _all(self) -> list[asyncio.Task[None]]:
        return [*self._tasks.values(), *([self._opening] if self._opening is not None else [])]

    async def _open(self, audit: AuditChain) -> None:
        try:
            await audit.open()
        except AIBoxError as error:
            # Who asks for something is told so, and it is tried anew for them.
            _log.error("what was left under way in the log could not be looked for: %s", error)

    async def _recover(self, agent: Agent) -> None:
        state = agent.parts.state
        assert state is not None
        try:
            known = await state.runs.tenants()
            for tenant in self._tenants if known is None else known:
                for ended in await agent.recover(scope=Scope(tenant=tenant, user=_USER)):
                    what = f"could not go on: {ended.error}" if isinstance(ended, Failed) else "went on and ended"
                    _log.warning("an interrupted run of %s in %s %s", agent.name, tenant, what)
        except AIBoxError as error:
            # The agent works without it; what was left behind is found again at the next start.
            _log.error("what was left under way of %s could not be looked for: %s", agent.name, error)
