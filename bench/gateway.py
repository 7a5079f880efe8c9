"""The gateway: `aibox serve` with OpenID tokens, rates, budgets and durable audit, beside a bare pass-through.

The gateway under test has one core for itself where there are two; the model server and the load share the other, and
are not at its end when the fastest of those measured is at its own.
"""

from __future__ import annotations

import asyncio
import compileall
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import peers
from issuer import issuer
from report import Report, arguments, p
from standin import CHUNKS, LONG, MESSAGES, TEXT, Connection

from aibox.chat import ChatRequest
from aibox.guardrails.guardrail import Guardrail
from aibox.inference.openai_compatible import OpenAICompatible
from aibox.inference.router import Router
from aibox.policy.policy import Policy
from aibox.types import Scope

HERE = Path(__file__).parent
CORES = sorted(os.sched_getaffinity(0))
"""Before anything here is bound to one of them."""


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


@contextmanager
def running(
    command: Sequence[str], port: int, *, core: int, log: Path, env: Mapping[str, str] | None = None
) -> Iterator[int]:
    """A process on one core, once it listens."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=env)
        os.sched_setaffinity(process.pid, {CORES[core]})
        try:
            deadline = time.monotonic() + 120
            while True:
                with socket.socket() as trying:
                    if trying.connect_ex(("127.0.0.1", port)) == 0:
                        break
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{command[-3:]} did not start: {log.read_text()[-500:]}")
                time.sleep(0.05)
            yield process.pid
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mib(pid: int) -> float:
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


class Figures:
    """What one target showed."""

    def __init__(self) -> None:
        self.alone: list[float] = []
        self.busy: list[float] = []
        """Milliseconds of a request among 32 callers."""
        self.first: list[float] = []
        self.chunks = 0.0
        """A second, of one stream after another."""
        self.rps = 0.0
        self.cpu_us = self.core = 0.0
        """Of CPU for a request among them, and how much of its core the target had then: near 1, it was its limit."""
        self.burst_us = 0.0
        """Of CPU for a chunk, where all come as fast as they can be written."""
        self.paced_us = 0.0
        """The same where one comes every 2 ms."""
        self.rss = 0.0
        self.streams = True


@dataclass(frozen=True, slots=True)
class Target:
    """Where to send, and with what."""

    port: int
    key: str
    pid: int
    headers: Mapping[str, str] = field(default_factory=dict)

    def connect(self, model: str, *, stream: bool, user: str = "") -> Connection:
        return Connection(self.port, key=self.key, model=model, stream=stream, headers=self.headers, user=user)


async def load(target: Target, *, seconds: float, rounds: int) -> Figures:
    figures = Figures()
    async with target.connect("m", stream=False) as one:
        for number in range(rounds + rounds // 4):
            _, total, _ = await one.ask()
            if number >= rounds // 4:
                figures.alone.append(total * 1e3)
    try:
        await streams(target, figures, rounds=rounds // 2)
    except RuntimeError as error:
        figures.streams = False
        print(f"no streams: {str(error)[:200]}", file=sys.stderr)
    await crowd(target, figures, seconds=seconds)
    return figures


async def crowd(target: Target, figures: Figures, *, seconds: float, user: str = "") -> None:
    """32 callers, each of whom asks again when it has its answer."""
    done, pid = 0, target.pid
    ends = time.perf_counter() + seconds

    async def caller() -> None:
        nonlocal done
        async with target.connect("m", stream=False, user=user) as mine:
            while time.perf_counter() < ends:
                _, total, _ = await mine.ask()
                figures.busy.append(total * 1e3)
                done += 1

    before, started = cpu_s(pid), time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(32)))
    used, took = cpu_s(pid) - before, time.perf_counter() - started
    figures.rps, figures.cpu_us, figures.core = done / took, used * 1e6 / done, used / took
    figures.rss = rss_mib(pid)


async def streams(target: Target, figures: Figures, *, rounds: int) -> None:
    async with target.connect("m", stream=True) as one:
        before, started = cpu_s(target.pid), time.perf_counter()
        for number in range(rounds):
            first, _, _ = await one.ask()
            if number >= rounds // 8:
                figures.first.append(first * 1e3)
        figures.chunks = rounds * CHUNKS / (time.perf_counter() - started)
        figures.burst_us = (cpu_s(target.pid) - before) * 1e6 / rounds / CHUNKS

    async def paced() -> None:
        async with target.connect("paced", stream=True) as mine:
            for _ in range(PACED_ROUNDS):
                await mine.ask()

    before = cpu_s(target.pid)
    await asyncio.gather(*(paced() for _ in range(PACED)))
    figures.paced_us = (cpu_s(target.pid) - before) * 1e6 / (PACED * PACED_ROUNDS * CHUNKS)


PACED, PACED_ROUNDS = 8, 6
"""Streams at once, and how many each caller reads: so few that none of the targets is at its limit."""
TURNS = 5
"""How often each of two takes its turn: the median of so few is far steadier than one look, and takes little time."""


def main() -> None:
    options = arguments(__doc__)
    report = Report("the gateway")
    seconds, rounds = (4.0, 240) if options.quick else (15.0, 1000)
    os.sched_setaffinity(0, {CORES[-1]})
    standin = str(HERE / "standin.py")
    found: dict[str, Figures] = {}

    def measure(name: str, target: Target) -> None:
        found[name] = asyncio.run(load(target, seconds=seconds, rounds=rounds))

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        behind = free_port()
        with running([sys.executable, standin, "upstream", str(behind)], behind, core=-1, log=place / "upstream"):
            measure("direct", Target(behind, "x", os.getpid()))
            row, took = asyncio.run(in_process(behind, rounds=rounds))
            port = free_port()
            command = [sys.executable, standin, "bare", str(port), str(behind)]
            with (
                running(command, port, core=0, log=place / "bare") as pid,
                issuer() as (issued, token),
            ):
                bare = Target(port, "x", pid)
                measure("bare pass-through", bare)
                with aibox(place / "aibox", behind, keys=issued, key=token) as target:
                    measure("aibox serve", target)
                    ratios = in_turns(lambda: rps(target, seconds / 2), lambda: rps(bare, seconds / 2))
                with aibox(place / "checked", behind, checks=CHECKS, keys=issued, key=token) as target:
                    measure("aibox serve, checks on", target)
                    guardrail = Guardrail(Policy.load(place / "checked" / "policy.toml"))
                    for text in (SHORT, LONG):
                        turns = in_turns(
                            lambda text=text: rps(target, seconds / 2, user=text),
                            lambda text=text: checks_alone(guardrail, text, seconds=seconds / 2),
                        )
                        checked(report, text, turns)
            with aibox(place / "tenants", behind, keys='api_keys = "api-keys.db"\n') as target:
                leaking = isolation(place / "tenants", target.port)
            # One at a time: what a peer leaves to be done after a load is not the next one's to bear.
            port = free_port()
            for peer in peers.installed(place, port, behind, ("m", "paced")):
                with running(peer.command, port, core=0, log=place / peer.name, env=peer.env) as pid:
                    measure(peer.name, Target(port, peer.key, pid, peer.headers))
    base = found["direct"]
    report.row("one write and fdatasync here", f"p50 {fdatasync_ms():.2f} ms", "each answer of aibox waits for one")
    report.row("Router in process: 1 caller", row, f"adds {took - p(base.alone, 50):.2f} ms at p50")
    for name, figures in found.items():
        report.row(
            f"{name}: 1 caller",
            f"p50 {p(figures.alone, 50):.2f} ms, p95 {p(figures.alone, 95):.2f}, p99 {p(figures.alone, 99):.2f}",
            f"adds {p(figures.alone, 50) - p(base.alone, 50):.2f} ms at p50; first piece of a stream p50 "
            + (f"{p(figures.first, 50):.2f} ms" if figures.streams else "-: it answers no streams"),
        )
        if name == "direct":
            report.row(
                "direct: 32 callers", f"{figures.rps:.0f} requests/s", "what the load and the model server can do alone"
            )
        else:
            report.row(
                f"{name}: 32 callers",
                f"{figures.rps:.0f} requests/s, {figures.cpu_us:.0f} us of CPU each, {figures.core:.0%} of its core",
                f"p50 {p(figures.busy, 50):.1f} ms, p95 {p(figures.busy, 95):.1f}, p99 {p(figures.busy, 99):.1f}; "
                f"{figures.rss:.0f} MiB",
            )
            report.row(
                f"{name}: streams",
                f"{figures.chunks:,.0f} chunks/s of one caller",
                f"CPU of a chunk {figures.burst_us:.1f} us in bursts, {figures.paced_us:.1f} us paced",
            )
    goals(report, found, ratios)
    tried, crossed = leaking
    note = f"`aibox verify isolation` against the running server: {tried} ways tried"
    report.goal("gateway.isolation_cells_leaking", crossed, unit="cells", against="none", note=note)
    report.show(as_json=options.json)


def in_turns(one: Callable[[], float], other: Callable[[], float]) -> list[tuple[float, float]]:
    """What both do, one after the other, again and again: a machine that is slower for a while is so for both."""
    return [(one(), other()) for _ in range(TURNS)]


def rps(target: Target, seconds: float, *, user: str = "") -> float:
    asyncio.run(crowd(target, figures := Figures(), seconds=seconds, user=user))
    return figures.rps


def of_each(turns: Sequence[tuple[float, float]]) -> tuple[float, str]:
    """(The median of the ratios, and all of them in words.)"""
    ratios = sorted(one / other for one, other in turns)
    return median(ratios), ", ".join(f"{ratio:.2f}" for ratio in ratios)


def goals(report: Report, found: Mapping[str, Figures], turns: Sequence[tuple[float, float]]) -> None:
    ours, base = found["aibox serve"], found["direct"]
    note = "OpenID, rates, budget and two durable audit entries a call; no checks; the model server is Python too"
    ratio, ratios = of_each(turns)
    report.goal(
        "gateway.rps_vs_bare_passthrough",
        ratio,
        unit="ratio",
        against="uvicorn and aiohttp alone",
        note=f"{note}; in turns {ratios}",
    )

    def added(figures: Figures, percent: int) -> float:
        return max(p(figures.alone, percent) - p(base.alone, percent), 1e-3)

    def against(peer: str, name: str, of: Callable[[Figures], float]) -> None:
        figures = found.get(peer)
        got = None if figures is None or not of(figures) else of(ours) / of(figures)
        missing = f"{peer} is not installed: {peers.INSTALL}" if figures is None else "it answers no streams"
        report.goal(f"gateway.{name}", got, unit="ratio", against=peer, note=missing if got is None else note)

    against("LiteLLM", "rps_vs_litellm", lambda figures: figures.rps)
    against("Portkey", "rps_vs_portkey", lambda figures: figures.rps)
    against("LiteLLM", "added_p50_vs_litellm", lambda figures: added(figures, 50))
    against("LiteLLM", "added_p99_vs_litellm", lambda figures: added(figures, 99))
    against("LiteLLM", "paced_cpu_per_chunk_vs_litellm", lambda figures: figures.paced_us)
    against("LiteLLM", "rss_vs_litellm", lambda figures: figures.rss)


def checked(report: Report, text: str, turns: Sequence[tuple[float, float]]) -> None:
    """What is left of the checks' own speed when a gateway is around them, for a text of a user."""
    served, alone = (median(column) for column in zip(*turns, strict=True))
    got, ratios = of_each(turns)
    size = f"{len(text) / 1024:.1f} KB of the user's"
    report.row(f"the same checks in a loop, {size}", f"{alone:.0f} requests' texts/s", "no gateway, one process")
    report.row(f"checks on, 32 callers, {size}", f"{served:.0f} requests/s", f"{got:.2f} of the checks alone")
    if text == LONG:
        note = f"jailbreak, injection and pii on what is asked, 2 KB of the user's, and pii on the answer; {ratios}"
        report.goal("gateway.guards_on_rps_vs_checks_alone", got, unit="ratio", against="the checks alone", note=note)


