"""Runs code with the rights of this process, for tests on machines that cannot isolate. It isolates nothing."""

from __future__ import annotations

import marshal
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from typing import Any, Final

import anyio
import anyio.to_thread

from aibox.chat import Health
from aibox.errors import SandboxError
from aibox.execution import Limits, Usage
from aibox.sandbox import program
from aibox.sandbox.guest.processes import KILL, STOP, below, signal_one, state
from aibox.sandbox.line import Frames, Pipes, starting

NOT_HELD: Final[Mapping[str, str]] = {
    "test_it_says_that_it_isolates": "it does not isolate, and says so",
    "test_files_live_as_long_as_the_session": "the files of another session can be found",
    "test_what_is_no_regular_file_is_refused_at_once": "where this process is root, no file is without rights",
    "test_there_is_no_network": "code has this machine's network",
    "test_processes_are_bounded": "processes are not counted",
    "test_the_workspace_is_bounded": "the size of one file is bounded, and not that of all together",
}
"""Tests of the driver's contract that do not hold for it, and why."""

_COMMAND = (sys.executable, "-I", "-B", "-c", "from aibox.testing.unsafe_local_guest import main; main()")
_START_S, _END_S = 30.0, 10.0


class UnsafeLocalDriver:
    """A Driver without any isolation: code can do to this machine whatever this process can.

    It is never chosen by a name or a setting, only by handing it to `Sandbox`, and each session of it is recorded as
    unsafe. Wall time, output and the size of a file are bounded; nothing else is. When this process is killed, what
    its sessions had started may go on.
    """

    name = "unsafe-local"
    recorded: Mapping[str, Any] = {"isolated": False, "unsafe": "code has the rights of the process that runs aibox"}

    async def available(self) -> Health:
        """Never well: it can run code, and not isolate it."""
        return Health(ok=False, detail="UnsafeLocalDriver isolates nothing: code has the rights of this process")

    async def start(self, *, limits: Limits, gpus: int = 0) -> UnsafeLocalGuest:
        """A process with a temporary folder as its workspace. Raises SandboxError, for GPUs too, and on no Linux."""
        if gpus:
            raise SandboxError("this driver gives no GPU: code has whatever this machine has")
        if sys.platform != "linux":
            raise SandboxError(f"code is watched through /proc, and this is {sys.platform}")
        guest = UnsafeLocalGuest(tempfile.mkdtemp(prefix="aibox-unsafe-"))
        told = program.greeting(limits, count_processes=False, per_process_memory=False, count_files=False)
        own = {"top": guest.folder, "packages": (), "env": {**program.ENVIRONMENT, "HOME": guest.folder}}
        async with starting(guest, within_s=_START_S):
            await Frames(guest).greet(marshal.dumps({**marshal.loads(told), **own}, 2))
        return guest

    async def close(self) -> None:
        """Nothing is shared by guests."""


class UnsafeLocalGuest:
    """One process, what it started, and a folder."""

    def __init__(self, folder: str) -> None:
        self.folder = os.path.realpath(folder)
        self._pipes = Pipes.open(_COMMAND)
        self._closing = anyio.Lock()
        self._closed = False

    async def send(self, data: bytes) -> None:
        await self._pipes.send(data)

    async def receive(self) -> bytes:
        return await self._pipes.receive()

    def usage(self) -> Usage | None:
        return Usage()

    def said(self) -> str:
        return self._pipes.said()

    async def close(self) -> None:
        """End what it started, then itself, and remove the folder. Raises SandboxError when something does not end."""
        with anyio.CancelScope(shield=True):
            async with self._closing:
                if self._closed:
                    return
                self._closed = True
                with anyio.move_on_after(_END_S) as clock:
                    # It is there until all it started is gone: it takes in orphans, which would be nobody's after it.
                    signal_one(self._pipes.pid, STOP)
                    while left := {pid for pid in below(self._pipes.pid) if not _ended(pid)}:
                        for number in (STOP, KILL):
                            for pid in left:
                                signal_one(pid, number)
                        await anyio.sleep(0.001)
                    self._pipes.kill()
                    await self._pipes.ended()
                self._pipes.hang_up()
                await anyio.to_thread.run_sync(lambda: shutil.rmtree(self.folder, ignore_errors=True))
        if clock.cancelled_caught:
            raise SandboxError("processes of a session could not be ended", hint="look for processes in state D")


def _ended(pid: int) -> bool:
    letter, _, threads = state(pid)
    return letter in (b"Z", b"X") and threads < 2
