"""`aibox verify isolation`: two tenants of its own in a running deployment, every way tried from one into the other."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

import aibox.box
from aibox.errors import AIBoxError, ConfigError, MissingExtraError
from aibox.settings import Settings
from aibox.types import Scope

if TYPE_CHECKING:
    from aibox.server.api_keys import ApiKeys
    from aibox.server.isolation_report import IsolationReport
    from aibox.server.people import People
    from aibox.server.policies import Policies


async def isolation(settings: Settings, *, url: str | None, report: Path | None, console: Console) -> bool:
    """Whether nothing crossed. The keys are made for this, and end with it; the report is sealed in the box's chain."""
    try:
        from aibox.server.acts import ENDED
        from aibox.server.api_keys import ApiKeys
        from aibox.server.client import Client
        from aibox.server.isolation import verify_isolation
        from aibox.server.people import People
        from aibox.server.policies import Policies
        from aibox.server.principal import Role
    except ImportError:
        raise MissingExtraError("aibox verify isolation", extra="server") from None
    place = settings.api_keys
    if place is None:
        raise ConfigError(
            "two tenants need two keys, and this server has no API keys",
            hint='set api_keys = "api-keys.db" under [server] in aibox.toml',
        )
    url = url or f"http://{settings.server.host}:{settings.server.port}"
    keys, people = ApiKeys(place), People(settings.place(None, "people.db"))
    policies = Policies(settings.place(None, "policies.db"))
    mark = uuid.uuid4().hex[:8]
    scopes = [Scope(tenant=f"isolation-{mark}-{side}", user="isolation") for side in ("a", "b")]
    roles = (Role.USER, Role.TENANT_ADMIN)
    async with aibox.box.open(settings=settings) as box:
        about, turn = {"operation": "isolation.verify"}, str(uuid.uuid4())
        await box.audit.append("request.begun", scope=scopes[0], turn=turn, detail=about)
        secrets = [await keys.create(scope=scope, roles=roles, days=1, note="verify isolation") for scope in scopes]
        try:
            async with Client(url, secrets[0]) as one, Client(url, secrets[1]) as other:
                sides = (scopes[0].tenant, one), (scopes[1].tenant, other)
                found = await verify_isolation(url, *sides, databases=settings.databases)
        except AIBoxError as error:
            await box.audit.end(turn, scope=scopes[0], kind=ENDED, detail={**about, "outcome": error.code})
            raise
        finally:
            await _end(scopes, keys, people, policies)
        found = await found.seal(box.audit, scope=scopes[0], turn=turn)
    _show(found, console)
    if report is not None:
        found.save(report)
        console.print(f"the report, with its receipt: {report}", soft_wrap=True)
    return found.ok


async def _end(scopes: Iterable[Scope], keys: ApiKeys, people: People, policies: Policies) -> None:
    """Leave nothing of the tenants in these stores, also no key that one could make for the other; and close them."""
    for scope in scopes:
        for key in await keys.list(scope.tenant):
            await keys.revoke(key.id, tenant=scope.tenant)
        await people.remove(scope.tenant)
        await policies.erase(scope=scope)
    for store in (keys, people, policies):
        await store.close()


def _show(found: IsolationReport, console: Console) -> None:
    from aibox.server.isolation_report import OUTCOMES

    table = Table("area", "way", *OUTCOMES, box=None, header_style="bold", pad_edge=False)
    for area, way in dict.fromkeys((row.area, row.way) for row in found.rows):
        rows = [row for row in found.rows if (row.area, row.way) == (area, way)]
        table.add_row(area, way, *(str(sum(r.outcome == o for r in rows)) for o in OUTCOMES))
    console.print(table)
    for row in found.rows:
        if row.outcome != "held":
            console.print(f"{row.outcome}: {row.area}, {row.way}: {escape(row.why)}", soft_wrap=True)
    for what in found.left:
        console.print(f"left behind: {escape(what)}", soft_wrap=True)
    counts = ", ".join(f"{found.count(outcome)} {outcome}" for outcome in OUTCOMES)
    console.print(f"{'[green]isolated[/]' if found.ok else '[red]not isolated[/]'}: {counts}")
