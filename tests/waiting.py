"""Waiting for what happens beside a test."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable

_PATIENCE_S = 60.0
"""Far more than anything takes on a busy machine, and less than anyone waits for a test that hangs."""


async def until(condition: Callable[[], object]) -> None:
    """Look at a condition until it holds; fails after a minute."""
    async with asyncio.timeout(_PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.005)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def until_listening(port: int) -> None:
    """Wait for a server that was started on the port; fails after two minutes."""
    until = time.monotonic() + 120
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert time.monotonic() < until, f"nobody listens on port {port}"
        time.sleep(0.05)
