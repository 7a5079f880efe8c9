"""The process that serves: uvicorn with bounded connections, and an end that loses nothing.

SIGTERM and Ctrl-C: no new connection, idle ones closed, requests under way may go on for `grace_s`; then each stream
ends with an event that says why. Only when all have ended does `serve` return, and the box may be closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import linecache
import math
import resource
import signal
import socket
import threading
from collections.abc import Iterator

import uvicorn

from aibox.errors import AIBoxError
from aibox.server.gate import CUT_S, Gate
from aibox.server.log import Log
from aibox.server.protocol import BoundedProtocol, protocol
from aibox.server.reload import Reload
from aibox.settings_server import ServerLimits

YOUNG = 10_000
"""Objects that may be made before the young ones are looked through: those of some fifty requests at once."""
TICKS = 10
"""uvicorn looks around every 0.1 s; the connections are swept once a second."""


class Server(uvicorn.Server):
    """Serves a gate. `reload` is what SIGHUP asks for."""

    def __init__(
        self,
        gate: Gate,
        *,
        limits: ServerLimits,
        log: Log | None = None,
        reload: Reload | None = None,
    ) -> None:
        self._gate = gate
        self._reload = reload
        self._wants_reload = False
        self._reloading: asyncio.Task[None] | None = None
        self._limits = limits
        self._log = log
        options = uvicorn.Config(
            # Whose address a caller has decides nothing here, so no header is believed about it.
            gate,
            http=protocol(limits, self._refused),
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            proxy_headers=False,
            timeout_graceful_shutdown=math.ceil(limits.grace_s + CUT_S + 5),
        )
        super().__init__(options)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # What is there by now stays: looking through all of it for garbage again and again costs a fifth of a request.
        # The sources that settings were explained from are needed no more.
        linecache.clearcache()
        gc.collect()
        gc.freeze()
        gc.set_threshold(YOUNG, *gc.get_threshold()[1:])

    async def on_tick(self, counter: int) -> bool:
        if counter % TICKS == 0:
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, BoundedProtocol):
                    connection.sweep(now)
        if self._wants_reload and (self._reloading is None or self._reloading.done()):
            self._wants_reload = False
            self._reloading = asyncio.create_task(self._read_again())
        return await super().on_tick(counter)

    async def _read_again(self) -> None:
        assert self._reload is not None
        try:
            found = await self._reload()
            self._say(
                "reloaded", policy=found.policy, backends=list(found.backends), issuers=list(found.issuers),
                restart=list(found.restart),
            )  # fmt: skip
        except AIBoxError as error:
            # The operator's own file is quoted, and nobody's text.
            self._say("reload.failed", level="error", message=str(error), kept="what was in force before")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._gate.drain()
        self._say("stopping", requests=self._gate.live)
        ending = asyncio.create_task(self._end())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()
            await asyncio.wait([ending])
            if self._reloading is not None:
                await asyncio.wait([self._reloading])
            # Whatever is still under way ends before the stores close that it writes to.
            await self._gate.stop()
            self._say("stopped")

    async def _end(self) -> None:
        await asyncio.sleep(self._limits.grace_s)
        await self._gate.stop()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn raises the signal once more when it is done, and SIGTERM would then kill before anything is closed.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        if self._reload is not None:
            before[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._hung_up)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hung_up(self, *_: object) -> None:
        self._wants_reload = True

    def _refused(self, error: AIBoxError, correlation: str) -> None:
        self._say("refused", level="warning", code=error.code, correlation=correlation)

    def _say(self, event: str, **fields: object) -> None:
        if self._log is not None:
            self._log.say(event, **fields)  # type: ignore[arg-type]  # `level` is text


def allow_connections(wanted: int) -> int:
    """Raise the number of files this process may have open, as far as it may; the number it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # A model call is a second connection, and the stores have files of their own.
    need = 2 * wanted + 256
    if soft == resource.RLIM_INFINITY or soft >= need:
        return soft
    need = need if hard == resource.RLIM_INFINITY else min(need, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (need, hard))
    return need
