"""What may be spent on model calls, in tokens and in money."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated

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
    models: dict[Annotated[str, Field(pattern=r"^[^/\x00-\x1f\x7f]+/[^\x00-\x1f\x7f]+$")], Budget] = Field(
        default_factory=dict
    )
    """A model, as `backend/model` the way the router names it -> what everybody in a tenant may use of it together."""

    def __and__(self, other: Budgets) -> Budgets:
        models = {
            name: self.models.get(name, _NO_BOUND) & other.models.get(name, _NO_BOUND)
            for name in sorted({*self.models, *other.models})
        }
        return Budgets(tenant=self.tenant & other.tenant, user=self.user & other.user, models=models)

    @cached_property
    def bounded(self) -> bool:
        """Whether there is an end to what all models together may cost."""
        return self.tenant.bounded or self.user.bounded


_NO_BOUND = Budget()
