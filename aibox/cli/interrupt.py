"""An event loop for a command, that a Ctrl-C always reaches."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T], *, loop: Callable[[], asyncio.AbstractEventLoop] | None = None) -> T:
    """As `asyncio.run`: Ctrl-C cancels `main`, which cleans up, and KeyboardInterrupt comes out.

    `loop` makes an event loop of another kind.

    There, a signal only sets a flag that the main thread reads between two bytecodes. One that arrives after the last
    of them and before the loop sleeps, or in another thread, stays unseen until something else wakes the loop: at a
    prompt that is for ever. Here it also writes a byte that the loop waits for (`signal.set_wakeup_fd`).
    """

    async def awake() -> T:
        before = signal.getsignal(signal.SIGINT)
        if before is None or threading.current_thread() is not threading.main_thread():
            return await main  # a handler that is not Python's, or a thread that may set none
        running = asyncio.get_running_loop()
        running.add_signal_handler(signal.SIGINT, lambda: None)  # sets the descriptor for us
        signal.signal(signal.SIGINT, before)  # and the handler of asyncio.run stays the one that is called
        try:
            return await main
        finally:
            running.remove_signal_handler(signal.SIGINT)
            signal.signal(signal.SIGINT, before)

    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(awake())


@contextmanager
def cancels(task: asyncio.Task[Any]) -> Iterator[None]:
    """While it lasts, Ctrl-C cancels this task and nothing else. For the main thread, inside `run`."""
    before = signal.signal(signal.SIGINT, lambda *_: task.cancel())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
