"""Streams that say nothing: all of them are held at once, each gets its signs of life, its end and its entry.

`make idle-streams` holds ten thousand and prints what each costs; else there are as many as take no time.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import pytest
import pytest_socket
from front import of_one
from idle_model import IdleModel
from services import NGINX, REDIS, platform
from waiting import free_port

from aibox.audit.chain import AuditChain
from aibox.server.api_keys import ApiKeys
from aibox.server.principal import Role
from aibox.types import Scope

pytestmark = [pytest.mark.anyio, pytest.mark.loopback]
STREAMS = int(os.environ.get("AIBOX_TEST_STREAMS", "200"))
TENANTS = 20
PATIENCE_S = 900.0
BEAT = b": still at work"
ROOMY = """
[[backends]]
kind = "openai"
name = "m"
url = "http://127.0.0.1:{port}/v1"
models = ["m"]
external = false
timeout_s = 3600
"""


@pytest.fixture(autouse=True)
def _files() -> Iterator[None]:
    """As many files as may be open, for this process and those that it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = STREAMS + 600  # a process that is asked has its stores, its database and its own libraries open too
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"a process may have {hard} files open here, and {STREAMS} streams need {needed}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def model() -> Iterator[IdleModel]:
    pytest_socket.enable_socket()  # for one that is made before a test says that it may
    made = IdleModel()
    made.start()
    yield made
    made.kill()


async def keys_for(place: str | Path) -> list[str]:
    """A key for a user of each tenant."""
    keys = ApiKeys(place)
    made = [await keys.create(scope=Scope(tenant=f"t{n}", user="eva"), roles=[Role.USER]) for n in range(TENANTS)]
    await keys.close()
    return made


def request(key: str, path: str, body: object) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nauthorization: Bearer {key}\r\n"
    return f"{head}connection: close\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data


class Stream:
    """One turn as its caller sees it."""

    def __init__(self) -> None:
        self.began = False
        self.beats = 0
        self.seen = b""
        self.over = asyncio.Event()

    async def run(self, port: int, key: str, gate: asyncio.Semaphore) -> None:
        async with gate:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request(key, "/v1/chat/stream", {"message": "Hello."}))
            self.seen = await reader.readuntil(b"\r\n\r\n")
            assert self.seen.startswith(b"HTTP/1.1 200"), self.seen + await reader.read()
            self.began = True
        while data := await reader.read(65536):
            self.beats += data.count(BEAT)
            self.seen += data.replace(BEAT, b"")
        writer.close()
        self.over.set()

    @property
    def ended_well(self) -> bool:
        """With its reply as the last event, and the end of the body behind it."""
        events = re.findall(rb"^event: (\w+)\r?$", self.seen, re.MULTILINE)
        return events[-1:] == [b"reply"] and b'"text":"One. Two."' in self.seen and self.seen.endswith(b"0\r\n\r\n")


async def until(condition: Callable[[], bool], tasks: list[asyncio.Task[None]], what: str) -> None:
    ends = time.monotonic() + PATIENCE_S
    while not condition():
        for task in tasks:
            if task.done() and task.exception() is not None:
                task.result()
        assert time.monotonic() < ends, what
        await asyncio.sleep(0.25)


async def ask(port: int, key: str, path: str, body: object) -> float:
    """How long a request takes beside them, in milliseconds."""
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(key, path, body))
    data = await reader.read()
    assert data.startswith(b"HTTP/1.1 200"), data
    writer.close()
    return (time.perf_counter() - began) * 1e3


def resident_kib(pids: list[int]) -> int:
    found = (re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text()) for pid in pids)
    return sum(int(one[1]) for one in found if one is not None)


async def held(
    port: int,
    keys: list[str],
    pids: list[int],
    model: IdleModel,
    *,
    with_the_model: int,
    quiet: tuple[str, object],
) -> dict[str, float]:
    """Open them, look at them, let them go. What it costs, measured."""
    alone = median([await ask(port, keys[0], *quiet) for _ in range(20)])
    before, began = resident_kib(pids), time.monotonic()
    gate, streams = asyncio.Semaphore(32), [Stream() for _ in range(STREAMS)]
    running = [asyncio.create_task(stream.run(port, keys[n % TENANTS], gate)) for n, stream in enumerate(streams)]
    await until(lambda: all(stream.began for stream in streams), running, "not all of them began")
    while await asyncio.to_thread(model.held) != with_the_model:
        assert time.monotonic() < began + PATIENCE_S, "not all of them came to the model"
        await asyncio.sleep(0.25)
    opened_s = time.monotonic() - began
    after, beats = resident_kib(pids), [stream.beats for stream in streams]
    beside = median([await ask(port, keys[0], *quiet) for _ in range(20)])
    await until(
        lambda: all(stream.beats > beat for stream, beat in zip(streams, beats, strict=True)),
        running,
        "a stream had no sign of life",
    )
    # All at one moment: nobody has been let go yet.
    assert not any(stream.over.is_set() for stream in streams)
    assert await asyncio.to_thread(model.held) == with_the_model
    let_go = time.monotonic()
    await asyncio.to_thread(model.go)
    await until(lambda: all(stream.over.is_set() for stream in streams), running, "a stream never ended")
    assert all(stream.ended_well for stream in streams), next(s.seen for s in streams if not s.ended_well)
    return {
        "streams": len(streams), "kib_a_stream": round((after - before) / STREAMS, 1), "servers_mib": after >> 10,
        "quiet_ms_alone": round(alone, 1), "quiet_ms_beside": round(beside, 1), "opened_s": round(opened_s),
        "ended_s": round(time.monotonic() - let_go),
    }  # fmt: skip


