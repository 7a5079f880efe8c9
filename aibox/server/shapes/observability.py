"""How the server is watched: what was used by whom, what became of traces and of a tenant's webhooks."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from aibox.server.shapes.admin import MODEL, Share, Spent, TenantQuery
from aibox.server.shapes.shape import NAME, Answer

By = Literal["user_model", "user", "model"]
Status = Literal["waiting", "delivered", "given_up"]


def cursor(example: str) -> Any:
    """The `next` of the page before."""
    return Field(default=None, min_length=1, max_length=600, examples=[example])


class UsageQuery(TenantQuery):
    period: str | None = Field(default=None, pattern=r"^[0-9]{4}-[0-9]{2}(-[0-9]{2})?$", examples=["2026-03"])
    """A day or a month (UTC); None is this month."""
    by: By = "user_model"
    """What is summed up on its own: each model of each user, each user, or each model."""
    user: str | None = Field(default=None, pattern=NAME, examples=["eva"])
    """Of this user alone."""
    model: str | None = Field(default=None, pattern=MODEL, examples=["m/m"])
    """Of this model alone, as `backend/model`."""
    after: str | None = cursor('["eva", "m/m"]')
    limit: int = Field(default=100, ge=1, le=1000)


class ShareList(Answer):
    tenant: str
    period: str
    data: list[Share]
    next: str | None
    """The `after` that goes on; None at the end."""


class TracesShown(Answer):
    """What became of spans since this process started. Times are Unix microseconds."""

    host: str
    """Of the collector."""
    external: bool
    """Whether what goes there leaves the operator's infrastructure."""
    waiting: int
    sent: int
    dropped: dict[str, int]
    """By reason: `full`, `door`, `failed`, `rejected` or `bug`."""
    last_error: str
    """Empty: nothing has failed."""
    last_error_us: int


class WebhookShown(Answer):
    """An address that hears of the tenant's events."""

    name: str
    events: list[str]


class Observed(Answer):
    """How a tenant is watched. `traces` are of the whole process, for a `platform_admin` alone."""

    tenant: str
    spent: Spent
    webhooks: list[WebhookShown]
    traces: TracesShown | None
    """None: there is no collector, or it is not for the caller to see."""


class DeliveryQuery(TenantQuery):
    status: Status | None = None
    after: str | None = cursor('[1795790872765024, "ops", "01a21d7a-1f78-7d74-8a02-bde8f9d39c1c"]')
    limit: int = Field(default=100, ge=1, le=1000)


class DeliveryShown(Answer):
    """One event on its way to one address, without what it says. Times are Unix microseconds."""

    endpoint: str
    id: str
    type: str
    status: str
    attempts: int
    answered: str
    """What became of the last attempt."""
    created_us: int
    due_us: int
    """When the next attempt is due."""


class DeliveryList(Answer):
    data: list[DeliveryShown]
    next: str | None
    """The `after` that goes on; None at the end."""
