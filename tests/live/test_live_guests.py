"""What isolates code is killed under load: nothing runs without it, and the next session has another."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from front import front
from guests import Guests, holds
from services import BACKEND, modelling
from waiting import free_port, until

from aibox.sandbox.bubblewrap import Bubblewrap

pytestmark = pytest.mark.loopback
TIMES = 5


def below(pid: int) -> list[int]:
    """What a process has started, and what that has: bubblewrap, the supervisor in it, the interpreter."""
    found: list[int] = []
    for task in Path("/proc").glob(f"{pid}/task/*/children"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            found += map(int, task.read_text().split())
    return found + [deeper for one in found for deeper in below(one)]


def test_bubblewrap_is_killed_under_load(tmp_path: Path, postgres_copy: Callable[[], str]) -> None:
    """Again and again: a run in it is a 503, a session opened since works, and each run answered is on record."""
    if not asyncio.run(Bubblewrap().available()).ok:
        pytest.skip("bubblewrap cannot isolate here: `aibox doctor` says why")
    port = free_port()
    tables = '[sandbox]\ndriver = "bubblewrap"\n' + BACKEND.replace("{model}", str(port))
    with modelling(port), front(tmp_path, tables, database=postgres_copy) as made:
        with Guests(made.url, asyncio.run(made.key("guests"))) as guests:
            for _ in range(TIMES):
                guests.goes_on(12)
                before = len(guests.refused)
                for one in [one for pid in made.pids for one in below(pid)]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(one, signal.SIGKILL)
                guests.is_refused(1, since=before)
                guests.goes_on(12)
        asyncio.run(until(lambda: not any(map(below, made.pids))))
    holds(guests, asyncio.run(made.entries("guests")))
