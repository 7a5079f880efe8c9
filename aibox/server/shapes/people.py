"""Tenants and users, as those who administer them see them. Times are Unix seconds; `seen` is exact to an hour."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from aibox.server.principal import Role
from aibox.server.shapes.admin import TENANT, TenantQuery
from aibox.server.shapes.shape import NAME, Answer, Asked, Kept, Names

TenantName = Annotated[str, Field(pattern=TENANT)]
State = Literal["active", "suspended", "deleted"]
"""Who is not active is refused."""


class Why(Asked):
    note: Kept = Field(default="", max_length=200)
    """For those who administer it. Empty: what stood there stays."""


class NewTenant(Why):
    name: TenantName


class TenantShown(Answer):
    name: str
    state: State
    note: str
    since: int | None
    """When its state began; None: it is configured, and nobody of it was seen yet."""
    seen: int | None
    """When somebody of it was here last."""
    policy: str | None
    """The digest of its own policy; None: the platform's alone holds."""
    backends: list[str]
    """Those that are dedicated to it."""


class TenantList(Answer):
    data: list[TenantShown]


class UserAndWhy(Why):
    user: str = Field(pattern=NAME)


class UserQuery(TenantQuery):
    after: Kept = Field(default="", max_length=255, examples=["eva"])
    """The last name of the page before."""
    limit: int = Field(default=1000, ge=1, le=1000)


class UserShown(Answer):
    user: str
    state: State
    by: Role | None
    """Whose act a suspension was: one of a `tenant_admin` holds for no `platform_admin`."""
    note: str
    roles: Names
    """Those that their tokens and keys have had here; the provider and the keys give them. Empty: not seen yet."""
    since: int
    seen: int | None


class UserList(Answer):
    data: list[UserShown]
