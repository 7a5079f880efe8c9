"""A program inside that is spoken with while it runs: bytes to its stdin and from its stdout, until one side ends.

What it prints is not kept here: it waits in the pipes until somebody reads it, and then so does the program.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import anyio.to_thread

from aibox.errors import ConfigError, LimitError, SandboxError
from aibox.sandbox.answer import Answer
from aibox.sandbox.line import Frames

if TYPE_CHECKING:
    import tarfile

_PIECE = 256 * 1024
_MIB = 1024 * 1024
_LINE = 16 * _MIB


class Talk:
    """Made by `Session.talk`. Receive in one task while another sends: what nobody reads makes the program wait."""

    def __init__(self, frames: Frames, answer: Answer) -> None:
        self._frames = frames
        self._answer = answer
        self.over = False
        self.stopped = False

    @property
    def exit_code(self) -> int | None:
        """As a shell says it; None while it runs, and when it was stopped."""
        code = self._answer.facts.get("code")
        if code is None or self.stopped:
            return None
        return int(code) if int(code) >= 0 else 128 - int(code)

    @property
    def stderr(self) -> str:
        """The beginning of what it has written there, up to the session's `output_kib`."""
        return self._answer.text("stderr")

    async def send(self, data: bytes) -> None:
        """To its stdin; an ended program reads nothing. Raises SandboxError when the session is gone."""
        for start in range(0, len(data), _PIECE):
            if not self.over:
                await self._frames.send(b"S", data[start : start + _PIECE])

    async def end_input(self) -> None:
        """It reads no more than what was sent."""
        if not self.over:
            await self._frames.send(b"S")

    async def receive(self) -> bytes:
        """Some of its stdout, when there is some; nothing when it has ended. Raises SandboxError with the session."""
        while not self.over:
            kind, data = await self._frames.receive()
            if kind == b"o":
                return data
            self.over = self._answer.take(kind, data)
        return b""

    async def lines(self) -> AsyncIterator[bytes]:
        """Its stdout line by line, without their ends. Raises SandboxError for one of more than 16 MiB."""
        rest = bytearray()
        while data := await self.receive():
            *whole, last = data.split(b"\n")
            for line in whole:
                yield bytes(rest + line)
                rest.clear()
            rest += last
            if len(rest) > _LINE:
                raise SandboxError("a program inside wrote a line without an end", hint="16 MiB is the most")
        if rest:
            yield bytes(rest)


async def unpack(folder: Path, talk: Talk, *, limit_mib: float) -> None:
    """Give all that is in a folder of the host to a `tar -x` inside: files, folders, and links as links.

    Raises LimitError when it has more than `limit_mib`, ConfigError for no folder, SandboxError when tar failed.
    """
    with tempfile.TemporaryFile() as archive:
        await anyio.to_thread.run_sync(_pack, folder, archive, limit_mib)
        while piece := archive.read(_PIECE):
            await talk.send(piece)
    await talk.end_input()
    while await talk.receive():
        pass
    if talk.exit_code != 0:
        raise SandboxError(f"{folder} could not be copied into the sandbox: {talk.stderr.strip()[:300]}")


def _pack(folder: Path, archive: IO[bytes], limit_mib: float) -> None:
    import tarfile  # not small, and seldom needed

    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}")
    left = limit_mib * _MIB

    def bounded(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        nonlocal left
        if not (member.isfile() or member.isdir() or member.issym() or member.islnk()):
            return None
        left -= member.size if member.isfile() else 0
        if left < 0:
            raise LimitError(f"{folder} has more than {limit_mib:g} MiB", hint="raise workspace_mib of the sandbox")
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        return member

    with tarfile.open(fileobj=archive, mode="w") as packed:
        packed.add(folder, arcname=".", filter=bounded)
    archive.seek(0)
