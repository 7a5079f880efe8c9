"""Isolation with Linux namespaces, by bubblewrap: no network, of the host a read-only runtime, bounded use of all.

A session is a process that holds a mount namespace, and in it the workspace, a tmpfs of bounded size: nothing of it is
ever on a disk, and when that process ends, also because this one was killed, nothing is left. Each run gets fresh
namespaces of every kind over that workspace, so nothing but files survives a run.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from subprocess import PIPE, STDOUT

import anyio
import anyio.to_thread
from anyio.abc import Process

from aibox.chat import Health
from aibox.errors import AIBoxError, ConfigError, SandboxError
from aibox.execution import Limits, Result
from aibox.sandbox import command, seccomp
from aibox.sandbox.cgroup import ControlGroup, ControlGroups
from aibox.sandbox.paths import FULL, GET, PUT, inside, refusal
from aibox.sandbox.run import Outcome, run
from aibox.sandbox.runtime import INSTALL, Runtime
from aibox.types import Scope

_MIB = 1024 * 1024
_START_S = 10
_WORD_KIB = 127  # the kernel's MAX_ARG_STRLEN is 128


@dataclass(slots=True)
class _Session:
    limits: Limits
    holder: Process
    pid: int
    uid: int
    lock: anyio.Lock = field(default_factory=anyio.Lock)
    runs: set[anyio.CancelScope] = field(default_factory=set)


class Bubblewrap:
    """The Driver that needs nothing but a kernel with user namespaces and the bubblewrap program.

    Runs of one session take turns. A driver belongs to one event loop. As root, guests run as an unprivileged user of
    the host, another one for every session; as anybody else, as that user, in a user namespace.
    """

    name = "bubblewrap"

    def __init__(self) -> None:
        self._sessions: dict[str, _Session] = {}
        self._trying = anyio.Lock()
        self._runtime: Runtime | None = None
        self._groups: ControlGroups | None = None
        self._filter: bytes | None = None

    async def available(self) -> Health:
        """Run a program and look from inside whether it is isolated. A success is remembered."""
        try:
            await self._ensure()
        except AIBoxError as error:
            return Health(ok=False, detail=str(error))
        return Health(ok=True, detail=self._detail)

    async def start(self, *, scope: Scope, limits: Limits) -> str:  # noqa: ARG002  a handle is all that is shared
        """A new session with an empty workspace. Raises SandboxError where isolation cannot be had."""
        runtime = await self._ensure()
        return await self._open(runtime, limits)

    async def exec(self, handle: str, argv: Sequence[str], *, stdin: bytes = b"") -> Result:
        """Run a command with the workspace as its folder; `python3` in `argv` is the interpreter that runs aibox.

        Output beyond its limit is dropped while the command goes on. Raises SandboxError when the session is gone, and
        ConfigError when `argv` is no command.
        """
        _check(argv)
        session = self._session(handle)
        kept = session.limits.output_kib * 1024
        outcome = await self._run(session, argv, stdin=stdin, keep=(kept, kept))
        return _result(outcome, session.limits)

    async def put(self, handle: str, path: str, data: bytes) -> None:
        """Write a file of the workspace, and the folders above it. Raises AccessError or LimitError."""
        session, path = self._session(handle), inside(path)
        size_mib = session.limits.workspace_mib
        if len(data) > size_mib * _MIB:
            raise refusal(FULL, path, limit_mib=size_mib)
        outcome = await self._run(session, (*command.PYTHON, PUT, path, "0"), stdin=data, keep=(0, 4096), helper=True)
        if outcome.exit_code != 0:
            raise refusal(outcome.exit_code, path, limit_mib=size_mib)

    async def get(self, handle: str, path: str) -> bytes:
        """Read a regular file of the workspace. Raises AccessError, StoreError where there is none, or LimitError."""
        session, path = self._session(handle), inside(path)
        size = session.limits.workspace_mib * _MIB
        outcome = await self._run(session, (*command.PYTHON, GET, path, str(size)), keep=(size, 4096), helper=True)
        if outcome.exit_code != 0:
            raise refusal(outcome.exit_code, path, limit_mib=session.limits.workspace_mib)
        return bytes(outcome.stdout.data)

    async def stop(self, handle: str) -> None:
        session = self._sessions.pop(handle, None)
        if session is None:
            return
        with anyio.CancelScope(shield=True):
            for running in session.runs:
                running.cancel()
            async with session.lock:
                await _end(session.holder)

    def _session(self, handle: str) -> _Session:
        try:
            return self._sessions[handle]
        except KeyError:
            raise SandboxError("there is no such sandbox session", hint="start another; files are lost") from None

    async def _run(
        self,
        session: _Session,
        argv: Sequence[str],
        *,
        keep: tuple[int, int],
        stdin: bytes = b"",
        runtime: Runtime | None = None,
        helper: bool = False,
    ) -> Outcome:
        """`helper` is a program of ours, that a guest's memory limit must not stop."""
        runtime = runtime or await self._ensure()
        limits = session.limits
        grouped = self._groups is not None and not helper
        bounded = grouped and self._bounds_memory
        with anyio.CancelScope() as running:
            session.runs.add(running)
            try:
                async with session.lock, self._group(limits if grouped else None) as group:
                    if session.holder.returncode is not None:
                        raise SandboxError("the sandbox session broke", hint="start another; files are lost")
                    return await run(
                        command.enter(runtime, limits, holder=session.pid, uid=session.uid),
                        command.limited(argv, limits, per_process=not bounded and not helper),
                        owner=session.uid,
                        filter_program=self._filter,
                        group=group,
                        stdin=stdin,
                        keep=keep,
                        wall_s=limits.wall_s,
                    )
            finally:
                session.runs.discard(running)
        raise SandboxError("the sandbox session was ended while a command ran")

    @asynccontextmanager
    async def _group(self, limits: Limits | None) -> AsyncIterator[ControlGroup | None]:
        if limits is None or self._groups is None:
            yield None
            return
        try:
            group = await anyio.to_thread.run_sync(
                partial(self._groups.new, memory_mib=limits.memory_mib, pids=limits.pids)
            )
        except OSError as error:
            raise SandboxError(f"no limits could be set: {error}") from None
        try:
            yield group
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(group.close)

    @property
    def _bounds_memory(self) -> bool:
        return self._groups is not None and "memory" in self._groups.bounds

    @cached_property
    def _detail(self) -> str:
        memory = (
            "of all processes together"
            if self._bounds_memory
            else "of each process (no control group can be made here)"
        )
        calls = "" if self._filter else "; system calls are not filtered on this machine"
        return f"bubblewrap, tried: it isolates; memory is bounded {memory}{calls}"

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
        handle = await self._open(runtime, limits)
        try:
            trial = command.TRIAL.format(filtered=self._filter is not None)
            outcome = await self._run(
                self._sessions[handle], (*command.PYTHON, trial), keep=(4096, 4096), runtime=runtime
            )
        finally:
            await self.stop(handle)
        if outcome.exit_code != 0 or outcome.stdout.data:
            said = outcome.stdout.text + outcome.stderr.text
            raise SandboxError(", ".join(said.split("\n")).strip(", ") or "the trial program was stopped")

    async def _open(self, runtime: Runtime, limits: Limits) -> str:
        """Start the process that holds the session's mounts."""
        with anyio.CancelScope(shield=True):
            holder = await anyio.open_process(
                command.session(runtime, limits),
                stdin=PIPE,
                stdout=PIPE,
                stderr=STDOUT,
                env={"PATH": "/usr/bin:/bin"},
            )
        said = ""
        try:
            assert holder.stdout is not None
            with anyio.move_on_after(_START_S), contextlib.suppress(anyio.EndOfStream):
                said = (await holder.stdout.receive()).decode(errors="replace").strip()
        finally:
            if not said.isdecimal():
                await _end(holder)
        if not said.isdecimal():
            raise SandboxError(f"no session could be made: {said or 'no reason was given'}")
        handle = secrets.token_hex(16)
        uid = _guest_uid() if command.chooses_user() else os.geteuid()
        self._sessions[handle] = _Session(limits=limits, holder=holder, pid=int(said), uid=uid)
        return handle


