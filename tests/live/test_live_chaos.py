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
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest
import pytest_socket
from services import NGINX, REDIS, Platform, platform, until_ready
from waiting import until_listening

from aibox.audit.chain import AuditChain

pytestmark = [
    pytest.mark.loopback,
    pytest.mark.skipif(NGINX is None, reason="no nginx here: apt-get install nginx-light"),
    pytest.mark.skipif(REDIS is None, reason="no redis-server here: apt-get install redis-server"),
]
SEED = int(os.environ.get("AIBOX_TEST_SEED", "1"))
CALLERS = 4
BACK_S = 60.0
"""How long recovery may take on a busy machine. Nothing is started anew by us but what was killed."""


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, postgres_copy: Callable[[], str]) -> Iterator[Platform]:
    pytest_socket.enable_socket()  # for one that is made before a test says that it may
    with platform(tmp_path_factory.mktemp("chaos"), postgres_copy()) as made:
        yield made


@dataclass
class Load:
    """Callers who ask without a pause, and what they were answered."""

    platform: Platform
    key: str
    answered: list[str] = field(default_factory=list)
    """Correlation ids of what was answered with 200."""
    refused: list[int] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    over: bool = False

    def __enter__(self) -> Load:
        self._threads = [threading.Thread(target=self._call, args=(n,)) for n in range(CALLERS)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over = True
        for thread in self._threads:
            thread.join(90)
            assert not thread.is_alive(), "a caller was never answered"

    def _call(self, number: int) -> None:
        body = {"model": "m", "messages": [{"role": "user", "content": "Hello."}]}
        with httpx2.Client(base_url=self.platform.url, timeout=60) as client:
            count = 0
            while not self.over:
                count += 1
                name = f"chaos-{number}-{count:06}"
                headers = {"authorization": f"Bearer {self.key}", "x-correlation-id": name}
                try:
                    answer = client.post("/v1/chat/completions", json=body, headers=headers)
                except httpx2.HTTPError:
                    self.refused.append(0)  # cut off: nothing was acknowledged
                    continue
                if answer.status_code == 200:
                    self.answered.append(name)
                elif answer.status_code >= 500:
                    self.refused.append(answer.status_code)
                    time.sleep(0.05)
                else:
                    self.odd.append(f"{answer.status_code} {answer.text[:200]}")

    def goes_on(self, more: int = 10) -> None:
        """Wait until so many more are answered."""
        wanted, until = len(self.answered) + more, time.monotonic() + BACK_S
        while len(self.answered) < wanted:
            assert time.monotonic() < until, f"seed {SEED}: nothing is answered any more: {self.refused[-5:]}"
            time.sleep(0.02)

    def stands_still(self) -> None:
        """Wait until what was under way is over, and see that nothing more is answered."""
        time.sleep(1.0)  # what had been written when it happened may still be on its way
        before = len(self.answered)
        time.sleep(1.5)
        assert len(self.answered) == before, f"seed {SEED}: answered without evidence"


def postgres_pids(folder: str) -> list[int]:
    """The server and its children."""
    first = int((Path(folder) / "data" / "postmaster.pid").read_text().split()[0])
    children = subprocess.run(["pgrep", "-P", str(first)], capture_output=True, text=True, check=False).stdout
    return [first, *map(int, children.split())]


def signalled(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue  # a session that ended meanwhile


def redis_killed(both: Platform, load: Load, _: str) -> None:
    """Bounds are held by each replica alone meanwhile, and calls go on."""
    process = both.processes["redis"]
    process.kill()
    process.wait(30)
    load.goes_on()
    both.processes["redis"] = subprocess.Popen(process.args, stdout=subprocess.DEVNULL)  # type: ignore[arg-type]
    load.goes_on()


def redis_stopped(both: Platform, load: Load, _: str) -> None:
    """One that takes connections and says nothing is as good as none."""
    both.processes["redis"].send_signal(signal.SIGSTOP)
    load.goes_on()
    both.processes["redis"].send_signal(signal.SIGCONT)
    load.goes_on()


def postgres_sessions_killed(both: Platform, load: Load, folder: str) -> None:
    """kill -9 of a session makes the server begin anew, from its journal, and cuts everybody off."""
    first, *children = postgres_pids(folder)
    backends = [pid for pid in children if b"writer" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    signalled(backends[:1], signal.SIGKILL)
    assert backends
    assert Path(f"/proc/{first}").exists()
    load.goes_on()


def postgres_stopped(both: Platform, load: Load, folder: str) -> None:
    """Without evidence there is no answer; when it goes on, so does everything."""
    pids = postgres_pids(folder)
    signalled(pids, signal.SIGSTOP)
    try:
        load.stands_still()
    finally:
        signalled(pids, signal.SIGCONT)
    load.goes_on()


def replica_killed(both: Platform, load: Load, _: str) -> None:
    """The other one answers; started again it takes its part."""
    name = random.Random(SEED).choice("ab")
    both.processes[name].kill()
    both.processes[name].wait(30)
    load.goes_on()
    both.start(name)
    until_ready(both.replicas[name == "b"], lambda: both.log(name))


def model_slow(both: Platform, load: Load, _: str) -> None:
    """An upstream that takes its time holds up nobody who only looks."""
    both.model.slow_s = 0.5
    asked = httpx2.get(both.url + "/v1/usage", headers={"authorization": f"Bearer {load.key}"}, timeout=30)
    assert asked.status_code == 200
    both.model.slow_s = 0.0
    load.goes_on()


def test_chaos(both: Platform, postgres_server: str) -> None:
    """Every entry of what was answered is there at the end, each request has one end, and the log holds."""
    until_listening(int(both.url.rpartition(":")[2]))
    key = both.key("acme", "user")
    acts = [redis_killed, redis_stopped, postgres_sessions_killed, postgres_stopped, replica_killed, model_slow]
    random.Random(SEED).shuffle(acts)
    with Load(both, key) as load:
        load.goes_on()
        for act in acts:
            act(both, load, postgres_server)
    assert not load.odd, f"seed {SEED}: {load.odd[:3]}"
    assert load.refused, "nothing broke"
    asyncio.run(_all_there(both, load.answered))


async def _all_there(both: Platform, answered: list[str]) -> None:
    """As whoever holds the keys reads it: the end of each acknowledged request, once."""
    async with AuditChain(both.database, keys=both.keys) as chain:
        assert (await chain.verify()).ok
        found = [entry async for entry in chain.entries("acme")]
    assert [entry.seq for entry in found] == list(range(len(found)))
    ended = [entry for entry in found if entry.kind == "turn.sealed"]
    assert len(answered) > 50
    assert len({entry.turn for entry in ended}) == len(ended)
    written = {str(entry.detail.get("correlation")) for entry in ended}
    missing = [name for name in answered if name not in written]
    assert not missing, f"seed {SEED}: {len(missing)} of {len(answered)} answers have no entry: {missing[:3]}"
