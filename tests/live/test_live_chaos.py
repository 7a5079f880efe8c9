"""Real services killed and stopped under load: what must fail closed does, the rest goes on, and comes back by itself.

`AIBOX_TEST_SEED` says in which order things break, and which replica; a failure prints it.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from idle_model import IdleModel
from load import HELLO, Load, all_there, is_end
from postgres import Postgres
from services import BACKEND, OF_TWO, Platform, platform, until_missing, until_ready
from waiting import free_port, until_listening

from aibox.audit.chain import AuditChain
from aibox.server.redis_buckets import REST_S

pytestmark = OF_TWO
SEED = int(os.environ.get("AIBOX_TEST_SEED", "1"))


HELD = 8
SILENCE_S = 4
IDLE = """
[[backends]]
kind = "openai"
name = "idle"
url = "http://127.0.0.1:{port}/v1"
models = ["idle"]
external = false
timeout_s = {silence}
"""
BOUNDED = "".join(f'[tenants.{name}]\npolicy = "few.toml"\n' for name in ("killed", "stopped"))
"""Tenants who may ask six times a minute, and have not asked yet."""


@pytest.fixture(scope="module")
def idle_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def both(
    tmp_path_factory: pytest.TempPathFactory, postgres_copy: Callable[[], str], idle_port: int
) -> Iterator[Platform]:
    backends = BACKEND + IDLE.format(port=idle_port, silence=SILENCE_S) + BOUNDED
    with platform(tmp_path_factory.mktemp("chaos"), postgres_copy(), backends=backends) as made:
        yield made


def let_through(both: Platform, key: str, holders: int) -> None:
    """Six a minute, asked for forty times through the gateway: six and what comes back, of each that holds the bound.

    Of two it may be one: the gateway spares for 10 s a replica that it did not reach.
    """
    headers, began = {"authorization": f"Bearer {key}"}, time.monotonic()
    with httpx2.Client(base_url=both.url, headers=headers, timeout=30) as client:
        told = [client.get("/v1/usage").status_code for _ in range(40)]
    assert {*told} == {200, 429}
    assert 6 <= told.count(200) <= holders * (6 + (time.monotonic() - began) / 10 + 1)


def redis_killed(both: Platform, load: Load, _: Postgres) -> None:
    """Bounds are held by each replica alone meanwhile, and calls go on; then by both together again."""
    key, process = both.key("killed", "user"), both.processes["redis"]
    process.kill()
    process.wait(30)
    load.goes_on()
    until_missing(both, "redis")
    let_through(both, key, 2)
    both.processes["redis"] = subprocess.Popen(process.args, stdout=subprocess.DEVNULL)  # type: ignore[arg-type]
    load.goes_on()
    until_missing(both)
    time.sleep(REST_S)
    let_through(both, key, 1)


def redis_stopped(both: Platform, load: Load, _: Postgres) -> None:
    """One that takes connections and says nothing is as good as none."""
    key = both.key("stopped", "user")
    both.processes["redis"].send_signal(signal.SIGSTOP)
    load.goes_on()
    until_missing(both, "redis")
    let_through(both, key, 2)
    both.processes["redis"].send_signal(signal.SIGCONT)
    load.goes_on()
    until_missing(both)


def postgres_sessions_killed(both: Platform, load: Load, postgres: Postgres) -> None:
    """kill -9 of a session makes the server begin anew, from its journal, and cuts everybody off."""
    first, *children = postgres.pids()
    sessions = [pid for pid in children if b"writer" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    postgres.signal(signal.SIGKILL, sessions[:1])
    assert sessions
    assert Path(f"/proc/{first}").exists()
    load.goes_on()


def postgres_stopped(both: Platform, load: Load, postgres: Postgres) -> None:
    """Without evidence there is no answer; when it goes on, so does everything."""
    pids = postgres.pids()
    postgres.signal(signal.SIGSTOP, pids)
    try:
        load.stands_still()
        until_missing(both, "audit", "keys", "people")
    finally:
        postgres.signal(signal.SIGCONT, pids)
    load.goes_on()
    until_missing(both)


def postgres_killed(both: Platform, load: Load, postgres: Postgres) -> None:
    """All of it at once: nothing is answered until it is back, and then by servers that were never started anew."""
    postgres.kill()
    try:
        load.stands_still()
        until_missing(both, "audit", "keys", "people")
    finally:
        postgres.start()
    load.goes_on()
    until_missing(both)


def replica_killed(both: Platform, load: Load, _: Postgres) -> None:
    """The other one answers; started again it takes its part."""
    name = random.Random(SEED).choice("ab")
    both.processes[name].kill()
    both.processes[name].wait(30)
    load.goes_on()
    both.start(name)
    until_ready(both.replicas[name == "b"], lambda: both.log(name))


def model_slow(both: Platform, load: Load, _: Postgres) -> None:
    """An upstream that takes its time holds up nobody who only looks: they are answered while all others wait."""
    both.model.answers.clear()
    until = time.monotonic() + Load.back_s
    while both.model.waiting < load.number:
        assert time.monotonic() < until, f"{both.model.waiting} of {load.number} callers came to the model"
        time.sleep(0.02)
    answered = len(load.answered)
    for url in both.replicas:
        asked = httpx2.get(url + "/v1/usage", headers={"authorization": f"Bearer {load.key}"}, timeout=30)
        assert asked.status_code == 200
    assert (both.model.waiting, len(load.answered)) == (load.number, answered), "somebody did not wait"
    both.model.answers.set()
    load.goes_on()


def test_chaos(both: Platform, postgres: Postgres) -> None:
    """Every entry of what was answered is there at the end, each request has one end, and the log holds."""
    until_listening(int(both.url.rpartition(":")[2]))
    key = both.key("acme", "user")
    acts = [redis_killed, redis_stopped, postgres_sessions_killed, postgres_stopped, postgres_killed]
    acts += [replica_killed, model_slow]
    random.Random(SEED).shuffle(acts)
    with Load(both.url, key, SEED) as load:
        load.goes_on()
        until_missing(both)
        for act in acts:
            act(both, load, postgres)
    assert load.refused, "nothing broke"
    asyncio.run(_look(both, load))


async def _look(both: Platform, load: Load) -> None:
    async with AuditChain(both.database, keys=both.keys) as chain:
        await all_there(chain, "acme", load)


class Streams:
    """Streams that are held in the middle by a model's server that is a process of its own."""

    def __init__(self, both: Platform, key: str, model: IdleModel, name: str) -> None:
        self.model = model
        self.names = [f"{name}-{n:04}" for n in range(HELD)]
        self._told: dict[str, str] = {}
        self._threads = [threading.Thread(target=self._read, args=(both, key, one)) for one in self.names]
        for thread in self._threads:
            thread.start()
        until = time.monotonic() + Load.back_s
        while model.held() < HELD:
            assert time.monotonic() < until, f"{model.held()} of {HELD} came to the model"
            time.sleep(0.02)

    def _read(self, both: Platform, key: str, name: str) -> None:
        headers = {"authorization": f"Bearer {key}", "x-correlation-id": name}
        body = {"model": "idle", "messages": HELLO, "stream": True}
        with httpx2.Client(base_url=both.url, timeout=60) as client:
            answer = client.post("/v1/chat/completions", json=body, headers=headers)
        self._told[name] = f"{answer.status_code}\n{answer.text}"

    def told(self) -> list[str]:
        """What each caller was told, when all of them have been."""
        for thread in self._threads:
            thread.join(Load.back_s)
            assert not thread.is_alive(), "a stream never ended"
        return [self._told[name] for name in self.names]


