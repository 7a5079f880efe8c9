"""Who may have how many sessions, for how long, and what is left of them: nothing."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import anyio
import anyio.abc
import pytest
from sandbox_abuses import running
from waiting import until

from aibox.agents.code import code_tools, describe
from aibox.audit.chain import AuditChain
from aibox.errors import LimitError, SandboxError
from aibox.execution import Limits, Result, Table
from aibox.sandbox import program
from aibox.sandbox.bubblewrap import Bubblewrap
from aibox.sandbox.runtime import HOLD
from aibox.sandbox.sandbox import Sandbox
from aibox.sandbox.session import Session
from aibox.types import Scope

SMALL = Limits(memory_mib=64, pids=8, wall_s=20, output_kib=4, workspace_mib=1)


def left() -> tuple[set[str], set[str], int]:
    """Children of this process, its control groups, and how many descriptors it holds."""
    children = {pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}
    # Not `glob`, which stumbles over a group that another process removes meanwhile.
    folders = (Path(top, name) for top, names, _ in os.walk("/sys/fs/cgroup") for name in names)
    groups = {str(folder) for folder in folders if folder.name.startswith(f"aibox-{os.getpid()}-")}
    gc.collect()  # what other tests forgot to close is not ours
    return children, groups, len([*Path("/proc/self/fd").iterdir()])


def of_guests(folder: Path) -> list[str]:
    """Others use the folder at the same time; guests of ours are users that nobody else is."""
    found = []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if path.lstat().st_uid >= 0x70000000:
                found.append(path.name)
    return found


@pytest.mark.anyio
async def test_a_pool_makes_sessions_that_are_new_each_time(scope: Scope) -> None:
    """A session from the pool is warm and empty, and what was in one is in no later one."""
    sandbox = Sandbox(Bubblewrap(), limits=SMALL, pool=2)
    await sandbox.warm()
    seen = set()
    for number in range(5):
        async with sandbox.session(scope=scope) as session:
            seen.add(id(session._guest))
            assert (await session.python("'x' in globals()")).value == "False"
            assert await session.ls() == []
            await session.python(f"x = {number}")
            await session.write("note", "kept")
        await sandbox.warm()
    assert len(sandbox._ready) == 2
    await sandbox.close()
    assert sandbox._ready == []


@pytest.mark.parametrize("begun", [b"", b"\xff\xff\x00"])
def test_a_guest_that_nobody_tells_what_to_do_leaves(begun: bytes) -> None:
    """Although its line stays open, as it does behind an engine that was killed while it started one."""
    *words, code = program.COMMAND
    soon = code.replace(f", {program.SILENCE_S})", ", 0.2)")
    assert soon != code
    with subprocess.Popen([sys.executable, *words[1:], soon], stdin=subprocess.PIPE) as guest:
        assert guest.stdin is not None
        guest.stdin.write(begun)
        guest.stdin.flush()
        assert guest.wait(60) == 0


@pytest.mark.anyio
async def test_too_many_sessions_are_told_to_wait(scope: Scope, other_scope: Scope) -> None:
    """Neither a tenant nor all together have more than allowed; the error says when to try again."""
    sandbox = Sandbox(Bubblewrap(), limits=SMALL, sessions=3, per_tenant=2)
    mine = [await sandbox.open(scope=scope) for _ in range(2)]
    with pytest.raises(LimitError) as refused:
        await sandbox.open(scope=scope)
    assert refused.value.retry_after_s is not None
    await sandbox.open(scope=other_scope)
    with pytest.raises(LimitError):
        await sandbox.open(scope=other_scope)
    await mine[0].close()
    await sandbox.open(scope=scope)
    await sandbox.close()


@pytest.mark.anyio
async def test_an_idle_session_ends(scope: Scope) -> None:
    """One that nobody uses ends by itself; one in use does not, however long its run."""
    sandbox = Sandbox(Bubblewrap(), limits=SMALL, idle_s=0.3)
    idle, busy = await sandbox.open(scope=scope), await sandbox.open(scope=scope)
    assert (await busy.bash("sleep 1; echo done")).stdout == "done\n"
    assert sandbox.ids(scope=scope) == [busy.id]
    with pytest.raises(SandboxError):
        await idle.bash("true")
    with anyio.fail_after(3):
        while sandbox.ids(scope=scope):
            await anyio.sleep(0.05)
    await sandbox.close()


@pytest.mark.anyio
async def test_a_call_that_meets_the_end_of_an_idle_session(scope: Scope) -> None:
    """It is done whole, or says that the session is over; it never hangs, and nothing of the session stays."""
    sandbox = Sandbox(Bubblewrap(), limits=SMALL, idle_s=0.05)
    await sandbox.available()
    over = 0
    for number in range(6):
        session = await sandbox.open(scope=scope)
        wait_s = 0.045 + number / 500
        with anyio.fail_after(60):
            while session.id in sandbox.ids(scope=scope):
                await anyio.sleep(wait_s)
                wait_s += 0.001  # a session that is called again in time does not end
                try:
                    assert (await session.python("1 + 1")).value == "2"
                except SandboxError as error:
                    assert "over" in error.message or "ended" in error.message  # noqa: PT017 - either may come
                    over += 1
                    break
            else:
                over += 1
    assert over == 6
    with anyio.fail_after(30):
        while sandbox.ids(scope=scope):  # it counts until all of it is gone
            await anyio.sleep(0.02)
    await sandbox.close()


@pytest.mark.anyio
async def test_a_conversation_keeps_its_session_until_room_is_needed(scope: Scope) -> None:
    """Tools of one conversation share variables and files, no other sees them, and the oldest gives way."""
    sandbox = Sandbox(Bubblewrap(), limits=SMALL, per_tenant=2)
    python, bash, read_file, write_file = code_tools(sandbox)
    assert "10 bytes" in await write_file.call({"path": "in/a.txt", "text": "1 2 3 4 5\n"}, scope=scope)
    code = "numbers = [int(n) for n in open('in/a.txt').read().split()]\nsum(numbers)"
    assert await python.call({"code": code}, scope=scope) == "15"
    assert await python.call({"code": "len(numbers)"}, scope=scope) == "5"
    assert await bash.call({"command": "cat in/a.txt"}, scope=scope) == "1 2 3 4 5"
    assert await read_file.call({"path": "in/a.txt"}, scope=scope) == "1 2 3 4 5\n"
    assert "must be text" in await python.call({"code": 3}, scope=scope)
    for session in ("s2", "s3"):
        assert "NameError" in await python.call({"code": "numbers"}, scope=scope.narrow(session=session))
    assert "NameError" in await python.call({"code": "numbers"}, scope=scope)
    loose = scope.narrow(session="")
    await python.call({"code": "x = 1"}, scope=loose)
    assert "NameError" in await python.call({"code": "x"}, scope=loose)
    await sandbox.close()


@pytest.mark.anyio
async def test_who_waits_costs_next_to_nothing(scope: Scope) -> None:
    """The supervisor of a program that says nothing looks at its files ever more rarely, and still counts them."""
    sandbox = Sandbox(Bubblewrap(), limits=SMALL)
    async with sandbox.session(scope=scope) as session:
        count = "grep ^voluntary /proc/1/status"
        waited = await session.bash(f"sleep 0.5; {count}; sleep 1.5; {count}")
        before, after = (int(line.split()[1]) for line in waited.stdout.splitlines())
        assert after - before < 50  # 150 when it looks a hundred times a second
        made = await session.bash("sleep 0.5; i=0; while true; do : > f$((i++)); done")
        assert "file limit" in made.limits_hit[0]
    await sandbox.close()


def test_a_result_is_described_in_words() -> None:
    """Tables, figures, limits and exit codes are told; nothing is told twice."""
    table = Table(("n", "square"), (("1", "1"), ("2", "4")), 99)
    shown = Result(stdout="", stderr="", exit_code=0, duration_s=0, value="repr", tables=(table,), figures=(b"p",))
    assert describe(shown) == "n | square\n1 | 1\n2 | 4\n(97 more rows)\n(1 figures were drawn)"
    assert "<th>n</th>" in table._repr_html_()
    failed = Result(stdout="a\n", stderr="b\n", exit_code=3, duration_s=0)
    assert describe(failed) == "a\nstderr:\nb\nexit code 3"


@pytest.mark.anyio
async def test_what_was_done_is_on_record(scope: Scope, tmp_path: Path) -> None:
    """Start, runs and end of a session are entries, with digests and limits and no text of anybody's."""
    async with AuditChain(tmp_path / "audit.db") as chain:
        sandbox = Sandbox(Bubblewrap(), limits=SMALL & Limits(wall_s=0.4), audit=chain)
        async with sandbox.session(scope=scope) as session:
            await session.python("secret = 'sesame'")
            await session.bash("sleep 9")
        await sandbox.close()
        entries = [entry async for entry in chain.entries(scope.tenant)]
        assert (await chain.verify()).ok
    assert [entry.kind for entry in entries] == ["sandbox.started", "sandbox.ran", "sandbox.ran", "sandbox.ended"]
    assert entries[0].detail["limits"]["pids"] == 8
    assert entries[2].detail["limits_hit"] == ["wall time limit"]
    assert "sesame" not in str([entry.detail for entry in entries])


