"""Isolation by a container engine: one container a session, started from nothing but what `hardened` says.

The container's first process is the supervisor, and the engine's client carries its line. When the client loses its
stdin, also because this process was killed, the supervisor ends, and the engine removes the container with everything.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, Literal

import anyio

from aibox.chat import Health
from aibox.errors import AIBoxError, SandboxError
from aibox.execution import Limits, Usage
from aibox.sandbox import command, program, seccomp
from aibox.sandbox.engine import CLEAN, Engine, Facts
from aibox.sandbox.escapes import TOOLKIT, UnsafeRuntime, holes
from aibox.sandbox.hardening import GVISOR, hardened
from aibox.sandbox.leftovers import LABEL, Leftovers
from aibox.sandbox.line import Frames, Pipes, pipe, starting
from aibox.sandbox.runtime import NOBODY
from aibox.sandbox.session import Session

DEFAULT_IMAGE = "aibox-sandbox:latest"

_PLAIN = {"PATH", "LANG", "LC_ALL", "GPG_KEY", "PYTHON_VERSION", "PYTHON_SHA256"}
"""What an image may have in its environment and still get GPUs: nothing that a loader or the GPU toolkit reads."""

_START_S = 30.0
_END_S = 3.0


class Docker:
    """The Driver that needs a Docker engine and an image; see `aibox sandbox build`.

    `gvisor` "auto" uses it where the engine has it and it works, "require" refuses to run without. A runtime with a
    known escape is refused, unless `accept` names each; what was accepted is recorded with every session.
    """

    name = "docker"

    def __init__(
        self,
        *,
        image: str = DEFAULT_IMAGE,
        host: str | None = None,
        gvisor: Literal["auto", "require", "off"] = "auto",
        accept: UnsafeRuntime | None = None,
    ) -> None:
        self._engine = Engine(host)
        self._image, self._gvisor = image, gvisor
        self._accepted = frozenset(accept.cves if accept is not None else ())
        self._leftovers = Leftovers(self._engine)
        self._trying = anyio.Lock()
        self._chosen: tuple[Facts, str, str] | None = None
        self._failed = 0.0, "", ""
        """When it could not be chosen, and why."""
        self._gpu_holes: frozenset[str] = frozenset()

    @property
    def recorded(self) -> Mapping[str, Any]:
        """What is recorded of it with every session."""
        if self._chosen is None:
            return {}
        facts, runtime, image = self._chosen
        accepted = sorted(self._accepted & ({hole.cve for hole in facts.holes(runtime)} | self._gpu_holes))
        return {"engine": facts.version, "runtime": runtime, "image": image, "accepted": accepted}

    async def available(self) -> Health:
        """Start a container and look from inside whether it is isolated. A success is remembered."""
        try:
            facts, runtime, image = await self._ensure()
        except AIBoxError as error:
            return Health(ok=False, detail=str(error))
        accepted = f"; accepted: {', '.join(self.recorded['accepted'])}" if self.recorded["accepted"] else ""
        shared = "" if runtime == GVISOR else ", and the kernel is shared"
        return Health(
            ok=True,
            detail=f"docker {facts.version}, {runtime}, tried: it isolates{shared}; image {image[:19]}{accepted}",
        )

    async def start(self, *, limits: Limits, gpus: int = 0) -> DockerGuest:
        """A new container, with the first `gpus` of the engine. Raises SandboxError where isolation cannot be had."""
        facts, runtime, image = await self._ensure()
        if gpus:
            await self._gate_gpus(runtime, image)
        return await self._open(facts, runtime, image, limits, gpus=gpus)

    async def close(self) -> None:
        """What the engine has not removed by now, the next process on this machine has removed."""
        await self._leftovers.close()

    async def _ensure(self) -> tuple[Facts, str, str]:
        came = time.monotonic()
        async with self._trying:
            if self._chosen is None:
                failed_at, why, hint = self._failed
                # An engine that says nothing is waited for once, and not by everybody who came meanwhile in turn.
                if failed_at > came:
                    raise SandboxError(why, hint=hint)
                try:
                    self._chosen = await self._choose()
                except SandboxError as error:
                    self._failed = time.monotonic(), error.message, error.hint
                    raise
            return self._chosen

    async def _choose(self) -> tuple[Facts, str, str]:
        facts = await self._engine.facts()
        if not facts.seccomp:
            raise SandboxError("this engine does not filter system calls, so no code is run in it")
        image = await self._engine.image_id(self._image)
        await self._leftovers.sweep()
        runtimes = {"auto": (GVISOR, "runc"), "require": (GVISOR,), "off": ("runc",)}[self._gvisor]
        reasons = []
        for runtime in runtimes:
            try:
                self._gate(facts, runtime)
                await self._try(facts, runtime, image)
            except SandboxError as error:
                reasons.append(f"{runtime}: {error.message}")
            else:
                return facts, runtime, image
        raise SandboxError(
            f"code cannot be isolated by this engine, so none is run: {'; '.join(reasons)}",
            hint="update it, or accept what is known with UnsafeRuntime",
        )

    def _gate(self, facts: Facts, runtime: str) -> None:
        if runtime not in facts.runtimes:
            raise SandboxError("the engine does not have it")
        if left := [hole for hole in facts.holes(runtime) if hole.cve not in self._accepted]:
            named = ", ".join(f"{hole.cve} ({hole.what})" for hole in left)
            raise SandboxError(f"known ways out of this version: {named}")

    async def _gate_gpus(self, runtime: str, image: str) -> None:
        """What makes a container with GPUs runs as root on the host, and with the environment of the image."""
        if runtime == GVISOR:
            raise SandboxError("GPUs are passed to containers of runc only", hint='gvisor = "off", if that will do')
        if strange := sorted(set(await self._engine.image_names(image)) - _PLAIN):
            raise SandboxError(
                f"the image brings an environment along, and GPUs go to none that does: {', '.join(strange)}"[:500],
                hint="use the image of: aibox sandbox build",
            )
        known = holes(TOOLKIT, await self._engine.toolkit_version())
        if left := [hole for hole in known if hole.cve not in self._accepted]:
            named = ", ".join(f"{hole.cve} ({hole.what})" for hole in left)
            raise SandboxError(f"known ways out of the GPU toolkit: {named}", hint="update it, or accept what is known")
        self._gpu_holes = frozenset(hole.cve for hole in known)

    async def _try(self, facts: Facts, runtime: str, image: str) -> None:
        limits = Limits(memory_mib=256, pids=8, wall_s=10, output_kib=4, workspace_mib=1)
        session = Session(await self._open(facts, runtime, image, limits), limits=limits)
        try:
            # gVisor filters system calls of the host; the guest's own kernel has no say in it.
            trial = command.TRIAL.format(filtered=runtime != GVISOR)
            result = await session.bash(f"exec python3 -I -S -c '{trial}'")
        finally:
            await session.close()
        if not result.ok or result.stdout:
            said = result.stdout + result.stderr
            raise SandboxError(", ".join(said.split("\n")).strip(", ") or "the trial program was stopped")

    async def _open(self, facts: Facts, runtime: str, image: str, limits: Limits, *, gpus: int = 0) -> DockerGuest:
        # Another user for each session: what the kernel counts by user is then counted by session.
        uid = NOBODY if facts.maps_users else 0x10000000 + secrets.randbelow(0x60000000)
        name = f"aibox-{os.getpid()}-{secrets.token_hex(8)}"
        own = {LABEL: self._leftovers.owner}
        words = partial(hardened, limits, image=image, name=name, uid=uid, runtime=runtime, gpus=gpus, labels=own)
        guest = DockerGuest(self._engine, self._leftovers, name)
        # The engine counts processes of the container itself; by user it would count those of others as well.
        own_kernel = runtime == GVISOR
        greeting = program.greeting(
            limits,
            count_processes=own_kernel,
            per_process_memory=False,
            count_files=False,
            uid=uid if own_kernel else 0,
        )
        async with starting(guest, within_s=_START_S):
            guest.begin(words)
            await guest.send(program.body())
            await Frames(guest).greet(greeting)
        return guest


class DockerGuest:
    """A container, held by the client that carries its line."""

    def __init__(self, engine: Engine, leftovers: Leftovers, name: str) -> None:
        self._engine, self._leftovers, self.name = engine, leftovers, name
        self._pipes: Pipes | None = None
        self._closed = False
        self._closing = anyio.Lock()

    def begin(self, words: partial[list[str]]) -> None:
        """Start it; the client reads our profile from a pipe, so that no file is left of it."""
        with ExitStack() as given:
            reader, writer = pipe(given, given, owner=None)
            writer.write(json.dumps(seccomp.profile()).encode())
            writer.close()
            number = reader.fileno()
            command_line = self._engine.command("run", *words(seccomp=f"/proc/self/fd/{number}"))
            self._pipes = Pipes.open(command_line, passed=[number], environment=CLEAN)

    async def send(self, data: bytes) -> None:
        assert self._pipes is not None
        await self._pipes.send(data)

    async def receive(self) -> bytes:
        assert self._pipes is not None
        return await self._pipes.receive()

    def usage(self) -> Usage | None:
        """The supervisor looks at its own control group, which the engine shows to it."""
        return None

    def said(self) -> str:
        return self._pipes.said() if self._pipes is not None else ""

    async def close(self) -> None:
        """Hang up, so that all inside ends and the engine removes it; what is still there then is removed by force."""
        with anyio.CancelScope(shield=True):
            async with self._closing:
                if self._closed or self._pipes is None:
                    return
                self._closed = True
                self._pipes.hang_up()
                with anyio.move_on_after(_END_S) as clock:
                    await self._pipes.ended()
                if clock.cancelled_caught:
                    self._pipes.kill()
                    await self._pipes.ended()
                    await self._leftovers.remove(self.name)
