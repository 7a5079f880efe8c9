"""`/v1/admin`: keys, policy, budgets and egress of a tenant, and for the operator all tenants, models and logs.

Each act is on record, durably, before it happens. Nobody gives a role away that they could not have given themselves:
only a platform's administrator makes another, or renews or ends the key of one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import asdict

from aibox.box import Box
from aibox.errors import STATE, AccessError, AIBoxError, ConfigError, IntegrityError
from aibox.inference.egress_report import Attempt, flows
from aibox.server.acts import begun
from aibox.server.api_keys import ApiKey, ApiKeys
from aibox.server.evidence_api import verified
from aibox.server.guard_api import levels_of, policy_shown
from aibox.server.principal import Principal, Role
from aibox.server.problem import is_kept_back
from aibox.server.reload import Reload
from aibox.server.route import ADMINISTERS, OPERATES, route
from aibox.server.scopes import hold
from aibox.server.shapes import admin as shapes
from aibox.server.shapes.evidence import Verified
from aibox.server.shapes.guard import PolicyShown
from aibox.server.shapes.shape import Id
from aibox.server.shut import Shut
from aibox.server.tenant_api import bounds_of, spent, tenant_of
from aibox.types import Scope


class KeysAPI:
    """API keys of a tenant's programs."""

    def __init__(self, box: Box, keys: ApiKeys | None, shut: Shut) -> None:
        self._box = box
        self._kept = keys
        self._shut = shut

    @route("GET", "/v1/admin/keys", roles=ADMINISTERS)
    async def list_(self, who: Principal, query: shapes.TenantQuery) -> shapes.KeyList:
        """A tenant's keys, newest first. Their secrets are not kept."""
        return shapes.KeyList(data=[_key(key) for key in await self._keys.list(tenant_of(who, query))])

    @route(
        "POST",
        "/v1/admin/keys",
        roles=ADMINISTERS,
        status=201,
        examples=[
            {"user": "nightly", "roles": ["service"]},
            {"user": "ci", "scopes": ["inference"], "models": ["default"]},
        ],
    )
    async def create(self, who: Principal, query: shapes.TenantQuery, body: shapes.NewKey) -> shapes.KeyMade:
        """A new key for a program, for this once in the clear."""
        keys, scope = self._keys, Scope(tenant=tenant_of(who, query), user=body.user)
        _may_give(who, body.roles, body.scopes, body.models)
        hold(body.scopes, body.models)
        await begun(self._box.audit, who, "keys.create", tenant=scope.tenant, roles=body.roles)
        return shapes.KeyMade(
            key=await keys.create(
                scope=scope,
                roles=body.roles,
                days=body.days,
                note=body.note,
                scopes=body.scopes,
                models=body.models,
            )
        )

    @route("POST", "/v1/admin/keys/{id}/rotate", roles=ADMINISTERS, status=201, examples=[{"overlap_days": 1}])
    async def rotate(
        self, who: Principal, id: Id, query: shapes.TenantQuery, body: shapes.Overlap  # noqa: A002 - as the path has it
    ) -> shapes.KeyMade:  # fmt: skip
        """A new key in the place of an old one, which ends after the overlap."""
        old = await self._find(who, id, query)
        if old.revoked:
            raise ConfigError("a key that was revoked is not renewed", hint="make a new one", code=STATE)
        await begun(self._box.audit, who, "keys.rotate", tenant=old.scope.tenant, roles=old.roles, key=id)
        return shapes.KeyMade(key=await self._keys.rotate(id, tenant=old.scope.tenant, overlap_days=body.overlap_days))

    @route("DELETE", "/v1/admin/keys/{id}", roles=ADMINISTERS)
    async def revoke(self, who: Principal, id: Id, query: shapes.TenantQuery) -> None:  # noqa: A002 - likewise
        """End a key now, and within 5 seconds whatever was asked with it and still runs, on every replica."""
        old = await self._find(who, id, query)
        await begun(self._box.audit, who, "keys.revoke", tenant=old.scope.tenant, roles=old.roles, key=id)
        await self._keys.revoke(id, tenant=old.scope.tenant)
        await self._shut.look()

    @property
    def _keys(self) -> ApiKeys:
        if self._kept is None:
            raise ConfigError("this server has no API keys", hint="the operator sets server.api_keys")
        return self._kept

    async def _find(self, who: Principal, id_: str, query: shapes.TenantQuery) -> ApiKey:
        found = next((key for key in await self._keys.list(tenant_of(who, query)) if key.id == id_), None)
        if found is None:
            raise AccessError("there is no such key", hint="GET /v1/admin/keys lists them", absent=True)
        _may_give(who, found.roles, found.scopes, found.models)
        return found


