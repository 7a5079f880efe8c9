"""The routes of the server by what they are about, for the client."""

from __future__ import annotations

import builtins
from collections.abc import AsyncGenerator, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from aibox.server.connection import Connection
from aibox.server.shapes import admin, approval, evidence, guard, memory, people, policies, sandbox, talk
from aibox.server.shapes import observability as observed
from aibox.server.shapes.memory import Kind, Seen


class _Calls:
    def __init__(self, to: Connection) -> None:
        self._to = to


class Sessions(_Calls):
    """The caller's conversations. Each belongs to an agent."""

    async def list(self, *, agent: str = "", limit: int = 100) -> builtins.list[talk.SessionShown]:
        query = {"agent": agent, "limit": limit}
        return (await self._to.ask("GET", "/v1/sessions", talk.SessionList, query=query)).data

    async def get(self, session: str, *, agent: str = "default") -> talk.SessionShown:
        return await self._to.ask("GET", "/v1/sessions/{id}", talk.SessionShown, query={"agent": agent}, id=session)

    async def export(self, session: str, *, agent: str = "default") -> talk.SessionWhole:
        """With every message, as the model saw them."""
        query = {"agent": agent}
        return await self._to.ask("GET", "/v1/sessions/{id}/export", talk.SessionWhole, query=query, id=session)

    async def title(self, session: str, title: str, *, agent: str = "default") -> None:
        query, body = {"agent": agent}, {"title": title}
        await self._to.raw("PATCH", "/v1/sessions/{id}", query=query, body=body, id=session)

    async def delete(self, session: str, *, agent: str = "default") -> None:
        await self._to.raw("DELETE", "/v1/sessions/{id}", query={"agent": agent}, id=session)


class Approvals(_Calls):
    """Questions to people."""

    async def list(self) -> builtins.list[approval.ApprovalShown]:
        return (await self._to.ask("GET", "/v1/approvals", approval.ApprovalList)).data

    async def get(self, id: str) -> approval.ApprovalShown:  # noqa: A002 - what it is
        return await self._to.ask("GET", "/v1/approvals/{id}", approval.ApprovalShown, id=id)

    async def approve(self, id: str, *, digest: str) -> approval.ApprovalShown:  # noqa: A002 - what it is
        """A yes to exactly what was shown under this digest."""
        body = {"digest": digest}
        return await self._to.ask("POST", "/v1/approvals/{id}/approve", approval.ApprovalShown, body=body, id=id)

    async def reject(self, id: str, *, reason: str = "") -> approval.ApprovalShown:  # noqa: A002 - what it is
        body = {"reason": reason}
        return await self._to.ask("POST", "/v1/approvals/{id}/reject", approval.ApprovalShown, body=body, id=id)


class Memory(_Calls):
    """What is remembered for the caller."""

    async def remember(
        self,
        text: str,
        *,
        type: Kind = "user",  # noqa: A002 - the field's name
        label: str | None = None,
        confidence: float = 1.0,
        valid_from: datetime | None = None,
        valid_until: datetime | None = None,
        idempotency_key: str | None = None,
    ) -> memory.MemoryShown:
        body = {
            "text": text,
            "type": type,
            "label": label,
            "confidence": confidence,
            "valid_from": None if valid_from is None else valid_from.isoformat(),
            "valid_until": None if valid_until is None else valid_until.isoformat(),
        }
        shape, key = memory.MemoryShown, idempotency_key
        return await self._to.ask("POST", "/v1/memory", shape, body=body, idempotency_key=key)

    async def recall(
        self, query: str, *, limit: int = 8, types: Sequence[Kind] | None = None, ceiling: str | None = None
    ) -> builtins.list[memory.Found]:
        body = {"query": query, "limit": limit, "types": None if types is None else [*types], "ceiling": ceiling}
        return (await self._to.ask("POST", "/v1/memory/recall", memory.FoundList, body=body)).data

    async def list(self, *, types: Sequence[Kind] | None = None) -> builtins.list[memory.MemoryShown]:
        query = {"types": None if types is None else [*types]}
        return (await self._to.ask("GET", "/v1/memory", memory.MemoryList, query=query)).data

    async def get(self, id: str) -> memory.MemoryShown:  # noqa: A002 - what it is
        return await self._to.ask("GET", "/v1/memory/{id}", memory.MemoryShown, id=id)

    async def update(self, id: str, text: str, *, label: str | None = None) -> memory.MemoryShown:  # noqa: A002 - what it is
        body = {"text": text, "label": label}
        return await self._to.ask("PATCH", "/v1/memory/{id}", memory.MemoryShown, body=body, id=id)

    async def forget(self, id: str) -> None:  # noqa: A002 - what it is
        await self._to.raw("DELETE", "/v1/memory/{id}", id=id)

    async def forget_everything(self) -> int:
        """All of the caller's, and the documents that they added and did not share; how many."""
        return (await self._to.ask("POST", "/v1/memory/forget", memory.Forgotten, body={"everything": True})).gone

    async def export(self) -> str:
        """JSON lines, one a memory."""
        return (await self._to.raw("GET", "/v1/memory/export")).decode()


