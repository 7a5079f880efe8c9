"""What a tenant has and uses, and what those who administer it see and change."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from aibox.server.principal import Role
from aibox.server.scopes import KeyScope
from aibox.server.shapes.shape import NAME, Answer, Asked, Kept, Names, Text

TENANT = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
MODEL = r"^[^\x00-\x1f\x7f]{1,600}$"


class Sum(Answer):
    """What model calls have used."""

    tokens: int
    usd: float
    calls: int


class Spent(Answer):
    """In the present day and month (UTC)."""

    day: Sum
    month: Sum


class Bounds(Answer):
    """What may be used; None is no bound."""

    tokens_per_day: int | None
    tokens_per_month: int | None
    usd_per_day: float | None
    usd_per_month: float | None


class Share(Answer):
    """What was used in the period. A name is empty where all of them are summed up."""

    user: str
    model: str
    """As `backend/model`."""
    input_tokens: int
    output_tokens: int
    calls: int
    usd: float


class Used(Answer):
    """What the caller has used, and may. `tenant` is what all of the tenant have, for those who administer it."""

    user: Spent
    user_budget: Bounds
    models: list[Share]
    """The caller's own in this month, by model."""
    tenant: Spent | None
    tenant_budget: Bounds
    model_budgets: dict[str, Bounds]
    """Of a model, as `backend/model`, for everybody in the tenant together."""


class SkillShown(Answer):
    """An installed skill. `allowed_tools` None restricts nothing."""

    name: str
    description: str
    digest: str
    allowed_tools: list[str] | None
    resources: list[str]


class SkillList(Answer):
    data: list[SkillShown]


class RouteShown(Answer):
    """A model, and where it is answered. `external`: text that goes there leaves the operator's infrastructure."""

    model: str
    backend: str
    external: bool
    tools: bool
    context_tokens: int | None
    capabilities: Names | None
    """None: nobody has said what it can do."""
    weights: str
    """How well it is known which weights answer: verified, declared or unknown."""
    demo: bool


class RouteList(Answer):
    data: list[RouteShown]
    names: dict[str, str]
    """Other names for models, and what each leads to."""


class TenantQuery(Asked):
    tenant: str | None = Field(default=None, pattern=TENANT, examples=["acme"])
    """Another tenant than the caller's: for a `platform_admin` alone."""


class BudgetQuery(TenantQuery):
    user: str | None = Field(default=None, pattern=NAME, examples=["eva"])
    """One of its users, whose own spending is told as well."""
    model: str | None = Field(default=None, pattern=MODEL, examples=["m/m"])
    """A model, as `backend/model`, and what all of the tenant have used of it is told as well."""


class NewKey(Asked):
    """A key for a program, which acts in the name of `user`."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"required": ["models"], "properties": {"models": {"minItems": 1}}},
            "then": {
                "required": ["scopes"],
                "properties": {"scopes": {"minItems": 1, "not": {"contains": {"const": str(KeyScope.AGENTS)}}}},
            },
        }
    )
    user: str = Field(pattern=NAME)
    roles: list[Role] = Field(default=[Role.SERVICE], min_length=1, max_length=8)
    days: float = Field(default=90, ge=0.001, le=3650)
    note: Kept = Field(default="", max_length=200)
    scopes: list[KeyScope] = Field(default=[], max_length=16)
    """What it is for; empty: all that its roles allow."""
    models: list[Annotated[str, Field(pattern=NAME)]] = Field(default=[], max_length=64)
    """The models that it may ask for, by name; empty: any. With models it needs scopes, and not `agents`."""


class Overlap(Asked):
    overlap_days: float = Field(default=1, ge=0, le=365)
    """For how long the old key still works."""


class KeyMade(Answer):
    """The key, for this once."""

    key: str


class KeyShown(Answer):
    """What is known of a key. Times are Unix seconds."""

    id: str
    user: str
    roles: Names
    note: str
    created: int
    expires: int
    last_used: int | None
    revoked: bool
    scopes: Names | None
    """None: all that its roles allow."""
    models: Names | None
    """None: any."""


class KeyList(Answer):
    data: list[KeyShown]


class BackendShown(Answer):
    name: str
    kind: str
    external: bool | None
    models: list[str]
    tenants: Names | None
    """To whom it is dedicated; None is everybody."""


class BackendList(Answer):
    data: list[BackendShown]
    healthy: bool
    detail: str


class Reloaded(Answer):
    """What is in force. `restart` names settings that differ in the file and are taken up by a new start alone."""

    policy: str
    """Its digest."""
    backends: Names
    issuers: Names
    restart: Names


class BudgetShown(Answer):
    tenant: str
    spent: Spent
    tenant_budget: Bounds
    user_budget: Bounds
    """Of each user."""
    model_budgets: dict[str, Bounds]
    """Of a model, as `backend/model`, for everybody in the tenant together."""
    user: Spent | None = None
    """What the user has used who was asked about."""
    model: Spent | None = None
    """What all of the tenant have used of the model that was asked about."""


class Flow(Answer):
    """All attempts of a tenant to reach one model outside with one label under one policy. Money is text."""

    tenant: str
    model: str
    host: str
    label: Text
    policy: str
    pseudonymised: bool
    allowed: int
    denied: int
    sent_bytes: int
    returned_bytes: int
    tokens: int
    cost_usd: str
    reasons: list[str]
    first_us: int
    last_us: int


class FlowList(Answer):
    data: list[Flow]
