"""Runs code where it can harm nobody, or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

import anyio

from aibox.chat import Health
from aibox.errors import AccessError, AIBoxError, ConfigError, LimitError, SandboxError
from aibox.execution import Limits
from aibox.protocols import Driver, Guest, Recorder
from aibox.sandbox.session import Record, Session
from aibox.types import Scope

_STARTS_AT_ONCE = 8
_TURN_S = 30.0
"""To wait for one's turn to start, where those before it take their time."""
_RETRY_S = 5.0


@dataclass(slots=True)
class _Held:
    scope: Scope
    session: Session
    kept: bool
    """Nobody waits in it: it may end when room is needed."""
    why: str = ""
    """The code of an error for which it was ended, by nobody of its own."""


class Sandbox:
    """Sessions of one driver. `driver` is "auto", "bubblewrap" or "docker", or a Driver; see docs/sandbox.md.

    `pool` guests are kept ready, each for one session and never for a second; sessions that nobody used for `idle_s`
    end; at most `per_tenant` and in all `sessions` are open. With `audit` sessions, runs and artifacts are recorded.
    `gpus` says which tenants may ask for GPUs, and for how many in a session; nobody, when it does not say so.
    Of several servers `replica` is this one's name, which the ids of its sessions begin with.
    Where no isolation can be had nothing is run: opening a session raises SandboxError with what to install.
    """

    def __init__(
        self,
        driver: Literal["auto", "bubblewrap", "docker"] | str | Driver = "auto",
        *,
        limits: Limits | None = None,
        audit: Recorder | None = None,
        gpus: Mapping[str, int] | None = None,
        pool: int = 0,
        idle_s: float = 600.0,
        sessions: int = 64,
        per_tenant: int = 16,
        replica: str | None = None,
    ) -> None:
        self._driver = named_driver(driver) if isinstance(driver, str) else driver
        self.limits = limits or Limits()
        self._audit = audit
        self._gpus = dict(gpus or {})
        self._pool, self._idle_s = pool, idle_s
        self._most, self._most_per_tenant = sessions, per_tenant
        self._replica = replica
        self._held: dict[str, _Held] = {}
        self._opening: list[str] = []
        self._ready: list[Guest] = []
        self._starts = anyio.Semaphore(_STARTS_AT_ONCE)
        self._filler: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._keeping, self._filling = anyio.Lock(), anyio.Lock()

    async def available(self) -> Health:
        """Whether code can be isolated here, tried rather than guessed. Never raises."""
        return await self._driver.available()

    @asynccontextmanager
    async def session(self, *, scope: Scope, gpus: int = 0) -> AsyncIterator[Session]:
        """A new, empty session that ends with the block. Raises SandboxError, and LimitError when too many are open.

        With `gpus` it has that many of the engine's GPUs, which the policy must allow to the tenant: else AccessError.
        """
        session = await self.open(scope=scope, gpus=gpus)
        try:
            yield session
        finally:
            with anyio.CancelScope(shield=True):
                await session.close()

    async def open(self, *, scope: Scope, gpus: int = 0) -> Session:
        """A new session that lives until it is closed or was idle too long; `attach` finds it again by its `id`."""
        if gpus:
            self._allow(scope, gpus)
        return await self._new(scope, kept=False, gpus=gpus)

    async def attach(self, id: str, *, scope: Scope) -> Session:  # noqa: A002 - what it is
        """An open session of the same tenant and user. AccessError for any other, whether it exists or not.

        ConfigError for one that names another replica.
        """
        held = self._held.get(id)
        elsewhere, dot, _ = id.partition(".")
        if self._replica is not None and dot and elsewhere != self._replica:
            # Said of every id that names another place, whether there is such a session or not.
            raise ConfigError(
                f"a session of {elsewhere!r} lives there, and this is {self._replica}",
                hint="let the proxy send /v1/sandbox/REPLICA.* to that replica: deploy/nginx.conf",
                code="config.other_replica",
            )
        if held is None or (held.scope.tenant, held.scope.user) != (scope.tenant, scope.user):
            raise AccessError("there is no such sandbox session", hint="it may have ended; open another", absent=True)
        held.session.record = self._recorder(id, held.scope.under(scope.correlation, scope.trace, case=scope.case))
        return held.session

    def ids(self, *, scope: Scope) -> list[str]:
        """The open sessions of the scope's tenant and user."""
        owner = (scope.tenant, scope.user)
        return [id_ for id_, held in self._held.items() if (held.scope.tenant, held.scope.user) == owner]

    async def keep(self, *, scope: Scope) -> Session:
        """The session that belongs to a conversation (`scope.session`), opened when there is none.

        It may end when it is idle, or when its tenant needs room; then the next call opens an empty one.
        """
        async with self._keeping:
            for held in self._held.values():
                if held.kept and held.scope == scope:
                    held.session.record = self._recorder(held.session.id, scope)
                    return held.session
            return await self._new(scope, kept=True)

    @property
    def owners(self) -> set[tuple[str, str]]:
        """The tenants and users that have sessions open."""
        return {(held.scope.tenant, held.scope.user) for held in self._held.values()}

    async def end(self, why: Callable[[Scope], AIBoxError | None]) -> None:
        """End the sessions of scopes for which `why` gives an error, also those in use; its code is recorded."""
        ending = []
        for held in self._held.values():
            if not held.why and (error := why(held.scope)) is not None:
                held.why = error.code
                ending.append(held.session.close())
        await _together(ending)

    async def close(self) -> None:
        """End all sessions, also those in use: what runs there is stopped. Closing twice is allowed."""
        for task in (self._filler, self._keeper):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        self._filler = self._keeper = None
        ready, self._ready = self._ready, []
        sessions = [held.session for held in self._held.values()]
        await _together([*(guest.close() for guest in ready), *(session.close() for session in sessions)])
        await self._driver.close()

    def _allow(self, scope: Scope, gpus: int) -> None:
        most = self._gpus.get(scope.tenant, 0)
        if 0 < gpus <= most:
            return
        if self._audit is not None:
            self._audit.note("sandbox.refused", scope=scope, detail={"gpus": gpus, "allowed": most})
        raise AccessError(
            f"the policy allows this tenant {most} GPUs a session, and not {gpus}",
            hint="[gpus] in the policy names tenants, and how many each may have",
        )

    async def _new(self, scope: Scope, *, kept: bool, gpus: int = 0) -> Session:
        await self._make_room(scope)
        self._opening.append(scope.tenant)
        try:
            guest = self._ready.pop() if self._ready and not gpus else await self._start(gpus)
        finally:
            self._opening.remove(scope.tenant)
        id_ = secrets.token_urlsafe(16)
        id_ = f"{self._replica}.{id_}" if self._replica else id_
        record = self._recorder(id_, scope)

        def ended(session: Session) -> None:
            try:
                held = self._held.get(id_)
                session.record("sandbox.ended", {"code": held.why} if held is not None and held.why else {})
            finally:
                self._held.pop(session.id, None)

        try:
            record(
                "sandbox.started",
                {
                    "driver": self._driver.name,
                    **self._driver.recorded,
                    "limits": _recorded(self.limits),
                    **({"gpus": gpus} if gpus else {}),
                },
            )
        except BaseException:
            await guest.close()
            raise
        session = Session(guest, limits=self.limits, id=id_, record=record, ended=ended)
        self._held[id_] = _Held(scope, session, kept)
        self._look_after()
        return session

    def _recorder(self, id_: str, scope: Scope) -> Record:
        """Records what a request does in a session, in the name of that request, whoever comes meanwhile."""
        shown = id_.rpartition(".")[2][:8]

        def record(kind: str, detail: Mapping[str, object]) -> None:
            if self._audit is not None:
                self._audit.note(kind, scope=scope, detail={"sandbox": shown, **detail})

        return record

    async def _start(self, gpus: int = 0) -> Guest:
        try:
            with anyio.fail_after(_TURN_S):
                await self._starts.acquire()
        except TimeoutError:
            raise SandboxError(
                f"no session could be begun within {_TURN_S:g} s: those that were asked for before it have not started",
                hint="is the container engine well, or the machine too busy?",
            ) from None
        try:
            return await self._driver.start(limits=self.limits, gpus=gpus)
        finally:
            self._starts.release()

    async def _make_room(self, scope: Scope) -> None:
        """Raises LimitError when there is none and nobody's idle conversation can give way."""

        def full() -> bool:
            tenants = [held.scope.tenant for held in self._held.values()] + self._opening
            return len(tenants) >= self._most or tenants.count(scope.tenant) >= self._most_per_tenant

        while full():
            idle = [
                held
                for held in self._held.values()
                if held.kept and not held.session.busy and held.scope.tenant == scope.tenant
            ]
            if not idle:
                raise LimitError("too many sandbox sessions are open", hint="end one, or wait", retry_after_s=_RETRY_S)
            await min(idle, key=lambda held: held.session.last_used).session.close()

    def _look_after(self) -> None:
        if self._keeper is None or self._keeper.done():
            self._keeper = asyncio.create_task(self._end_idle(), name="sandbox: idle sessions")
        if self._pool and (self._filler is None or self._filler.done()):
            self._filler = asyncio.create_task(self._fill(), name="sandbox: pool")

    async def _fill(self) -> None:
        """Keep guests ready. When none can be started, sessions are started as they are asked for, and say why not."""
        with contextlib.suppress(SandboxError):
            await self.warm()

    async def warm(self) -> None:
        """Fill the pool now and wait for it. Raises SandboxError."""
        async with self._filling:
            while len(self._ready) < self._pool:
                self._ready.append(await self._start())

    async def _end_idle(self) -> None:
        while self._held:
            now = time.monotonic()
            for held in list(self._held.values()):
                if not held.session.busy and now - held.session.last_used >= self._idle_s:
                    with contextlib.suppress(SandboxError):
                        await held.session.close()
            oldest = min((held.session.last_used for held in self._held.values()), default=now)
            await asyncio.sleep(max(0.05, min(oldest + self._idle_s - now, self._idle_s, 30.0)))

    def __repr__(self) -> str:
        up_to = self.limits
        return (
            f"Sandbox({self._driver.name}, memory {up_to.memory_mib} MiB, {up_to.pids} processes, {up_to.wall_s:g} s, "
            f"output {up_to.output_kib} KiB, workspace {up_to.workspace_mib} MiB)"
        )


async def _together(closing: Sequence[Coroutine[None, None, None]]) -> None:
    """At once, so that an engine that says nothing is waited for once. Raises the first error when all are over."""
    for outcome in await asyncio.gather(*closing, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome


def _recorded(limits: Limits) -> dict[str, int]:
    return {
        "memory_mib": limits.memory_mib,
        "pids": limits.pids,
        "cpus_permille": round(limits.cpus * 1000),
        "wall_ms": round(limits.wall_s * 1000),
        "output_kib": limits.output_kib,
        "workspace_mib": limits.workspace_mib,
    }


def named_driver(name: str) -> Driver:
    """The driver of that name. Raises ConfigError when there is none."""
    from aibox.sandbox.auto import Auto
    from aibox.sandbox.bubblewrap import Bubblewrap
    from aibox.sandbox.docker import Docker

    made: dict[str, Callable[[], Driver]] = {
        "auto": lambda: Auto(Docker(), Bubblewrap()),
        "bubblewrap": Bubblewrap,
        "docker": Docker,
    }
    if name not in made:
        raise ConfigError(f"no sandbox driver is called {name!r}", hint="auto, bubblewrap or docker")
    return made[name]()
