"""The chain at work: what is acknowledged is there, in one order, also with many writers and after a kill."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import pytest
from audit_parts import ACME, RIVAL, sealed_turns, write_log

import aibox
from aibox.audit.chain import AuditChain
from aibox.audit.sequencer import Call
from aibox.errors import ConfigError, MissingExtraError, StoreError
from aibox.types import Scope

pytestmark = pytest.mark.anyio

WRITER = """
import asyncio, sys
import aibox

async def main(path, who, tasks, rounds):
    async with aibox.AuditChain(path) as chain:
        scope = aibox.Scope(tenant="acme", user=who)
        async def work(task):
            for n in range(rounds):
                entry = await chain.append("tool.called", scope=scope, detail={"task": task, "n": n})
                print(entry.seq, entry.leaf.hex(), flush=True)
        await asyncio.gather(*(work(task) for task in range(tasks)))

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
"""


def writer(path: Path, who: str, *, tasks: int, rounds: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), who, str(tasks), str(rounds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


async def acknowledged_are_there(path: Path, lines: list[str]) -> None:
    """Each acknowledged entry is at its place with its hash; the log verifies."""
    async with AuditChain(path) as chain:
        from aibox.audit.record import leaf_hash

        stored = {entry.seq: leaf_hash(entry.header).hex() async for entry in chain.entries("acme")}
        assert (await chain.verify()).ok
    # The last line may be torn by the kill.
    whole = [line.split() for line in lines if line.endswith("\n") and len(line.split()) == 2]
    assert {int(seq): leaf for seq, leaf in whole}.items() <= stored.items()


async def test_an_entry_is_numbered_from_nought_in_each_tenants_log(tmp_path: Path) -> None:
    """Two tenants of one file have two logs, each contiguous, and neither shows in the other."""
    async with AuditChain(tmp_path / "a.db") as chain:
        mine = [await chain.append("tool.called", scope=ACME, detail={"n": n}) for n in range(3)]
        theirs = await chain.append("tool.called", scope=RIVAL, detail={})
        assert [entry.seq for entry in mine] == [0, 1, 2]
        assert theirs.seq == 0
        assert [e.detail["n"] async for e in chain.entries("acme")] == [0, 1, 2]
        assert [e async for e in chain.entries("nobody")] == []


async def test_to_ask_how_long_a_log_is_takes_one_turn_of_the_writer(
    tmp_path: Path, scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was noted is counted: the writer comes to it first."""
    async with AuditChain(tmp_path / "audit.db") as chain:
        for count in range(3):
            assert await chain.size(scope.tenant) == count
            chain.note("tool.called", scope=scope, detail={"tool": "t"})
        assert await chain.size(scope.tenant) == 3
        assert chain._sequencer is not None
        put, asked = chain._sequencer.put, []
        monkeypatch.setattr(chain._sequencer, "put", lambda job: (asked.append(job), put(job)))
        assert await chain.size(scope.tenant) == 3
        assert len(asked) == 1


async def test_what_was_noted_is_there_with_the_next_that_waits(tmp_path: Path) -> None:
    """Notes keep their order and are durable with the append behind them, and with a close."""
    async with AuditChain(tmp_path / "a.db") as chain:
        for n in range(5):
            chain.note("model.called", scope=ACME, detail={"n": n})
        assert (await chain.append("tool.called", scope=ACME, detail={"n": 5})).seq == 5
        chain.note("model.called", scope=ACME, detail={"n": 6})
    async with AuditChain(tmp_path / "a.db") as chain:
        assert [e.detail["n"] async for e in chain.entries("acme")] == list(range(7))


async def test_entries_of_a_kind_are_those_of_all_entries(tmp_path: Path) -> None:
    """What the database finds by kind is what reading the whole log finds, with what was noted a moment ago."""
    async with AuditChain(tmp_path / "audit.db") as chain:
        assert await chain.entries_of("acme", "egress.") == []
        for n in range(7):
            for kind in ("egress.allowed", "egress.denied", "tool.called"):
                chain.note(kind, scope=ACME, detail={"host": "h", "bytes": n, "who": "eva"})
        chain.note("egress.allowed", scope=RIVAL, detail={"host": "h"})
        found = await chain.entries_of("acme", "egress.")
        everything = [entry async for entry in chain.entries("acme")]
    assert [(e.seq, e.ts_us, e.kind) for e in found] == [
        (e.seq, e.ts_us, e.kind) for e in everything if e.kind.startswith("egress.")
    ]
    assert len(found) == 14
    assert found[0].detail == {"host": "h", "bytes": 0}
    assert found[0].actor is None


