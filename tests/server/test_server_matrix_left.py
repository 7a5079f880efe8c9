"""What each row of the isolation matrix leaves: entries in the logs of tenants, and lines in the server's own."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from contextlib import closing
from typing import Any

import pytest
from platform_world import Person, World, world
from test_server_isolation import EVA, GUARDED, OPERATIONS, asked, holds_no_text

from aibox.audit.receipt import ReceiptEntry
from aibox.audit.store import open_store

pytestmark = pytest.mark.anyio

DONE = "request.ended done"
TURN = "turn.sealed answered"
ENDS = {
    **dict.fromkeys(("openai.chat", "openai.embeddings", "chat.run", "chat.stream", "approvals.resume"), TURN),
    # What the scripted model does not speak was asked of it, and has its end.
    **dict.fromkeys(("openai.completions", "openai.responses"), "turn.failed failed"),
    "approvals.approve": "approval.given",
    "approvals.reject": "approval.rejected",
    "sandbox.open": "sandbox.started",
    "sandbox.run": "sandbox.ran",
    "sandbox.end": "sandbox.ended",
    "admin.reload": "config.reloaded taken up",
}
"""The terminal entry of each route and its outcome, where it is not DONE."""
TERMINAL = {end.partition(" ")[0] for end in (*ENDS.values(), DONE)}
READS = {name for name in GUARDED if OPERATIONS[name][0] == "get"} | {"memory.recall", "knowledge.search"}
"""They do nothing, and leave nothing."""
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
OTHERWISE = {"a stream": {"stream": True}, "an agent": {"model": "agent:default"}}
OTHERWISE["an agent's stream"] = OTHERWISE["a stream"] | OTHERWISE["an agent"]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def w(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    said = io.BytesIO()
    async with world(tmp_path_factory.mktemp("left"), said=said) as made:
        yield made
    holds_no_text(said.getvalue())


async def sizes(w: World) -> dict[str, int]:
    """How many entries each tenant's log has."""
    await w.box.audit.flush()
    with closing(open_store(w.box.audit.url, read_only=True)) as store:
        tenants = [one.tenant for one in store.logs()]
    return {tenant: await w.box.audit.size(tenant) for tenant in tenants}


async def left(w: World, name: str, body: Any = None) -> list[ReceiptEntry]:
    """What a request leaves in all logs, when it was answered well; it is named after its route."""
    who = EVA if set(OPERATIONS[name][2]["x-roles"]) & set(EVA.roles) else Person("acme", "ada", ("auditor",))
    request = await asked(w, name, who)
    request.body = body or request.body
    request.headers = {**request.headers, "x-correlation-id": named(name)}
    before = await sizes(w)
    answer = await w.send(*OPERATIONS[name][:2], request, who.token())
    assert answer.status_code < 300 or ENDS.get(name, "").startswith("turn.failed"), answer.text
    assert answer.headers["x-correlation-id"] == named(name)
    after = await sizes(w)
    found = [e for one in after for e in [e async for e in w.box.audit.entries(one, start=before.get(one, 0))]]
    return sorted(found, key=lambda one: one.ts_us)  # whoever deletes a tenant leaves something in two logs


def named(name: str) -> str:
    return f"of-{name.replace('.', '-')}"


def ends(entries: list[ReceiptEntry]) -> list[str]:
    """The terminal ones, with their outcome."""
    found = [one for one in entries if one.kind in TERMINAL]
    return [f"{one.kind} {one.detail.get('outcome', '')}".strip() for one in found]


@pytest.mark.parametrize("name", [name for name in GUARDED if name not in READS])
async def test_what_does_anything_has_one_terminal_entry_and_all_have_its_id(w: World, name: str) -> None:
    """Each route that does something, asked well: one end, behind all else, and the request's id in every entry."""
    found = await left(w, name)
    assert ends(found) == [ENDS.get(name, DONE)]
    assert found[-1].kind in TERMINAL
    assert [one.kind for one in found if one.detail.get("correlation") != named(name)] == []


@pytest.mark.parametrize("how", OTHERWISE)
async def test_so_it_is_however_a_model_is_asked(w: World, how: str) -> None:
    """Chat completions as a stream, of an agent, and of an agent as a stream."""
    found = await left(w, "openai.chat", CHAT | OTHERWISE[how])
    assert ends(found) == [TURN]
    assert found[-1].kind in TERMINAL
    assert [one.kind for one in found if one.detail.get("correlation") != named("openai.chat")] == []


@pytest.mark.parametrize("name", sorted(READS))
async def test_what_only_reads_leaves_nothing(w: World, name: str) -> None:
    """A log that grew by being read would say of nobody what they did."""
    assert await left(w, name) == []
