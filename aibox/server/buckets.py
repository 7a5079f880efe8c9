"""Token buckets in this process: what a minute allows may be used at once, and comes back evenly.

A bucket may be overdrawn by what was not known before it was used; it then takes the longer to come back.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

import msgspec

KEPT = 100_000
"""Buckets that are remembered; of more, those that were used longest ago are as full as new."""
MINUTE_S = 60.0


class Want(msgspec.Struct, frozen=True):
    """What a request takes out of one bucket: `take` at once, where there are at least `need`."""

    policy: str
    """The name of the bound, as headers show it: `user-requests`."""
    bucket: str
    """Whose bucket it is: unique for the bound and the one it bounds."""
    a_minute: int
    need: int = 1
    take: int = 1


class Left(msgspec.Struct, frozen=True):
    """What is in a bucket afterwards; `full_s` until it is full again, `wait_s` until there is what was needed."""

    want: Want
    level: float
    full_s: float
    wait_s: float = 0.0


def left(want: Want, level: float) -> Left:
    """What a level means for whoever wants something of it."""
    a_second = want.a_minute / MINUTE_S
    return Left(want, level, (want.a_minute - level) / a_second, max(0.0, want.need - level) / a_second)


class Buckets:
    """`clock` counts seconds, monotonic."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    async def take(self, wants: Sequence[Want]) -> tuple[bool, list[Left]]:
        """All of them or none: whether there was enough in each, and what is left in each."""
        now = self._clock()
        levels = [self._level(want, now) for want in wants]
        enough = all(level >= want.need for want, level in zip(wants, levels, strict=True))
        if enough:
            levels = [level - want.take for want, level in zip(wants, levels, strict=True)]
            for want, level in zip(wants, levels, strict=True):
                self._keep(want.bucket, level, now)
        return enough, [left(want, level) for want, level in zip(wants, levels, strict=True)]

    async def use(self, wants: Sequence[Want]) -> None:
        """Take what has been used already, whether there is enough or not."""
        for want in wants:
            self.use_now([want], want.take)

    def use_now(self, wants: Sequence[Want], take: int) -> None:
        """As `use`, so much of each."""
        now = self._clock()
        for want in wants:
            self._keep(want.bucket, self._level(want, now) - take, now)

    async def close(self) -> None:
        """Nothing is held open."""

    def _level(self, want: Want, now: float) -> float:
        known = self._levels.get(want.bucket)
        if known is None:
            return float(want.a_minute)
        return min(float(want.a_minute), known[0] + (now - known[1]) * want.a_minute / MINUTE_S)

    def _keep(self, bucket: str, level: float, now: float) -> None:
        self._levels[bucket] = level, now
        self._levels.move_to_end(bucket)
        while len(self._levels) > KEPT:
            self._levels.popitem(last=False)
