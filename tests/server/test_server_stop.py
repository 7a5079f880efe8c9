"""How a server ends: told to, under load, or killed. No turn is left open, and nothing acknowledged is lost."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from server_parts import FLOOD_MIB, Running, Upstream, serving
from waiting import until

import aibox
from aibox.audit import orphans
from aibox.audit.record import read_detail, read_open
from aibox.audit.store import open_store
from aibox.sandbox.bubblewrap import Bubblewrap

pytestmark = [pytest.mark.loopback, pytest.mark.anyio]
ENDS = ("turn.sealed", "turn.failed")
STOPPING = "upstream.stopping"


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    found = Upstream()
    yield found
    found.close()


async def ends(home: Path) -> tuple[Counter[str], dict[str, str]]:
    """How many ends each turn of the log has, and by which correlation id each kind of end stands there."""
    turns: Counter[str] = Counter()
    named: dict[str, str] = {}
    async with aibox.AuditChain(home / "audit.db", keys=home / "keys") as chain:
        assert (await chain.verify()).ok
        async for entry in chain.entries("default"):
            turns[entry.turn] += entry.kind in ENDS
            if entry.kind in ENDS:
                named[str(entry.detail.get("correlation", ""))] = entry.kind
    return turns, named


def last_event(stream: Any) -> dict[str, Any]:
    lines = [line for line in stream.read().decode().split("\n\n") if line]
    found: dict[str, Any] = json.loads(lines[-1].removeprefix("data: "))
    return found


async def test_told_to_stop_streams_end_with_an_event_and_every_turn_has_one_end(
    tmp_path: Path, upstream: Upstream
) -> None:
    """After the grace a stream's last event says why, a whole answer is a 503, and the log holds one end for each."""
    with serving(tmp_path, upstream, server="[server.limits]\ngrace_s = 0.2\n") as server:
        done = server.ask("hi")
        assert done.status == 200
        streams = [server.ask("HOLD", stream=True, headers={"x-correlation-id": f"stream-{n:04}"}) for n in range(20)]
        whole: list[tuple[int, str]] = []

        def wait() -> None:
            answer = server.ask("HOLD")
            whole.append((answer.status, json.loads(answer.read())["error"]["code"]))

        waiting = threading.Thread(target=wait)
        waiting.start()
        await until(lambda: upstream.begun == 22)
        server.process.send_signal(signal.SIGTERM)
        assert {last_event(stream)["error"]["code"] for stream in streams} == {"upstream.stopping"}
        waiting.join()
        assert whole == [(503, "upstream.stopping")]
        server.process.wait(120)
        assert server.process.returncode == 0
        assert server.lines("stopped")
    turns, named = await ends(server.home)
    assert set(turns.values()) == {1}
    assert len(turns) == 22
    assert all(named[f"stream-{n:04}"] == "turn.failed" for n in range(20))
    assert named[str(done.headers["x-correlation-id"])] == "turn.sealed"


def runs(command: str) -> bool:
    """Whether a process of this machine was started so."""
    for about in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if about.read_text() == command.replace(" ", "\0") + "\0":
                return True
    return False


def said(answer: http.client.HTTPResponse) -> tuple[int, str]:
    return answer.status, answer.read().decode()


