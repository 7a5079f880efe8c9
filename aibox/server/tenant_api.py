"""`/v1/usage`, `/v1/skills` and `/v1/routes`: what the caller's tenant has and uses."""

from __future__ import annotations

from datetime import UTC, datetime

from aibox.box import Box
from aibox.errors import AccessError
from aibox.inference.accounts import Accounts
from aibox.policy.budgets import Budgets
from aibox.server.guard_api import levels_of
from aibox.server.principal import Principal, Role
from aibox.server.route import ADMINISTERS, ASKS, route
from aibox.server.shapes import admin as shapes


class TenantAPI:
    """What there is for the caller's tenant."""

    def __init__(self, box: Box) -> None:
        self._box = box

    @route("GET", "/v1/usage", roles=ASKS)
    async def usage(self, who: Principal) -> shapes.Used:
        """What the caller has used in this day and month, and what they may."""
        accounts, budgets = self._box.router.accounts, levels_of(self._box, who.scope.tenant).policy.budgets
        everybody = bool(who.roles.intersection(ADMINISTERS))
        return shapes.Used(
            user=await spent(accounts, who.scope.tenant, user=who.scope.user),
            user_budget=shapes.Bounds.model_validate(budgets.user),
            models=[
                shapes.Share.model_validate(one) for one in await accounts.shares(who.scope.tenant, user=who.scope.user)
            ],
            tenant=await spent(accounts, who.scope.tenant) if everybody else None,
            tenant_budget=shapes.Bounds.model_validate(budgets.tenant),
            model_budgets=bounds_of(budgets),
        )

    @route("GET", "/v1/skills", roles=ASKS)
    async def skills(self, who: Principal) -> shapes.SkillList:
        """The skills that are installed for the tenant, each held against the digest that it was installed with."""
        found = self._box.skills.skills(scope=who.scope)
        return shapes.SkillList(data=[shapes.SkillShown.model_validate(skill) for skill in found])

    @route("GET", "/v1/routes", roles=ASKS)
    async def routes(self, who: Principal) -> shapes.RouteList:
        """The models that the tenant can ask for, where each is answered, and by which other names."""
        router = self._box.router
        data = [
            shapes.RouteShown(
                model=info.id,
                backend=info.backend,
                external=info.external,
                tools=info.tools,
                context_tokens=info.context_tokens,
                capabilities=None if info.capabilities is None else sorted(info.capabilities),
                weights=info.weights.known,
                demo=info.demo,
            )
            for info in await router.models(scope=who.scope)
        ]
        return shapes.RouteList(data=data, names=router.names(scope=who.scope))


async def spent(accounts: Accounts, tenant: str, *, user: str | None = None, model: str | None = None) -> shapes.Spent:
    """In the present day and month."""
    month = datetime.now(UTC).strftime("%Y-%m")
    return shapes.Spent(
        day=shapes.Sum.model_validate(await accounts.spent(tenant, user=user, model=model)),
        month=shapes.Sum.model_validate(await accounts.spent(tenant, user=user, model=model, period=month)),
    )


def bounds_of(budgets: Budgets) -> dict[str, shapes.Bounds]:
    """Of each model that has a budget."""
    return {name: shapes.Bounds.model_validate(budget) for name, budget in budgets.models.items()}


def tenant_of(who: Principal, query: shapes.TenantQuery) -> str:
    """The caller's tenant, or the one that a platform's administrator names. Raises AccessError."""
    if query.tenant is None or query.tenant == who.scope.tenant:
        return who.scope.tenant
    if Role.PLATFORM_ADMIN not in who.roles:
        raise AccessError("another tenant is for a platform_admin alone")
    return query.tenant
