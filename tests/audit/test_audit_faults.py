"""Disks that fail: each system call on the log's files fails once, and what was acknowledged is there all the same.

A few places of each call are tried here; `make test-faults` tries every one. Errors come from strace. Short writes come
from a library of our own in front of libc's, which writes a part for real and says so, as a kernel may; and from a
limit on the size of files, at which the kernel itself takes the first part of a write and refuses the rest.
"""

from __future__ import annotations

import asyncio
import fcntl
import itertools
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
from aibox.audit.epochs import EpochKeys
from aibox.audit.highwater import HighWater
from aibox.audit.keys import Keyring, overwrite, write_new
from aibox.audit.record import leaf_hash
from aibox.audit.verify import verify

CALLS = ("openat", "pwrite64", "write", "fdatasync", "fsync", "ftruncate", "rename", "link", "unlink", "pread64")
FILES = ("audit.db", "audit.db-wal", "audit.db-shm", "keys", "keys/highwater.json")
SAMPLE = 4

SHORT = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static atomic_long seen;

/* The calls on files of our folder are counted; the one that is asked for writes a part. */
static size_t part(int fd, size_t n) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t got = readlink(link, path, sizeof path - 1);
    if (got < 0) return n;
    path[got] = 0;
    if (strncmp(path, getenv("SHORT_FOLDER"), strlen(getenv("SHORT_FOLDER")))) return n;
    if (atomic_fetch_add(&seen, 1) + 1 != atol(getenv("SHORT_AT")) || n < 2) return n;
    return atol(getenv("SHORT_TO")) ? 1 : n / 2;
}

ssize_t write(int fd, const void *data, size_t n) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "write");
    return real(fd, data, part(fd, n));
}

ssize_t pwrite64(int fd, const void *data, size_t n, long at) {
    static ssize_t (*real)(int, const void *, size_t, long);
    if (!real) real = dlsym(RTLD_NEXT, "pwrite64");
    return real(fd, data, part(fd, n), at);
}

ssize_t pwrite(int fd, const void *data, size_t n, long at) { return pwrite64(fd, data, n, at); }

__attribute__((destructor)) static void say(void) {
    FILE *out = fopen(getenv("SHORT_COUNT"), "w");
    if (out) { fprintf(out, "%ld", atomic_load(&seen)); fclose(out); }
}
"""

WRITER = """
import asyncio, os, resource, sys
import aibox
from aibox.errors import AIBoxError

if limit := int(os.environ.get("FILE_LIMIT", "0")):
    import aibox.audit.chain, aibox.audit.sqlite  # what Python writes on its own account is written before
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

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


def write(folder: Path, *before: str, **more: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **more}
    run = [*before, sys.executable, "-c", WRITER, str(folder / "audit.db")]
    return subprocess.run(run, capture_output=True, text=True, timeout=300, env=env)


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
        refused += all_is_there(folder, done, f"{call} {error} at {n}")
    said = f"{len(todo)} calls failed in turn, {refused} of them were told to the caller; nothing acknowledged was lost"
    sys.stdout.write(said + "\n")


def all_is_there(folder: Path, done: subprocess.CompletedProcess[str], where: str) -> bool:
    """What was acknowledged can be read, and all of it verifies; whether something was refused."""
    where = f"{where}: {done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr, where
    assert done.returncode == 0, where
    words = [line.split() for line in done.stdout.splitlines()]
    acknowledged = {int(line[0]): line[1] for line in words if line[0] != "refused"}
    stored = asyncio.run(read(folder / "audit.db"))
    assert acknowledged.items() <= stored.items(), where
    assert verify(folder / "audit.db").ok, where
    shutil.rmtree(folder)
    return any(line[0] == "refused" for line in words)


