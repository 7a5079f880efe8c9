"""`/v1/admin/tenants` and `/v1/admin/users`: who is known here, and who is let in.

Each act is on record, durably, before it happens. It holds at once on this server, and within seconds on those that
share its database, also for what is under way: `Shut` ends it.
"""

from __future__ import annotations

import contextlib

from aibox.box import Box
from aibox.errors import STATE, AccessError, ConfigError, StoreError
from aibox.server.acts import begun
from aibox.server.in_force import InForce
from aibox.server.people import Known, People, State
from aibox.server.principal import Principal, Role
from aibox.server.route import ADMINISTERS, OPERATES, route
from aibox.server.shapes import people as shapes
from aibox.server.shapes.admin import TenantQuery
from aibox.server.shut import Shut
from aibox.server.tenant_api import tenant_of
from aibox.types import Scope


class TenantsAPI:
    """Tenants, for the operator."""

    def __init__(self, box: Box, people: People, shut: Shut, in_force: InForce) -> None:
        self._box = box
        self._people = people
        self._shut = shut
        self._in_force = in_force

    @route("GET", "/v1/admin/tenants", roles=OPERATES)
    async def list_(self, who: Principal) -> shapes.TenantList:
        """The tenants that were seen or made here, and those that something is configured for."""
        del who
        known = {one.tenant: one for one in await self._people.tenants()}
        names = sorted({*known, *self._configured()})
        return shapes.TenantList(data=[self._shown(name, known.get(name)) for name in names])

    @route("POST", "/v1/admin/tenants", roles=OPERATES, status=201, examples=[{"name": "acme", "note": "from May on"}])
    async def create(self, who: Principal, body: shapes.NewTenant) -> shapes.TenantShown:
        """Write a tenant down. Nobody needs that to be let in; a name that was deleted is not given again."""
        await begun(self._box.audit, who, "tenants.create", tenant=body.name)
        return self._shown(body.name, await self._people.create(body.name, note=body.note))

    @route("GET", "/v1/admin/tenants/{name}", roles=OPERATES)
    async def show(self, who: Principal, name: shapes.TenantName) -> shapes.TenantShown:
        """One tenant."""
        del who
        known = await self._people.find(name)
        if known is None and name not in self._configured():
            raise AccessError("there is no such tenant", hint="GET /v1/admin/tenants lists them", absent=True)
        return self._shown(name, known)

    @route("POST", "/v1/admin/tenants/{name}/suspend", roles=OPERATES, examples=[{"note": "unpaid since May"}])
    async def suspend(self, who: Principal, name: shapes.TenantName, body: shapes.Why) -> shapes.TenantShown:
        """Let nobody of the tenant in: every token and every key is refused.

        Within 5 seconds everything of theirs that runs is ended, on every replica: requests, streams, turns, sandbox
        sessions. What is kept for them stays.
        """
        return await self._put(who, name, "suspended", note=body.note)

    @route("POST", "/v1/admin/tenants/{name}/resume", roles=OPERATES)
    async def resume(self, who: Principal, name: shapes.TenantName) -> shapes.TenantShown:
        """Let them in again. One that was deleted is not let in again."""
        return await self._put(who, name, "active")

    @route("DELETE", "/v1/admin/tenants/{name}", roles=OPERATES)
    async def delete(self, who: Principal, name: shapes.TenantName) -> shapes.TenantShown:
        """End a tenant that is suspended, for good: all that is kept for it goes, and its name is not given again.

        Memories, documents, conversations, pseudonyms, answers, policies, API keys, the list of its users: those go
        from every store. Its log stays, until its retention, and says how much went; so do the sums of what it has
        used. Refused while a legal hold stands on anybody of it. What broke off half way is asked again, and so is what
        may have been written while other servers still ended what ran.
        """
        found = await self._people.find(name)
        if found is None or found.state == "active":
            raise ConfigError(
                f"the tenant {name} is not suspended",
                hint=f"POST /v1/admin/tenants/{name}/suspend comes first",
                code=STATE,
            )
        await self._box.audit.may_empty(name)
        await self._put(who, name, "deleted")
        emptying = Scope(tenant=name, user="aibox").under(who.scope.correlation, who.scope.trace)
        await self._box.audit.empty(scope=emptying)
        with contextlib.suppress(StoreError):
            # It is done, whatever cannot be asked since. What still holds here holds for nobody, until the next look.
            await self._in_force.look(anew=True)
        return self._shown(name, await self._people.find(name))

    async def _put(self, who: Principal, name: str, state: State, *, note: str = "") -> shapes.TenantShown:
        if name == who.scope.tenant:
            raise AccessError("nobody shuts out the tenant that they are of", hint="another's administrator does it")
        await begun(self._box.audit, who, f"tenants.{_ACTS[state]}", tenant=name)
        known = await self._people.put(name, state=state, note=note)
        await self._shut.look()
        return self._shown(name, known)

    def _configured(self) -> set[str]:
        settings = self._box.settings
        dedicated = {name for backend in settings.backends for name in backend.tenants or ()}
        return {*settings.tenants, *self._box.tenant_policies, *settings.routing.tenants, *dedicated}

    def _shown(self, name: str, known: Known | None) -> shapes.TenantShown:
        own = self._box.tenant_policies.get(name)
        return shapes.TenantShown(
            name=name,
            state=known.state if known is not None else "active",
            note=known.note if known is not None else "",
            since=known.since if known is not None else None,
            seen=known.seen if known is not None else None,
            policy=own.digest if own is not None else None,
            backends=[one.name or one.kind for one in self._box.settings.backends if name in (one.tenants or ())],
        )


