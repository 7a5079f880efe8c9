"""The ways from one tenant into another that `aibox verify isolation` tries, as anybody would ask for them.

Each is an act of one client on what is another's. A route that has the id of a thing in its path, or takes `?tenant=`,
is among them: a test holds them against the OpenAPI document.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from aibox.server.client import Client

ABSENT = uuid.UUID(int=0).hex


@dataclass(slots=True)
class Probe:
    """One side: a client, what only it knows, and the ids of what it made."""

    tenant: str
    client: Client
    word: str = field(default_factory=lambda: f"heron-{uuid.uuid4().hex}")
    ids: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    """Areas that could not be seeded, and why."""


Thing = Callable[[Client, str], Awaitable[Any]]
Look = Callable[[Client], Awaitable[Any]]
Keyed = Callable[[Client, str, str], Awaitable[Any]]


async def _streamed(client: Client, said: str, **more: str) -> str:
    async with aclosing(client.stream(said, **more)) as events:
        return "\n".join([event.model_dump_json() async for event in events])


async def _log(client: Client) -> str:
    async with aclosing(client.audit.entries()) as entries:
        return "\n".join([entry.model_dump_json() async for entry in entries])


def _thing(id_: str) -> str:
    return id_.partition("@")[0]


def _tenant(id_: str) -> str:
    """Whose it is, as `thing@tenant` says; what is absent is so in both."""
    return id_.rpartition("@")[2]


# What has an id: asked for by whoever does not own it.
THINGS: Sequence[tuple[str, str, Thing]] = (
    ("memory", "get", lambda c, id_: c.memory.get(id_)),
    ("memory", "update", lambda c, id_: c.memory.update(id_, "mine now")),
    ("memory", "forget", lambda c, id_: c.memory.forget(id_)),
    ("knowledge", "remove", lambda c, id_: c.knowledge.remove(id_)),
    ("sessions", "get", lambda c, id_: c.sessions.get(id_)),
    ("sessions", "export", lambda c, id_: c.sessions.export(id_)),
    ("sessions", "title", lambda c, id_: c.sessions.title(id_, "mine now")),
    ("sessions", "delete", lambda c, id_: c.sessions.delete(id_)),
    ("receipts", "of a turn", lambda c, id_: c.receipt(id_)),
    ("calls", "receipt of a call to a model", lambda c, id_: c.receipt(id_)),
    ("sandbox", "run", lambda c, id_: c.sandbox.run(id_, "cat word.txt", language="bash")),
    ("sandbox", "files", lambda c, id_: c.sandbox.files(id_)),
    ("sandbox", "read", lambda c, id_: c.sandbox.read(id_, "word.txt")),
    ("sandbox", "write", lambda c, id_: c.sandbox.write(id_, "word.txt", b"")),
    ("sandbox", "end", lambda c, id_: c.sandbox.end(id_)),
    ("approvals", "get", lambda c, id_: c.approvals.get(id_)),
    ("approvals", "approve", lambda c, id_: c.approvals.approve(id_, digest=f"sha256:{ABSENT * 2}")),
    ("approvals", "reject", lambda c, id_: c.approvals.reject(id_)),
    ("runs", "resume", lambda c, id_: c.resume(id_)),
    ("keys", "rotate", lambda c, id_: c.keys.rotate(id_)),
    ("keys", "revoke", lambda c, id_: c.keys.revoke(id_)),
    ("keys of the tenant named", "rotate", lambda c, id_: c.keys.rotate(_thing(id_), tenant=_tenant(id_))),
    ("keys of the tenant named", "revoke", lambda c, id_: c.keys.revoke(_thing(id_), tenant=_tenant(id_))),
    ("tenant named", "keys", lambda c, name: c.keys.list(tenant=name)),
    ("tenant named", "key created", lambda c, name: c.keys.create("isolation", days=1, tenant=name)),
    ("tenant named", "policy", lambda c, name: c.admin.policy(tenant=name)),
    ("tenant named", "budgets", lambda c, name: c.admin.budgets(tenant=name)),
    ("tenant named", "budget of a model", lambda c, name: c.admin.budgets(model="m/m", tenant=name)),
    ("tenant named", "egress", lambda c, name: c.admin.egress(tenant=name)),
    ("tenant named", "users", lambda c, name: c.admin.users(tenant=name)),
    ("tenant named", "user suspended", lambda c, name: c.admin.suspend_user(f"isolation-{ABSENT}", tenant=name)),
    ("tenant named", "user resumed", lambda c, name: c.admin.resume_user(f"isolation-{ABSENT}", tenant=name)),
    ("tenant named", "observability", lambda c, name: c.admin.observability(tenant=name)),
    ("tenant named", "usage", lambda c, name: c.admin.usage(tenant=name)),
    ("tenant named", "webhooks", lambda c, name: c.admin.deliveries(tenant=name)),
)
# Likewise of a tenant that is named, when all else was tried: while it has a policy of its own, less is allowed there.
WRITTEN: Sequence[tuple[str, str, Thing]] = (
    ("policies", "get", lambda c, name: c.policies.get(tenant=name)),
    ("policies", "version", lambda c, name: c.policies.version(1, tenant=name)),
    ("policies", "versions", lambda c, name: c.policies.versions(tenant=name)),
    ("policies", "put", lambda c, name: c.policies.put({}, match="*", tenant=name)),
    ("policies", "withdraw", lambda c, name: c.policies.withdraw(match="*", tenant=name)),
)
# What answers with several things: in the stranger's there must be no word of the owner.
LISTS: Sequence[tuple[str, str, Callable[[Client, Probe], Awaitable[Any]]]] = (
    ("memory", "list", lambda c, _: c.memory.list()),
    ("memory", "recall", lambda c, owner: c.memory.recall(owner.word)),
    ("memory", "export", lambda c, _: c.memory.export()),
    ("knowledge", "search", lambda c, owner: c.knowledge.search(owner.word)),
    ("knowledge", "list", lambda c, _: c.knowledge.list()),
    ("sessions", "list", lambda c, _: c.sessions.list()),
    ("keys", "list", lambda c, _: c.keys.list()),
    ("approvals", "list", lambda c, _: c.approvals.list()),
    ("audit", "log", lambda c, _: _log(c)),
    # The stranger has an entry of that number too, or none; its leaf is another.
    ("audit", "show", lambda c, owner: c.audit.show(int(owner.ids.get("seq", "0")))),
    ("checkpoint", "get", lambda c, _: c.audit.checkpoint()),
)
# What the owner's is known by in a list, where it need not hold the word.
MARKED = ("approvals", "audit", "checkpoint")
# A conversation under the name that the owner's has: the owner's word may not turn up.
CLAIMS: Sequence[tuple[str, str, Callable[[Client, Probe], Awaitable[Any]]]] = (
    ("sessions", "chat under the same name", lambda c, o: c.chat("What did I tell you?", session=o.ids["sessions"])),
    ("streams", "stream under the same name", lambda c, o: _streamed(c, "Tell me.", session=o.ids["sessions"])),
)
# What is answered once and kept under an Idempotency-Key: by a route of the platform, by a model, by a stream. No two
# answers are alike, for each has an id of its own.
KEPT: Sequence[tuple[str, Keyed]] = (
    ("memory remembered", lambda c, said, key: c.memory.remember(said, idempotency_key=key)),
    ("chat completion", lambda c, said, key: c.complete(said, max_tokens=16, idempotency_key=key)),
    ("stream", lambda c, said, key: _streamed(c, said, idempotency_key=key)),
)
