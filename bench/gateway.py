"""The gateway: `aibox serve` with a token checked, limits, budgets and durable audit, beside a bare pass-through.

The gateway under test has one core for itself where there are two; the model server and the load share the other.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from report import Report, arguments, p
from standin import CHUNKS, Connection

HERE = Path(__file__).parent


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


@contextmanager
def running(command: Sequence[str], port: int, *, core: int, log: Path) -> Iterator[int]:
    """A process on one core, once it listens."""
    cores = sorted(os.sched_getaffinity(0))

    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
        os.sched_setaffinity(process.pid, {cores[core % len(cores)]})
        try:
            deadline = time.monotonic() + 60
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
        self.first: list[float] = []
        self.rps = 0.0
        self.cpu_us = 0.0
        self.stream_cpu_us = 0.0
        self.rss = 0.0


async def load(port: int, *, key: str, model: str, pid: int, seconds: float) -> Figures:
    figures = Figures()
    async with Connection(port, key=key, model=model, stream=False) as one:
        for number in range(300):
            _, total, _ = await one.ask()
            if number >= 50:
                figures.alone.append(total * 1e3)
    async with Connection(port, key=key, model=model, stream=True) as one:
        before, asked = cpu_s(pid), 0
        for number in range(150):
            first, _, _ = await one.ask()
            asked += 1
            if number >= 20:
                figures.first.append(first * 1e3)
        figures.stream_cpu_us = (cpu_s(pid) - before) * 1e6 / asked / CHUNKS
    done = 0
    ends = time.perf_counter() + seconds

    async def caller() -> None:
        nonlocal done
        async with Connection(port, key=key, model=model, stream=False) as mine:
            while time.perf_counter() < ends:
                await mine.ask()
                done += 1

    before, started = cpu_s(pid), time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(32)))
    figures.rps = done / (time.perf_counter() - started)
    figures.cpu_us = (cpu_s(pid) - before) * 1e6 / done
    figures.rss = rss_mib(pid)
    return figures


def main() -> None:
    options = arguments(__doc__)
    report = Report("the gateway")
    seconds = 4.0 if options.quick else 15.0
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1]})
    standin = str(HERE / "standin.py")
    found: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        behind = free_port()
        with running([sys.executable, standin, "upstream", str(behind)], behind, core=-1, log=place / "upstream"):
            found["direct"] = asyncio.run(load(behind, key="x", model="m", pid=os.getpid(), seconds=seconds))
            port = free_port()
            command = [sys.executable, standin, "bare", str(port), str(behind)]
            with running(command, port, core=0, log=place / "bare") as pid:
                found["bare pass-through"] = asyncio.run(load(port, key="x", model="m", pid=pid, seconds=seconds))
            found["aibox serve"] = aibox(place, behind, seconds)
    base = found["direct"]
    for name, figures in found.items():
        report.row(
            f"{name}: 1 caller",
            f"p50 {p(figures.alone, 50):.2f} ms, p95 {p(figures.alone, 95):.2f}, p99 {p(figures.alone, 99):.2f}",
            f"adds {p(figures.alone, 50) - p(base.alone, 50):.2f} ms at p50; "
            f"first piece of a stream p50 {p(figures.first, 50):.2f} ms",
        )
        if name != "direct":
            report.row(
                f"{name}: 32 callers",
                f"{figures.rps:.0f} requests/s, {figures.cpu_us:.0f} us of CPU each",
                f"{figures.stream_cpu_us:.1f} us of CPU a chunk, {figures.rss:.0f} MiB",
            )
    ratio = found["aibox serve"].rps / found["bare pass-through"].rps
    note = "token, budget, policy and two durable audit entries a call; no checks; the model server is Python too"
    report.goal("gateway.rps_vs_bare_passthrough", ratio, unit="ratio", against="uvicorn and aiohttp alone", note=note)
    missing = "LiteLLM and Portkey are not installed by this bench yet"
    for name in ("rps_vs_litellm", "rps_vs_portkey", "added_p50_vs_litellm", "added_p99_vs_litellm",
                 "paced_cpu_per_chunk_vs_litellm", "rss_vs_litellm"):  # fmt: skip
        report.goal(f"gateway.{name}", None, unit="ratio", against=name.rpartition("_")[2], note=missing)
    report.left_out += ["peers: " + missing, "chunks come as fast as they can be written, and not paced"]
    report.show(as_json=options.json)


def aibox(place: Path, behind: int, seconds: float) -> Figures:
    port = free_port()
    home = place / "home"
    config = place / "aibox.toml"
    policy = place / "policy.toml"
    policy.write_text("[budgets.user]\ntokens_per_day = 1000000000\n[limits]\noutput_tokens = 256\n")
    config.write_text(
        f'home = "{home}"\npolicy = "{policy}"\n[[backends]]\nkind = "openai"\nname = "up"\n'
        f'url = "http://127.0.0.1:{behind}/v1"\nmodels = ["m"]\n[server]\nport = {port}\n'
    )
    log = place / "serve"
    command = [sys.executable, "-m", "aibox", "serve", "--config", str(config)]
    with running(command, port, core=0, log=log) as pid:
        for _ in range(50):
            if key := re.search(r"aibox-local-[A-Za-z0-9_-]+", log.read_text()):
                break
            time.sleep(0.1)
        assert key is not None, log.read_text()
        return asyncio.run(load(port, key=key[0], model="m", pid=pid, seconds=seconds))


if __name__ == "__main__":
    main()
