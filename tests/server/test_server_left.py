"""A caller who goes early, and a process that stops: what was done has one terminal entry, and no second."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from platform_world import Asked, Person, World, world
from test_server_client import served

pytestmark = [pytest.mark.anyio, pytest.mark.loopback]

EVA = Person("acme", "eva", ("user", "tenant_admin"))


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


async def kinds(w: World, correlation: str) -> Counter[str]:
    """The entries of one request, by kind and outcome."""
    found = [entry async for entry in w.box.audit.entries("acme")]
    mine = [entry for entry in found if entry.detail.get("correlation") == correlation]
    return Counter(f"{one.kind} {one.detail.get('outcome', '')}".strip() for one in mine)


async def hang_up(url: str, method: str, path: str, body: Any, correlation: str) -> None:
    """Send a whole request, and close the connection without waiting for a word."""
    host, _, port = url.removeprefix("http://").partition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    data = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {EVA.token()}\r\n"
    head += f"X-Correlation-ID: {correlation}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)
    await writer.drain()
    writer.close()
    await writer.wait_closed()


async def paused(w: World) -> tuple[str, str, str]:
    """A run that waits for a person: its id, its question's, and the digest of that."""
    asked = Asked(body={"message": "pay Acme"})
    told = (await w.send("post", "/v1/chat", asked, EVA.token())).json()
    approval = told["pending"][0]["id"]
    shown = await w.box.state.approvals.get(approval, scope=EVA.scope)
    return told["run"], approval, shown.digest


async def test_who_hangs_up_leaves_one_terminal_entry_for_what_was_done(w: World) -> None:
    """A title, a question that is answered, a run that goes on, an end: each has its one entry, and is really done."""
    for session in ("s1", "s2"):
        await w.send("post", "/v1/chat", Asked(body={"message": "hi", "session": session}), EVA.token())
    yes, no, going = await paused(w), await paused(w), await paused(w)
    await w.box.state.approvals.approve(going[1], digest=going[2], scope=EVA.scope)
    requests: list[tuple[str, str, Any, str]] = [
        ("PATCH", "/v1/sessions/s1", {"title": "Plans"}, "request.ended done"),
        ("DELETE", "/v1/sessions/s2", None, "request.ended done"),
        ("POST", f"/v1/approvals/{yes[1]}/approve", {"digest": yes[2]}, "approval.given"),
        ("POST", f"/v1/approvals/{no[1]}/reject", {"reason": "no"}, "approval.rejected"),
        ("POST", f"/v1/runs/{going[0]}/resume", None, "turn.sealed answered"),
    ]
    async with served(w) as url:
        for number, (method, path, body, _) in enumerate(requests):
            await hang_up(url, method, path, body, f"hang-up-{number}")
        for number, (_, path, _, terminal) in enumerate(requests):
            name = f"hang-up-{number}"
            async with asyncio.timeout(60):
                while not any(kind.startswith(terminal) for kind in await kinds(w, name)):
                    await asyncio.sleep(0.01)
            found = await kinds(w, name)
            ends = {kind: n for kind, n in found.items() if kind.startswith((terminal, "request.ended", "turn.sealed"))}
            assert list(ends.values()) == [1], (path, found)
    titles = {one.id: one.title for one in await w.box.state.sessions.list(scope=EVA.scope.narrow(agent="default"))}
    assert titles == {"s1": "Plans"}
    assert (await w.box.state.approvals.get(no[1], scope=EVA.scope)).status == "rejected"


async def test_who_is_cut_off_anywhere_leaves_no_second_entry_and_never_none(w: World) -> None:
    """A request is cancelled after more and more steps, as by a process that stops: what was done has its entry."""
    await w.send("post", "/v1/chat", Asked(body={"message": "hi", "session": "s1"}), EVA.token())
    scope, seen = EVA.scope.narrow(agent="default"), set()
    for steps in (*range(0, 40, 2), *range(40, 4000, 180), None):
        title, name = f"t{steps}", f"cut-off-{steps}"
        sending = asyncio.create_task(
            w.http.patch(
                "/v1/sessions/s1",
                json={"title": title},
                headers={"authorization": f"Bearer {EVA.token()}", "x-correlation-id": name},
            )
        )
        for _ in range(steps or 0):
            await asyncio.sleep(0)
        if steps is not None:  # the last is let through, however slow the disk is
            sending.cancel()
        await asyncio.wait((sending,))
        done = (await w.box.state.sessions.list(scope=scope))[0].title == title
        await w.box.audit.append("test.after", scope=EVA.scope, detail={})  # whatever was on its way is in by now
        ends = {kind: n for kind, n in (await kinds(w, name)).items() if kind.startswith("request.ended")}
        assert sum(ends.values()) <= 1, (steps, ends)
        assert sum(ends.values()) == 1 or not done, (steps, "done, and not on record")
        seen.add((done, tuple(ends)))
    assert (False, ()) in seen
    assert (True, ("request.ended done",)) in seen
