"""The engine is killed and paused under load: nothing runs without it, and then all goes on without a new start."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aibox.execution import Limits
from aibox.sandbox.docker import Docker
from aibox.sandbox.engine import Engine
from aibox.sandbox.escapes import ESCAPES, UnsafeRuntime

sys.path.append(str(Path(__file__).parent.parent / "live"))
sys.path.append(str(Path(__file__).parent.parent / "server"))
from guests import Guests, recorded
from server_parts import Running, Upstream, serving

pytestmark = pytest.mark.loopback

WALL_S = 3
RUN_S, OPEN_S = WALL_S + 11, 38
"""What bounds a run and an opening whose engine says nothing: to stop it, to hang up, and to have it removed."""
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
        engine = engine_pid(engine_host)
        os.kill(engine, signal.SIGSTOP)
        try:
            guests.is_refused(guests.number, since=0)
            assert "run: " in guests.said
            assert "did not answer within 3 s" in guests.said
            assert server.ask().status == 200
            assert server.send("GET", "/v1/sandbox").status == 200
            guests.is_refused(guests.number, since=guests.number)
            assert "open: " in guests.said
            assert "did not answer within 30 s" in guests.said
        finally:
            os.kill(engine, signal.SIGCONT)
    assert max(guests.waited["run"]) < RUN_S + SLACK_S
    assert max(guests.waited["open"]) < OPEN_S + SLACK_S


def test_what_a_paused_engine_makes_afterwards_is_removed(engine_host: str) -> None:
    """Sessions that nobody waits for any more when their containers come to be: none of these is left."""
    asyncio.run(given_up(engine_host))


async def given_up(engine_host: str) -> None:
    driver = Docker(host=engine_host, gvisor="off", accept=UnsafeRuntime(tuple(escape.cve for escape in ESCAPES)))
    assert (await driver.available()).ok
    engine, mine = Engine(engine_host), f"aibox-{os.getpid()}-"
    starting = [asyncio.create_task(driver.start(limits=Limits())) for _ in range(8)]
    while mine not in await engine.ask("ps", "-a", "--format", "{{.Names}}"):
        pass  # the first is there, and the others are asked for
    os.kill(engine_pid(engine_host), signal.SIGSTOP)
    try:
        for one in starting:
            one.cancel()
        began = time.monotonic()
        found = await asyncio.gather(*starting, return_exceptions=True)
        assert time.monotonic() - began < 8 + SLACK_S
    finally:
        os.kill(engine_pid(engine_host), signal.SIGCONT)
    for guest in found:
        if not isinstance(guest, BaseException):
            await guest.close()
    async with asyncio.timeout(60):
        while (task := driver._leftovers._asking) is not None and not task.done():
            await asyncio.sleep(0.5)
        while mine in await engine.ask("ps", "-a", "--format", "{{.Names}}"):
            await asyncio.sleep(0.5)
    await driver.close()