class Knowledge(_Calls):
    """Documents that the caller may see."""

    async def add(
        self,
        data: bytes,
        *,
        name: str,
        label: str | None = None,
        visibility: Seen = "private",
        groups: Sequence[str] = (),
    ) -> memory.Uploaded:
        query = {"name": name, "label": label, "visibility": visibility, "group": [*groups]}
        return await self._to.ask("POST", "/v1/knowledge", memory.Uploaded, query=query, body=data)

    async def list(self) -> builtins.list[memory.DocumentShown]:
        return (await self._to.ask("GET", "/v1/knowledge", memory.DocumentList)).data

    async def search(self, query: str, *, limit: int = 8, ceiling: str | None = None) -> builtins.list[memory.Found]:
        body = {"query": query, "limit": limit, "ceiling": ceiling}
        return (await self._to.ask("POST", "/v1/knowledge/search", memory.FoundList, body=body)).data

    async def remove(self, id: str) -> None:  # noqa: A002 - what it is
        await self._to.raw("DELETE", "/v1/knowledge/{id}", id=id)


class Sandbox(_Calls):
    """Sessions of the sandbox, by their ids."""

    async def open(self, *, gpus: int = 0) -> str:
        """A new session; its id."""
        return (await self._to.ask("POST", "/v1/sandbox", sandbox.SandboxShown, body={"gpus": gpus})).id

    async def list(self) -> builtins.list[str]:
        return [one.id for one in (await self._to.ask("GET", "/v1/sandbox", sandbox.SandboxList)).data]

    async def run(self, id: str, code: str, *, language: Literal["python", "bash"] = "python") -> sandbox.Ran:  # noqa: A002
        """Cancelling stops the code."""
        body = {"code": code, "language": language}
        return await self._to.ask("POST", "/v1/sandbox/{id}/run", sandbox.Ran, body=body, id=id)

    async def files(self, id: str, path: str = ".", *, deep: bool = False) -> builtins.list[sandbox.FileShown]:  # noqa: A002
        query = {"path": path, "deep": deep}
        return (await self._to.ask("GET", "/v1/sandbox/{id}/files", sandbox.FileList, query=query, id=id)).data

    async def read(self, id: str, path: str) -> bytes:  # noqa: A002 - what it is
        return await self._to.raw("GET", "/v1/sandbox/{id}/file", query={"path": path}, id=id)

    async def write(self, id: str, path: str, data: bytes) -> None:  # noqa: A002 - what it is
        await self._to.raw("PUT", "/v1/sandbox/{id}/file", query={"path": path}, body=data, id=id)

    async def end(self, id: str) -> None:  # noqa: A002 - what it is
        await self._to.raw("DELETE", "/v1/sandbox/{id}", id=id)


class Audit(_Calls):
    """The tenant's log."""

    async def log(self, *, start: int | None = None, limit: int = 100, kind: str = "") -> evidence.EntryList:
        """A page of entries; without a `start` the last of the log."""
        query = {"start": start, "limit": limit, "kind": kind}
        return await self._to.ask("GET", "/v1/audit", evidence.EntryList, query=query)

    async def entries(self, *, start: int = 0, kind: str = "") -> AsyncGenerator[evidence.EntryShown, None]:
        """All entries from `start` on, page by page."""
        following: int | None = start
        while following is not None:
            page = await self.log(start=following, limit=1000, kind=kind)
            for entry in page.data:
                yield entry
            following = page.next

    async def show(self, seq: int) -> evidence.EntryShown:
        return await self._to.ask("GET", "/v1/audit/{seq}", evidence.EntryShown, seq=seq)

    async def checkpoint(self) -> str:
        """How far the log has come, signed."""
        return (await self._to.ask("GET", "/v1/audit/checkpoint", evidence.CheckpointShown)).note

    async def verify(self) -> evidence.Verified:
        return await self._to.ask("POST", "/v1/audit/verify", evidence.Verified)


