"""Containers that nobody holds any more: those of processes that are gone, and those that the engine did not remove.

An engine that says nothing may still do, when it goes on, what it had been told; so it is asked again until it answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import anyio

from aibox.errors import SandboxError
from aibox.sandbox.engine import Engine

LABEL = "aibox.sandbox"

_REMOVE_S = 5.0
"""For the engine to remove one while somebody waits for it."""
_AGAIN_S = 5.0
_TWICE = 2
"""It is seen to be gone so often: what had been told before may be done after the first look."""


class Leftovers:
    """Of one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._left: dict[str, int] = {}
        """By name: how often it was seen to be gone."""
        self._asking: asyncio.Task[None] | None = None

    @property
    def owner(self) -> str:
        """This process, so that no other that gets its number later is taken for it."""
        return f"{_boot()}:{os.getpid()}:{_started(os.getpid())}"

    async def remove(self, name: str) -> None:
        """By force. What is not gone in 5 s is removed later, when the engine answers. Never raises."""
        try:
            await self._engine.ask("rm", "--force", name, within_s=_REMOVE_S)
        except SandboxError:
            self._left[name] = 0
            if self._asking is None or self._asking.done():
                self._asking = asyncio.create_task(self._ask(), name="sandbox: containers that were left")

    async def sweep(self) -> None:
        """Remove those of processes of this machine that are gone. Raises SandboxError when no engine answers."""
        await self._force([name for name, owner in (await self._there()).items() if _is_gone(owner)])

    async def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])

    async def _ask(self) -> None:
        while self._left:
            await anyio.sleep(_AGAIN_S)
            try:
                there = await self._there()
            except SandboxError:
                continue
            for name in list(self._left):
                self._left[name] = 0 if name in there else self._left[name] + 1
                if self._left[name] == _TWICE:
                    del self._left[name]
            await self._force([name for name in self._left if name in there])

    async def _there(self) -> dict[str, str]:
        """Those that are ours, and whose."""
        rows = await self._engine.ask(
            "ps", "-a", "--filter", f"label={LABEL}", "--format", f'{{{{.Names}}}} {{{{.Label "{LABEL}"}}}}'
        )
        return {parts[0]: parts[1] for row in rows.splitlines() if len(parts := row.split()) == 2}

    async def _force(self, names: list[str]) -> None:
        if names:
            with contextlib.suppress(SandboxError):  # another may have been quicker; what is there is seen again
                await self._engine.ask("rm", "--force", *names)


def _is_gone(owner: str) -> bool:
    """Whether it was a process of this machine that is no more. What another machine started is left alone."""
    boot, _, rest = owner.partition(":")
    pid, _, started = rest.partition(":")
    if boot != _boot() or not pid.isdecimal():
        return False
    return _started(int(pid)) != started


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()


def _started(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19].decode()
    except OSError:
        return ""