@pytest.fixture
def idle(idle_port: int) -> Iterator[IdleModel]:
    model = IdleModel(idle_port)
    model.start()
    yield model
    model.kill()


BROKEN = "broke off in the middle of its answer"
SILENT = "was silent for too long"


def until_answered(both: Platform, key: str) -> None:
    """Wait until the model is asked again, by servers that were never started anew."""
    body, until = {"model": "idle", "messages": HELLO}, time.monotonic() + Load.back_s
    headers = {"authorization": f"Bearer {key}"}
    for url in both.replicas:
        while (answer := httpx2.post(url + "/v1/chat/completions", json=body, headers=headers)).status_code != 200:
            assert answer.status_code in (502, 503, 504), answer.text
            assert time.monotonic() < until, answer.text
            time.sleep(0.2)


async def ends(both: Platform, names: list[str]) -> list[tuple[str, str]]:
    """How the turn of each of them ended, by its entries, in the order of names; and the log holds."""
    async with AuditChain(both.database, keys=both.keys) as chain:
        assert (await chain.verify()).ok
        found = [entry async for entry in chain.entries("stream") if is_end(entry)]
    told = ((str(entry.detail.get("correlation")), entry.kind) for entry in found)
    return sorted(end for end in told if end[0] in names)


def test_a_model_server_that_is_killed_in_mid_stream(both: Platform, idle: IdleModel) -> None:
    """Each stream ends with an error and one entry that says so; when the model is back it is asked again."""
    key = both.key("stream", "user")
    streams = Streams(both, key, idle, "killed")
    idle.kill()
    for told in streams.told():
        assert told.startswith("200")
        assert "One. " in told
        assert BROKEN in told
        assert "[DONE]" not in told
    assert asyncio.run(ends(both, streams.names)) == [(name, "turn.failed") for name in streams.names]
    idle.start()
    until_answered(both, key)


@pytest.mark.parametrize("for_long", [False, True])
def test_a_model_server_that_is_stopped_in_mid_stream(both: Platform, idle: IdleModel, for_long: bool) -> None:
    """A pause that is shorter than `timeout_s` harms no stream; after a longer one each ends with an error."""
    key = both.key("stream", "user")
    streams = Streams(both, key, idle, f"stopped-{for_long}")
    idle.signal(signal.SIGSTOP)
    try:
        with Load(both.url, key, SEED) as load:
            load.goes_on()  # another model answers meanwhile
        if for_long:
            assert all(SILENT in told and "[DONE]" not in told for told in streams.told())
    finally:
        idle.signal(signal.SIGCONT)
    if not for_long:
        idle.go()
        assert all(told.endswith("[DONE]\n\n") and '"error"' not in told for told in streams.told())
    kind = "turn.failed" if for_long else "turn.sealed"
    assert asyncio.run(ends(both, streams.names)) == [(name, kind) for name in streams.names]
    until_answered(both, key)
