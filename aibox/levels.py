"""The policies that settings name: the platform's, narrowed by whoever opens a box, and those of its tenants."""

from __future__ import annotations

from collections.abc import Mapping

from aibox.errors import ConfigError
from aibox.policy.policy import SHIPPED, Policy
from aibox.settings import Settings, read_secret


def load_levels(settings: Settings, narrowing: Policy | str | None) -> tuple[Policy, dict[str, Policy]]:
    """The policy of a box and those of its tenants. Raises ConfigError."""
    policy = load_policy(settings.policy, key=policy_key(settings))
    if narrowing is not None:
        policy = policy & load_policy(narrowing)
    tenants = {name: load_policy(table.policy) for name, table in settings.tenants.items() if table.policy is not None}
    for tenant, own in tenants.items():
        if policy.sandbox & own.sandbox != policy.sandbox:
            raise ConfigError(
                f"the policy of the tenant {tenant} has limits for the sandbox, which are everybody's",
                hint="set them in the policy of the box",
            )
    return policy, tenants


def load_policy(value: Policy | str, *, key: str | None = None) -> Policy:
    """A policy as it is, a shipped one by its name, or a file; a file must be signed where a verifier key is given."""
    if isinstance(value, Policy):
        return value
    return Policy.profile(value) if value in SHIPPED else Policy.load(value, key=key)


def policy_key(settings: Settings) -> str | None:
    """The verifier key that must have signed the policy file; None where the settings ask for none."""
    return read_secret(None, settings.policy_key)


def by_owner(policy: Policy, tenants: Mapping[str, Policy]) -> dict[str, Policy]:
    """What is in force, by whose it is, for people: the box's, and each tenant's of its own joined with it."""
    return {"the box": policy} | {f"the tenant {name}": policy & own for name, own in tenants.items()}
