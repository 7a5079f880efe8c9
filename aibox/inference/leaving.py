"""Backends that were taken out of service: each is closed when the last call that had found it is over."""

from __future__ import annotations

import asyncio

from aibox.inference.registry import Registry
from aibox.inference.replica import Replica

LOOK_S = 0.1
"""How often it is looked whether somebody still waits for one."""


class Leaving:
    """Sees them off. Belongs to one Router."""

    def __init__(self) -> None:
        self._tasks: dict[Replica, asyncio.Task[None]] = {}

    async def part(self, old: Registry, new: Registry) -> None:
        """`new` stands in the place of `old`: what only the old one has is to close, as soon as nobody uses it."""
        await old.close()
        for replica in old.replicas:
            if replica not in new.replicas and replica not in self._tasks:
                self._tasks[replica] = asyncio.create_task(self._see_off(replica))

    async def _see_off(self, replica: Replica) -> None:
        # Looked at from time to time: an event would be set by every call of the hot path, for this rare hour.
        while not replica.idle:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_S)
        await replica.backend.close()
        self._tasks.pop(replica, None)

    async def close(self) -> None:
        """Close them all, now."""
        tasks, self._tasks = self._tasks, {}
        for replica, task in tasks.items():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await replica.backend.close()