def folders(tmp_path: Path) -> Iterator[Path]:
    """A fresh place for a log, again and again."""
    for number in itertools.count():
        folder = tmp_path / str(number)
        (folder / "keys").mkdir(parents=True, mode=0o700)
        yield folder


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler, so no library before libc's that writes short")
def test_a_short_write_is_finished(tmp_path: Path) -> None:
    """Any write on the log's files takes half of it, or one byte: the rest follows, nothing is refused or lost."""
    (tmp_path / "short.c").write_text(SHORT)
    library = tmp_path / "short.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, tmp_path / "short.c", "-ldl"], check=True)
    fresh, count = folders(tmp_path), tmp_path / "count"

    def run(at: int, to: int) -> bool:
        folder = next(fresh)
        preload = {"LD_PRELOAD": str(library), "SHORT_FOLDER": str(folder), "SHORT_COUNT": str(count)}
        done = write(folder, **preload, SHORT_AT=str(at), SHORT_TO=str(to))
        return all_is_there(folder, done, f"write {at} cut to {'one byte' if to else 'half'}")

    assert run(0, 0) is False
    writes = int(count.read_text())
    assert writes > 20, "the library was not in front of libc's"
    todo = [(at, to) for at in range(1, writes + 1) for to in (0, 1)]
    if os.environ.get("AIBOX_TEST_FAULTS") != "all":
        todo = random.sample(todo, SAMPLE)
    refused = [(at, to) for at, to in todo if run(at, to)]
    assert refused == []
    sys.stdout.write(f"{len(todo)} writes were cut short in turn, of {writes}; each was finished\n")


def test_a_disk_that_is_full_in_the_middle_of_a_write(tmp_path: Path) -> None:
    """The kernel takes the first part of a write and refuses the rest, at any size of any file: nothing is lost."""
    whole = os.environ.get("AIBOX_TEST_FAULTS") == "all"
    limits = range(997, 140_000, 2_503) if whole else random.sample(range(1_000, 100_000), SAMPLE)
    refused = 0
    for limit, folder in zip(limits, folders(tmp_path), strict=False):
        refused += all_is_there(folder, write(folder, FILE_LIMIT=str(limit)), f"full at {limit}")
    sys.stdout.write(f"{len(limits)} sizes at which files could not grow; at {refused} somebody was told\n")


def test_a_key_is_overwritten_whole_by_a_disk_that_takes_a_byte_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who holds the old file open finds nothing of the old key in it, however short the writes are."""
    write_new(tmp_path / "x.key", "7 " + "ab" * 32 + "\n")
    with (tmp_path / "x.key").open("rb") as held:
        real = os.write
        monkeypatch.setattr(os, "write", lambda handle, data: real(handle, data[:1]))
        overwrite(os.open(tmp_path / "x.key", os.O_WRONLY))
        assert set(held.read()) == {0}


def test_a_process_that_was_forked_meanwhile_does_not_keep_the_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever holds a copy of a lock's file, as a child of a fork does, keeps nobody from the mark or the keys."""
    copies: list[int] = []
    real = fcntl.flock

    def copying(handle: int, operation: int) -> None:
        real(handle, operation)
        if operation == fcntl.LOCK_EX:
            copies.append(os.dup(handle))

    monkeypatch.setattr(fcntl, "flock", copying)
    HighWater(tmp_path / "mark").add_erased(bytes(32), bytes(16))
    keys = EpochKeys(Keyring(tmp_path))
    log = bytes(32)
    keys.keep(log, keys.first(log).next(log))
    assert len(copies) == 2
    for name in ("mark.lock", ".lock"):
        with (tmp_path / name).open() as file:
            real(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    for copy in copies:
        os.close(copy)


async def read(path: Path) -> dict[int, str]:
    """Open again, as the next process would, and go on."""
    from aibox.types import Scope

    async with AuditChain(path) as chain:
        await chain.append("tool.called", scope=Scope(tenant="acme", user="eva"), detail={})
        return {entry.seq: leaf_hash(entry.header).hex() async for entry in chain.entries("acme")}
