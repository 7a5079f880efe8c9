"""`/v1/admin/observability`: what was used by whom, and what became of traces and webhooks. It shows names and numbers.

A tenant's administrator sees their own tenant, a platform's administrator any, and the process's traces. An auditor,
who reads evidence and nothing else, sees none of it.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from aibox.box import Box
from aibox.errors import ConfigError
from aibox.outbound.outbox import Outbox
from aibox.server.principal import Principal
from aibox.server.route import ADMINISTERS, OPERATES, route
from aibox.server.shapes import observability as shapes
from aibox.server.shapes.admin import Share, TenantQuery
from aibox.server.tenant_api import spent, tenant_of


class ObservabilityAPI:
    """How the server is watched."""

    def __init__(self, box: Box) -> None:
        self._box = box
        self._outbox = Outbox(lambda: box.state.store)

    @route("GET", "/v1/admin/observability", roles=ADMINISTERS)
    async def state(self, who: Principal, query: TenantQuery) -> shapes.Observed:
        """How a tenant is watched, and for the operator what became of the traces."""
        tenant, traces, webhooks = tenant_of(who, query), self._box.traces, self._box.webhooks
        shown = None
        if traces is not None and who.roles.intersection(OPERATES):
            shown = shapes.TracesShown(
                host=traces.host,
                external=traces.external,
                waiting=traces.waiting,
                sent=traces.sent,
                dropped={reason: count for reason, count in sorted(traces.dropped.items()) if count},
                last_error=traces.last_error,
                last_error_us=traces.last_error_us,
            )
        addresses = () if webhooks is None else webhooks.endpoints(tenant)
        return shapes.Observed(
            tenant=tenant,
            spent=await spent(self._box.router.accounts, tenant),
            webhooks=[shapes.WebhookShown(name=one.name, events=sorted(one.events)) for one in addresses],
            traces=shown,
        )

    @route("GET", "/v1/admin/observability/usage", roles=ADMINISTERS)
    async def usage(self, who: Principal, query: shapes.UsageQuery) -> shapes.ShareList:
        """What a tenant's users have used of which models in a day or month, a page at a time."""
        tenant, after = tenant_of(who, query), _read(query.after, (str, str))
        period = query.period or datetime.now(UTC).strftime("%Y-%m")
        found = await self._box.router.accounts.shares(
            tenant,
            period=period,
            by=query.by,
            user=query.user,
            model=query.model,
            after=after,
            limit=query.limit + 1,
        )
        page = [Share.model_validate(one) for one in found[: query.limit]]
        more = json.dumps([page[-1].user, page[-1].model]) if len(found) > query.limit else None
        return shapes.ShareList(tenant=tenant, period=period, data=page, next=more)

    @route("GET", "/v1/admin/observability/deliveries", roles=ADMINISTERS)
    async def deliveries(self, who: Principal, query: shapes.DeliveryQuery) -> shapes.DeliveryList:
        """A tenant's webhooks that wait or are over, the newest first, a page at a time; not what they say."""
        tenant, after = tenant_of(who, query), _read(query.after, (int, str, str))
        found = await self._outbox.list(tenant, after=after, status=query.status, limit=query.limit + 1)
        page = [shapes.DeliveryShown.model_validate(one) for one in found[: query.limit]]
        last = page[-1] if len(found) > query.limit else None
        more = None if last is None else json.dumps([last.created_us, last.endpoint, last.id])
        return shapes.DeliveryList(data=page, next=more)


def _read(cursor: str | None, kinds: tuple[type, ...]) -> Any:
    """A `next` that was given out here. Raises ConfigError for what is none."""
    if cursor is None:
        return None
    try:
        told = json.loads(cursor)
        if type(told) is list and tuple(map(type, told)) == kinds and (kinds[0] is str or abs(told[0]) < 2**63):
            return tuple(_stored(part) for part in told)
    except (ValueError, RecursionError):
        pass
    raise ConfigError("`after` is no `next` of a page", hint="take the `next` of the page before, or leave it out")


def _stored(part: str | int) -> str | int:
    """Raises ValueError for a text that no database keeps: with half a surrogate, or a NUL."""
    if isinstance(part, str) and b"\0" in part.encode():
        raise ValueError("a NUL")
    return part
