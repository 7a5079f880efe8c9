"""A policy that is written for a tenant, and its versions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from aibox.server.shapes.admin import TenantQuery
from aibox.server.shapes.shape import Answer, Asked

WrittenLevel = Literal["operator", "own"]
"""`own` is written by the tenant's administrators, `operator` by a `platform_admin` alone: no tenant can undo it."""
VersionNumber = Annotated[int, Field(ge=1, le=2**31)]


class NewPolicy(Asked):
    """One of the two. It holds from the next request on, on every server within seconds."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": ["toml"], "properties": {"policy": {"type": "null"}}},
                {"required": ["policy"], "properties": {"toml": {"type": "null"}}},
            ]
        }
    )
    toml: str | None = Field(default=None, min_length=1, max_length=65_536)
    """As in a policy file."""
    policy: dict[str, Any] | None = None
    """The same as an object: at most 32 KiB."""

    @model_validator(mode="after")
    def _one(self) -> NewPolicy:
        if (self.toml is None) == (self.policy is None):
            raise ValueError("give `toml` or `policy`")
        return self


class PutQuery(TenantQuery):
    dry_run: bool = False
    """Change nothing, and say what would change."""


class PolicyChanged(Answer):
    """What has changed, or would. A part in which one thing gets stricter and another relaxes stands in both lists."""

    level: WrittenLevel
    version: int | None
    """Of what was written; None for a dry run."""
    digest: str
    """Of what was written."""
    before: str
    """The digest of all that held for the tenant."""
    effective: str
    """And of all that holds now: the join with the platform's policy, the operator's file and the other level."""
    stricter: list[str]
    """Checks by place, and other parts by name, that now hold more."""
    relaxed: list[str]
    """And those that hold less than before."""


class PolicyVersion(Answer):
    """`digest` is empty for a version that withdraws. `written` is in Unix seconds."""

    level: WrittenLevel
    version: int
    digest: str
    author: str
    """The user who wrote it; empty for somebody of another tenant, and for somebody who was erased."""
    written: int


class PolicyKept(PolicyVersion):
    policy: dict[str, Any]
    """What it says. What it does not say is not there."""


class VersionList(Answer):
    data: list[PolicyVersion]
