"""What a session costs beside the bare tools: docker run, docker exec, bwrap and a subprocess, in one run."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from report import Report, arguments, p

from aibox.execution import Limits
from aibox.sandbox import command
from aibox.sandbox.bubblewrap import Bubblewrap
from aibox.sandbox.docker import Docker
from aibox.sandbox.engine import CLEAN, Engine
from aibox.sandbox.escapes import ESCAPES, UnsafeRuntime
from aibox.sandbox.sandbox import Sandbox
from aibox.sandbox.session import Session
from aibox.types import Scope

SCOPE = Scope(tenant="bench", user="b")
LIMITS = Limits(wall_s=60, workspace_mib=32)
LINE = "6 * 7"
PYTHON = ["python3", "-I", "-S", "-B", "-c", f"print({LINE})"]
TEN_MB = os.urandom(10_000_000)
ROOT = Path(__file__).parent.parent


async def side_by_side(calls: dict[str, Callable[[], Awaitable[Any]]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each call, taken in turn so that a drift of the machine meets all of them."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 2):
        for name, call in calls.items():
            began = time.perf_counter()
            await call()
            if number >= 2:
                taken[name].append((time.perf_counter() - began) * 1e3)
    return taken


def program(
    words: list[str], *, env: dict[str, str] | None = None, passed: bool = False
) -> Callable[[], Awaitable[None]]:
    """A bare command, run to its end with its output read."""

    async def run() -> None:
        fds = [give(data) for data in command.ETC.values()] if passed else []
        filled = [word.format(*fds) for word in words] if passed else words
        process = await asyncio.create_subprocess_exec(
            *filled, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env or {"PATH": "/usr/bin:/bin"}, pass_fds=fds
        )
        out, err = await process.communicate()
        for fd in fds:
            os.close(fd)
        assert b"42" in out, err

    return run


def give(data: bytes) -> int:
    """A descriptor to read `data` from."""
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    return reader


async def bubblewrap(report: Report, rounds: int) -> None:
    driver = Bubblewrap()
    health = await driver.available()
    if not health.ok:
        report.left_out.append(f"bubblewrap: {health.detail}")
        report.goal("sandbox.bubblewrap_start_vs_bare", None, unit="x", against="bare bwrap", note=health.detail)
        return
    runtime = driver._runtime
    assert runtime is not None
    etc = {name: f"{{{number}}}" for number, name in enumerate(command.ETC)}
    bare = command.isolate(runtime, LIMITS, uid=0x70000001, etc=etc)  # type: ignore[arg-type]  # filled in at each start
    sandbox, pooled = Sandbox(driver, limits=LIMITS), Sandbox(driver, limits=LIMITS, pool=rounds + 4)
    await pooled.warm()
    pooled._pool = 0  # what is ready is used up; making more meanwhile would be measured too

    ready: list[float] = []

    async def session(box: Sandbox) -> None:
        began = time.perf_counter()
        async with box.session(scope=SCOPE) as opened:
            if box is sandbox:
                ready.append((time.perf_counter() - began) * 1e3)
            assert (await opened.python(LINE)).value == "42"

    starts = await side_by_side(
        {
            "bare Python": program([str(Path(sys.base_prefix, "bin", "python3")), *PYTHON[1:]]),
            "bare bwrap, the same namespaces, files and user": program([*bare, "--", *PYTHON], passed=True),
            "a session and one line, cold": lambda: session(sandbox),
            "a session and one line, from the pool": lambda: session(pooled),
        },
        rounds,
    )
    for name, values in starts.items():
        report.row(f"bubblewrap: {name}", f"p50 {p(values, 50):.1f} ms", f"p95 {p(values, 95):.1f}")
    report.row("bubblewrap: a session, cold, until it takes code", f"p50 {p(ready[2:], 50):.1f} ms",
               "its first line and its end are in the rows above")  # fmt: skip
    names = list(starts)
    report.goal(
        "sandbox.bubblewrap_start_vs_bare", p(starts[names[2]], 50) / p(starts[names[1]], 50), unit="x",
        against="bare bwrap with the same arguments", note="the whole life of each: start, one line, and end",
    )  # fmt: skip
    async with sandbox.session(scope=SCOPE) as opened:
        await lines(report, opened, "bubblewrap", rounds * 5, goal=True)
    await sandbox.close()
    await pooled.close()


async def lines(report: Report, opened: Session, name: str, rounds: int, *, goal: bool) -> None:
    """One line in a live session against the same line in a bare interpreter that is kept; and 10 MB in and out."""
    kept = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "import sys\nfor line in sys.stdin:\n    print(eval(line), flush=True)",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert kept.stdin is not None
    assert kept.stdout is not None

    async def bare() -> None:
        kept.stdin.write(f"{LINE}\n".encode())  # type: ignore[union-attr]  # looked at above
        assert await kept.stdout.readline() == b"42\n"  # type: ignore[union-attr]

    taken = await side_by_side({"bare": bare, "session": lambda: opened.python(LINE)}, rounds)
    kept.stdin.close()
    await kept.wait()
    added = p(taken["session"], 50) - p(taken["bare"], 50)
    report.row(f"{name}: one line in a live session", f"p50 {p(taken['session'], 50):.2f} ms",
               f"bare interpreter over a pipe {p(taken['bare'], 50):.2f}")  # fmt: skip
    if goal:
        report.goal("sandbox.line_in_session_added_ms", added, unit="ms", against="the same line in a kept interpreter")

    async def out() -> None:
        assert len(await opened.read("data")) == len(TEN_MB)

    moved = await side_by_side({"in": lambda: opened.write("data", TEN_MB), "out": out}, 5)
    for way, values in moved.items():
        report.row(f"{name}: 10 MB {way}", f"p50 {p(values, 50):.0f} ms")


async def docker(report: Report, rounds: int, host: str | None) -> None:
    accepted = UnsafeRuntime(tuple(escape.cve for escape in ESCAPES))
    driver = Docker(host=host, gvisor="off", accept=accepted)
    health = await driver.available()
    if not health.ok:
        report.left_out.append(f"docker: {health.detail}")
        report.goal("sandbox.pool_start_vs_docker_exec", None, unit="x", against="bare docker exec", note=health.detail)
        return
    image = driver.recorded["image"]
    client = Engine(host).command()
    container = await Engine(host).ask("run", "-d", "--network", "none", "--entrypoint", "sleep", image, "600")
    sandbox, pooled = Sandbox(driver, limits=LIMITS), Sandbox(driver, limits=LIMITS, pool=rounds + 4)
    await pooled.warm()
    pooled._pool = 0
    opened: list[Session] = []

    async def cold() -> None:
        opened.append(session := await sandbox.open(scope=SCOPE))
        assert (await session.python(LINE)).value == "42"

    async def ready() -> None:
        opened.append(session := await pooled.open(scope=SCOPE))
        assert (await session.python(LINE)).value == "42"

    try:
        starts = await side_by_side(
            {
                "bare docker run": program(
                    [*client, "run", "--rm", "--network", "none", image, *PYTHON], env=dict(CLEAN)
                ),
                "bare docker exec": program([*client, "exec", container, *PYTHON], env=dict(CLEAN)),
                "a session and one line, cold": cold,
                "a session and one line, from the pool": ready,
            },
            rounds,
        )
        for name, values in starts.items():
            report.row(f"docker: {name}", f"p50 {p(values, 50):.1f} ms", f"p95 {p(values, 95):.1f}")
        ratio = p(starts["a session and one line, from the pool"], 50) / p(starts["bare docker exec"], 50)
        report.goal("sandbox.pool_start_vs_docker_exec", ratio, unit="x", against="bare docker exec of the same line",
                    note="sessions stay open while measured: ending one is not waited for")  # fmt: skip
        await lines(report, opened[-1], "docker", rounds, goal=False)
    finally:
        for session in opened:
            await session.close()
        await sandbox.close()
        await pooled.close()
        await Engine(host).ask("rm", "--force", container)


def abuses(report: Report) -> None:
    """The abuses of the tests, counted: each one that is not stopped is a failing test."""
    words = [sys.executable, "-m", "pytest", "-q", "-n2", "-p", "no:randomly", "tests/sandbox/test_sandbox_abuse.py"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    ran = done.returncode in (0, 1)
    report.goal("sandbox.abuses_not_stopped", len(failed) if ran else None, unit="", against="the tests on bubblewrap",
                note="; ".join(failed)[:300] or "on a Docker engine: make test-docker")  # fmt: skip


async def main() -> None:
    options = arguments(__doc__)
    rounds = 10 if options.quick else 40
    report = Report("the sandbox")
    await bubblewrap(report, rounds)
    host = os.environ.get("AIBOX_TEST_DOCKER")
    if host is None and os.geteuid() == 0 and shutil.which("dockerd"):
        with tempfile.TemporaryDirectory() as folder:
            await with_engine(report, rounds, Path(folder))
    else:
        await docker(report, rounds, host)
    abuses(report)
    report.left_out.append("gVisor: no goal speaks of it")
    report.show(as_json=options.json)


async def with_engine(report: Report, rounds: int, folder: Path) -> None:
    sys.path.insert(0, str(ROOT / "tests" / "docker"))
    from run_with_engine import engine

    with engine(folder) as host:
        if host is None:
            report.left_out.append("docker: no engine could be started")
            note = "no engine could be started"
            report.goal("sandbox.pool_start_vs_docker_exec", None, unit="x", against="bare docker exec", note=note)
            return
        await docker(report, rounds, host)


if __name__ == "__main__":
    asyncio.run(main())
