"""Waiting for what happens beside a test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_PATIENCE_S = 60.0
"""Far more than anything takes on a busy machine, and less than anyone waits for a test that hangs."""


async def until(condition: Callable[[], object]) -> None:
    """Look at a condition until it holds; fails after a minute."""
    async with asyncio.timeout(_PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.005)
