"""One command in its namespaces: started, fed, read up to a bound, and ended with every process that it started."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from io import FileIO

import anyio
import anyio.to_thread
from anyio.abc import Process

from aibox.errors import SandboxError
from aibox.sandbox.cgroup import ControlGroup

# The first line of stdin opens the gate: by then the process is in its control group, and all that follows inherits it.
# `read` takes a pipe byte by byte, so the guest's own stdin begins right after it.
_GATE = ("/bin/sh", "-c", 'read -r _ && exec "$@"', "sh")
_CHUNK = 64 * 1024
_END_S = 5.0


@dataclass(slots=True)
class Kept:
    """The first `limit` bytes of a stream; `dropped` says that there were more."""

    limit: int
    data: bytearray = field(default_factory=bytearray)
    dropped: bool = False

    async def read(self, pipe: FileIO) -> None:
        while True:
            await anyio.wait_readable(pipe)
            chunk = pipe.read(_CHUNK)
            if not chunk:
                return
            room = self.limit - len(self.data)
            self.data += chunk[:room]
            if len(chunk) > room:
                self.dropped = True
                # The writer has to wait for the pipe, so that a flood takes little of the host's time.
                await anyio.sleep(0.001)

    @property
    def text(self) -> str:
        return self.data.decode("utf-8", errors="replace")


@dataclass(slots=True)
class Outcome:
    """What came of a command. `exit_code` is None when it was stopped at the time limit or for its memory."""

    stdout: Kept
    stderr: Kept
    exit_code: int | None = None
    timed_out: bool = False
    out_of_memory: bool = False
    duration_s: float = 0.0
    peak_memory_mib: float | None = None


async def run(
    bwrap: Sequence[str],
    argv: Sequence[str],
    *,
    owner: int,
    filter_program: bytes | None,
    group: ControlGroup | None,
    stdin: bytes,
    keep: tuple[int, int],
    wall_s: float,
) -> Outcome:
    """Run `argv` under `bwrap` (program and options); keep the first bytes of stdout and stderr, `keep` of each.

    `owner` is the guest's user on the host: the pipes are made its own, so that it can open /dev/stdin and its like.
    When it returns or raises, also when cancelled, no process of it is left. Raises SandboxError when the isolation
    failed, or its processes could not be ended.
    """
    outcome = Outcome(Kept(keep[0]), Kept(keep[1]))
    began = time.perf_counter()
    async with _start(bwrap, argv, owner=owner, filter_program=filter_program) as started:
        if group is not None:
            try:
                await anyio.to_thread.run_sync(group.add, started.process.pid)
            except OSError as error:
                raise SandboxError(f"no limits could be set: {error}") from None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(outcome.stdout.read, started.stdout)
            tasks.start_soon(outcome.stderr.read, started.stderr)
            tasks.start_soon(_feed, started.stdin, b"\n" + stdin)
            with anyio.move_on_after(wall_s) as clock:
                await started.init.find()
                await started.process.wait()
            outcome.timed_out = clock.cancelled_caught
            if not await started.init.end(started.process):
                tasks.cancel_scope.cancel()
            # Else nobody is left who could write: the tasks read to the end and are done.
    outcome.duration_s = time.perf_counter() - began
    if not outcome.timed_out:
        outcome.exit_code = started.init.exit_code
    if group is not None:
        outcome.out_of_memory = group.killed() > 0
        outcome.peak_memory_mib = group.peak_mib()
        if outcome.out_of_memory and outcome.exit_code == 128 + signal.SIGKILL:
            outcome.exit_code = None
    if outcome.exit_code is None and not (outcome.timed_out or outcome.out_of_memory):
        said = outcome.stderr.text[-500:].strip() or "no reason was given"
        raise SandboxError(f"the isolation failed: {said}", hint="`aibox doctor` tries it and says more")
    return outcome


class _Init:
    """The first process of the guest's pid namespace. When it is gone the kernel has ended every other one in there."""

    def __init__(self, status: FileIO) -> None:
        self._status = status
        self._said = b""
        self._over = False
        self._pidfd: int | None = None
        self.exit_code: int | None = None
        """The guest's, from bwrap over a pipe that the guest does not have. None: never started, or not over."""

    async def find(self) -> None:
        """Hold on to it as soon as bwrap names it: a pid is used again, a pidfd is not."""
        while self._pidfd is None and not self._over:
            await anyio.wait_readable(self._status)
            self._read()

    def _read(self) -> None:
        while chunk := self._status.read(4096):  # None: nothing yet
            self._said += chunk
        self._over = chunk == b""
        # bwrap writes its JSON piece by piece: a number is whole when something follows it.
        if self._pidfd is None and (pid := re.search(rb'"child-pid": (\d+)\D', self._said)):
            try:
                self._pidfd = os.pidfd_open(int(pid[1]))
            except ProcessLookupError:
                self._over = True  # already gone
        if code := re.search(rb'"exit-code": (\d+)\D', self._said):
            self.exit_code = int(code[1])

    async def end(self, process: Process) -> bool:
        """Kill it, wait until all is gone, and reap bwrap. False when the kernel has not done so after 5 s."""
        with anyio.CancelScope(shield=True), anyio.move_on_after(_END_S) as clock:
            # While it is being made: killing bwrap between its fork and its child's first steps could leave the child.
            await self.find()
            if self._pidfd is not None:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
                await anyio.wait_readable(self._pidfd)
            # bwrap ends when its child has, and also when it never had one: then its status pipe is at its end.
            await process.wait()
            self._read()
        if clock.cancelled_caught:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        return not clock.cancelled_caught

    def close(self) -> None:
        if self._pidfd is not None:
            os.close(self._pidfd)


