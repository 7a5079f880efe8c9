"""Disks that fail: each system call on the log's files fails once, and what was acknowledged is there all the same.

A few places of each call are tried here; `make test-faults` tries every one.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from aibox.audit.chain import AuditChain
from aibox.audit.record import leaf_hash
from aibox.audit.verify import verify

CALLS = ("openat", "pwrite64", "write", "fdatasync", "fsync", "ftruncate", "rename", "link", "unlink", "pread64")
FILES = ("audit.db", "audit.db-wal", "audit.db-shm", "keys", "keys/highwater.json")
SAMPLE = 4

WRITER = """
import asyncio, sys
import aibox
from aibox.errors import AIBoxError

async def main(path):
    scope = aibox.Scope(tenant="acme", user="eva")
    async with aibox.AuditChain(path) as chain:
        for n in range(6):
            try:
                if n % 3 == 2:
                    receipt = await chain.seal(f"t{n}", scope=scope, detail={})
                    entry = receipt.entries[-1]
                    from aibox.audit.record import leaf_hash
                    print(entry.seq, leaf_hash(entry.header).hex(), flush=True)
                else:
                    entry = await chain.append("tool.called", scope=scope, detail={"n": n})
                    print(entry.seq, entry.leaf.hex(), flush=True)
            except AIBoxError as error:
                print("refused", error.code, flush=True)

try:
    asyncio.run(main(sys.argv[1]))
except AIBoxError as error:
    print("refused", error.code, flush=True)
"""


def strace(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    paths = [part for name in FILES for part in ("-P", str(folder / name))]
    command = ["strace", "-f", "-o", str(folder.parent / f"{folder.name}.trace"), *paths, *options]
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    run = [*command, sys.executable, "-c", WRITER, str(folder / "audit.db")]
    return subprocess.run(run, capture_output=True, text=True, timeout=300, env=env)


@cache
def counted() -> dict[str, int]:
    """How often each call comes when nothing fails; the first run makes the files, as the faulty ones do."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "plain"
        (folder / "keys").mkdir(parents=True, mode=0o700)
        done = strace(folder, "-e", f"trace={','.join(CALLS)}")
        if done.returncode:
            pytest.skip(f"strace cannot trace here: {done.stderr[:100]}")
        lines = (folder.parent / "plain.trace").read_text("utf-8", "replace").splitlines()
    found = [match[1] for line in lines if (match := re.match(r"\d+ +([a-z0-9_]+)\(", line))]
    return {call: found.count(call) for call in CALLS if call in found}


def places() -> Iterator[tuple[str, str, int]]:
    for call, count in counted().items():
        for error in ("EIO", "ENOSPC") if call not in ("pread64", "openat") else ("EIO",):
            for n in range(1, count + 1):
                yield call, error, n


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
def test_a_call_that_fails_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """EIO and ENOSPC at calls on the database, its journal, the keys and the mark: it opens, verifies, holds all."""
    todo = list(places())
    assert len(todo) > 20
    if os.environ.get("AIBOX_TEST_FAULTS") != "all":
        todo = random.sample(todo, SAMPLE)
    refused = 0
    for number, (call, error, n) in enumerate(todo):
        folder = tmp_path / str(number)
        (folder / "keys").mkdir(parents=True, mode=0o700)
        done = strace(folder, "-e", f"trace={call}", "-e", f"inject={call}:error={error}:when={n}")
        where = f"{call} {error} at {n}: {done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr, where
        words = [line.split() for line in done.stdout.splitlines()]
        refused += any(line[0] == "refused" for line in words)
        acknowledged = {int(line[0]): line[1] for line in words if line[0] != "refused"}
        stored = asyncio.run(read(folder / "audit.db"))
        assert acknowledged.items() <= stored.items(), where
        assert verify(folder / "audit.db").ok, where
        shutil.rmtree(folder)
    said = f"{len(todo)} calls failed in turn, {refused} of them were told to the caller; nothing acknowledged was lost"
    sys.stdout.write(said + "\n")


async def read(path: Path) -> dict[int, str]:
    """Open again, as the next process would, and go on."""
    from aibox.types import Scope

    async with AuditChain(path) as chain:
        await chain.append("tool.called", scope=Scope(tenant="acme", user="eva"), detail={})
        return {entry.seq: leaf_hash(entry.header).hex() async for entry in chain.entries("acme")}