async def test_a_turn_is_sealed_once(tmp_path: Path) -> None:
    """A second end is refused, in the same process and after a restart; the first stays the turn's only one."""
    async with AuditChain(tmp_path / "a.db") as chain:
        await sealed_turns(chain, ACME, 1)
        with pytest.raises(ConfigError, match="sealed already"):
            await chain.seal("acme-0", scope=ACME, kind="turn.failed", detail={})
    async with AuditChain(tmp_path / "a.db") as chain:
        with pytest.raises(ConfigError, match="sealed already"):
            await chain.seal("acme-0", scope=ACME, detail={})
        (await chain.receipt("acme-0", scope=ACME)).verify()
        with pytest.raises(ConfigError, match="no turn"):
            await chain.receipt("acme-0", scope=RIVAL)
        with pytest.raises(ConfigError, match="ends with"):
            await chain.seal("x", scope=ACME, kind="turn.done", detail={})


async def test_a_second_end_takes_no_other_turn_along(tmp_path: Path) -> None:
    """Turns that end in the moment in which one is to end again do so, each once and with all its entries."""
    async with AuditChain(tmp_path / "a.db") as chain:
        await sealed_turns(chain, ACME, 1)
        before = await chain.size("acme")
        for n in range(8):
            chain.note("model.called", scope=ACME, turn=f"new-{n}", detail={"model": "m"})
        turns = ["new-0", "acme-0", *(f"new-{n}" for n in range(1, 8)), "new-3"]
        ends = [chain.end(turn, scope=ACME, detail={"outcome": "answered"}) for turn in turns]
        told = await asyncio.gather(*ends, return_exceptions=True)
        assert [type(one) is ConfigError for one in told] == [turn == "acme-0" for turn in turns[:-1]] + [True]
        assert await chain.size("acme") == before + 16
        receipts = [await chain.receipt(f"new-{n}", scope=ACME) for n in range(8)]
        assert [[entry.kind for entry in one.entries] for one in receipts] == [["model.called", "turn.sealed"]] * 8
        await chain.verify("acme")


