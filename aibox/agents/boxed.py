"""A server of a stranger's inside the sandbox: a session of its own, its files, and the line to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from aibox.sandbox.sandbox import Sandbox
from aibox.sandbox.talk import Talk
from aibox.types import Scope


class Program(Protocol):
    """A command line, what is added to its environment, and the folder of the host that it needs, if any."""

    @property
    def command(self) -> str: ...

    @property
    def args(self) -> tuple[str, ...]: ...

    @property
    def env(self) -> Mapping[str, str]: ...

    @property
    def folder(self) -> str | Path | None: ...


@asynccontextmanager
async def started(program: Program, *, sandbox: Sandbox, scope: Scope) -> AsyncIterator[Talk]:
    """It runs in a new session until the block ends, in a workspace that holds what is in its folder.

    Raises SandboxError where nothing can be isolated, LimitError for a folder that does not fit.
    """
    async with sandbox.session(scope=scope) as session:
        if program.folder is not None:
            await session.copy_in(program.folder)
        named = [f"{name}={value}" for name, value in program.env.items()]
        async with session.talk(("env", *named, program.command, *program.args)) as talk:
            yield talk