@pytest.mark.anyio
async def test_fifty_sessions_at_once(scope: Scope) -> None:
    """All fifty answer with their own value, or are told to wait, and none leaves anything behind."""
    before = left()
    sandbox = Sandbox(Bubblewrap(), limits=SMALL, sessions=45, per_tenant=45)
    answered: list[int] = []
    waited = 0
    together = anyio.Event()

    async def one(number: int) -> None:
        nonlocal waited
        while True:
            try:
                async with sandbox.session(scope=scope) as session:
                    await session.python(f"x = {number}")
                    if len(answered) < 40:
                        with anyio.move_on_after(3):
                            await together.wait()
                    answered.append(int((await session.python("x")).value or -1))
                    together.set()
                    return
            except LimitError:
                waited += 1
                await anyio.sleep(0.2)

    async with anyio.create_task_group() as tasks:
        for number in range(50):
            tasks.start_soon(one, number)
    assert sorted(answered) == list(range(50))
    assert waited
    await sandbox.close()
    assert left() == before


MOUNTS = """
import asyncio, ctypes, os, sys
import aibox

libc, place = ctypes.CDLL(None), sys.argv[1].encode()
assert libc.mount(b"t", place, b"tmpfs", 0, None) == 0
assert libc.mount(None, place, None, 1 << 20, None) == 0  # MS_SHARED, as a host's mounts are
os.mkdir(place + b"/x")
engine = os.fork()
while not engine:
    libc.mount(b"t", place + b"/x", b"tmpfs", 0, None)
    libc.umount2(place + b"/x", 2)

async def main():
    sandbox = aibox.Sandbox("bubblewrap")
    try:
        for number in range(24):
            async with sandbox.session(scope=aibox.Scope.local()) as session:
                assert (await session.python(str(number))).value == str(number)
    finally:
        os.kill(engine, 9)

asyncio.run(main())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_sessions_start_while_an_engine_mounts_and_unmounts(tmp_path: Path) -> None:
    """A mount of the host that goes away while bwrap copies what is mounted costs a session nothing but a moment."""
    words = ["unshare", "--mount", sys.executable, "-c", MOUNTS, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.anyio
async def test_a_hundred_cycles_leave_nothing(scope: Scope, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred sessions whose processes try to stay leave no process, group, mount, file or descriptor."""
    sandbox = Sandbox(Bubblewrap(), limits=SMALL)
    await sandbox.available()
    before = left()
    seconds = f"4242.{time.monotonic_ns()}"  # others of this machine may run the same test
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for _ in range(50):
        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(_cycle, sandbox, scope, seconds)
    await sandbox.close()
    assert left() == before
    # An engine beside this may mount what it likes; these are where a guest's file system is put together.
    mounts = Path("/proc/self/mountinfo").read_text()
    assert not [place for place in ("/workspace", "/newroot", "/oldroot", f"{HOLD}/python-") if f" {place}" in mounts]
    assert not list(tmp_path.iterdir())
    assert not of_guests(Path("/tmp"))
    assert not running(seconds)


