"""Puts what was written for tenants into force, on every server that shares the store, within `FRESH_S`.

No request asks the store for it: one question in `FRESH_S` tells which versions there are now, for all tenants. What
cannot be read shuts its tenant, and nobody else; its administrators can still write what holds.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable

from aibox.box import Box
from aibox.errors import AccessError, AIBoxError, StoreError
from aibox.policy.policy import Policy
from aibox.server.people import AGAIN_S, FRESH_S, STALE_S
from aibox.server.policies import Policies
from aibox.server.principal import Principal
from aibox.server.route import ADMINISTERS
from aibox.server.written import kept
from aibox.types import Scope

UNREADABLE = "policy.unreadable"
_log = logging.getLogger(__name__)


class InForce:
    """Keeps a box's policies as they are written. `FRESH_S` and `STALE_S` are those of who is let in."""

    def __init__(
        self,
        box: Box,
        policies: Policies,
        *,
        clock: Callable[[], float] = time.monotonic,
        fresh_s: float = FRESH_S,
        stale_s: float = STALE_S,
    ) -> None:
        self._box = box
        self._policies = policies
        self._clock = clock
        self._fresh_s, self._stale_s = fresh_s, stale_s
        self._until = self._away_until = -math.inf
        self._heads: dict[str, dict[str, int]] = {}
        self._told: dict[str, str] = {}
        self._looking: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None

    async def admit(self, who: Principal) -> None:
        """Raises AccessError for somebody of a tenant whose policy cannot be read; StoreError when nobody can say."""
        if self._clock() >= self._until:
            await self.look()
        if who.scope.tenant in self._box.levels.shut and not who.roles.intersection(ADMINISTERS):
            raise AccessError(
                "the policy of this tenant cannot be read, and without it nothing is done",
                hint="an administrator writes one that holds: PUT /v1/admin/policy/own",
                code=UNREADABLE,
            )

    async def start(self) -> None:
        """What was written is in force when this returns, and looked at again and again from then on."""
        await self.look()
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())

    async def look(self, *, anew: bool = False) -> None:
        """Take up what was written since. `anew` waits for a look that began after this was called."""
        if anew and self._looking is not None:
            await asyncio.wait([self._looking])
        if self._looking is None:
            self._looking = asyncio.create_task(self._look(anew))
            self._looking.add_done_callback(self._looked)
        await asyncio.shield(self._looking)

    async def close(self) -> None:
        """Stop looking. Closing twice is allowed."""
        for task in (self._watching, self._looking):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        self._watching = None

    def _looked(self, task: asyncio.Task[None]) -> None:
        self._looking = None
        if not task.cancelled():
            task.exception()  # whoever waited has heard of it

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._fresh_s / 2)
            try:
                await self.look()
            except AIBoxError as error:
                _log.warning("the tenants' policies cannot be asked for: %s", error.code)

    async def _look(self, anew: bool) -> None:
        began = self._clock()
        if not anew and began < min(self._away_until, self._until + self._stale_s):
            return
        try:
            heads = await self._policies.heads()
            for tenant in {*heads, *self._heads}:
                now = heads.get(tenant, {})
                if now != self._heads.get(tenant, {}) or tenant in self._box.levels.shut:
                    await self._take_up(tenant)
                    self._heads[tenant] = now
            self._heads = heads
        except StoreError:
            self._away_until = self._clock() + AGAIN_S
            if anew or began >= self._until + self._stale_s:
                raise
            return
        self._until = began + self._fresh_s

    async def _take_up(self, tenant: str) -> None:
        box = self._box
        try:
            found = await self._policies.newest(tenant)
            written: dict[str, Policy] = {level: kept(one.text) for level, one in found.items() if one.text}
            await box.narrow(tenant, written)
        except StoreError:
            raise
        except AIBoxError as error:
            await box.narrow(tenant, error.message)
            said = " ".join(error.message.split())[:300]
            if self._told.get(tenant) == said:
                return
            _log.error(
                "nothing is done for the tenant %s: what was written as its policy does not hold: %s", tenant, said
            )
            scope = Scope(tenant=tenant, user="aibox")
            self._told[tenant] = said
            try:
                await box.audit.append(UNREADABLE, scope=scope, detail={"reason": said})
            except AIBoxError as unwritten:
                # A log that is damaged too is that tenant's alone.
                _log.error("and it could not be recorded for the tenant %s: %s", tenant, unwritten.code)
        else:
            self._told.pop(tenant, None)
