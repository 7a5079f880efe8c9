"""Who is asking, as far as it was proved: a scope, and roles."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from aibox.errors import AccessError, ConfigError
from aibox.types import Scope


class Role(enum.StrEnum):
    """What a caller may do. None contains another; a caller may have several."""

    USER = "user"
    TENANT_ADMIN = "tenant_admin"
    PLATFORM_ADMIN = "platform_admin"
    AUDITOR = "auditor"
    """Reads evidence, and nothing else."""
    SERVICE = "service"


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller who proved who they are. `how` names the proof, for the record: `key:...`, or an issuer's URL."""

    scope: Scope
    roles: frozenset[Role] = frozenset({Role.USER})
    how: str = ""

    def __post_init__(self) -> None:
        if self.scope.is_local:
            raise ConfigError("a server does not serve the local scope", hint="give the tenant another name")

    def under(self, correlation: str, trace: str = "", *, case: str | None = None) -> Principal:
        """The same caller, as the one who sent the request of this id, in this case. Raises ConfigError for no case."""
        made = object.__new__(Principal)
        scope = self.scope.under(correlation, trace, case=case)
        for name, value in (("scope", scope), ("roles", self.roles), ("how", self.how)):
            object.__setattr__(made, name, value)
        return made

    def require(self, *roles: Role) -> None:
        """Raises AccessError unless the caller has one of the roles."""
        if not self.roles.intersection(roles):
            raise AccessError(f"this needs the role {' or '.join(roles)}")


class Authenticator(Protocol):
    """Tells who sent a bearer token."""

    async def authenticate(self, token: str) -> Principal | None:
        """The principal; None when the token is not of this kind. Raises AuthError, or AccessError without a tenant."""
        ...

    async def close(self) -> None: ...


def known_roles(names: Iterable[object]) -> frozenset[Role]:
    """The roles among names that come from outside; others are left out: an unknown role gives nothing."""
    return frozenset(Role(name) for name in names if isinstance(name, str) and name in set(Role))