class UsersAPI:
    """Users of a tenant: those who were seen with a token or a key, or were suspended."""

    def __init__(self, box: Box, people: People, shut: Shut) -> None:
        self._box = box
        self._people = people
        self._shut = shut

    @route("GET", "/v1/admin/users", roles=ADMINISTERS)
    async def list_(self, who: Principal, query: shapes.UserQuery) -> shapes.UserList:
        """The users of a tenant, by name. Their roles are those that their tokens and keys have had here."""
        found = await self._people.users(tenant_of(who, query), after=query.after, limit=query.limit)
        return shapes.UserList(data=[_user(one) for one in found])

    @route("POST", "/v1/admin/users/suspend", roles=ADMINISTERS, examples=[{"user": "eva", "note": "left in May"}])
    async def suspend(self, who: Principal, query: TenantQuery, body: shapes.UserAndWhy) -> shapes.UserShown:
        """Let a user in no more, whatever token or key they bring; also one who was not seen yet.

        What runs for them is ended as with a tenant that is suspended. What a tenant's administrator suspends holds for
        no `platform_admin`, and what a `platform_admin` suspends only one lets in again.
        """
        return await self._put(who, query, body.user, "suspended", note=body.note)

    @route("POST", "/v1/admin/users/resume", roles=ADMINISTERS, examples=[{"user": "eva"}])
    async def resume(self, who: Principal, query: TenantQuery, body: shapes.UserAndWhy) -> shapes.UserShown:
        """Let them in again."""
        return await self._put(who, query, body.user, "active", note=body.note)

    async def _put(self, who: Principal, query: TenantQuery, user: str, state: State, *, note: str) -> shapes.UserShown:
        tenant = tenant_of(who, query)
        if (tenant, user) == (who.scope.tenant, who.scope.user):
            raise AccessError("nobody shuts out themselves", hint="another administrator does it")
        known = await self._people.find(tenant, user)
        if known is not None and Role.PLATFORM_ADMIN in known.roles and Role.PLATFORM_ADMIN not in who.roles:
            raise AccessError("only a platform_admin shuts out or lets in another")
        await begun(self._box.audit, who, f"users.{_ACTS[state]}", tenant=tenant, user=user)
        by = Role.PLATFORM_ADMIN if Role.PLATFORM_ADMIN in who.roles else Role.TENANT_ADMIN
        known = await self._people.put(tenant, user, state=state, note=note, by=by)
        await self._shut.look()
        return _user(known)


_ACTS = {"active": "resume", "suspended": "suspend", "deleted": "delete"}


def _user(known: Known) -> shapes.UserShown:
    return shapes.UserShown(
        user=known.user,
        state=known.state,
        by=known.by,
        note=known.note,
        roles=list(known.roles),
        since=known.since,
        seen=known.seen,
    )