async def _cycle(sandbox: Sandbox, scope: Scope, seconds: str) -> None:
    async with sandbox.session(scope=scope) as session:
        await session.bash(f"setsid sleep {seconds} & echo x > file")


@pytest.mark.anyio
async def test_an_entry_names_the_request_that_it_is_of(tmp_path: Path, scope: Scope) -> None:
    """Not the one that opened the session: each run the one that asked for it, in a conversation's session too."""
    async with AuditChain(tmp_path / "audit.db") as chain:
        sandbox = Sandbox(Bubblewrap(), limits=SMALL, audit=chain)
        opened = await sandbox.open(scope=scope.under("opening-1"))
        await (await sandbox.attach(opened.id, scope=scope.under("running-1"))).bash("true")
        await (await sandbox.attach(opened.id, scope=scope.under("ending-01"))).close()
        await (await sandbox.keep(scope=scope.under("talking-1"))).bash("true")
        await (await sandbox.keep(scope=scope.under("talking-2"))).bash("true")
        await sandbox.close()
        found = [(entry.kind, entry.detail["correlation"]) async for entry in chain.entries(scope.tenant)]
    assert found == [
        ("sandbox.started", "opening-1"), ("sandbox.ran", "running-1"), ("sandbox.ended", "ending-01"),
        ("sandbox.started", "talking-1"), ("sandbox.ran", "talking-1"), ("sandbox.ran", "talking-2"),
        ("sandbox.ended", "talking-2"),
    ]  # fmt: skip


