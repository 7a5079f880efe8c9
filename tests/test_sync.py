"""The one door from synchronous code."""

from __future__ import annotations

import asyncio
import threading

import pytest

from aibox.sync import run_sync


async def _loop_id() -> int:
    await asyncio.sleep(0)
    return id(asyncio.get_running_loop())


def test_every_call_runs_on_the_same_loop() -> None:
    """Pools and connections made in one call live on in the next."""
    assert run_sync(_loop_id()) == run_sync(_loop_id())


def test_it_works_inside_a_running_loop() -> None:
    """A notebook has a loop of its own; the call runs beside it."""

    async def inside() -> int:
        return run_sync(_loop_id())

    assert asyncio.run(inside()) == run_sync(_loop_id())


def test_it_works_from_many_threads() -> None:
    """Threads share the loop and get their own results."""
    results: list[int] = []

    async def double(n: int) -> int:
        await asyncio.sleep(0.001)
        return 2 * n

    threads = [threading.Thread(target=lambda n=n: results.append(run_sync(double(n)))) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [2 * n for n in range(16)]


def test_errors_come_out_as_they_are() -> None:
    """The caller sees the exception of the coroutine itself."""

    async def fail() -> None:
        raise KeyError("gone")

    with pytest.raises(KeyError, match="gone"):
        run_sync(fail())


def test_calling_it_from_inside_itself_is_an_error_and_not_a_deadlock() -> None:
    """A coroutine on the background loop must await, and is told so."""

    async def nested() -> int:
        return run_sync(_loop_id())

    with pytest.raises(RuntimeError, match="await"):
        run_sync(nested())
