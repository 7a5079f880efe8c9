"""The strongest isolation that can be had: a container engine where one answers and has the image, else bubblewrap."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anyio

from aibox.chat import Health
from aibox.execution import Limits
from aibox.protocols import Driver, Guest


class Auto:
    """A Driver that is the first of several that isolates here. What it chose it keeps."""

    def __init__(self, *drivers: Driver) -> None:
        self._drivers = drivers
        self._choosing = anyio.Lock()
        self._chosen: Driver | None = None
        self._passed_over: list[str] = []

    @property
    def name(self) -> str:
        return self._chosen.name if self._chosen is not None else "auto"

    @property
    def recorded(self) -> Mapping[str, Any]:
        return self._chosen.recorded if self._chosen is not None else {}

    async def available(self) -> Health:
        """What the chosen one says of itself, and why those before it were not chosen."""
        chosen = await self._choose()
        if chosen is None:
            return Health(ok=False, detail="; ".join(reversed(self._passed_over)))
        health = await chosen.available()
        return Health(ok=health.ok, detail="; ".join([health.detail, *self._passed_over]))

    async def start(self, *, limits: Limits, gpus: int = 0) -> Guest:
        """Raises what the last driver says when none isolates."""
        chosen = await self._choose() or self._drivers[-1]
        return await chosen.start(limits=limits, gpus=gpus)

    async def close(self) -> None:
        for driver in self._drivers:
            await driver.close()

    async def _choose(self) -> Driver | None:
        async with self._choosing:
            if self._chosen is None:
                self._passed_over.clear()
                for driver in self._drivers:
                    health = await driver.available()
                    if health.ok:
                        self._chosen = driver
                        break
                    self._passed_over.append(f"{driver.name}: {health.detail}")
            return self._chosen