class AdminAPI:
    """What is configured, in force and used."""

    def __init__(self, box: Box, reload: Reload | None = None) -> None:
        self._box = box
        self._reload = reload

    @route("GET", "/v1/admin/models", roles=OPERATES)
    async def models(self, who: Principal) -> shapes.BackendList:
        """The configured backends, and whether they answer."""
        del who
        health = await self._box.router.health()
        data = [
            shapes.BackendShown(
                name=one.name or one.kind,
                kind=one.kind,
                external=one.external,
                models=list(one.models or ()),
                tenants=None if one.tenants is None else sorted(one.tenants),
            )
            for one in self._box.settings.backends
        ]
        return shapes.BackendList(data=data, healthy=health.ok, detail=health.detail)

    @route("GET", "/v1/admin/policy", roles=ADMINISTERS)
    async def policy(self, who: Principal, query: shapes.TenantQuery) -> PolicyShown:
        """The policy in force for a tenant, and its levels."""
        return policy_shown(self._box, tenant_of(who, query))

    @route("GET", "/v1/admin/budgets", roles=ADMINISTERS)
    async def budgets(self, who: Principal, query: shapes.BudgetQuery) -> shapes.BudgetShown:
        """What a tenant and each of its users may use, and what it, one of them, or all of a model have used by now."""
        tenant = tenant_of(who, query)
        budgets, accounts = levels_of(self._box, tenant).policy.budgets, self._box.router.accounts
        return shapes.BudgetShown(
            tenant=tenant,
            spent=await spent(accounts, tenant),
            user=None if query.user is None else await spent(accounts, tenant, user=query.user),
            model=None if query.model is None else await spent(accounts, tenant, model=query.model),
            tenant_budget=shapes.Bounds.model_validate(budgets.tenant),
            user_budget=shapes.Bounds.model_validate(budgets.user),
            model_budgets=bounds_of(budgets),
        )

    @route("GET", "/v1/admin/egress", roles=(*ADMINISTERS, Role.AUDITOR))
    async def egress(self, who: Principal, query: shapes.TenantQuery) -> shapes.FlowList:
        """What has left the box for a tenant: where to, how much, under which policy; and what was refused."""
        tenant = tenant_of(who, query)
        attempts = [
            Attempt(tenant, entry.seq, entry.ts_us, entry.kind, entry.detail)
            for entry in await self._box.audit.entries_of(tenant, "egress.")
        ]
        return shapes.FlowList(data=[shapes.Flow.model_validate(flow.as_dict()) for flow in flows(attempts)])

    @route("POST", "/v1/admin/reload", roles=OPERATES, records=True)
    async def reload(self, who: Principal) -> shapes.Reloaded:
        """Read the operator's files anew: policies, backends, routes and issuers take effect, all of them or none.

        What is under way goes on under what it began with. It is of this server; others are told each.
        """
        if self._reload is None:
            raise ConfigError("this server has no configuration to read", hint="it was put together by a program")
        try:
            return shapes.Reloaded.model_validate(asdict(await self._reload(who.scope)))
        except (ConfigError, IntegrityError) as error:
            if not is_kept_back(error):
                raise
            # Who asks is the operator, and the file that does not hold is theirs.
            raise AIBoxError(error.message, hint=error.hint, code=error.code) from error

    @route("POST", "/v1/admin/audit/verify", roles=OPERATES)
    async def verify(self, who: Principal) -> Verified:
        """Hold the logs of all tenants against themselves, their keys and their mark."""
        del who
        return await verified(self._box.audit, None)


def _may_give(
    who: Principal, roles: Iterable[Role], scopes: Collection[str] | None, models: Collection[str] | None
) -> None:
    """Raises AccessError for a role that is above the giver's, and for more than the giver's own key is for."""
    if not who.within(scopes or None, models or None):
        raise AccessError(
            "a key gives no more than it is for itself", hint="name scopes and models that it has", code="policy.scope"
        )
    if Role.PLATFORM_ADMIN in roles and Role.PLATFORM_ADMIN not in who.roles:
        raise AccessError("only a platform_admin makes, renews or ends the key of one")


def _key(key: ApiKey) -> shapes.KeyShown:
    return shapes.KeyShown(
        id=key.id,
        user=key.scope.user,
        roles=sorted(key.roles),
        note=key.note,
        created=key.created,
        expires=key.expires,
        last_used=key.last_used,
        revoked=key.revoked,
        scopes=None if key.scopes is None else list(key.scopes),
        models=None if key.models is None else list(key.models),
    )
