"""One call over several replicas: failover and retries, before the first token only, within a budget.

A retry that everybody makes at once is what keeps an overloaded server down: retries are a small share of the calls,
and each waits a random time.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from aibox.errors import BackendError
from aibox.inference.balance import choose
from aibox.inference.registry import Inside, Outside
from aibox.inference.replica import OPEN_RANK

MAX_ATTEMPTS = 4
RETRY_SHARE = 0.2
"""Of the calls, in the long run."""
RETRY_BURST = 10.0
BACKOFF_S = 0.25
MAX_WAIT_S = 10.0

R = TypeVar("R", bound="Inside | Outside")
T = TypeVar("T")


class Retries:
    """How many retries may still be made: each call earns a fraction of one."""

    def __init__(self) -> None:
        self._left = RETRY_BURST

    def earn(self) -> None:
        self._left = min(RETRY_BURST, self._left + RETRY_SHARE)

    def spend(self) -> bool:
        if self._left < 1:
            return False
        self._left -= 1
        return True


async def over(
    routes: Sequence[R],
    attempt: Callable[[R, int], Awaitable[T]],
    *,
    key: int | None,
    retries: Retries,
    ends: float | None = None,
) -> T:
    """The first success of `attempt(route, number)`, which must not have given anything to the caller when it raises.

    A failure goes to another replica at once. The same one is asked again only when it said so itself (429, 5xx), after
    a random wait that is at least as long as it asked for. `ends` is the deadline on the clock of time.monotonic().
    """
    retries.earn()
    tried: set[str] = set()
    failures: list[BackendError] = []
    while True:
        route = _next(routes, tried, key)
        tried.add(route.replica.name)
        try:
            return await attempt(route, len(failures) + 1)
        except BackendError as error:
            failures.append(error)
            wait_s = _wait(routes, tried, failures)
            if wait_s is None or (ends is not None and time.monotonic() + wait_s >= ends) or not retries.spend():
                _tell(failures)
                raise
        await asyncio.sleep(wait_s)


def _next(routes: Sequence[R], tried: set[str], key: int | None) -> R:
    """An untried replica, or any when all have been tried; of those that work best, by balance."""
    left = [route for route in routes if route.replica.name not in tried] or routes
    if len(left) == 1:
        return left[0]
    best = min(route.replica.rank for route in left)
    group = {route.replica.name: route for route in left if route.replica.rank == best}
    return group[choose([route.replica for route in group.values()], key).name]


def _wait(routes: Sequence[R], tried: set[str], failures: Sequence[BackendError]) -> float | None:
    """Seconds until the next attempt; None when there is none to make."""
    error = failures[-1]
    if not error.retryable or len(failures) >= MAX_ATTEMPTS:
        return None
    if any(route.replica.name not in tried and route.replica.rank < OPEN_RANK for route in routes):
        return 0.0
    if error.status is None:
        return None if len(tried) == len(routes) else 0.0
    backoff_s = BACKOFF_S * 2 ** len(failures) * random.uniform(0.5, 1)  # noqa: S311 - to be out of step, not secret
    wait_s = max(backoff_s, error.retry_after_s or 0.0)
    return wait_s if wait_s <= MAX_WAIT_S else None


def _tell(failures: Sequence[BackendError]) -> None:
    for earlier in failures[:-1]:
        failures[-1].add_note(f"before that: {earlier.message}")