class Keys(_Calls):
    """API keys. `tenant` is another than the caller's, for a platform_admin."""

    async def list(self, *, tenant: str | None = None) -> builtins.list[admin.KeyShown]:
        return (await self._to.ask("GET", "/v1/admin/keys", admin.KeyList, query={"tenant": tenant})).data

    async def create(
        self,
        user: str,
        *,
        roles: Sequence[str] = ("service",),
        days: float = 90,
        note: str = "",
        scopes: Sequence[str] = (),
        models: Sequence[str] = (),
        tenant: str | None = None,
    ) -> str:
        """A new key, for this once in the clear. `scopes` say what it is for, none: all that its roles allow."""
        body = {"user": user, "roles": [str(role) for role in roles], "days": days, "note": note}
        body |= {"scopes": [str(scope) for scope in scopes], "models": list(models)}
        return (await self._to.ask("POST", "/v1/admin/keys", admin.KeyMade, query={"tenant": tenant}, body=body)).key

    async def rotate(self, id: str, *, overlap_days: float = 1, tenant: str | None = None) -> str:  # noqa: A002
        body, query = {"overlap_days": overlap_days}, {"tenant": tenant}
        path = "/v1/admin/keys/{id}/rotate"
        return (await self._to.ask("POST", path, admin.KeyMade, query=query, body=body, id=id)).key

    async def revoke(self, id: str, *, tenant: str | None = None) -> None:  # noqa: A002 - what it is
        await self._to.raw("DELETE", "/v1/admin/keys/{id}", query={"tenant": tenant}, id=id)


class Policies(_Calls):
    """What is written as a tenant's policy over HTTP. `tenant` is another than the caller's, for a platform_admin.

    The level `own` is the tenant's administrators', `operator` a platform_admin's.
    """

    async def get(self, *, level: policies.WrittenLevel = "own", tenant: str | None = None) -> policies.PolicyKept:
        query = {"tenant": tenant}
        return await self._to.ask("GET", "/v1/admin/policy/{level}", policies.PolicyKept, query=query, level=level)

    async def put(
        self,
        policy: str | Mapping[str, Any],
        *,
        level: policies.WrittenLevel = "own",
        match: str | None = None,
        dry_run: bool = False,
        tenant: str | None = None,
    ) -> policies.PolicyChanged:
        """Write it anew, in TOML or as an object. `match` is the digest of what it replaces; None: there is none."""
        body = {"toml": policy} if isinstance(policy, str) else {"policy": {**policy}}
        more: dict[str, Any] = {"body": body, "query": {"tenant": tenant, "dry_run": dry_run}, "match": match}
        return await self._to.ask("PUT", "/v1/admin/policy/{level}", policies.PolicyChanged, level=level, **more)

    async def withdraw(
        self,
        *,
        level: policies.WrittenLevel = "own",
        match: str | None = None,
        dry_run: bool = False,
        tenant: str | None = None,
    ) -> policies.PolicyChanged:
        more: dict[str, Any] = {"query": {"tenant": tenant, "dry_run": dry_run}, "match": match}
        return await self._to.ask("DELETE", "/v1/admin/policy/{level}", policies.PolicyChanged, level=level, **more)

    async def versions(
        self, *, level: policies.WrittenLevel = "own", tenant: str | None = None
    ) -> builtins.list[policies.PolicyVersion]:
        """The last fifty, the newest first."""
        more: dict[str, Any] = {"query": {"tenant": tenant}, "level": level}
        return (await self._to.ask("GET", "/v1/admin/policy/{level}/versions", policies.VersionList, **more)).data

    async def version(
        self, version: int, *, level: policies.WrittenLevel = "own", tenant: str | None = None
    ) -> policies.PolicyKept:
        more: dict[str, Any] = {"query": {"tenant": tenant}, "level": level, "version": version}
        return await self._to.ask("GET", "/v1/admin/policy/{level}/versions/{version}", policies.PolicyKept, **more)


