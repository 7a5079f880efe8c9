"""Webhooks: a tenant's events, read from its log, signed and delivered through the door at least once.

The log is where events come from, so that none is lost: what was not read of it before a crash is read after it.
Delivery is tried ten times in two days, and each attempt is on record before it is made.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from aibox.agents.http import Http, Passing, whole
from aibox.agents.store import Store
from aibox.audit.chain import AuditChain
from aibox.errors import ConfigError, EgressError, LimitError, PolicyError, UpstreamError
from aibox.outbound import signature
from aibox.outbound.events import Event, event_of
from aibox.outbound.outbox import Delivery, Outbox, Status
from aibox.policy.policy import Policy
from aibox.settings import read_secret
from aibox.settings_outbound import WebhookSettings
from aibox.types import Scope

POLL_S = 1.0
"""How often the logs are looked at for what is new."""
DELAYS_S = (5.0, 30.0, 120.0, 600.0, 3600.0, 3 * 3600.0, 6 * 3600.0, 12 * 3600.0, 24 * 3600.0)
"""Between attempts; each is lengthened by up to a fifth, so that not all come at once."""
TIMEOUT_S = 15.0
WHOLE_S = 45.0
"""What an attempt may take in all, below the time for which it is ours (`outbox.LEASE_S`): `TIMEOUT_S` is a silence."""
AT_ONCE = 8
STRIDE = 10_000
"""So many entries of no interest may be read again after a crash."""
SYSTEM = "aibox"
"""In whose name deliveries are recorded."""
_GONE = 410


class _Endpoint:
    """One address with its keys, which are read when the box is opened."""

    def __init__(self, settings: WebhookSettings) -> None:
        self.settings = settings
        self.host = urlsplit(settings.url).hostname or ""
        if urlsplit(settings.url).scheme not in ("http", "https") or not self.host:
            raise ConfigError(f"the webhook {settings.name} needs an http or https address")
        secrets = [read_secret(settings.key, settings.key_file), read_secret(None, settings.retiring_key_file)]
        self.keys = [signature.read_key(one, name=settings.name) for one in secrets if one is not None]
        private = [self.host] if settings.private else []
        self.http = Http(private_hosts=private, inside=True, timeout_s=TIMEOUT_S)


class Webhooks:
    """Delivers. `tenants` are addresses by tenant, `store` is where what waits is kept, `rules` a tenant's policy."""

    def __init__(
        self,
        tenants: Mapping[str, tuple[WebhookSettings, ...]],
        *,
        audit: AuditChain,
        store: Callable[[], Store],
        rules: Callable[[str], Policy],
    ) -> None:
        self.outbox = Outbox(store)
        self.counts: Counter[str] = Counter()
        """Attempts by outcome, and deliveries that were given up."""
        self._audit = audit
        self._rules = rules
        self._endpoints = {tenant: {one.name: _Endpoint(one) for one in own} for tenant, own in tenants.items() if own}
        self._read: dict[str, int] = {}
        self._kept: dict[str, int] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def endpoints(self, tenant: str) -> tuple[WebhookSettings, ...]:
        return tuple(one.settings for one in self._endpoints.get(tenant, {}).values())

    async def start(self) -> None:
        """From here on nothing is missed: how far each log is read is on the disk."""
        for tenant in self._endpoints:
            self._read[tenant] = self._kept[tenant] = await self.outbox.begin(tenant, await self._audit.size(tenant))
        # One for each tenant: nobody waits for another one's address.
        self._tasks = [asyncio.create_task(self._work(tenant)) for tenant in self._endpoints]

    async def close(self) -> None:
        """Stop. What waits is delivered by whoever opens the box next. Closing twice is allowed."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self, tenant: str) -> None:
        try:
            while True:
                # A log or a store that cannot be used now is tried again; whoever needs it tells that it is gone.
                with contextlib.suppress(UpstreamError, PolicyError):
                    await self._look(tenant)
                    await self._deliver(tenant)
                await asyncio.sleep(POLL_S)
        except Exception:
            # Evidence that does not hold, or a bug: /metrics says that a tenant's webhooks have stopped.
            self.counts["stopped"] += 1
            raise

    async def _look(self, tenant: str) -> None:
        """Put into the outbox what is new in the log."""
        start = self._read[tenant]
        size = await self._audit.size(tenant)
        if size < start:
            self._read[tenant] = self._kept[tenant] = await self.outbox.begin(tenant, size)
            return
        if size == start:
            return
        found: list[Event] = []
        upto = start
        async for entry in self._audit.entries(tenant, start=start):
            upto = entry.seq + 1
            if (event := event_of(tenant, entry)) is not None:
                found.append(event)
        wanted = {
            name: [event for event in found if event.type in one.settings.events]
            for name, one in self._endpoints[tenant].items()
        }
        if any(wanted.values()) or upto - self._kept[tenant] >= STRIDE:
            self.counts["given_up"] += await self.outbox.take(tenant, wanted, upto=upto)
            self._kept[tenant] = upto
        self._read[tenant] = upto

    async def _deliver(self, tenant: str) -> None:
        while batch := await self.outbox.due(tenant, limit=AT_ONCE):
            await asyncio.gather(*(self._attempt(tenant, delivery) for delivery in batch))

    async def _attempt(self, tenant: str, delivery: Delivery) -> None:
        endpoint = self._endpoints[tenant].get(delivery.endpoint)
        if endpoint is None:
            await self.outbox.settle(tenant, delivery, status="given_up", answered="the settings name it no more")
            self.counts["given_up"] += 1
            return
        after_s = 0.0
        try:
            status, after_s = await self._send(tenant, endpoint, delivery)
            answered = f"answered {status}"
        except (UpstreamError, PolicyError) as error:
            status, answered = 0, error.message
        except asyncio.CancelledError:
            # Whoever opens the box next need not wait until the lease is over.
            await asyncio.shield(self.outbox.settle(tenant, delivery, status="waiting", answered="interrupted"))
            raise
        done: Status = "delivered" if 200 <= status < 300 else "waiting"
        self.counts["delivered" if done == "delivered" else "failed"] += 1
        tried = delivery.attempts
        if done == "waiting" and (status == _GONE or tried > len(DELAYS_S)):
            done = "given_up"
            self.counts["given_up"] += 1
        wait_s = 0.0
        if done == "waiting":
            wait_s = max(after_s, DELAYS_S[tried - 1] * random.uniform(1.0, 1.2))  # noqa: S311 - to be out of step
        await self.outbox.settle(tenant, delivery, status=done, answered=answered, wait_s=wait_s)

    async def _send(self, tenant: str, endpoint: _Endpoint, delivery: Delivery) -> tuple[int, float]:
        """The status that came back, and how long it asks to wait."""
        allowed: list[int] = []
        headers = signature.headers(endpoint.keys, id=delivery.id, timestamp=int(time.time()), body=delivery.body)
        passing = self._passing(tenant, delivery, allowed)
        scope, outcome, size = Scope(tenant=tenant, user=SYSTEM), "failed", 64 << 10
        try:
            async with (
                asyncio.timeout(WHOLE_S),
                endpoint.http.request(
                    "POST",
                    endpoint.settings.url,
                    passing=passing,
                    headers=headers,
                    form=(delivery.body, "application/json"),
                ) as answer,
            ):
                # The status says whether it was taken; of a long page beside it no more is read.
                with contextlib.suppress(LimitError):
                    size = len(await whole(answer, max_kib=64))
                status, after = int(answer.status_code), str(answer.headers.get("retry-after", ""))
            outcome = f"answered {status}"
        except TimeoutError:
            raise UpstreamError(f"{endpoint.host} took longer than {WHOLE_S:g} s", retryable=True) from None
        finally:
            if allowed:
                detail = {"allowed": allowed[0], "outcome": outcome, "bytes": 0 if outcome == "failed" else size}
                self._audit.note("egress.returned", scope=scope, detail=detail)
        return status, min(float(after), 86_400.0) if after.isdecimal() else 0.0

    def _passing(self, tenant: str, delivery: Delivery, allowed: list[int]) -> Passing:
        """The door: what is sent, where to and which attempt it is are durable before it goes."""

        async def passing(host: str) -> str:
            rules, scope = self._rules(tenant), Scope(tenant=tenant, user=SYSTEM)
            id_ = uuid.uuid4().hex
            detail = {
                "passage": id_,
                "host": host[:255],
                "purpose": "webhook",
                "label": "public",
                "policy": rules.digest,
                "bytes": len(delivery.body),
                "sha256": hashlib.sha256(delivery.body).hexdigest(),
                "attempt": f"attempt {delivery.attempts}",
                "event": delivery.id,
                "webhook": delivery.endpoint,
            }
            if not (rules.egress.serves(tenant) and rules.egress.allows_host(host)):
                reason = "the policy does not open the door for the webhook's host"
                await self._audit.append("egress.denied", scope=scope, detail={**detail, "reason": reason})
                raise EgressError(reason, hint="egress.hosts in the policy")
            entry = await self._audit.append("egress.allowed", scope=scope, detail=detail)
            allowed.append(entry.seq)
            return id_

        return passing
