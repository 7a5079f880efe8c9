"""The one door from synchronous code: a single background event loop, so that pools and connections live on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Background:
    """The loop and its thread, made on first use; a daemon, so that it never keeps a program alive."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="aibox-sync", daemon=True).start()
            return self._loop


_background = _Background()


def run_sync(coro: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end and return its result, from any thread, also one whose event loop is running.

    Ctrl-C cancels the coroutine and waits until it has cleaned up. Called from a coroutine on the background loop
    itself it would wait for itself, and raises RuntimeError instead: await there.
    """
    loop = _background.loop()
    try:
        running = asyncio.get_running_loop()
    except RuntimeError:
        running = None
    if running is loop:
        coro.close()
        raise RuntimeError("run_sync was called from inside run_sync; await the coroutine instead")
    finished = threading.Event()

    async def whole() -> T:
        try:
            return await coro
        finally:
            finished.set()

    future = asyncio.run_coroutine_threadsafe(whole(), loop)
    try:
        return future.result()
    except KeyboardInterrupt:
        future.cancel()
        # The coroutine gets the time it needs to close what it opened; a second Ctrl-C ends the wait.
        finished.wait(timeout=10.0)
        raise
