"""The disk of a serving process is full, under load: what cannot be recorded is not answered; with room it goes on.

`AIBOX_TEST_SEED` says how full it gets and for how long; a failure prints it. `AIBOX_TEST_ROUNDS` fills it more often.
"""

from __future__ import annotations

import asyncio
import os
import random
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from front import of_one
from load import Load, all_there
from services import modelling
from waiting import free_port, until_listening

from aibox.audit.chain import AuditChain
from aibox.server.api_keys import ApiKeys
from aibox.server.principal import Role
from aibox.types import Scope

SEED = int(os.environ.get("AIBOX_TEST_SEED", "1"))
ROUNDS = int(os.environ.get("AIBOX_TEST_ROUNDS", "3"))
SMALL_MIB = 24
pytestmark = [
    pytest.mark.loopback,
    pytest.mark.skipif(
        not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode != 0,
        reason="no mount namespace can be made here",
    ),
]


@dataclass
class Disk:
    """A small file system that only the processes of `shell` see, in which a shell does what it is told."""

    folder: Path
    shell: subprocess.Popen[str]

    def do(self, line: str) -> str:
        """What a line of shell prints; the line is waited for."""
        assert self.shell.stdin is not None
        assert self.shell.stdout is not None
        self.shell.stdin.write(f"{line}\necho ; echo it-is-done\n")
        self.shell.stdin.flush()
        said = ""
        while not said.endswith("\nit-is-done\n"):
            more = self.shell.stdout.readline()
            assert more, f"the shell ended: {said}"
            said += more
        return said.removesuffix("\nit-is-done\n").strip()

    def fill(self, leave_kib: int) -> None:
        """Take all the room that is there but so much."""
        ballast = shlex.quote(str(self.folder / "ballast"))
        free = self.do(f"df -k --output=avail {shlex.quote(str(self.folder))} | tail -1")
        self.do(f"head -c {max(int(free) - leave_kib, 0)}K /dev/zero >>{ballast} 2>/dev/null")

    def free(self) -> None:
        self.do(f"rm -f {shlex.quote(str(self.folder / 'ballast'))}")


@contextmanager
def small_disk(folder: Path) -> Iterator[Disk]:
    folder.mkdir()
    words = ["unshare", "-rm", "sh"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as shell:
        disk = Disk(folder, shell)
        disk.do(f"mount -t tmpfs -o size={SMALL_MIB}m tmpfs {shlex.quote(str(folder))}")
        yield disk
        assert shell.stdin is not None
        shell.stdin.close()


@of_one("two replicas keep their log in PostgreSQL, and the disk that it needs is not theirs")
def test_a_full_disk_under_load(tmp_path: Path) -> None:
    """Again and again: refused while it is full, answered when it is not, and of what was answered all is there."""
    chance = random.Random(SEED)
    home, port, model_port = tmp_path / "a small disk", free_port(), free_port()
    log, out = tmp_path / "log", tmp_path / "kept"
    (tmp_path / "aibox.toml").write_text(
        f'home = "{home}"\n[server]\nport = {port}\napi_keys = "{tmp_path / "keys.db"}"\n'
        '[[backends]]\nkind = "openai"\nname = "m"\nmodels = ["m"]\nexternal = false\n'
        f'url = "http://127.0.0.1:{model_port}/v1"\n'
    )
    made = ApiKeys(tmp_path / "keys.db")

    async def key() -> str:
        token = await made.create(scope=Scope(tenant="acme", user="eva"), roles=[Role.USER])
        await made.close()
        return token

    with modelling(model_port), small_disk(home) as disk:
        config = shlex.quote(str(tmp_path / "aibox.toml"))
        serve = f"{shlex.quote(sys.executable)} -m aibox serve --config {config} 2>{shlex.quote(str(log))} >&2 &"
        pid = int(disk.do(f"{serve}\necho $!"))
        until_listening(port)
        with Load(f"http://127.0.0.1:{port}", asyncio.run(key()), SEED) as load:
            load.goes_on()
            for _ in range(ROUNDS):
                disk.fill(chance.choice((0, 0, 16, 64, 256)))
                load.is_refused()
                disk.fill(0)
                time.sleep(chance.uniform(0, 1.5))
                load.is_refused()
                disk.free()
                load.goes_on(40)
                load.goes_on(40)
            # It is told to stop while it is full, and answers nobody any more.
            assert disk.do(f"kill -0 {pid} && echo lives") == "lives"
            disk.fill(0)
            load.is_refused()
            left = disk.do(f"kill -TERM {pid}; wait {pid}; echo $?")
        said = log.read_text()
        # What could not be written any more is told: a caller has its 503, and the operator a line and the status 2.
        assert left in ("0", "2"), said[-3000:]
        assert '"event":"stopped"' in said
        assert (left == "2") == ("disk is full" in said.splitlines()[-1]), said[-3000:]
        disk.free()
        disk.do(f"cp -a {shlex.quote(str(home))} {shlex.quote(str(out))}")

    async def look() -> None:
        async with AuditChain(out / "audit.db", keys=out / "keys") as chain:
            await all_there(chain, "acme", load)

    asyncio.run(look())
    assert load.refused
    assert "Traceback" not in log.read_text()
