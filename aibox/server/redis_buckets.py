"""Token buckets that several servers share, on a Redis or Valkey server: one script, run there as a whole.

A large bound is not asked for each time: a second's worth of it is leased and used up here, so that together the
servers never allow more than the bound. While Redis does not answer, each server holds the bounds by itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakValueDictionary

from aibox.errors import ConfigError, MissingExtraError
from aibox.server.buckets import MINUTE_S, Buckets, Left, Want, left

TIMEOUT_S = 0.5
REST_S = 1.0
"""How long Redis is left alone after it has failed: a request must not wait for it each time."""
LEASE_S = 1.0
KNOWN = 50_000
CONNECTIONS = 16
_PREFIX = "aibox:rate"

# Each key: a minute's worth, what is needed, what is taken, and whether only as much as there is. Times are Redis' own.
# Answers whether all had enough (1 or 0), then for each what was taken and the level afterwards.
SCRIPT = """
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local levels, enough = {}, 1
for i = 1, #KEYS do
  local most, need = tonumber(ARGV[i * 4 - 3]), tonumber(ARGV[i * 4 - 2])
  local kept = redis.call('HMGET', KEYS[i], 'level', 'at')
  local level = most
  if kept[1] then
    level = math.min(most, tonumber(kept[1]) + math.max(0, now - tonumber(kept[2])) * most / 60)
  end
  levels[i] = level
  if level < need then enough = 0 end