async def in_process(behind: int, *, rounds: int) -> tuple[str, float]:
    """A program with a Router of its own, over the same model server: its waits, in words, and their median in ms."""
    scope, waits = Scope(tenant="bench", user="b"), []
    router = Router(OpenAICompatible(f"http://127.0.0.1:{behind}/v1", models=("m",)))
    for number in range(rounds + rounds // 4):
        started = time.perf_counter()
        await router.complete(ChatRequest({"model": "m", "messages": MESSAGES, "max_tokens": 64}), scope=scope)
        if number >= rounds // 4:
            waits.append((time.perf_counter() - started) * 1e3)
    await router.close()
    return f"p50 {p(waits, 50):.2f} ms, p95 {p(waits, 95):.2f}, p99 {p(waits, 99):.2f}", p(waits, 50)


def fdatasync_ms() -> float:
    took = []
    with tempfile.TemporaryFile() as file:
        for _ in range(50):
            started = time.perf_counter()
            file.write(bytes(4096))
            file.flush()
            os.fdatasync(file.fileno())
            took.append((time.perf_counter() - started) * 1e3)
    return p(took, 50)


CHECKS = """
[checks.jailbreak]
input = { "0.5" = "flag", "0.9" = "block" }
[checks.injection]
input = { "0.8" = "flag", "0.97" = "block" }
[checks.pii]
input = "redact"
output = "flag"
"""


SYSTEM, SHORT = (message["content"] for message in MESSAGES)
"""The gateway looks at both."""


def checks_alone(guardrail: Guardrail, text: str, *, seconds: float) -> float:
    """How many requests' texts one process checks in a second, with what `aibox serve` asks of the guardrail."""
    scope = Scope(tenant="bench", user="b")

    async def once() -> None:
        await guardrail.check(SYSTEM, where="input", scope=scope)
        await guardrail.check(text, where="input", scope=scope)
        await guardrail.together([text], scope=scope)
        await guardrail.check(TEXT, where="output", scope=scope)

    async def loop() -> float:
        await once()  # what is loaded for the first of them is loaded in the gateway too
        done, ends = 0, time.perf_counter() + seconds
        while time.perf_counter() < ends:
            await once()
            done += 1
        return done / seconds

    os.sched_setaffinity(0, {CORES[0]})  # where the gateway is
    try:
        return asyncio.run(loop())
    finally:
        os.sched_setaffinity(0, {CORES[-1]})


def isolation(place: Path, port: int) -> tuple[int, int]:
    """(Ways from one tenant into another that were tried, those that were open.)"""
    report = place / "isolation.json"
    subprocess.run(
        [sys.executable, "-m", "aibox", "verify", "isolation", "--config", str(place / "aibox.toml"), "--url",
         f"http://127.0.0.1:{port}", "--report", str(report)],
        check=False, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    outcomes = [row[3] for row in json.loads(report.read_text())["report"]["rows"]]
    return len(outcomes) - outcomes.count("not tried"), outcomes.count("crossed")


@contextmanager
def aibox(place: Path, behind: int, *, checks: str = "", keys: str, key: str = "") -> Iterator[Target]:
    """With bounds that nobody meets: what they cost is to be seen, and not what they do."""
    port = free_port()
    place.mkdir()
    home = place / "home"
    config = place / "aibox.toml"
    policy = place / "policy.toml"
    rates = "requests_per_minute = 1000000000\ntokens_per_minute = 1000000000000\n"
    policy.write_text(
        "[budgets.user]\ntokens_per_day = 1000000000000\n[limits]\noutput_tokens = 256\n"
        f"[rates.tenant]\n{rates}[rates.user]\n{rates}{checks}"
    )
    config.write_text(
        f'home = "{home}"\npolicy = "{policy}"\n[[backends]]\nkind = "openai"\nname = "up"\n'
        f'url = "http://127.0.0.1:{behind}/v1"\nmodels = ["m", "paced"]\n[server]\nport = {port}\n{keys}'
    )
    # Compiled beforehand, as it is where it is installed, and as the peers are.
    compileall.compile_dir(HERE.parent / "aibox", quiet=2)
    command = [sys.executable, "-m", "aibox", "serve", "--config", str(config)]
    with running(command, port, core=0, log=place / "serve") as pid:
        yield Target(port, key, pid)


if __name__ == "__main__":
    main()