async def test_told_to_stop_an_agents_turn_code_and_a_long_document_have_one_end_each(
    tmp_path: Path, upstream: Upstream
) -> None:
    """After the grace each caller is told why, and what their request leaves ends once, whatever part was at work."""
    if not (await Bubblewrap().available()).ok:
        pytest.skip("code cannot be isolated here")
    long = "\n\n".join(f"Paragraph {n} says what no other says: {n * 7919}." * 20 for n in range(300))
    limits, told = "[server.limits]\ngrace_s = 0.2\n", dict[str, tuple[int, str]]()
    with serving(tmp_path, upstream, server=limits, more='[sandbox]\ndriver = "bubblewrap"\n', memory=True) as server:
        session = json.loads(server.send("POST", "/v1/sandbox", "{}").read())["id"]
        code = f"sleep 600.{server.port}"
        sent = {
            "turn-whole": ("/v1/chat", json.dumps({"message": "HOLD"})),
            "turn-stream": ("/v1/chat/stream", json.dumps({"message": "HOLD"})),
            "code-that-runs": (f"/v1/sandbox/{session}/run", json.dumps({"code": code, "language": "bash"})),
            "long-document": ("/v1/knowledge?name=long.txt", long),
        }

        def send(name: str) -> None:
            path, body = sent[name]
            told[name] = said(server.send("POST", path, body, headers={"x-correlation-id": name}))

        threads = [threading.Thread(target=send, args=(name,)) for name in sent]
        for thread in threads:
            thread.start()
        await until(lambda: upstream.begun == 2)
        server.until(lambda: runs(code))
        under_way = f"aibox_requests_under_way {len(sent) + 1}"
        server.until(lambda: under_way in said(server.send("GET", "/metrics"))[1])
        server.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(60)
        server.process.wait(120)
        assert server.process.returncode == 0
        assert "Traceback" not in server.text
    assert {name: status for name, (status, _) in told.items()} == {
        name: 200 if name == "turn-stream" else 503 for name in sent
    }
    assert all(STOPPING in text for _, text in told.values())
    assert told["turn-stream"][1].rstrip("\n").rpartition("\n\n")[2].startswith("event: failed\n")
    assert await ended(server.home, (*ENDS, "request.ended", "sandbox.ran")) == {
        "turn-whole": [("turn.failed", STOPPING)],
        "turn-stream": [("turn.failed", STOPPING)],
        "code-that-runs": [("sandbox.ran", "")],
        "long-document": [("request.ended", STOPPING)],
    }


async def ended(home: Path, kinds: tuple[str, ...]) -> dict[str, list[tuple[str, str]]]:
    """The terminal entries of each request by its correlation id: their kind, and the code or outcome."""
    found: dict[str, list[tuple[str, str]]] = {}
    async with aibox.AuditChain(home / "audit.db", keys=home / "keys") as chain:
        assert (await chain.verify()).ok
        async for entry in chain.entries("default"):
            if entry.kind in kinds:
                what = entry.detail.get("code") or entry.detail.get("outcome", "")
                found.setdefault(entry.detail["correlation"], []).append((entry.kind, what))
    return found


async def test_within_the_grace_requests_finish_and_new_ones_are_turned_away(
    tmp_path: Path, upstream: Upstream
) -> None:
    """Nobody's stream is cut while there is time, and the port takes nothing new."""
    with serving(tmp_path, upstream, server="[server.limits]\ngrace_s = 100\n") as server:
        stream = server.ask("HOLD", stream=True)
        server.process.send_signal(signal.SIGTERM)
        server.until(lambda: server.lines("stopping"))
        server.until(lambda: refused(server))
        upstream.release.set()
        assert stream.read().endswith(b"data: [DONE]\n\n")
        server.process.wait(120)
        assert server.process.returncode == 0
    turns, _ = await ends(server.home)
    assert list(turns.values()) == [1]


def refused(server: Running) -> bool:
    try:
        server.connect()
    except ConnectionRefusedError:
        return True
    return False