class Admin(_Calls):
    """What is configured, in force and used. `tenant` is another than the caller's, for a platform_admin."""

    async def tenants(self) -> builtins.list[people.TenantShown]:
        return (await self._to.ask("GET", "/v1/admin/tenants", people.TenantList)).data

    async def create_tenant(self, name: str, *, note: str = "") -> people.TenantShown:
        return await self._to.ask("POST", "/v1/admin/tenants", people.TenantShown, body={"name": name, "note": note})

    async def tenant(self, name: str) -> people.TenantShown:
        return await self._to.ask("GET", "/v1/admin/tenants/{name}", people.TenantShown, name=name)

    async def suspend_tenant(self, name: str, *, note: str = "") -> people.TenantShown:
        """Let nobody of it in, here at once and within seconds on servers that share the database."""
        shape, body = people.TenantShown, {"note": note}
        return await self._to.ask("POST", "/v1/admin/tenants/{name}/suspend", shape, body=body, name=name)

    async def resume_tenant(self, name: str) -> people.TenantShown:
        return await self._to.ask("POST", "/v1/admin/tenants/{name}/resume", people.TenantShown, name=name)

    async def delete_tenant(self, name: str) -> people.TenantShown:
        """End one that is suspended, for good, with all that is kept for it. Its log stays, until its retention."""
        return await self._to.ask("DELETE", "/v1/admin/tenants/{name}", people.TenantShown, name=name)

    async def users(
        self, *, tenant: str | None = None, after: str = "", limit: int = 1000
    ) -> builtins.list[people.UserShown]:
        """A page of those who were seen or suspended, by name."""
        query = {"tenant": tenant, "after": after, "limit": limit}
        return (await self._to.ask("GET", "/v1/admin/users", people.UserList, query=query)).data

    async def suspend_user(self, user: str, *, note: str = "", tenant: str | None = None) -> people.UserShown:
        """Refuse every token and key of a user."""
        query, body = {"tenant": tenant}, {"user": user, "note": note}
        return await self._to.ask("POST", "/v1/admin/users/suspend", people.UserShown, query=query, body=body)

    async def resume_user(self, user: str, *, note: str = "", tenant: str | None = None) -> people.UserShown:
        query, body = {"tenant": tenant}, {"user": user, "note": note}
        return await self._to.ask("POST", "/v1/admin/users/resume", people.UserShown, query=query, body=body)

    async def models(self) -> admin.BackendList:
        return await self._to.ask("GET", "/v1/admin/models", admin.BackendList)

    async def policy(self, *, tenant: str | None = None) -> guard.PolicyShown:
        return await self._to.ask("GET", "/v1/admin/policy", guard.PolicyShown, query={"tenant": tenant})

    async def budgets(
        self, *, user: str | None = None, model: str | None = None, tenant: str | None = None
    ) -> admin.BudgetShown:
        query = {"user": user, "model": model, "tenant": tenant}
        return await self._to.ask("GET", "/v1/admin/budgets", admin.BudgetShown, query=query)

    async def egress(self, *, tenant: str | None = None) -> builtins.list[admin.Flow]:
        return (await self._to.ask("GET", "/v1/admin/egress", admin.FlowList, query={"tenant": tenant})).data

    async def observability(self, *, tenant: str | None = None) -> observed.Observed:
        """How the tenant is watched; for a platform_admin also what became of the process's traces."""
        query = {"tenant": tenant}
        return await self._to.ask("GET", "/v1/admin/observability", observed.Observed, query=query)

    async def usage(
        self,
        *,
        tenant: str | None = None,
        period: str | None = None,
        by: observed.By = "user_model",
        user: str | None = None,
        model: str | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> observed.ShareList:
        """A page of what users have used of which models in a day (`2026-03-01`) or month; None is this month."""
        query = {
            "tenant": tenant, "period": period, "by": by, "user": user, "model": model, "after": after, "limit": limit,
        }  # fmt: skip
        return await self._to.ask("GET", "/v1/admin/observability/usage", observed.ShareList, query=query)

    async def deliveries(
        self,
        *,
        tenant: str | None = None,
        status: observed.Status | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> observed.DeliveryList:
        """A page of the tenant's webhooks, the newest first."""
        query = {"tenant": tenant, "status": status, "after": after, "limit": limit}
        return await self._to.ask("GET", "/v1/admin/observability/deliveries", observed.DeliveryList, query=query)

    async def reload(self) -> admin.Reloaded:
        """Have this server read its configuration anew."""
        return await self._to.ask("POST", "/v1/admin/reload", admin.Reloaded)

    async def verify(self) -> evidence.Verified:
        """The logs of all tenants."""
        return await self._to.ask("POST", "/v1/admin/audit/verify", evidence.Verified)