end
local answer = {enough}
for i = 1, #KEYS do
  local most, need, take = tonumber(ARGV[i * 4 - 3]), tonumber(ARGV[i * 4 - 2]), tonumber(ARGV[i * 4 - 1])
  local taken = 0
  if enough == 1 then
    taken = take
    if ARGV[i * 4] == '1' then taken = math.max(math.min(take, math.floor(levels[i])), need) end
    levels[i] = levels[i] - taken
    redis.call('HSET', KEYS[i], 'level', string.format('%.6f', levels[i]), 'at', string.format('%.6f', now))
    redis.call('PEXPIRE', KEYS[i], math.ceil((most - levels[i]) * 60000 / most) + 1000)
  end
  answer[#answer + 1] = string.format('%d', taken)
  answer[#answer + 1] = string.format('%.6f', levels[i])
end
return answer
"""
_UNBOUNDED = -(10**15)


class RedisBuckets:
    """At a `redis://`, `rediss://` or `unix://` url. `told` hears when it fails and when it is back.

    Raises ConfigError for a wrong url, MissingExtraError without the extra `redis`.
    """

    def __init__(
        self,
        url: str,
        *,
        told: Callable[[bool], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not url.startswith(("redis://", "rediss://", "unix://")):
            raise ConfigError("the url of the rate limits begins with redis://, rediss:// or unix://")
        try:
            import redis.asyncio as redis
        except ImportError:
            raise MissingExtraError("rate limits in Redis", extra="redis") from None
        self._failures: tuple[type[Exception], ...] = (redis.RedisError, OSError, TimeoutError)
        try:
            pool = redis.BlockingConnectionPool.from_url(
                url,
                socket_timeout=TIMEOUT_S,
                socket_connect_timeout=TIMEOUT_S,
                max_connections=CONNECTIONS,
                timeout=5.0,
            )
        except ValueError as error:
            raise ConfigError(f"the url of the rate limits cannot be read: {error}") from None
        self._server: Any = redis.Redis.from_pool(pool)
        self._script: Any = self._server.register_script(SCRIPT)
        self._told = told
        self._clock = clock
        self._here = Buckets(clock=clock)
        self._leases: dict[str, tuple[int, float, float]] = {}
        self._refusals: dict[str, tuple[float, float]] = {}
        # Of one tenant one asks at a time, and those who waited look whether the answer does for them too.
        self._asking: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._resting_until = 0.0
        self.answers = True

    async def take(self, wants: Sequence[Want]) -> tuple[bool, list[Left]]:
        """As `Buckets.take`; of a token bucket, what was known a second ago at the latest."""
        now = self._clock()
        if now < self._resting_until:
            return await self._here.take(wants)
        if refused := self._refused(wants, now):
            return False, refused
        if any(not self._leased(want, now) for want in wants):
            try:
                if refused := await self._ask(wants):
                    return False, refused
            except self._failures:
                self._failed()
                return await self._here.take(wants)
        lefts = []
        for want in wants:
            # Another may have used up a lease meanwhile: one request more, and the next has to ask.
            count, until, level = self._leases.get(want.bucket, (0, 0.0, 0.0))
            self._leases[want.bucket] = count - want.take, until, level
            lefts.append(left(want, max(0.0, level + count - want.take)))
        return True, lefts

    async def use(self, wants: Sequence[Want]) -> None:
        """As `Buckets.use`."""
        if self._clock() < self._resting_until:
            await self._here.use(wants)
            return
        try:
            found = await self._run([(want, _UNBOUNDED, want.take, False) for want in wants])
        except self._failures:
            self._failed()
            await self._here.use(wants)
            return
        now = self._clock()
        for want, (_, level) in zip(wants, found[1], strict=True):
            self._remember(want.bucket, (0, now + LEASE_S, level))

    async def check(self) -> bool:
        """Whether Redis answers now."""
        try:
            async with asyncio.timeout(2 * TIMEOUT_S):
                await self._server.ping()
        except self._failures:
            # Only told: a probe, for which nobody needs a key, does not decide where the bounds are held.
            self._tell(answers=False)
            return False
        return True

    async def close(self) -> None:
        """Give back the connections. Closing twice is allowed."""
        await self._server.aclose()

    def _leased(self, want: Want, now: float) -> bool:
        count, until, level = self._leases.get(want.bucket, (0, 0.0, 0.0))
        # What takes nothing only has to know that there was something a moment ago.
        return until > now and (count >= want.take if want.take else level >= want.need)

    def _refused(self, wants: Sequence[Want], now: float) -> list[Left]:
        """What is known to be empty for a moment: who asks too often must not make others wait for Redis."""
        known = [(want, *self._refusals.get(want.bucket, (0.0, 0.0))) for want in wants]
        return [Left(want, 0.0, MINUTE_S, ready - now) for want, until, ready in known if until > now]

    async def _ask(self, wants: Sequence[Want]) -> list[Left]:
        """Get what is not leased yet; what is told when one of the buckets has not enough."""
        tenant = wants[0].bucket.partition("\x00")[0]
        lock = self._asking.setdefault(tenant, asyncio.Lock())
        async with lock:
            now = self._clock()
            if refused := self._refused(wants, now):
                return refused
            asked = [want for want in wants if not self._leased(want, now)]
            if not asked:
                return []
            leases = [max(want.take, int(want.a_minute * LEASE_S / MINUTE_S)) if want.take else 0 for want in asked]
            enough, found = await self._run(
                [(want, want.need, lease, want.take > 0) for want, lease in zip(asked, leases, strict=True)]
            )
            lefts = [left(want, level) for want, (_, level) in zip(asked, found, strict=True)]
            if not enough:
                for one in lefts:
                    if one.wait_s:
                        self._refusals[one.want.bucket] = now + min(one.wait_s, LEASE_S), now + one.wait_s
                return lefts
            for want, (taken, level) in zip(asked, found, strict=True):
                count, until, _ = self._leases.get(want.bucket, (0, 0.0, 0.0))
                self._remember(want.bucket, ((count if until > now else 0) + taken, now + LEASE_S, level))
        return []

    async def _run(self, asked: Sequence[tuple[Want, int, int, bool]]) -> tuple[bool, list[tuple[int, float]]]:
        keys = [_name(want.bucket) for want, *_ in asked]
        arguments = [value for want, need, take, lease in asked for value in (want.a_minute, need, take, int(lease))]
        answer = await self._script(keys=keys, args=arguments)
        self._tell(answers=True)
        numbers = [float(value) for value in answer[1:]]
        return bool(answer[0]), [(int(numbers[at]), numbers[at + 1]) for at in range(0, len(numbers), 2)]

    def _failed(self) -> None:
        self._resting_until = self._clock() + REST_S
        self._leases.clear()
        self._tell(answers=False)

    def _tell(self, *, answers: bool) -> None:
        """Once, when it has changed. That it answers is known by what is asked of it, and not by a ping."""
        if self.answers != answers:
            self.answers = answers
            if self._told is not None:
                self._told(answers)

    def _remember(self, bucket: str, lease: tuple[int, float, float]) -> None:
        if len(self._leases) >= KNOWN:
            self._leases.clear()
            self._refusals.clear()
        self._leases[bucket] = lease


def _name(bucket: str) -> str:
    """The tenant in braces, so that in a cluster all buckets of one lie together; names are nobody's to read."""
    tenant = bucket.partition("\x00")[0]
    hidden = (hashlib.sha256(text.encode()).hexdigest()[:32] for text in (tenant, bucket))
    return "{}:{{{}}}:{}".format(_PREFIX, *hidden)