async def test_after_a_kill_what_was_answered_is_there_and_the_rest_gets_its_one_end(
    tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 under load: the log verifies, answered calls are sealed, and whoever opens it next ends the others."""
    with serving(tmp_path, upstream) as server:
        answered = [server.ask("hi") for _ in range(5)]
        names = [str(answer.headers["x-correlation-id"]) for answer in answered]
        assert all(answer.status == 200 and answer.read() for answer in answered)
        held = [server.ask("HOLD", stream=True) for _ in range(10)]
        assert {stream.status for stream in held} == {200}
        server.ask("hi").read()  # what was noted before it is durable with it
        server.process.kill()
        server.process.wait(120)
    monkeypatch.setattr(orphans, "TURN_S", 0.0)
    home = server.home
    async with aibox.AuditChain(home / "audit.db", keys=home / "keys") as chain:
        for _ in range(60):
            open_turns: Counter[str] = Counter()
            async for entry in chain.entries("default"):
                open_turns[entry.turn] += entry.kind in ENDS
            if all(open_turns.values()):
                break
            await asyncio.sleep(2)  # reading is work, and the log is looked after when there is none
    turns, named = await ends(home)
    assert set(turns.values()) == {1}
    assert len(turns) == 16
    assert all(named[name] == "turn.sealed" for name in names)


def acts(home: Path) -> list[tuple[str, str, str, str]]:
    """What the log says of administrators' acts, read beside whoever writes it: kind, operation, outcome, turn."""
    with closing(open_store(home / "audit.db", read_only=True)) as store:
        rows = [row for name in store.logs() for row in store.entries(name.log, kind="request.")]
    parts = [(read_open(row.open or b""), read_detail(row.open or b"")) for row in rows]
    return [(one.action, detail["operation"], detail.get("outcome", ""), one.turn_id) for one, detail in parts]


async def test_an_act_that_a_kill_broke_off_gets_its_one_end_from_a_later_start(
    tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 in the middle of an administrator's act: a start within the hour lets it be, one after it ends it."""
    with serving(tmp_path, upstream) as server:
        assert server.send("POST", "/v1/admin/tenants", '{"name": "first"}').status == 201
        with closing(sqlite3.connect(server.home / "people.db", isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")  # who wants to write there waits
            threading.Thread(target=sent_in_vain, args=(server,), daemon=True).start()
            server.until(lambda: len(acts(server.home)) == 3)
            server.process.kill()
            server.process.wait(120)
    home = server.home
    begun, ended, broken = acts(home)
    assert [one[:3] for one in (begun, ended)] == [
        ("request.begun", "tenants.create", ""),
        ("request.ended", "tenants.create", "done"),
    ]
    assert begun[3] == ended[3] != broken[3]
    with serving(tmp_path, upstream):
        await asyncio.sleep(3)  # it looks when a second was quiet
    assert acts(home) == [begun, ended, broken]
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "sitecustomize.py").write_text("import aibox.audit.orphans as one\none.TURN_S = 0.0\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'later'}:{os.environ.get('PYTHONPATH', '')}")
    for _ in range(2):
        with serving(tmp_path, upstream) as server:
            server.until(lambda: len(acts(home)) > 3)
            await asyncio.sleep(3)
        assert acts(home) == [
            begun, ended, broken, ("request.ended", "tenants.create", "audit.turn_timeout", broken[3])
        ]  # fmt: skip
    async with aibox.AuditChain(home / "audit.db", keys=home / "keys") as chain:
        assert (await chain.verify()).ok
        (await chain.receipt(broken[3], scope=aibox.Scope(tenant="default", user="me"))).verify()


def sent_in_vain(server: Running) -> None:
    with contextlib.suppress(OSError, http.client.HTTPException):
        server.send("POST", "/v1/admin/tenants", '{"name": "second"}')


async def test_a_caller_who_goes_leaves_one_end(tmp_path: Path, upstream: Upstream) -> None:
    """Whoever hangs up in the middle of a stream ends the call, and the entry is there at once."""
    with serving(tmp_path, upstream) as server:
        for n in range(5):
            server.ask("HOLD", stream=True, headers={"x-correlation-id": f"goes-{n:04}"})
        await until(lambda: upstream.begun == 5)
        server.close()
        server.until(lambda: len(server.lines("request")) == 5)
    turns, named = await ends(server.home)
    assert set(turns.values()) == {1}
    assert named == {f"goes-{n:04}": "turn.failed" for n in range(5)}


async def test_a_caller_who_reads_nothing_stops_the_model_server(tmp_path: Path, upstream: Upstream) -> None:
    """While nothing is read nothing is taken in upstream; then all of it comes, and the call ends well."""
    with serving(tmp_path, upstream) as server:
        answer = server.ask("FLOOD", stream=True, headers={"x-correlation-id": "reads-nothing"})
        await until(lambda: upstream.written)
        before = 0
        while before != upstream.written:
            before = upstream.written
            await asyncio.sleep(0.5)
        assert 0 < upstream.written < FLOOD_MIB - 16
        size = 0
        while data := answer.read(2**20):
            size += data.count(b"x")
        assert size >= FLOOD_MIB * 2**20
        server.until(lambda: len(server.lines("request")) == 1)
    turns, named = await ends(server.home)
    assert set(turns.values()) == {1}
    assert named == {"reads-nothing": "turn.sealed"}
