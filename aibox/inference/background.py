"""Tasks that nobody waits for, and that end with their owner, on whichever event loop they run."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


class Background:
    """Starts tasks by name, each once at a time, and stops them all. What they raise must be caught inside."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def running(self, name: str) -> bool:
        task = self._tasks.get(name)
        return task is not None and not task.done() and not task.get_loop().is_closed()

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """On the running loop. The caller has asked `running` before."""
        self._tasks[name] = asyncio.get_running_loop().create_task(work, name=f"aibox {name}")

    async def stop(self) -> None:
        """Cancel what runs; what runs on this loop has ended when it returns."""
        here = asyncio.get_running_loop()
        tasks, self._tasks = list(self._tasks.values()), {}
        mine = [task for task in tasks if task.get_loop() is here]
        for task in tasks:
            if task in mine:
                task.cancel()
            elif task.get_loop().is_running():
                task.get_loop().call_soon_threadsafe(task.cancel)
        await asyncio.gather(*mine, return_exceptions=True)
