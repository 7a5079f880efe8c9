"""An administrator's act is on record, durably, before it happens; its end is of the same turn, and so there is one."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any

from aibox.audit.chain import AuditChain
from aibox.server.principal import Principal, Role

ENDED = "request.ended"
"""What a request leaves that leaves no other entry, and was refused or has changed something."""


async def begun(
    audit: AuditChain,
    who: Principal,
    operation: str,
    *,
    tenant: str,
    user: str | None = None,
    roles: Iterable[Role] = (),
    key: str = "",
    **more: Any,
) -> None:
    """Record it: to whom it is done, roles and the id of the key that it is about, and `more`. Raises StoreError."""
    about = {"tenant": tenant} if user is None else {"tenant": tenant, "user": user}
    detail = {"operation": operation, **about, "roles": sorted(map(str, roles)), "key": key, **more}
    assert who.act is not None
    # Before it is written: who is broken off meanwhile takes back no entry, and it has its end.
    who.act.turn = str(uuid.uuid4())
    await audit.append("request.begun", scope=who.scope, turn=who.act.turn, detail=detail)


async def ended(audit: AuditChain, who: Principal, operation: str, outcome: str) -> None:
    """The terminal entry of a request, with what it had begun. Raises StoreError."""
    detail = {"operation": operation, "outcome": outcome, "how": who.how}
    if who.act is None or not who.act.turn:
        await audit.append(ENDED, scope=who.scope, detail=detail)
    else:
        await audit.end(who.act.turn, scope=who.scope, kind=ENDED, detail=detail)