@pytest.mark.anyio
async def test_an_entry_names_its_own_request_whoever_comes_meanwhile(tmp_path: Path, scope: Scope) -> None:
    """While one runs another looks at the files, or waits to run: each entry is of the one that asked for it."""
    async with AuditChain(tmp_path / "audit.db") as chain:
        sandbox = Sandbox(Bubblewrap(), limits=SMALL, audit=chain)
        opened = await sandbox.open(scope=scope.under("opening-1"))
        first = await sandbox.attach(opened.id, scope=scope.under("running-1"))
        async with anyio.create_task_group() as group:
            await started(group, first)
            second = await sandbox.attach(opened.id, scope=scope.under("running-2"))
            group.start_soon(second.bash, "true")
            await until(lambda: opened._waiting == 2)
            await sandbox.attach(opened.id, scope=scope.under("looking-1"))
        await sandbox.close()
        found = [(entry.kind, entry.detail["correlation"]) async for entry in chain.entries(scope.tenant)]
    assert found == [
        ("sandbox.started", "opening-1"), ("sandbox.ran", "running-1"), ("sandbox.ran", "running-2"),
        ("sandbox.ended", "looking-1"),
    ]  # fmt: skip


async def started(group: anyio.abc.TaskGroup, session: Session, *, for_s: float = 0.5) -> None:
    """Code runs in the session when this returns."""
    said: list[str] = []
    run = partial(session.bash, f"echo begun; sleep {for_s}", on_output=lambda _, text: said.append(text))
    group.start_soon(run)
    await until(lambda: said)


@pytest.mark.anyio
async def test_code_that_was_stopped_has_run_and_is_on_record(tmp_path: Path, scope: Scope) -> None:
    """Whoever asked for it left, or the session was ended: one entry each; none for what waited and never began."""
    async with AuditChain(tmp_path / "audit.db") as chain:
        sandbox = Sandbox(Bubblewrap(), limits=SMALL, audit=chain)
        session = await sandbox.open(scope=scope)
        async with anyio.create_task_group() as group:
            await started(group, session, for_s=100)
            group.start_soon(session.bash, "echo never")
            await until(lambda: session._waiting == 2)
            group.cancel_scope.cancel()
        with pytest.raises(ExceptionGroup) as ended:
            await _ended_meanwhile(session)
        assert ended.group_contains(SandboxError, match="was ended while a command ran")
        await sandbox.close()
        ran = [entry.detail async for entry in chain.entries(scope.tenant) if entry.kind == "sandbox.ran"]
    assert [one["exit_code"] for one in ran] == [None, None]
    assert len({one["code_sha256"] for one in ran}) == 1


async def _ended_meanwhile(session: Session) -> None:
    async with anyio.create_task_group() as group:
        await started(group, session, for_s=100)
        await session.close()
