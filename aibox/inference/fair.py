"""A fair queue in front of a model: who waits is served in turn by tenant, whoever has asked how often.

Within a tenant the first comes first. While there is room nobody waits, and nothing is done but to count.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque

from aibox.errors import LimitError

WAITING = 1024
"""Calls of one tenant that may wait; one more is refused."""


class FairQueue:
    """`slots` calls at once. Belongs to one event loop at a time."""

    def __init__(self, slots: int, *, waiting: int = WAITING) -> None:
        self.slots = slots
        self._free = slots
        self._most = waiting
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @property
    def busy(self) -> int:
        """Calls under way."""
        return self.slots - self._free

    @property
    def waiting(self) -> int:
        """Calls that wait, of all tenants."""
        return sum(map(len, self._waiting.values()))

    async def take(self, tenant: str) -> None:
        """Wait for a turn; `give` ends it. Raises LimitError when too many of the tenant wait already."""
        if self._free > 0:
            # Nobody waits while there is room: whoever gives a turn back hands it on.
            self._free -= 1
            return
        mine = self._waiting.setdefault(tenant, deque())
        if len(mine) >= self._most:
            raise LimitError(
                f"{self._most} calls of this tenant wait for the model already",
                hint="ask for less at once",
                retry_after_s=1,
                code="policy.limit.queue",
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        mine.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give()  # it was this one's turn in the moment in which it left
            elif turn in mine:
                mine.remove(turn)
                if not mine:
                    self._waiting.pop(tenant, None)
            raise

    def give(self) -> None:
        """A call has ended: the next tenant's first goes on."""
        while self._waiting:
            tenant, theirs = self._waiting.popitem(last=False)
            turn = theirs.popleft()
            if theirs:
                self._waiting[tenant] = theirs  # to the end of the round
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