@dataclass(frozen=True, slots=True)
class _Started:
    process: Process
    init: _Init
    stdin: FileIO
    stdout: FileIO
    stderr: FileIO


@asynccontextmanager
async def _start(
    bwrap: Sequence[str], argv: Sequence[str], *, owner: int, filter_program: bytes | None
) -> AsyncIterator[_Started]:
    """bwrap, waiting at its gate. The pipes are ours: an event loop may take sockets, which a guest cannot open."""
    with ExitStack() as ours:
        with ExitStack() as theirs:
            stdin_r, stdin_w = _pipe(theirs, ours, owner=owner)
            stdout_r, stdout_w = _pipe(ours, theirs, owner=owner)
            stderr_r, stderr_w = _pipe(ours, theirs, owner=owner)
            status_r, status_w = _pipe(ours, theirs, owner=owner)
            passed, options = [status_w.fileno()], ["--json-status-fd", str(status_w.fileno())]
            if filter_program is not None:
                filter_r, filter_w = _pipe(theirs, theirs, owner=owner)
                filter_w.write(filter_program)
                filter_w.close()
                passed.append(filter_r.fileno())
                options += ["--seccomp", str(filter_r.fileno())]
            # An empty environment: the guest can read that of its first process, which is bwrap.
            with anyio.CancelScope(shield=True):
                process = await anyio.open_process(
                    [*_GATE, *bwrap, *options, "--", *argv],
                    stdin=stdin_r,
                    stdout=stdout_w,
                    stderr=stderr_w,
                    env={},
                    cwd="/",
                    pass_fds=passed,
                )
        for pipe in (stdin_w, stdout_r, stderr_r, status_r):
            os.set_blocking(pipe.fileno(), False)
        init = _Init(status_r)
        try:
            yield _Started(process, init, stdin_w, stdout_r, stderr_r)
        finally:
            stdin_w.close()  # behind a gate that never opened, this ends the shell
            ended = await init.end(process)
            init.close()
            if not ended:
                raise SandboxError("processes of a run could not be ended", hint="look for processes in state D")


def _pipe(reader: ExitStack, writer: ExitStack, *, owner: int) -> tuple[FileIO, FileIO]:
    """Two ends, each closed with its stack."""
    r, w = os.pipe()
    ends = reader.enter_context(FileIO(r, "rb")), writer.enter_context(FileIO(w, "wb"))
    if os.geteuid() != owner:
        os.fchown(r, owner, owner)
    return ends


async def _feed(stdin: FileIO, data: bytes) -> None:
    """Write it all, or until nobody reads any more, and close."""
    rest = memoryview(data)
    with stdin, contextlib.suppress(BrokenPipeError):
        while rest:
            await anyio.wait_writable(stdin)
            rest = rest[stdin.write(rest[:_CHUNK]) or 0 :]