async def _end(holder: Process) -> None:
    """Let it go in its own way, so that bwrap reaps its child; else kill it."""
    with anyio.CancelScope(shield=True):
        assert holder.stdin is not None
        await holder.stdin.aclose()
        with anyio.move_on_after(1):
            await holder.wait()
        if holder.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                holder.kill()
        await holder.aclose()


def _check(argv: Sequence[str]) -> None:
    words = [word.encode("utf-8", errors="replace") for word in argv]
    if not words or words[0][:1] in (b"", b"-") or any(b"\0" in word for word in words):
        raise ConfigError("a command is a program and its arguments, without NUL, and its name begins with no '-'")
    if max(map(len, words)) > _WORD_KIB * 1024 or sum(map(len, words)) > 8 * _WORD_KIB * 1024:
        raise ConfigError(f"a word of a command is longer than {_WORD_KIB} KiB", hint="write it to a file and run that")
    if any("\ud800" <= character <= "\udfff" for word in argv for character in word):
        raise ConfigError("a command is Unicode text")


def _guest_uid() -> int:
    """A user that nobody is, so that what the kernel counts per user is counted per session; else nobody."""
    uid = 0x70000000 + secrets.randbelow(0x0FFE0000)
    return uid if command.is_mapped(uid) else command.NOBODY


def _result(outcome: Outcome, limits: Limits) -> Result:
    hit = []
    if outcome.timed_out:
        hit.append(f"stopped after {limits.wall_s:g} s (wall time limit); compute less, or in smaller steps")
    if outcome.out_of_memory:
        hit.append(f"a process was stopped at {limits.memory_mib} MiB (memory limit); use less memory at a time")
    for name, kept in (("stdout", outcome.stdout), ("stderr", outcome.stderr)):
        if kept.dropped:
            hit.append(f"only the first {limits.output_kib} KiB of {name} were kept (output limit); print less")
    return Result(
        stdout=outcome.stdout.text,
        stderr=outcome.stderr.text,
        exit_code=outcome.exit_code,
        duration_s=outcome.duration_s,
        peak_memory_mib=outcome.peak_memory_mib,
        truncated=outcome.stdout.dropped or outcome.stderr.dropped,
        limits_hit=tuple(hit),
    )
