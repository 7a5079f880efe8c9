"""What may be spent on model calls, in tokens and in money."""

from __future__ import annotations

from functools import cached_property

from pydantic import Field

from aibox.policy.fields import Part


class Budget(Part):
    """None is no bound. Days and months are those of UTC."""

    tokens_per_day: int | None = Field(default=None, ge=0)
    """Input and output together."""
    tokens_per_month: int | None = Field(default=None, ge=0)
    usd_per_day: float | None = Field(default=None, ge=0)
    usd_per_month: float | None = Field(default=None, ge=0)

    def __and__(self, other: Budget) -> Budget:
        def least(name: str) -> float | None:
            bounds = [bound for bound in (getattr(self, name), getattr(other, name)) if bound is not None]
            return min(bounds) if bounds else None

        return Budget.model_validate({name: least(name) for name in Budget.model_fields})

    @cached_property
    def bounded(self) -> bool:
        return any(getattr(self, name) is not None for name in Budget.model_fields)


class Budgets(Part):
    """Checked before a call and settled after it. Of several levels the smallest number holds."""

    tenant: Budget = Budget()
    """Of everybody in a tenant together."""
    user: Budget = Budget()
    """Of each user of a tenant."""

    def __and__(self, other: Budgets) -> Budgets:
        return Budgets(tenant=self.tenant & other.tenant, user=self.user & other.user)

    @cached_property
    def bounded(self) -> bool:
        return self.tenant.bounded or self.user.bounded
