"""The engine is killed and paused under load: nothing runs without it, and then all goes on without a new start."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from aibox.errors import SandboxError
from aibox.sandbox.docker import Docker
from aibox.sandbox.engine import Engine
from aibox.sandbox.escapes import ESCAPES, UnsafeRuntime
from aibox.sandbox.sandbox import Sandbox
from aibox.sandbox.session import Session
from aibox.types import Scope

sys.path.append(str(Path(__file__).parent.parent / "live"))
sys.path.append(str(Path(__file__).parent.parent / "server"))
from guests import Guests, recorded
from server_parts import Running, Upstream, serving

pytestmark = pytest.mark.loopback

WALL_S = 3
RUN_S, OPEN_S = WALL_S + 11, 38
"""What bounds a run and an opening whose engine says nothing: to stop it, to hang up, and to have it removed."""
CLOSE_S, KEPT, AT_ONCE = 8, 3, 8
"""Ending takes that long for all together; three sessions are open, and as many are begun as may be at once."""
SLACK_S = 10
"""For a busy machine."""


@contextmanager
def under_load(engine_host: str, folder: Path) -> Iterator[tuple[Running, Guests]]:
    """A server before the engine, and callers; afterwards nothing is left, and each run answered is on record."""
    accept = json.dumps([escape.cve for escape in ESCAPES])
    settings = f'[sandbox]\ndriver = "docker"\nengine = "{engine_host}"\ngvisor = "off"\naccept = {accept}\n'
    upstream = Upstream()
    try:
        with serving(folder, upstream, more=settings, policy=f"[sandbox]\nwall_s = {WALL_S}\n") as server:
            with Guests(f"http://127.0.0.1:{server.port}", server.key) as guests:
                guests.goes_on(12)
                yield server, guests
                guests.goes_on(12)
            mine = f"aibox-{server.process.pid}-"
            names = ["docker", "-H", engine_host, "ps", "-a", "--format", "{{.Names}}"]
            server.until(lambda: mine not in subprocess.run(names, capture_output=True, text=True).stdout)
    finally:
        upstream.close()
    asyncio.run(recorded(guests, folder / "home"))


def engine_pid(engine_host: str) -> int:
    return int(Path(engine_host.removeprefix("unix://")).with_name("pid").read_text())


@contextmanager
def paused(engine_host: str) -> Iterator[None]:
    engine = engine_pid(engine_host)
    os.kill(engine, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(engine, signal.SIGCONT)


def test_the_engine_is_killed_under_load(engine_host: str, tmp_path: Path) -> None:
    """Calls meanwhile are 503s, sessions opened since work, each run answered is on record, and nothing is left."""
    with under_load(engine_host, tmp_path) as (_, guests):
        before = len(guests.refused)
        os.kill(engine_pid(engine_host), signal.SIGKILL)
        guests.is_refused(1, since=before)


def test_the_engine_is_paused_under_load(engine_host: str, tmp_path: Path) -> None:
    """Runs and openings end in time with an error that says why, other routes answer, and nothing is left of either."""
    with under_load(engine_host, tmp_path) as (server, guests):
        guests.all_open()
        with paused(engine_host):
            guests.is_refused(guests.number, since=0)
            assert "run: " in guests.said
            assert "did not answer within 3 s" in guests.said
            assert server.ask().status == 200
            assert server.send("GET", "/v1/sandbox").status == 200
            guests.is_refused(guests.number, since=guests.number)
            assert "open: " in guests.said
            assert "did not answer within 30 s" in guests.said
    assert max(guests.waited["run"]) < RUN_S + SLACK_S
    assert max(guests.waited["open"]) < OPEN_S + SLACK_S


def test_what_a_paused_engine_makes_afterwards_is_removed(engine_host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Openings wait for it together and so do endings; a container that comes to be when nobody waits any more goes."""
    monkeypatch.setattr("aibox.sandbox.sandbox._TURN_S", 0.5)
    asyncio.run(given_up(engine_host))


async def given_up(engine_host: str) -> None:
    driver = Docker(host=engine_host, gvisor="off", accept=UnsafeRuntime(tuple(escape.cve for escape in ESCAPES)))
    sandbox, scope, engine = Sandbox(driver, per_tenant=64), Scope.local(), Engine(engine_host)

    async def mine() -> int:
        return (await engine.ask("ps", "-a", "--format", "{{.Names}}")).count(f"aibox-{os.getpid()}-")

    async def bounded(closing: Awaitable[Any]) -> Any:
        began = time.monotonic()
        done = await closing
        assert time.monotonic() - began < CLOSE_S + SLACK_S
        return done

    for _ in range(KEPT):
        await sandbox.open(scope=scope)
    opening = [asyncio.create_task(sandbox.open(scope=scope)) for _ in range(AT_ONCE)]
    while await mine() == KEPT:
        pass  # until the first is there, and the others are asked for
    with paused(engine_host):
        opening += [asyncio.create_task(sandbox.open(scope=scope)) for _ in range(AT_ONCE)]
        await asyncio.sleep(0)  # now as many as may be at once are begun, whichever they are
        with pytest.raises(SandboxError, match="no session could be begun within"):
            await sandbox.open(scope=scope)
        for one in opening:
            one.cancel()
        found = await bounded(asyncio.gather(*opening, return_exceptions=True))
    for one in found:
        if isinstance(one, Session):
            await one.close()
    async with asyncio.timeout(60):
        while (asking := driver._leftovers._asking) is not None and not asking.done():
            await asyncio.sleep(0.5)
    assert await mine() == KEPT
    with paused(engine_host):
        await bounded(sandbox.close())
    async with asyncio.timeout(60):
        while await mine():
            await asyncio.sleep(0.5)
