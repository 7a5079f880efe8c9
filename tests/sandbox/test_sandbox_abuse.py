"""The abuses against bubblewrap, and what holds for it alone."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import anyio
import pytest
from sandbox_abuses import INODES, Abuses, running, until_running
from sandbox_exhaustion import Exhaustion

from aibox.errors import LimitError
from aibox.execution import Limits
from aibox.protocols import Driver
from aibox.sandbox.bubblewrap import Bubblewrap
from aibox.sandbox.sandbox import Sandbox
from aibox.sandbox.session import Session
from aibox.types import Scope


class TestAbuseOfBubblewrap(Abuses, Exhaustion):
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
async def test_files_are_counted(scope: Scope) -> None:
    """A run that makes more than a workspace may have is stopped and told so; it can remove some, and make no more."""
    sandbox = Sandbox(Bubblewrap(), limits=Limits(memory_mib=4096, wall_s=10, workspace_mib=2))
    async with sandbox.session(scope=scope) as session:
        await session.python("x = 1")
        stopped = await session.python(INODES)
        assert stopped.exit_code is None
        assert "stopped when 512 files exist (file limit)" in stopped.limits_hit[0]
        with pytest.raises(LimitError):
            await session.write("more", b"")
        assert [hit for hit in (await session.bash("mkdir one-more; sleep 9")).limits_hit if "(file limit)" in hit]
        for _ in range(3):
            await session.bash("rm -rf d*")
        assert (await session.bash("mkdir e; echo fine")).stdout == "fine\n"
    await sandbox.close()


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
        tasks = Path(f"/proc/{host.pid}/task").iterdir()
        children = [pid for task in tasks for pid in (task / "children").read_text().split()]
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
