"""Who is asking, as far as it was proved: a scope, and roles."""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
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


BY_KEY = "key:"
"""How `Principal.how` begins where the proof is an API key; its id follows."""


class Act:
    """What one request does. `turn` is what its first entry and its last have in common; empty until it has begun."""

    __slots__ = ("turn",)

    def __init__(self) -> None:
        self.turn = ""


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller who proved who they are. `how` names the proof, for the record: `key:...`, or an issuer's URL."""

    scope: Scope
    roles: frozenset[Role] = frozenset({Role.USER})
    how: str = ""
    scopes: frozenset[str] | None = None
    """What the key is for, of `KeyScope`; None: all that the roles allow."""
    models: frozenset[str] | None = None
    """The names that may be asked for on OpenAI's routes; None: any."""
    act: Act | None = field(default=None, compare=False, repr=False)
    """What the request that they sent does; None for one that only looks."""

    def __post_init__(self) -> None:
        if self.scope.is_local:
            raise ConfigError("a server does not serve the local scope", hint="give the tenant another name")

    def under(self, correlation: str, trace: str = "", *, case: str | None = None) -> Principal:
        """The same caller, as the one who sent the request of this id, in this case. Raises ConfigError for no case."""
        made = object.__new__(Principal)
        scope = self.scope.under(correlation, trace, case=case)
        for name, value in (("scope", scope), ("roles", self.roles), ("how", self.how)):
            object.__setattr__(made, name, value)
        object.__setattr__(made, "scopes", self.scopes)
        object.__setattr__(made, "models", self.models)
        object.__setattr__(made, "act", None)
        return made

    def acting(self) -> Principal:
        """The same caller, with an act of their own."""
        return replace(self, act=Act())

    @property
    def key(self) -> str:
        """The id of the API key that was the proof; empty where it was none."""
        return self.how.removeprefix(BY_KEY) if self.how.startswith(BY_KEY) else ""

    def require(self, *roles: Role) -> None:
        """Raises AccessError unless the caller has one of the roles."""
        if not self.roles.intersection(roles):
            raise AccessError(f"this needs the role {' or '.join(roles)}")

    def require_scope(self, scope: str | None) -> None:
        """Raises AccessError unless the key is for this."""
        if self.scopes is not None and scope is not None and scope not in self.scopes:
            has = ", ".join(sorted(self.scopes))
            raise AccessError(
                f"this needs the scope {scope}", hint=f"the key is for {has}; take another", code="policy.scope"
            )

    def require_model(self, model: str) -> None:
        """Raises AccessError for a model that the key is not for, and for an agent without that scope."""
        if model.startswith("agent:"):
            self.require_scope("agents")
        if self.models is not None and model not in self.models:
            has = ", ".join(sorted(self.models))
            raise AccessError(
                f"the key is not for the model {model[:100]}", hint=f"it is for {has}", code="policy.scope"
            )

    def may_ask(self, model: str) -> bool:
        """Whether `require_model` raises nothing."""
        try:
            self.require_model(model)
        except AccessError:
            return False
        return True

    def within(self, scopes: Collection[str] | None, models: Collection[str] | None) -> bool:
        """Whether these, None being all, are no wider than the caller's own."""
        narrow = self.scopes is None or (scopes is not None and self.scopes.issuperset(scopes))
        return narrow and (self.models is None or (models is not None and self.models.issuperset(models)))


class Authenticator(Protocol):
    """Tells who sent a bearer token."""

    async def authenticate(self, token: str, *, correlation: str = "") -> Principal | None:
        """The principal; None when the token is not of this kind. Raises AuthError, or AccessError without a tenant.

        `correlation` is the id of the request, for a server that is asked about the token.
        """
        ...

    async def close(self) -> None: ...


def known_roles(names: Iterable[object]) -> frozenset[Role]:
    """The roles among names that come from outside; others are left out: an unknown role gives nothing."""
    return frozenset(Role(name) for name in names if isinstance(name, str) and name in set(Role))