async def all_sealed(place: str | Path, keys: Path) -> None:
    """The log verifies and holds one end of each stream's turn."""
    async with AuditChain(place, keys=keys) as chain:
        assert (await chain.verify()).ok
        found = [entry for n in range(TENANTS) async for entry in chain.entries(f"t{n}")]
    # Turns of an agent; what was asked beside them is another kind of turn.
    turns = Counter(entry.turn for entry in found if entry.kind == "turn.sealed" and (entry.actor or {}).get("agent"))
    assert len(turns) == STREAMS
    assert set(turns.values()) == {1}


@pytest.mark.skipif(NGINX is None, reason="no nginx here: apt-get install nginx-light")
@pytest.mark.skipif(REDIS is None, reason="no redis-server here: apt-get install redis-server")
async def test_two_replicas_hold_them_each_with_a_call_of_the_model(
    tmp_path: Path, model: IdleModel, postgres_copy: Callable[[], str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Behind nginx, over one PostgreSQL: every stream has its own connection to the model's server."""
    with ExitStack() as stack:
        backends = ROOMY.format(port=model.port) + f"calls_at_once = {STREAMS + 100}\n"
        both = stack.enter_context(platform(tmp_path, postgres_copy(), backends=backends, workers=4))
        pids = [both.processes[name].pid for name in ("a", "b")]
        quiet = {"model": "m", "messages": [{"role": "user", "content": "Hello."}]}
        said = await held(
            int(both.url.rpartition(":")[2]), await keys_for(both.database), pids, model,
            with_the_model=STREAMS, quiet=("/v1/chat/completions", quiet),
        )  # fmt: skip
        for name in ("a", "b"):
            both.processes[name].terminate()
            assert both.processes[name].wait(60) == 0
            assert "Traceback" not in both.log(name)
        await all_sealed(both.database, both.keys)
    with capsys.disabled():
        sys.stdout.write(f"\ntwo replicas: {json.dumps(said)}\n")


@of_one("as it is shipped; two replicas hold theirs in the test beside this one")
async def test_one_server_holds_them_while_they_wait_for_their_turn(
    tmp_path: Path, model: IdleModel, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it is shipped: so many are with the model at once, the rest wait in line, by tenant, and are told so."""
    slots = min(256, STREAMS // 2)  # 256 is the default
    port = free_port()
    with ExitStack() as stack:
        (tmp_path / "policy.toml").write_text("version = 1\n")
        (tmp_path / "aibox.toml").write_text(
            f'home = "home"\npolicy = "policy.toml"\n{ROOMY.format(port=model.port)}calls_at_once = {slots}\n'
            f'[memory]\nenabled = false\n[server]\nport = {port}\napi_keys = "keys.db"\n'
        )
        log = tmp_path / "log"
        out = stack.enter_context(log.open("wb"))
        command = [sys.executable, "-m", "aibox", "serve"]
        server = stack.enter_context(subprocess.Popen(command, stderr=out, cwd=tmp_path))
        stack.callback(server.kill)
        await until(lambda: "aibox serves" in log.read_text() or server.poll() is not None, [], log.read_text())
        said = await held(
            port, await keys_for(tmp_path / "home" / "keys.db"), [server.pid], model,
            with_the_model=slots, quiet=("/v1/guard/check", {"text": "Hello."}),
        )  # fmt: skip
        server.terminate()
        assert await asyncio.to_thread(server.wait, 120) == 0
        assert "Traceback" not in log.read_text()
        await all_sealed(tmp_path / "home" / "audit.db", tmp_path / "home" / "keys")
    with capsys.disabled():
        sys.stdout.write(f"\none server: {json.dumps(said)}\n")
