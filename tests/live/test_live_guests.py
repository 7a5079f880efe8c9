"""What isolates code is killed under load: nothing runs without it, and the next session has another."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

import pytest
from guests import Guests, recorded

from aibox.sandbox.bubblewrap import Bubblewrap

sys.path.append(str(Path(__file__).parent.parent / "server"))
from server_parts import Upstream, serving

pytestmark = pytest.mark.loopback
TIMES = 5


def below(pid: int) -> list[int]:
    """What a process has started, and what that has: bubblewrap, the supervisor in it, the interpreter."""
    found: list[int] = []
    for task in Path("/proc").glob(f"{pid}/task/*/children"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            found += map(int, task.read_text().split())
    return found + [deeper for one in found for deeper in below(one)]


def test_bubblewrap_is_killed_under_load(tmp_path: Path) -> None:
    """Again and again: a run in it is a 503, a session opened since works, and each run answered is on record."""
    if not asyncio.run(Bubblewrap().available()).ok:
        pytest.skip("bubblewrap cannot isolate here: `aibox doctor` says why")
    upstream = Upstream()
    try:
        with serving(tmp_path, upstream, more='[sandbox]\ndriver = "bubblewrap"\n') as server:
            with Guests(f"http://127.0.0.1:{server.port}", server.key) as guests:
                for _ in range(TIMES):
                    guests.goes_on(12)
                    before = len(guests.refused)
                    for one in below(server.process.pid):
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(one, signal.SIGKILL)
                    guests.is_refused(1, since=before)
                    guests.goes_on(12)
            server.until(lambda: not below(server.process.pid))
    finally:
        upstream.close()
    asyncio.run(recorded(guests, tmp_path / "home"))
