"""Runs code where it can harm nobody, or not at all."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

import anyio

from aibox.chat import Health
from aibox.errors import ConfigError
from aibox.execution import Limits, Result
from aibox.protocols import Driver
from aibox.types import Scope


class Session:
    """A workspace, and code that runs in it. Files survive from one run to the next; nothing survives the session."""

    def __init__(self, driver: Driver, handle: str) -> None:
        self._driver = driver
        self._handle = handle

    async def python(self, code: str) -> Result:
        """Run a program with the interpreter that runs aibox, without its packages; `-I -B`, its source from stdin.

        Modules in the workspace are not found by `import`, so that no file there can pose as one. Raises SandboxError.
        """
        return await self._driver.exec(self._handle, ("python3", "-I", "-B", "-"), stdin=_utf8(code))

    async def bash(self, command: str) -> Result:
        """Run a command line of bash, up to 127 KiB, with the workspace as its folder. Raises SandboxError."""
        return await self._driver.exec(self._handle, ("bash", "--noprofile", "--norc", "-c", command))

    async def write(self, path: str, data: str | bytes) -> None:
        """Write a file of the workspace, and the folders above it; text as UTF-8.

        Raises AccessError for a path that is not inside, LimitError when it does not fit.
        """
        await self._driver.put(self._handle, path, _utf8(data) if isinstance(data, str) else data)

    async def read(self, path: str) -> bytes:
        """Read a file of the workspace. Raises AccessError, StoreError when there is none, or LimitError."""
        return await self._driver.get(self._handle, path)


class Sandbox:
    """Sessions of one driver. `driver` is "auto" or "bubblewrap" (today the same), or a Driver.

    Where no isolation can be had nothing is run: opening a session raises SandboxError with what to install.
    """

    def __init__(
        self, driver: Literal["auto", "bubblewrap"] | str | Driver = "auto", *, limits: Limits | None = None
    ) -> None:
        self._driver = _driver(driver) if isinstance(driver, str) else driver
        self.limits = limits or Limits()
        self._open: set[str] = set()

    async def available(self) -> Health:
        """Whether code can be isolated here, tried rather than guessed. Never raises."""
        return await self._driver.available()

    @asynccontextmanager
    async def session(self, *, scope: Scope) -> AsyncIterator[Session]:
        """A new, empty workspace. Raises SandboxError; never runs anything with a weaker isolation."""
        handle = await self._driver.start(scope=scope, limits=self.limits)
        self._open.add(handle)
        try:
            yield Session(self._driver, handle)
        finally:
            self._open.discard(handle)
            with anyio.CancelScope(shield=True):
                await self._driver.stop(handle)

    async def close(self) -> None:
        """End all sessions, also those in use: what runs there is stopped. Closing twice is allowed."""
        while self._open:
            await self._driver.stop(self._open.pop())

    def __repr__(self) -> str:
        up_to = self.limits
        return (
            f"Sandbox({self._driver.name}, memory {up_to.memory_mib} MiB, {up_to.pids} processes, {up_to.wall_s:g} s, "
            f"output {up_to.output_kib} KiB, workspace {up_to.workspace_mib} MiB)"
        )


def _driver(name: str) -> Driver:
    if name not in ("auto", "bubblewrap"):
        raise ConfigError(f"no sandbox driver is called {name!r}", hint="auto or bubblewrap")
    from aibox.sandbox.bubblewrap import Bubblewrap

    return Bubblewrap()


def _utf8(text: str) -> bytes:
    # Half a surrogate pair is the program's mistake: its interpreter says so, in a result.
    return text.encode("utf-8", errors="surrogatepass")
