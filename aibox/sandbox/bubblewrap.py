"""Isolation with Linux namespaces, by bubblewrap: no network, of the host a read-only runtime, bounded use of all.

A guest is one process tree in namespaces of its own. Its files are tmpfs of bounded size, so nothing of it is ever on a
disk, and when its first process ends, also because this one was killed, nothing is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from functools import cached_property, partial
from io import FileIO
from typing import Any

import anyio
import anyio.to_thread

from aibox.chat import Health
from aibox.errors import AIBoxError, SandboxError
from aibox.execution import Limits, Usage
from aibox.sandbox import command, program, seccomp
from aibox.sandbox.cgroup import ControlGroup, ControlGroups
from aibox.sandbox.line import Frames, Pipes, pipe, starting
from aibox.sandbox.runtime import INSTALL, NOBODY, Runtime, chooses_user, is_mapped
from aibox.sandbox.session import Session

_START_S = 10.0
_END_S = 5.0
_TRIES = 5
"""bwrap lists the host's mounts and then changes each: one that goes away in between, an engine's, makes it give up."""


class Bubblewrap:
    """The Driver that needs nothing but a kernel with user namespaces and the bubblewrap program.

    A driver belongs to one event loop. As root, guests run as an unprivileged user of the host, another one for every
    session; as anybody else, as that user, in a user namespace.
    """

    name = "bubblewrap"

    def __init__(self) -> None:
        self._trying = anyio.Lock()
        self._runtime: Runtime | None = None
        self._groups: ControlGroups | None = None
        self._filter: bytes | None = None
        self._starter = ThreadPoolExecutor(1, "sandbox starts")

    @property
    def recorded(self) -> Mapping[str, Any]:
        return {"memory": "together" if self._bounds_memory else "each", "filtered": self._filter is not None}

    async def available(self) -> Health:
        """Run a program and look from inside whether it is isolated. A success is remembered."""
        try:
            await self._ensure()
        except AIBoxError as error:
            return Health(ok=False, detail=str(error))
        return Health(ok=True, detail=self._detail)

    async def start(self, *, limits: Limits, gpus: int = 0) -> BubblewrapGuest:
        """A new guest with an empty workspace. Raises SandboxError where isolation cannot be had, and for GPUs."""
        if gpus:
            raise SandboxError("bubblewrap passes no GPU in", hint='driver = "docker", with the NVIDIA toolkit')
        runtime = await self._ensure()
        return await self._open(runtime, limits)

    async def close(self) -> None:
        """Nothing is shared by guests."""

    @property
    def _bounds_memory(self) -> bool:
        return self._groups is not None and "memory" in self._groups.bounds

    @cached_property
    def _detail(self) -> str:
        bounds = self._groups.bounds if self._groups is not None else frozenset()
        memory = "all processes together" if "memory" in bounds else "each process (no control group can be made here)"
        time = "" if "cpu" in bounds else "; processor time is bounded by the wall time only"
        calls = "" if self._filter else "; system calls are not filtered on this machine"
        return f"bubblewrap, tried: it isolates, and the kernel is shared; memory is bounded of {memory}{time}{calls}"

    async def _ensure(self) -> Runtime:
        async with self._trying:
            if self._runtime is None:
                self._runtime = await self._choose()
            return self._runtime

    async def _choose(self) -> Runtime:
        """The first combination that passes the trial, with control groups if possible."""
        candidates = Runtime.candidates()
        try:
            os.close(os.pidfd_open(os.getpid()))
        except OSError:
            raise SandboxError("this kernel is older than Linux 5.3, so no code is run") from None
        self._filter = seccomp.program()
        found = await anyio.to_thread.run_sync(ControlGroups.find)
        reasons = []
        for candidate in candidates:
            for groups in dict.fromkeys((found, None)):
                self._groups = groups
                try:
                    await self._try(candidate)
                except (SandboxError, OSError) as error:
                    reasons.append(f"{candidate.bwrap_on_host}: {getattr(error, 'message', error)}")
                else:
                    return candidate
        raise SandboxError(
            f"code cannot be isolated here, so none is run: {'; '.join(dict.fromkeys(reasons))}",
            hint=f"allow user namespaces to bubblewrap, or install another one: {INSTALL}",
        )

    async def _try(self, runtime: Runtime) -> None:
        limits = Limits(memory_mib=256, pids=8, wall_s=10, output_kib=4, workspace_mib=1)
        session = Session(await self._open(runtime, limits), limits=limits)
        try:
            result = await session.bash(f"exec python3 -I -S -c '{command.TRIAL.format(filtered=bool(self._filter))}'")
        finally:
            await session.close()
        if not result.ok or result.stdout:
            said = result.stdout + result.stderr
            raise SandboxError(", ".join(said.split("\n")).strip(", ") or "the trial program was stopped")

    async def _open(self, runtime: Runtime, limits: Limits) -> BubblewrapGuest:
        for _ in range(_TRIES - 1):
            try:
                return await self._open_once(runtime, limits)
            except SandboxError as error:
                if "remount" not in error.message:
                    raise
        return await self._open_once(runtime, limits)

    async def _open_once(self, runtime: Runtime, limits: Limits) -> BubblewrapGuest:
        uid = _guest_uid() if chooses_user() else os.geteuid()
        new: Callable[[], ControlGroup] | None = None
        if self._groups is not None:
            new = partial(self._groups.new, memory_mib=limits.memory_mib, pids=limits.pids, cpus=limits.cpus)
        guest = BubblewrapGuest(self._starter)
        greeting = program.greeting(
            limits, count_processes=True, per_process_memory=not self._bounds_memory, count_files=True
        )
        async with starting(guest, within_s=_START_S):
            command_ = partial(command.isolate, runtime, limits, uid=uid)
            await guest.begin(command_, new, uid=uid, filter_program=self._filter)
            await guest.send(program.body(same=True))  # it reads that while it is bound, and does no more
            await guest.bound()
            await Frames(guest).greet(greeting)
        return guest


class BubblewrapGuest:
    """One process tree in its namespaces, held by its first process.

    `starter` is one thread: what it started ends with it.
    """

    def __init__(self, starter: ThreadPoolExecutor) -> None:
        self._starter = starter
        self._starting: asyncio.Future[None] | None = None
        self._group: ControlGroup | None = None
        self._pipes: Pipes | None = None
        self._status: FileIO | None = None
        self._status_said = b""
        self._pidfd: int | None = None
        self._closing = anyio.Lock()
        self._closed = False

    async def begin(
        self,
        make: partial[list[str]],
        group: Callable[[], ControlGroup] | None,
        *,
        uid: int,
        filter_program: bytes | None,
    ) -> None:
        """Start it in its control group, and hold on to its first process."""
        start = partial(self._start, make, group, uid=uid, filter_program=filter_program)
        self._starting = asyncio.get_running_loop().run_in_executor(self._starter, start)
        try:
            await asyncio.shield(self._starting)
        except OSError as error:
            raise SandboxError(f"the isolation could not be started: {error}") from None
        await self._find()
        if self._pidfd is None:
            raise SandboxError("the isolation failed")

    def _start(
        self,
        make: partial[list[str]],
        group: Callable[[], ControlGroup] | None,
        *,
        uid: int,
        filter_program: bytes | None,
    ) -> None:
        with ExitStack() as given, ExitStack() as kept:
            status_r, status_w = pipe(kept, given, owner=None)
            passed, options = [status_w.fileno()], ["--json-status-fd", str(status_w.fileno())]
            etc = {name: self._give(given, data) for name, data in command.ETC.items()}
            if filter_program is not None:
                number = self._give(given, filter_program)
                options += ["--seccomp", str(number)]
                passed.append(number)
            passed += etc.values()
            words = [*make(etc=etc), *options, "--", *program.COMMAND]
            self._status = status_r
            os.set_blocking(status_r.fileno(), False)
            kept.pop_all()
            self._group = group and group()
            with self._group.joined() if self._group is not None else nullcontext():
                self._pipes = Pipes.open(words, owner=uid, passed=passed)

    async def bound(self) -> None:
        """Take its first process into the control group: before it is greeted, since then it forks."""
        if self._group is not None and self._group.late:
            try:
                await anyio.to_thread.run_sync(self._group.add, self._pid)
            except OSError as error:
                raise SandboxError(f"no limits could be set: {error}") from None

    @staticmethod
    def _give(stack: ExitStack, data: bytes) -> int:
        """A descriptor from which a child reads `data`, which a pipe can hold."""
        reader, writer = pipe(stack, stack, owner=None)
        writer.write(data)
        writer.close()
        return reader.fileno()

    async def _find(self) -> None:
        """Hold on to the first process as soon as bwrap names it: a pid is used again, a pidfd is not."""
        status = self._status
        assert status is not None
        while self._pidfd is None:
            await anyio.wait_readable(status)
            chunk = status.read(4096)
            if not chunk:
                return
            self._status_said += chunk
            # bwrap writes its JSON piece by piece: a number is whole when something follows it.
            if pid := re.search(rb'"child-pid": (\d+)\D', self._status_said):
                self._pid = int(pid[1])
                with contextlib.suppress(ProcessLookupError):
                    self._pidfd = os.pidfd_open(self._pid)

    async def send(self, data: bytes) -> None:
        assert self._pipes is not None
        await self._pipes.send(data)

    async def receive(self) -> bytes:
        assert self._pipes is not None
        return await self._pipes.receive()

    def usage(self) -> Usage | None:
        if self._group is None or self._closed:
            return Usage()
        with contextlib.suppress(OSError):
            return Usage(self._group.peak_mib(), self._group.killed())
        return Usage()

    def said(self) -> str:
        return self._pipes.said() if self._pipes is not None else ""

    async def close(self) -> None:
        """Kill the first process and wait until all is gone. Raises SandboxError when the kernel has not done so."""
        with anyio.CancelScope(shield=True):
            async with self._closing:
                if self._closed:
                    return
                self._closed = True
                if self._starting is not None:
                    await asyncio.wait([self._starting])
                ended = self._pipes is None or await self._end(self._pipes)
                if self._pipes is not None:
                    self._pipes.hang_up()
                if self._status is not None:
                    self._status.close()
                if self._pidfd is not None:
                    os.close(self._pidfd)
                if self._group is not None:
                    await self._group.close()
        if not ended:
            raise SandboxError("processes of a session could not be ended", hint="look for processes in state D")

    async def _end(self, pipes: Pipes) -> bool:
        with anyio.move_on_after(_END_S) as clock:
            # While it is being made: killing bwrap between its fork and its child's first steps could leave the child.
            if self._pidfd is None and self._status is not None:
                await self._find()
            if self._pidfd is not None:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
                await anyio.wait_readable(self._pidfd)
            await pipes.ended()
        if clock.cancelled_caught:
            pipes.kill()
        return not clock.cancelled_caught


def _guest_uid() -> int:
    """A user that nobody is, so that what the kernel counts per user is counted per session; else nobody."""
    uid = 0x70000000 + secrets.randbelow(0x0FFE0000)
    return uid if is_mapped(uid) else NOBODY
