"""What runs for somebody who is let in no more is ended: requests, streams and turns among them, and sandbox sessions.

Who was shut out here is seen at once, who was elsewhere within `LOOK_S`. No request waits for it, and no chunk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from aibox.errors import AccessError, SandboxError, StoreError
from aibox.sandbox.sandbox import Sandbox
from aibox.server.api_keys import ApiKeys, no_key
from aibox.server.gate import Gate
from aibox.server.log import Log, failure
from aibox.server.people import People, refusal

LOOK_S = 1.5
"""How often it is looked who of those that something runs for is shut out. With `FRESH_S` this makes the bound that is
promised: what was let in by an answer of just before is found by the next look."""
BOUND_S = 5.0
"""After so long nothing runs for who was shut out, wherever that was done. Promised in the documentation."""


class Shut:
    """Looks who is shut out while anything runs, and ends that.

    `gate` is who has the requests under way, and `sandbox` is None while nobody has asked for one. Closed with the box.
    """

    def __init__(
        self,
        people: People,
        keys: ApiKeys | None,
        *,
        gate: Callable[[], Gate],
        sandbox: Callable[[], Sandbox | None],
        log: Log | None = None,
        every_s: float = LOOK_S,
    ) -> None:
        self._people = people
        self._keys = keys
        self._gate = gate
        self._sandbox = sandbox
        self._log = log
        self._every_s = every_s
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed = self._closed = False

    def begin(self) -> None:
        """See that it is looked from now on. Whoever is let in was asked about, which calls this."""
        if self._timer is None and not self._closed:
            self._timer = asyncio.get_running_loop().call_later(self._every_s, self._due)

    async def look(self) -> None:
        """End what runs for who is shut out, but not what an administrator has begun."""
        if not self._anything:
            return
        users: dict[str, set[str]] = {}
        keys: dict[str, set[str]] = {}
        for who in [request.principal for request in self._gate().under_way]:
            assert who is not None
            users.setdefault(who.scope.tenant, set()).add(who.scope.user)
            if who.key:
                keys.setdefault(who.scope.tenant, set()).add(who.key)
        sandbox = self._sandbox()
        for tenant, user in sandbox.owners if sandbox is not None else ():
            users.setdefault(tenant, set()).add(user)
        try:
            out = await self._people.shut_out(users)
            ended = await self._keys.ended(keys) if keys and self._keys is not None else set()
        except StoreError as error:
            # Nobody can say. Who is new is refused when that has gone on for long; what runs goes on.
            self._say(error)
            return
        self._failed = False
        if out or ended:
            self._end_requests(out, ended)
        if out and sandbox is not None:
            # Beside it: an engine that hangs must not keep anybody else's end back.
            self._start(self._end_sessions(sandbox, out))

    async def close(self) -> None:
        """Look no more, when what is being ended has. Closing twice is allowed."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)

    @property
    def _anything(self) -> bool:
        sandbox = self._sandbox()
        return bool(self._gate().under_way) or (sandbox is not None and bool(sandbox.owners))

    def _end_requests(self, out: dict[tuple[str, str], str], ended: set[str]) -> None:
        gate = self._gate()
        for request in gate.under_way:
            who = request.principal
            # An administrator's act that is on record goes to its end: it may be the very one that shuts them out.
            if who is None or (who.act is not None and who.act.turn):
                continue
            if (why := _of(out, who.scope.tenant, who.scope.user)) is not None:
                gate.end(request, why)
            elif who.key in ended:
                gate.end(request, no_key())

    async def _end_sessions(self, sandbox: Sandbox, out: dict[tuple[str, str], str]) -> None:
        try:
            await sandbox.end(lambda scope: _of(out, scope.tenant, scope.user))
        except SandboxError as error:
            self._say(error)

    def _due(self) -> None:
        self._timer = None
        if self._anything:
            self._start(self._look_again())
        else:
            self.begin()

    async def _look_again(self) -> None:
        try:
            await self.look()
        except Exception as error:  # noqa: BLE001 - a bug of ours must not end the looking
            self._say(error)
        self.begin()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, name="who is shut out")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _say(self, error: Exception) -> None:
        """Once until it works again."""
        if not self._failed and self._log is not None:
            self._log.say("shut.unknown", level="error", **failure(error))
        self._failed = True


def _of(out: dict[tuple[str, str], str], tenant: str, user: str) -> AccessError | None:
    said = out.get((tenant, "")) or out.get((tenant, user))
    return None if said is None else refusal(said)
