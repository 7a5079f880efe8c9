"""The abuses against bubblewrap, and what holds for it alone."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import anyio
import pytest
from sandbox_abuses import Abuses, running, until_running

from aibox.protocols import Driver
from aibox.sandbox.bubblewrap import Bubblewrap
from aibox.sandbox.sandbox import Sandbox
from aibox.sandbox.session import Session
from aibox.types import Scope


class TestAbuseOfBubblewrap(Abuses):
    @pytest.fixture
    def driver(self) -> Driver:
        return Bubblewrap()

    async def test_a_guest_of_root_is_not_root_outside(self, session: Session) -> None:
        """The processes of a guest belong to an unprivileged user of the host."""
        marker = f"7{time.monotonic_ns()}"
        owners = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(session.bash, f"sleep {marker}; true")
            await until_running(marker)
            owners = [Path(f"/proc/{pid}").stat().st_uid for pid in running(marker)]
            tasks.cancel_scope.cancel()
        assert owners
        assert 0 not in owners


@pytest.mark.anyio
async def test_sessions_do_not_wait_for_each_other(scope: Scope) -> None:
    """Eight at once, each with its own files, take less time than one after the other."""
    seen: list[str] = []
    sandbox = Sandbox(Bubblewrap())

    async def one(name: str) -> None:
        async with sandbox.session(scope=scope) as session:
            await session.write("name", name)
            seen.append((await session.bash("sleep 1; cat name; ls | wc -l")).stdout)

    began = time.monotonic()
    async with anyio.create_task_group() as tasks:
        for number in range(8):
            tasks.start_soon(one, str(number))
    assert time.monotonic() - began < 6
    assert sorted(seen) == [f"{number}1\n" for number in range(8)]
    await sandbox.close()


HOST = """
import asyncio
from aibox.sandbox.sandbox import Sandbox
from aibox.types import Scope
async def main():
    async with Sandbox("bubblewrap").session(scope=Scope.local()) as session:
        await session.bash("setsid sleep MARKER & sleep MARKER")
asyncio.run(main())
"""


@pytest.mark.anyio
async def test_nothing_outlives_a_host_that_was_killed() -> None:
    """After kill -9 of the process that opened the session no process of it is left, and its groups are swept."""
    marker = f"8{time.monotonic_ns()}"
    host = subprocess.Popen([sys.executable, "-c", HOST.replace("MARKER", marker)])
    try:
        await until_running(marker)
        children = Path(f"/proc/{host.pid}/task/{host.pid}/children").read_text().split()
    finally:
        host.send_signal(signal.SIGKILL)
        host.wait()
    assert children
    with anyio.fail_after(5):
        while running(marker) or any(Path("/proc", pid).exists() for pid in children):
            await anyio.sleep(0.02)
    driver = Bubblewrap()
    assert (await driver.available()).ok
    if driver._groups is not None:
        for place in driver._groups._places:
            assert not list(place.parent.glob(f"aibox-{host.pid}-*"))
