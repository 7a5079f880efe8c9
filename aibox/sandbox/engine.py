"""The container engine, spoken to by its own command: `docker`, or another of the same face."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from subprocess import PIPE
from typing import Any, Final

import anyio

from aibox.errors import SandboxError
from aibox.sandbox.escapes import Escape, holes

INSTALL: Final = "apt install docker.io, and start dockerd; or use another driver"

_CALL_S = 20.0
_SEARCH = "/usr/local/bin:/usr/bin:/bin"


@dataclass(frozen=True, slots=True)
class Facts:
    """What an engine says of itself."""

    version: str
    runtimes: tuple[str, ...]
    components: tuple[tuple[str, str, str], ...]
    """(name, version, revision)"""
    seccomp: bool
    maps_users: bool

    def holes(self, runtime: str) -> list[Escape]:
        """Known ways out. gVisor does not use runc."""
        names = {"containerd", *(() if runtime == "runsc" else ("runc",))}
        return [hole for name, version, revision in self.components if name in names
                for hole in holes(name, version, revision)]  # fmt: skip


class Engine:
    """`host` is the engine's address, such as `unix:///run/docker.sock`; None is the command's own default."""

    def __init__(self, host: str | None = None, *, program: str = "docker") -> None:
        self._host, self._program = host, program

    def command(self, *words: str) -> list[str]:
        """A command line of the engine's client. Raises SandboxError when there is none."""
        path = shutil.which(self._program) or shutil.which(self._program, path=_SEARCH)
        if path is None:
            raise SandboxError(f"{self._program} is not installed, so no code is run in it", hint=INSTALL)
        return [path, *(("-H", self._host) if self._host else ()), *words]

    async def ask(self, *words: str, stdin: bytes = b"", within_s: float = _CALL_S) -> str:
        """What it prints. Raises SandboxError with what it said when it fails or does not answer in time."""
        try:
            with anyio.fail_after(within_s):
                done = await anyio.run_process(
                    self.command(*words), input=stdin, stdout=PIPE, stderr=PIPE, check=False, env=CLEAN
                )
        except TimeoutError:
            raise SandboxError(f"the engine did not answer in {within_s:g} s", hint="is dockerd well?") from None
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise SandboxError(f"{self._program} {words[0]}: {said[-1] if said else 'failed'}"[:500], hint=INSTALL)
        return done.stdout.decode(errors="replace").strip()

    async def facts(self) -> Facts:
        """Raises SandboxError when no engine answers, or when it says nothing that can be read."""
        try:
            version: dict[str, Any] = json.loads(await self.ask("version", "--format", "{{json .Server}}"))
            info: dict[str, Any] = json.loads(await self.ask("info", "--format", "{{json .}}"))
            components = tuple(
                (part["Name"], part["Version"], str((part.get("Details") or {}).get("GitCommit", "")))
                for part in version["Components"]
            )
            options = " ".join(info.get("SecurityOptions") or ())
            return Facts(
                version["Version"], tuple(info["Runtimes"]), components, "seccomp" in options, "userns" in options
            )
        except (ValueError, KeyError, TypeError) as error:
            raise SandboxError(f"the engine's answer cannot be read: {error!r}") from None

    async def image_names(self, image: str) -> list[str]:
        """Names of the variables of the environment that an image brings along."""
        told = await self.ask("image", "inspect", "--format", "{{json .Config.Env}}", image)
        return [str(pair).partition("=")[0] for pair in json.loads(told) or ()]

    async def toolkit_version(self) -> str:
        """Of what gives containers their GPUs, where the engine is on this machine; else, and without it, nothing."""
        path = shutil.which("nvidia-ctk", path=_SEARCH)
        if path is None or (self._host is not None and not self._host.startswith("unix:")):
            return ""
        done = await anyio.run_process([path, "--version"], check=False, env=CLEAN)
        found = re.search(r"version\s+(\S+)", done.stdout.decode(errors="replace"))
        return found[1] if found else ""

    async def image_id(self, image: str) -> str:
        """The id of a local image. Nothing is ever pulled. Raises SandboxError when it is not there."""
        try:
            return await self.ask("image", "inspect", "--format", "{{.Id}}", image)
        except SandboxError:
            raise SandboxError(f"there is no image {image}", hint="build it: aibox sandbox build") from None


CLEAN: Final = {"PATH": _SEARCH, "HOME": "/nonexistent"}
"""The environment of the client: nothing of ours, and no configuration of somebody's home."""
