"""Real services killed and stopped under load: what must fail closed does, the rest goes on, and comes back by itself.

`AIBOX_TEST_SEED` says in which order things break, and which replica; a failure prints it.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
import pytest_socket
from load import Load, all_there
from services import NGINX, REDIS, Platform, platform, until_ready
from waiting import until_listening

from aibox.audit.chain import AuditChain

pytestmark = [
    pytest.mark.loopback,
    pytest.mark.skipif(NGINX is None, reason="no nginx here: apt-get install nginx-light"),
    pytest.mark.skipif(REDIS is None, reason="no redis-server here: apt-get install redis-server"),
]
SEED = int(os.environ.get("AIBOX_TEST_SEED", "1"))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, postgres_copy: Callable[[], str]) -> Iterator[Platform]:
    pytest_socket.enable_socket()  # for one that is made before a test says that it may
    with platform(tmp_path_factory.mktemp("chaos"), postgres_copy()) as made:
        yield made


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
    with Load(both.url, key, SEED) as load:
        load.goes_on()
        for act in acts:
            act(both, load, postgres_server)
    assert load.refused, "nothing broke"
    asyncio.run(_look(both, load))


async def _look(both: Platform, load: Load) -> None:
    async with AuditChain(both.database, keys=both.keys) as chain:
        await all_there(chain, "acme", load)
