"""Who may call what, written out by hand: a role that is given to one route too many is seen here and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aibox.server.table import openapi, table

ROOT = Path(__file__).parent.parent.parent
OPEN = {"health.healthz", "ready.readyz", "document.openapi"}
"""What asks nobody who they are."""
AUDITOR = {
    *("audit.log", "audit.show", "audit.checkpoint", "audit.verify"),
    "receipts.get",
    "admin.egress",
}
USER = {
    *("openai.chat", "openai.completions", "openai.embeddings", "openai.responses", "inference.models"),
    *("chat.run", "chat.stream", "chat.agents", "chat.agent"),
    *("sessions.list", "sessions.get", "sessions.title", "sessions.delete", "sessions.export"),
    *("approvals.list", "approvals.show", "approvals.approve", "approvals.reject", "approvals.resume"),
    *("guard.check", "guard.policy"),
    *("memory.remember", "memory.list", "memory.recall", "memory.export", "memory.get", "memory.update"),
    *("memory.forget", "memory.forget_everything"),
    *("knowledge.add", "knowledge.list", "knowledge.search", "knowledge.remove"),
    *("sandbox.open", "sandbox.list", "sandbox.run", "sandbox.files", "sandbox.read", "sandbox.write", "sandbox.end"),
    *("tenant.usage", "tenant.skills", "tenant.routes"),
    "receipts.get",
}
SERVICE = USER - {"approvals.approve", "approvals.reject"}
"""A program asks, waits and goes on; whether something is done, people decide."""
OF_A_TENANT = {
    *("keys.list", "keys.create", "keys.rotate", "keys.revoke"),
    *("users.list", "users.suspend", "users.resume"),
    *("policies.show", "policies.put", "policies.withdraw", "policies.versions", "policies.version"),
    *("admin.policy", "admin.budgets", "admin.egress"),
    *("observability.state", "observability.usage", "observability.deliveries"),
}
OF_THE_PLATFORM = {
    *("tenants.list", "tenants.create", "tenants.show", "tenants.delete", "tenants.suspend", "tenants.resume"),
    *("admin.models", "admin.reload", "admin.verify", "metrics.metrics"),
}
MAY = {
    "auditor": AUDITOR,
    "user": USER,
    "service": SERVICE,
    "tenant_admin": USER | OF_A_TENANT | {"audit.log", "audit.show", "audit.checkpoint", "audit.verify"},
    "platform_admin": (USER - {name for name in USER if name.startswith("approvals.")}) | OF_A_TENANT | OF_THE_PLATFORM,
}


@pytest.mark.parametrize("role", MAY)
@pytest.mark.parametrize("source", ["the tree", "the server", "the routes"])
def test_a_role_may_call_this_and_no_more(role: str, source: str) -> None:
    """An auditor reads evidence and nothing else, a user has what is theirs: what stands here, no more and no less."""
    if source == "the routes":
        found = {route.name for route in table() if role in route.roles}
    else:
        document = (
            openapi() if source == "the server" else json.loads((ROOT / "docs" / "openapi.json").read_text("utf-8"))
        )
        operations = [one for methods in document["paths"].values() for one in methods.values()]
        found = {one["operationId"] for one in operations if role in one["x-roles"]}
    assert found == MAY[role]


def test_what_asks_for_no_role_is_named() -> None:
    """Three routes are for everybody, and each other one is for a role that is known here."""
    assert {route.name for route in table() if not route.roles} == OPEN
    assert {route.name for route in table()} == OPEN.union(*MAY.values())
    assert {str(role) for route in table() for role in route.roles} == {*MAY}
    assert {route.method for route in table() if route.name in AUDITOR - {"audit.verify"}} == {"GET"}
