"""How often a server may be asked in a minute, and for how many tokens."""

from __future__ import annotations

from functools import cached_property

from pydantic import Field

from aibox.policy.fields import Part


class Rate(Part):
    """None is no bound. What a minute allows may be used at once, and comes back evenly over the minute."""

    requests_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)
    """Input and output together; counted when a call has ended, so that a long one is paid for afterwards."""

    def __and__(self, other: Rate) -> Rate:
        def least(name: str) -> int | None:
            bounds = [bound for bound in (getattr(self, name), getattr(other, name)) if bound is not None]
            return min(bounds) if bounds else None

        return Rate.model_validate({name: least(name) for name in Rate.model_fields})


class Rates(Part):
    """Held by the server at its door. Of several levels the smallest number holds."""

    tenant: Rate = Rate()
    """Of everybody in a tenant together."""
    user: Rate = Rate()
    """Of each user of a tenant."""
    key: Rate = Rate()
    """Of each API key."""

    def __and__(self, other: Rates) -> Rates:
        return Rates(tenant=self.tenant & other.tenant, user=self.user & other.user, key=self.key & other.key)

    @cached_property
    def bounded(self) -> bool:
        return any(getattr(rate, name) is not None for rate in (self.tenant, self.user, self.key) for name in _NAMES)


_NAMES = tuple(Rate.model_fields)
