"""`/v1/admin/policy/LEVEL`: what administrators write for a tenant, besides the operator's files.

It is joined with those, so that it can only restrict. Each act is on record, durably, before it takes effect; what does
not hold is refused here, and not found at the first request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import msgspec

from aibox.box import Box
from aibox.errors import AccessError, BackendError, ConfigError, StoreError
from aibox.policy.difference import difference
from aibox.policy.policy import Policy
from aibox.server.acts import begun
from aibox.server.in_force import InForce
from aibox.server.policies import Level, Policies, Version, hold
from aibox.server.principal import Principal, Role
from aibox.server.route import ADMINISTERS, route
from aibox.server.shapes import policies as shapes
from aibox.server.shapes.admin import TenantQuery
from aibox.server.tenant_api import tenant_of
from aibox.server.written import hold as hold_to_level
from aibox.server.written import kept, read
from aibox.types import Scope

_EXAMPLES = (
    {"toml": '[checks.pii]\ninput = "redact"\n\n[tools]\napprove = ["*"]\n'},
    {"policy": {"budgets": {"tenant": {"tokens_per_day": 1_000_000}}, "limits": {"model_calls": 8}}},
)


class PoliciesAPI:
    """Policies as they are written."""

    def __init__(self, box: Box, policies: Policies, in_force: InForce) -> None:
        self._box = box
        self._policies = policies
        self._in_force = in_force

    @route("GET", "/v1/admin/policy/{level}", roles=ADMINISTERS, matches=True)
    async def show(self, who: Principal, level: shapes.WrittenLevel, query: TenantQuery) -> shapes.PolicyKept:
        """What is written for a tenant. What is in force, with all levels, tells `GET /v1/admin/policy`."""
        newest = (await self._policies.newest(_tenant(who, level, query))).get(level)
        return _kept(newest)

    @route("PUT", "/v1/admin/policy/{level}", roles=ADMINISTERS, matches=True, examples=_EXAMPLES)
    async def put(
        self,
        who: Principal,
        level: shapes.WrittenLevel,
        query: shapes.PutQuery,
        body: shapes.NewPolicy,
        match: str | None,
    ) -> shapes.PolicyChanged:
        """Write a tenant's policy anew, as a whole: what it does not mention it does not restrict, but for the door.

        The door, `traces.content` and `reuse` are shut by a policy that does not mention them. It holds for what begins
        from now on; what is under way ends as it began. A first one needs no `If-Match`.
        """
        tenant = _tenant(who, level, query)
        policy, text = await asyncio.to_thread(read, body.toml if body.toml is not None else body.policy or {})
        return await self._write(who, tenant, level, policy, text, match=match, dry_run=query.dry_run)

    @route("DELETE", "/v1/admin/policy/{level}", roles=ADMINISTERS, matches=True)
    async def withdraw(
        self, who: Principal, level: shapes.WrittenLevel, query: shapes.PutQuery, match: str | None
    ) -> shapes.PolicyChanged:
        """Withdraw what is written. Its versions stay, and the other levels hold."""
        tenant = _tenant(who, level, query)
        return await self._write(who, tenant, level, None, "", match=match, dry_run=query.dry_run)

    @route("GET", "/v1/admin/policy/{level}/versions", roles=ADMINISTERS)
    async def versions(self, who: Principal, level: shapes.WrittenLevel, query: TenantQuery) -> shapes.VersionList:
        """The last fifty versions, the newest first."""
        found = await self._policies.versions(_tenant(who, level, query), level)
        return shapes.VersionList(data=[shapes.PolicyVersion.model_validate(one) for one in found])

    @route("GET", "/v1/admin/policy/{level}/versions/{version}", roles=ADMINISTERS, matches=True)
    async def version(
        self, who: Principal, level: shapes.WrittenLevel, version: shapes.VersionNumber, query: TenantQuery
    ) -> shapes.PolicyKept:
        """One version, as it was written. To go back to it, write it again."""
        found = await self._policies.versions(_tenant(who, level, query), level)
        return _kept(next((one for one in found if one.version == version), None))

    async def _write(
        self,
        who: Principal,
        tenant: str,
        level: Level,
        policy: Policy | None,
        text: str,
        *,
        match: str | None,
        dry_run: bool,
    ) -> shapes.PolicyChanged:
        await self._in_force.look(anew=True)
        newest = await self._policies.newest(tenant)
        now = newest.get(level)
        if policy is None and (now is None or not now.digest):
            raise _absent()
        others = {name: kept(one.text) for name, one in newest.items() if one.text and name != level}
        written = others if policy is None else {**others, level: policy}
        if policy is not None:
            above = [self._box.policy, self._box.levels.files.get(tenant), others.get("operator")]
            hold_to_level(policy, level, in_use={name for one in above if one is not None for name in one.checks})
        before, after = self._box.rules(tenant), await self._tried(tenant, written)
        digest = policy.digest if policy is not None else ""
        made: Version | None = None
        if not dry_run:
            hold(match, now.digest if now is not None else "")
            operation = "policies.withdraw" if policy is None else "policies.put"
            await begun(
                self._box.audit, who, operation, tenant=tenant, level=level, digest=digest, effective=after.digest
            )
            author = who.scope.user if who.scope.tenant == tenant else ""
            made = await self._policies.write(tenant, level, text=text, digest=digest, author=author, match=match)
            try:
                await self._in_force.look(anew=True)
            except StoreError:
                # It is written, whatever cannot be asked since: an answer that says otherwise would not be true.
                await self._take_up(tenant, level, policy)
        found = difference(before, after)
        return shapes.PolicyChanged(
            level=level,
            version=made.version if made is not None else None,
            digest=digest,
            before=before.digest,
            effective=after.digest,
            stricter=list(found.stricter),
            relaxed=list(found.relaxed),
        )

    async def _take_up(self, tenant: str, level: Level, policy: Policy | None) -> None:
        """Put one level into force beside those that are. A tenant that is shut stays so until it can be looked."""
        levels = self._box.levels
        if tenant not in levels.shut:
            others = {name: one for name, one in levels.written.get(tenant, {}).items() if name != level}
            await self._box.narrow(tenant, others if policy is None else {**others, level: policy})

    async def _tried(self, tenant: str, written: Mapping[str, Policy]) -> Policy:
        """What would hold. Raises ConfigError for what this server cannot do."""
        own = self._box.levels.joined(tenant, written)
        if own is None:
            return self._box.policy
        made = await asyncio.to_thread(self._box.guardrail.for_own, own)
        if made.policy.judge.places:
            try:
                scope = Scope(tenant=tenant, user="aibox")
                await self._box.router.leads("guardrail", scope=scope, policy=made.policy)
            except (AccessError, BackendError, ConfigError) as error:
                raise ConfigError(
                    f"the policy has texts judged by a model, and there is none: {error.message}",
                    hint="the operator gives the role `guardrail` a model, which is among the policy's `models`",
                ) from None
        return made.policy


def _tenant(who: Principal, level: Level, query: TenantQuery) -> str:
    """Whose it is. Raises AccessError for a level that is not the caller's."""
    tenant = tenant_of(who, query)
    if level == "operator" and Role.PLATFORM_ADMIN not in who.roles:
        raise AccessError("the level operator is for a platform_admin alone", hint="the tenant's is own")
    return tenant


def _kept(found: Version | None) -> shapes.PolicyKept:
    if found is None or not found.digest:
        raise _absent()
    about = {name: getattr(found, name) for name in ("level", "version", "digest", "author", "written")}
    return shapes.PolicyKept(policy=msgspec.json.decode(found.text), **about)


def _absent() -> AccessError:
    return AccessError("there is no such policy", hint="GET /v1/admin/policy/LEVEL/versions lists them", absent=True)
