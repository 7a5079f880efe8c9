"""The policies that settings name: the platform's, narrowed by whoever opens a box, and those of its tenants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from aibox.errors import AIBoxError, ConfigError
from aibox.policy.budgets import Budget, Budgets
from aibox.policy.policy import SHIPPED, Policy
from aibox.policy.tools import ToolRules
from aibox.settings import Settings, read_secret

SHUT = Policy(
    name="shut", budgets=Budgets(tenant=Budget(tokens_per_day=0)), tools=ToolRules(allow=frozenset(), deny=frozenset())
)
"""What holds for a tenant of which nobody can say what should: no model is asked, no tool called, nothing leaves."""


@dataclass(slots=True)
class Levels:
    """What is in force: the policy of a box, and those of its tenants, from files and as written while it is open."""

    policy: Policy
    files: Mapping[str, Policy]
    written: dict[str, dict[str, Policy]] = field(default_factory=dict)
    """By tenant, and by who wrote it."""
    shut: dict[str, str] = field(default_factory=dict)
    """Tenants for whom nothing is done, and why."""
    tenants: dict[str, Policy] = field(init=False)
    """What holds for a tenant besides `policy`; who looks here at each beginning sees what was written since."""

    _rules: dict[str, tuple[Policy, Policy]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.tenants = dict(self.files)

    def rules(self, tenant: str) -> Policy:
        """All that holds for a tenant."""
        own = self.tenants.get(tenant)
        if own is None:
            return self.policy
        # Held against what it was made of: another thread may put another policy in its place meanwhile.
        kept = self._rules.get(tenant)
        if kept is None or kept[0] is not own:
            kept = self._rules[tenant] = own, self.policy & own
        return kept[1]

    def joined(self, tenant: str, written: Mapping[str, Policy]) -> Policy | None:
        """What would hold besides `policy` if this were written; None: nothing."""
        own = self.files.get(tenant)
        for level in sorted(written):
            own = written[level] if own is None else own & written[level]
        if own is None or not written:
            return own
        # What is everybody's is nobody's to write for one tenant: it stays as the box has it.
        made = own.model_copy(update={"sandbox": self.policy.sandbox, "gpus": self.policy.gpus})
        made.__dict__.pop("digest", None)  # the copy's is another
        return made

    def put(self, tenant: str, written: Mapping[str, Policy], *, holds: Callable[[Policy], object]) -> None:
        """From now on this is what was written for a tenant. What `holds` raises leaves all as it was."""
        own = self.joined(tenant, written)
        if own is not None:
            holds(own)
            self.tenants[tenant] = own
        else:
            self.tenants.pop(tenant, None)
        self.shut.pop(tenant, None)
        self.written.pop(tenant, None)
        if written:
            self.written[tenant] = dict(written)

    def take(self, tenant: str, why: str) -> None:
        """Nothing is done for a tenant until `put` says what holds."""
        self.written.pop(tenant, None)
        self.shut[tenant] = why
        self.tenants[tenant] = SHUT

    def keep(self, before: Levels, *, holds: Callable[[Policy], object]) -> None:
        """What was written stays so under other files; what does not hold any more shuts its tenant, and no other."""
        for tenant, why in before.shut.items():
            self.take(tenant, why)
        for tenant, written in before.written.items():
            try:
                self.put(tenant, written, holds=holds)
            except AIBoxError as error:
                self.take(tenant, error.message)


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
    if value in SHIPPED:
        return Policy.profile(value)
    if not Path(value).suffix and not Path(value).exists():
        raise ConfigError(f"there is no policy {value!r}", hint=f"a file, or one of {', '.join(SHIPPED)}")
    return Policy.load(value, key=key)


def policy_key(settings: Settings) -> str | None:
    """The verifier key that must have signed the policy file; None where the settings ask for none."""
    return read_secret(None, settings.policy_key)


def by_owner(policy: Policy, tenants: Mapping[str, Policy]) -> dict[str, Policy]:
    """What is in force, by whose it is, for people: the box's, and each tenant's of its own joined with it."""
    return {"the box": policy} | {f"the tenant {name}": policy & own for name, own in tenants.items()}
