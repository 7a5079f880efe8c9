"""The line to a guest: three pipes of ours, and frames over two of them.

An event loop may take sockets for pipes, which a guest cannot open by name, so these are made here.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from io import FileIO
from typing import Protocol

import anyio

from aibox.errors import SandboxError
from aibox.protocols import Guest

_CHUNK = 256 * 1024
_SEND_S = 10.0
_PIPE = 128 * 1024
"""Bytes on their way to a guest: the program that it reads first fits, so that nobody waits for it to be read."""
MAX_FRAME = 1024 * 1024
"""No frame of a guest is longer; one that says so is not ours any more."""


class Pipes:
    """A started process and our ends of its standard streams."""

    def __init__(self, process: subprocess.Popen[bytes], stdin: FileIO, stdout: FileIO, stderr: FileIO) -> None:
        self._process = process
        self._stdin, self._stdout, self._stderr = stdin, stdout, stderr
        for pipe in (stdin, stdout, stderr):
            os.set_blocking(pipe.fileno(), False)

    @classmethod
    def open(
        cls,
        command: Sequence[str],
        *,
        owner: int | None = None,
        passed: Sequence[int] = (),
        environment: Mapping[str, str] = {"PATH": "/usr/local/bin:/usr/bin:/bin"},
    ) -> Pipes:
        """Start a process with nothing of our environment; `owner` is the user that its pipes are given to."""
        with ExitStack() as theirs, ExitStack() as ours:
            stdin_r, stdin_w = pipe(theirs, ours, owner=owner)
            stdout_r, stdout_w = pipe(ours, theirs, owner=owner)
            stderr_r, stderr_w = pipe(ours, theirs, owner=owner)
            with contextlib.suppress(OSError):  # a user may not have so much in pipes
                fcntl.fcntl(stdin_w, fcntl.F_SETPIPE_SZ, _PIPE)
            # Not the event loop's own way, which starts a thread for each process to wait for it.
            process = subprocess.Popen(  # noqa: S603 - words of ours
                command,
                stdin=stdin_r,
                stdout=stdout_w,
                stderr=stderr_w,
                env=environment,
                cwd="/",
                pass_fds=passed,
            )
            ours.pop_all()
        return cls(process, stdin_w, stdout_r, stderr_r)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def send(self, data: bytes) -> None:
        """All of it, also when cancelled: half a frame would spoil the line. Raises SandboxError when nobody reads."""
        rest = memoryview(data)
        try:
            with anyio.CancelScope(shield=True), anyio.fail_after(_SEND_S):
                while rest:
                    # There is room as a rule; to be told so first would cost a turn of the loop for every frame.
                    if (taken := self._stdin.write(rest[:_CHUNK])) is None:
                        await anyio.wait_writable(self._stdin)
                    rest = rest[taken or 0 :]
        except (OSError, ValueError, anyio.ClosedResourceError):  # TimeoutError is an OSError
            raise SandboxError("the sandbox session is over", hint="start another; files are lost") from None

    async def receive(self) -> bytes:
        try:
            while (chunk := self._stdout.read(_CHUNK)) is None:
                await anyio.wait_readable(self._stdout)
        except (OSError, ValueError, anyio.ClosedResourceError):
            return b""
        return chunk

    def said(self) -> str:
        """The end of what the process wrote to stderr."""
        with contextlib.suppress(OSError, ValueError):
            return (self._stderr.read(65536) or b"")[-1000:].decode(errors="replace").strip()
        return ""

    async def ended(self) -> None:
        """Wait until the process is over, and bury it."""
        if self._process.returncode is None:
            ending = os.pidfd_open(self._process.pid)
            try:
                await anyio.wait_readable(ending)
            finally:
                os.close(ending)
            self._process.wait()

    def kill(self) -> None:
        self._process.kill()

    def hang_up(self) -> None:
        for file in (self._stdin, self._stdout, self._stderr):
            if not file.closed:
                with contextlib.suppress(RuntimeError):
                    anyio.notify_closing(file)
                file.close()


def pipe(reader: ExitStack, writer: ExitStack, *, owner: int | None) -> tuple[FileIO, FileIO]:
    """Two ends, each closed with its stack."""
    r, w = os.pipe()
    ends = reader.enter_context(FileIO(r, "rb")), writer.enter_context(FileIO(w, "wb"))
    if owner is not None and owner != os.geteuid():
        os.fchown(r, owner, owner)
    return ends


class Starting(Guest, Protocol):
    """A guest that can say why it did not start."""

    def said(self) -> str: ...


@asynccontextmanager
async def starting(guest: Starting, *, within_s: float) -> AsyncIterator[None]:
    """What a driver does to start a guest. One that fails or takes too long is closed; raises SandboxError with why."""
    try:
        with anyio.fail_after(within_s):
            yield
    except BaseException as error:
        said = guest.said()
        await guest.close()
        if isinstance(error, TimeoutError):
            late = f"it did not answer within {within_s:g} s"
            hint = "is the container engine well, or the machine too busy?"
            raise SandboxError(f"no session could be made: {said or late}", hint=hint) from None
        if isinstance(error, SandboxError):
            raise SandboxError(f"no session could be made: {said or error}") from None
        raise


class Frames:
    """Frames over a guest's line: a letter, a length of four bytes, and as many bytes."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._buffer = bytearray()

    async def send(self, kind: bytes, data: bytes = b"") -> None:
        await self._guest.send(kind + len(data).to_bytes(4, "big") + data)

    async def receive(self) -> tuple[bytes, bytes]:
        """The next frame. Raises SandboxError at the end of the line, and when what came is no frame."""
        while True:
            if len(self._buffer) >= 5:
                size = int.from_bytes(self._buffer[1:5], "big")
                if size > MAX_FRAME:
                    raise SandboxError("the sandbox session broke", hint="start another; files are lost")
                if len(self._buffer) >= 5 + size:
                    kind, data = bytes(self._buffer[:1]), bytes(self._buffer[5 : 5 + size])
                    del self._buffer[: 5 + size]
                    return kind, data
            chunk = await self._guest.receive()
            if not chunk:
                raise SandboxError("the sandbox session broke", hint="start another; files are lost")
            self._buffer += chunk

    async def greet(self, greeting: bytes) -> None:
        """Send the limits, and wait until they hold. Raises SandboxError when they do not."""
        await self.send(b"H", greeting)
        kind, data = await self.receive()
        if (kind, facts(data).get("code")) != (b"x", "0"):
            raise SandboxError("the first process inside could not protect itself, so no code is run")


def facts(data: bytes) -> dict[str, str]:
    """What the last frame of an answer says."""
    pairs = (part.partition("=") for part in data.decode("ascii", errors="replace").split(";"))
    return {name: value for name, _, value in pairs}
