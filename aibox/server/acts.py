"""An administrator's act is on record, durably, before it happens."""

from __future__ import annotations

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
    await audit.append("request.begun", scope=who.scope, detail=detail)
