"""Rate limits: the policy's bounds for a tenant, a user and a key, held before a model is asked, told in headers.

The header fields have the form of draft-ietf-httpapi-ratelimit-headers since its version 08.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Self

from msgspec.structs import replace

from aibox.errors import LimitError
from aibox.policy.rates import Rates
from aibox.server.asked import Asked
from aibox.server.buckets import MINUTE_S, Buckets, Left, Want
from aibox.server.principal import Principal
from aibox.server.redis_buckets import RedisBuckets

CODE = "policy.limit.rate"


SETTLE_S = 0.05
"""Tokens that were used are told to Redis together, so often."""
KNOWN = 10_000
"""Principals whose bounds are remembered as they were worked out."""


@dataclass(frozen=True, slots=True)
class _Bounds:
    """What one principal draws from under some rates, and the field that says so."""

    rates: Rates
    wants: list[Want]
    tokens: list[Want]
    policies: bytes

    @classmethod
    def of(cls, rates: Rates, principal: Principal) -> Self:
        wants = wanted(rates, principal)
        return cls(rates, wants, [want for want in wants if want.policy.endswith("-tokens")], policies(wants))


class RateLimits:
    """Admits requests by their principal. The buckets are in this process, or in Redis."""

    def __init__(self, buckets: Buckets | RedisBuckets) -> None:
        self._buckets = buckets
        self._owed: dict[str, Want] = {}
        self._known: dict[tuple[str, str, str], _Bounds] = {}
        self._settling: asyncio.Task[None] | None = None

    async def admit(self, request: Asked, rates: Rates) -> None:
        """Count a request, and put into its headers what is left. Raises LimitError when one of the bounds is met."""
        if not rates.bounded or request.principal is None:
            return
        bounds = self._bounds(rates, request.principal)
        if not bounds.wants:
            return
        enough, lefts = await self._buckets.take(bounds.wants)
        request.headers += [(b"ratelimit-policy", bounds.policies), (b"ratelimit", state(lefts))]
        if enough:
            return
        worst = max(lefts, key=lambda one: one.wait_s)
        who, what = worst.want.policy.split("-")
        raise LimitError(
            f"this {who} has used its {worst.want.a_minute} {what} a minute",
            hint="wait as long as Retry-After says; `rates` in the policy bounds it",
            # Whoever tells it in whole seconds rounds up.
            retry_after_s=max(0, math.ceil(worst.wait_s) - 1),
            code=CODE,
        )

    def used(self, principal: Principal, rates: Rates, tokens: int) -> None:
        """A model call has ended: its tokens are taken out, whether they are there or not."""
        if not rates.bounded or not tokens:
            return
        wants = self._bounds(rates, principal).tokens
        if isinstance(self._buckets, Buckets):
            self._buckets.use_now(wants, tokens)
            return
        for want in wants:
            owed = self._owed.get(want.bucket)
            self._owed[want.bucket] = replace(want, take=tokens if owed is None else owed.take + tokens)
        if wants and self._settling is None:
            self._settling = asyncio.get_running_loop().create_task(self._settle())

    def _bounds(self, rates: Rates, principal: Principal) -> _Bounds:
        who = principal.scope.tenant, principal.scope.user, principal.key
        known = self._known.get(who)
        # Rates that were read anew are another object.
        if known is None or known.rates is not rates:
            if len(self._known) >= KNOWN:
                self._known.clear()
            known = self._known[who] = _Bounds.of(rates, principal)
        return known

    @property
    def check(self) -> Callable[[], Awaitable[bool]] | None:
        """Asks whether Redis answers; None where the buckets are here."""
        return self._buckets.check if isinstance(self._buckets, RedisBuckets) else None

    async def close(self) -> None:
        """Settle what is owed. Closing twice is allowed."""
        if self._settling is not None:
            await self._settling
        await self._buckets.close()

    async def _settle(self) -> None:
        await asyncio.sleep(SETTLE_S)
        owed, self._owed, self._settling = list(self._owed.values()), {}, None
        await self._buckets.use(owed)


def wanted(rates: Rates, principal: Principal) -> list[Want]:
    """The buckets that a request of the principal draws from. Tokens are only looked at, and counted afterwards."""
    scope = principal.scope
    key = principal.how if principal.how.startswith("key:") else ""
    wants = []
    for name, rate, whose in (("tenant", rates.tenant, scope.tenant), ("user", rates.user, scope.user),
                              ("key", rates.key, key)):  # fmt: skip
        if not whose:
            continue
        bucket = f"{scope.tenant}\x00{name}\x00{whose}"
        if rate.requests_per_minute is not None:
            wants.append(Want(f"{name}-requests", f"{bucket}\x00r", rate.requests_per_minute))
        if rate.tokens_per_minute is not None:
            wants.append(Want(f"{name}-tokens", f"{bucket}\x00t", rate.tokens_per_minute, take=0))
    return wants


def policies(wants: Sequence[Want]) -> bytes:
    """`RateLimit-Policy`: the bounds that are drawn from."""
    bounds = (f'"{one.policy}";q={one.a_minute};w={int(MINUTE_S)}{_unit(one.policy)}' for one in wants)
    return ", ".join(bounds).encode()


def state(lefts: Sequence[Left]) -> bytes:
    """`RateLimit`: what is left of each, and the seconds until there is more."""
    found = [f'"{one.want.policy}";r={max(0, int(one.level))};t={math.ceil(one.wait_s or one.full_s)}' for one in lefts]
    return ", ".join(found).encode()


def _unit(policy: str) -> str:
    return ';qu="tokens"' if policy.endswith("-tokens") else ""