async def test_time_never_runs_backwards_in_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attack: clock steps. A clock that goes back by an hour, or ahead by a year, leaves a log that verifies.

    Whether the log is open meanwhile or closed.
    """
    from aibox.audit import ledger as module

    real = time.time_ns
    offset = [0]
    monkeypatch.setattr(module.time, "time_ns", lambda: real() + offset[0])
    times = []
    for steps_s in ((0, -3600, 31_536_000, 0), (-3600,), (-7200, 60)):
        async with AuditChain(tmp_path / "a.db") as chain:
            for step_s in steps_s:
                offset[0] = step_s * 10**9
                times.append((await chain.append("tool.called", scope=ACME, detail={})).ts_us)
            assert times == sorted(times)
            assert (await chain.verify()).ok


async def test_other_keys_do_not_go_on_with_a_log(tmp_path: Path) -> None:
    """A log begun under one key is refused under another, rather than continued in a way that cannot verify."""
    await write_log(tmp_path / "a.db", 1)
    with pytest.raises(ConfigError, match="another key"):
        async with AuditChain(tmp_path / "a.db", keys=tmp_path / "others"):
            pass


async def test_a_file_that_is_something_else_is_refused(tmp_path: Path) -> None:
    """Neither garbage nor another database is taken for a log or written to."""
    (tmp_path / "x.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(StoreError, match="database"):
        async with AuditChain(tmp_path / "x.db"):
            pass
    with pytest.raises(ConfigError, match="mysql"):
        AuditChain("mysql://host/db")


async def test_a_closed_chain_says_so(tmp_path: Path) -> None:
    """After the end nothing is taken; ending twice is allowed."""
    chain = AuditChain(tmp_path / "a.db")
    await chain.append("tool.called", scope=ACME, detail={})
    await chain.close()
    await chain.close()
    with pytest.raises(StoreError, match="closed"):
        await chain.append("tool.called", scope=ACME, detail={})
    with pytest.raises(StoreError, match="closed"):
        chain.note("tool.called", scope=ACME, detail={})


async def test_a_bad_detail_is_told_to_its_caller_and_harms_nobody_else(tmp_path: Path) -> None:
    """Among entries written together, the one that cannot be written fails alone."""
    async with AuditChain(tmp_path / "a.db") as chain:
        tried = [chain.append("tool.called", scope=ACME, detail={"n": n if n % 2 else 0.5}) for n in range(10)]
        done = await asyncio.gather(*tried, return_exceptions=True)
        assert [isinstance(value, ConfigError) for value in done] == [n % 2 == 0 for n in range(10)]
        assert sorted([e.detail["n"] async for e in chain.entries("acme")]) == [1, 3, 5, 7, 9]
        with pytest.raises(ConfigError, match="not a kind"):
            await chain.append("Tool Called", scope=ACME, detail={})


async def test_who_leaves_does_not_take_the_entry_along(tmp_path: Path) -> None:
    """A cancelled append may have been written, and the log goes on either way."""
    async with AuditChain(tmp_path / "a.db") as chain:
        task = asyncio.create_task(chain.append("tool.called", scope=ACME, detail={}))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await chain.append("tool.called", scope=ACME, detail={})
        assert (await chain.verify()).ok


async def test_two_processes_write_one_history(tmp_path: Path) -> None:
    """Two writers: every acknowledged entry of both is at its place, none twice, none missing, and all verifies."""
    path = tmp_path / "a.db"
    writers = [writer(path, who, tasks=8, rounds=10) for who in ("eva", "tom")]
    lines = [line for process in writers for line in process.communicate(timeout=300)[0].splitlines(keepends=True)]
    assert [process.returncode for process in writers] == [0, 0]
    assert sorted(int(line.split()[0]) for line in lines) == list(range(160))
    await acknowledged_are_there(path, lines)


@pytest.mark.parametrize("seed", range(3))
async def test_a_kill_at_any_moment_loses_nothing_that_was_acknowledged(tmp_path: Path, seed: int) -> None:
    """kill -9 under load, at a random moment: every acknowledged entry is there, and the log opens and verifies."""
    path = tmp_path / "a.db"
    lines: list[str] = []
    for _ in range(2):
        with writer(path, "eva", tasks=32, rounds=100_000) as process:
            assert process.stdout is not None
            lines.append(process.stdout.readline())
            await asyncio.sleep(random.Random(seed).uniform(0.0, 0.3))
            process.kill()
            # Not `communicate`, which passes over what `readline` has read ahead, and begins in the middle of a line.
            lines += process.stdout.read().splitlines(keepends=True)
        assert process.returncode == -signal.SIGKILL
    await acknowledged_are_there(path, lines)


async def test_a_scope_from_the_top_of_the_library_is_enough(tmp_path: Path) -> None:
    """What people type: open, append, verify, with the names that `aibox` has."""
    async with aibox.AuditChain(tmp_path / "audit.db") as chain:
        entry = await chain.append("demo.started", scope=Scope.local(), detail={"answer": 42})
    assert entry.as_dict()["seq"] == 0
    assert aibox.verify(tmp_path / "audit.db").ok


@pytest.mark.skipif(not os.environ.get("AIBOX_TEST_FAULTS"), reason="a minute of work: make test-faults")
async def test_eight_processes_with_sixty_four_tasks_each_write_one_history(tmp_path: Path) -> None:
    """512 tasks in 8 processes on one log: no gap, no duplicate, every acknowledged entry in place, all verifies."""
    path = tmp_path / "a.db"
    started = time.monotonic()
    writers = [writer(path, f"user{n}", tasks=64, rounds=5) for n in range(8)]
    lines = [line for process in writers for line in process.communicate(timeout=300)[0].splitlines(keepends=True)]
    assert [process.returncode for process in writers] == [0] * 8
    assert sorted(int(line.split()[0]) for line in lines) == list(range(8 * 64 * 5))
    await acknowledged_are_there(path, lines)
    sys.stdout.write(f"2,560 entries by 8 processes in {time.monotonic() - started:.0f} s, verified\n")


async def test_a_turn_that_died_gets_exactly_one_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process is killed in the middle of a turn: the next one ends it once it has been silent, and never twice."""
    from aibox.audit import orphans

    path = tmp_path / "a.db"
    code = (
        "import asyncio, os, sys, aibox\n"
        "async def main():\n"
        "    chain = aibox.AuditChain(sys.argv[1])\n"
        "    scope = aibox.Scope(tenant='acme', user='eva')\n"
        "    for n in range(3):\n"
        "        await chain.append('tool.called', scope=scope, turn='dead', detail={})\n"
        "    os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=False, timeout=300)
    async with AuditChain(path) as chain:
        await chain.append("tool.called", scope=ACME, turn="alive", detail={})
    assert aibox.verify(path).entries == 4
    monkeypatch.setattr(orphans, "TURN_S", 0.0)
    for _ in range(2):
        async with AuditChain(path) as chain:
            await chain.flush()
            while len([entry async for entry in chain.entries("acme")]) < 6:  # it looks when a second was quiet
                await asyncio.sleep(1.2)
    async with AuditChain(path) as chain:
        ended = [entry async for entry in chain.entries("acme") if entry.kind == "turn.failed"]
        receipt = await chain.receipt("dead", scope=ACME)
    assert sorted(entry.turn for entry in ended) == ["alive", "dead"]
    assert ended[0].detail["code"] == "audit.turn_timeout"
    receipt.verify()
    assert [entry.kind for entry in receipt.entries] == ["tool.called"] * 3 + ["turn.failed"]
    assert aibox.verify(path).entries == 6


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_whoever_waits_hears_of_a_bug_in_the_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody hangs, nothing goes on without evidence, and what was acknowledged is there at the next opening."""
    scope = Scope(tenant="t", user="u")
    async with AuditChain(tmp_path / "audit.db") as chain:
        await chain.append("memory.written", scope=scope, detail={})

        def broken(*_: object, **__: object) -> None:
            raise RuntimeError("a bug")

        with monkeypatch.context() as patch:
            patch.setattr("aibox.audit.ledger.Ledger.add_made", broken)
            with pytest.raises(StoreError, match="RuntimeError: a bug"):
                await chain.append("memory.written", scope=scope, detail={})
        for _ in range(2):
            with pytest.raises(StoreError, match="writer of the evidence has stopped"):
                await chain.append("memory.written", scope=scope, detail={})
        with pytest.raises(StoreError, match="has stopped"):
            await chain.checkpoint("t")
    async with AuditChain(tmp_path / "audit.db") as chain:
        await chain.append("memory.written", scope=scope, detail={})
        assert (await chain.verify()).entries == 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_what_the_writer_had_taken_hears_of_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator's act that was taken together with entries is not left waiting when writing them ends the writer."""
    async with AuditChain(tmp_path / "audit.db") as chain:
        await chain.append("memory.written", scope=ACME, detail={})
        held, free = threading.Event(), threading.Event()

        def hold(_: object) -> None:
            held.set()
            free.wait(30)

        def broken(*_: object, **__: object) -> None:
            raise RuntimeError("a bug")

        tasks = [asyncio.ensure_future(chain._do(hold))]
        await asyncio.to_thread(held.wait, 30)
        # What comes while the writer is busy is taken together.
        tasks += [asyncio.ensure_future(chain.append("memory.written", scope=ACME, detail={})) for _ in range(2)]
        tasks.append(asyncio.ensure_future(chain._do(lambda ledger: ledger.log("acme"))))
        await asyncio.sleep(0)
        monkeypatch.setattr("aibox.audit.ledger.Ledger.add_made", broken)
        free.set()
        async with asyncio.timeout(60):
            first, *others = await asyncio.gather(*tasks, return_exceptions=True)
    assert first is None
    assert [type(error) for error in others] == [StoreError] * 3
    assert "has stopped" in str(others[-1])


async def test_each_of_many_who_wait_gets_an_error_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the class of an error is made from: nobody is left waiting because it could not be made again."""
    missing = MissingExtraError("a signer", extra="pkcs11")

    def refused(*_: object, **__: object) -> None:
        raise missing

    async with AuditChain(tmp_path / "audit.db") as chain:
        await chain.append("memory.written", scope=ACME, detail={})
        monkeypatch.setattr("aibox.audit.ledger.Ledger.add_made", refused)
        waiting = [chain.append("memory.written", scope=ACME, detail={}) for _ in range(3)]
        async with asyncio.timeout(60):
            found = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(error) for error in found] == [MissingExtraError] * 3
    assert len({id(error) for error in found}) == 3
    assert {str(error) for error in found} == {str(missing)}


async def test_an_act_that_nobody_waits_for_any_more_is_not_done(tmp_path: Path) -> None:
    """A call that was taken back before its turn neither runs nor harms the writer."""
    ran: list[object] = []
    async with AuditChain(tmp_path / "audit.db") as chain:
        done: Future[None] = Future()
        done.cancel()
        chain._ready().put(Call(ran.append, done))
        await chain.append("memory.written", scope=ACME, detail={})
    assert ran == []


async def test_a_detail_is_recorded_as_it_was_when_it_was_handed_in(tmp_path: Path) -> None:
    """What a caller changes afterwards does not change the evidence; a bad detail is told to whoever notes it."""
    detail = {"model": "one", "list": [1]}
    async with AuditChain(tmp_path / "audit.db") as chain:
        chain.note("model.called", scope=ACME, turn="t", detail=detail)
        detail["model"], detail["list"] = "two", [2]
        with pytest.raises(ConfigError, match="float has no canonical form"):
            chain.note("model.called", scope=ACME, turn="t", detail={"cost": 0.5})
        receipt = await chain.seal("t", scope=ACME, detail={"outcome": "answered"})
    assert [entry.kind for entry in receipt.entries] == ["model.called", "turn.sealed"]
    assert receipt.entries[0].detail == {"model": "one", "list": [1]}
