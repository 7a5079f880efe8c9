"""How long a piece of work takes, for tests that say how its cost grows."""

from __future__ import annotations

import time
from collections.abc import Callable


def cpu_s(work: Callable[[], object], *, times: int = 3) -> float:
    """Processor time of this thread, in seconds: the least of some runs, for a collection of garbage is no growth."""
    taken = []
    for _ in range(times):
        started = time.thread_time()
        work()
        taken.append(time.thread_time() - started)
    return min(taken)
