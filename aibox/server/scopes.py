"""What an API key is for, below what its roles allow: a narrow key that is lost opens little."""

from __future__ import annotations

import enum
from collections.abc import Collection

from aibox.errors import ConfigError


class KeyScope(enum.StrEnum):
    """A group of routes. A key that names none is for all of them."""

    INFERENCE = "inference"
    """OpenAI's routes, but for agents."""
    AGENTS = "agents"
    """Agents wherever they are asked, conversations, and questions to people."""
    GUARD = "guard"
    MEMORY_READ = "memory:read"
    """Memories and documents; what is sent in order to search is no writing."""
    MEMORY_WRITE = "memory:write"
    SANDBOX = "sandbox"
    AUDIT_READ = "audit:read"
    """The log and receipts."""
    ADMIN = "admin"
    """All of `/v1/admin`, and `/metrics`."""


_GROUPS = {
    **dict.fromkeys(("openai", "inference"), KeyScope.INFERENCE),
    **dict.fromkeys(("chat", "sessions", "approvals"), KeyScope.AGENTS),
    "guard": KeyScope.GUARD,
    "sandbox": KeyScope.SANDBOX,
    **dict.fromkeys(("receipts", "audit"), KeyScope.AUDIT_READ),
    **dict.fromkeys(("keys", "tenants", "users", "policies", "admin", "observability", "metrics"), KeyScope.ADMIN),
}
_READS = ("memory.recall", "memory.list", "memory.get", "memory.export", "knowledge.list", "knowledge.search")
OPEN = ("tenant",)
"""Groups for which any key is good: what its own tenant has, and what its own user has used."""


def scope_of(name: str) -> KeyScope | None:
    """The scope that the route of this name asks for; None for one that any key is good for."""
    group = name.partition(".")[0]
    if group in ("memory", "knowledge"):
        return KeyScope.MEMORY_READ if name in _READS else KeyScope.MEMORY_WRITE
    return None if group in OPEN else _GROUPS[group]


def hold(scopes: Collection[str], models: Collection[str]) -> None:
    """Raises ConfigError for what a key cannot be for."""
    if unknown := sorted(set(scopes) - set(KeyScope)):
        raise ConfigError(f"there is no scope {unknown[0]!r}", hint=f"there are: {', '.join(KeyScope)}")
    if any(not model or set(model) & set(" \t\r\n") for model in models):
        raise ConfigError("the name of a model has no spaces in it, and is not empty")
    if models and (KeyScope.AGENTS in scopes or not scopes):
        # An agent asks models of its own choice.
        raise ConfigError("a key for some models is not for agents", hint='name its scopes, such as "inference"')
