"""What the live tests ask over HTTP: one `aibox serve`, or two behind nginx where AIBOX_TEST_REPLICAS is 2."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_socket
from services import NGINX, REDIS, platform, until_ready
from waiting import free_port

from aibox.audit.chain import AuditChain
from aibox.audit.receipt import ReceiptEntry
from aibox.server.api_keys import ApiKeys
from aibox.server.principal import Role
from aibox.types import Scope

REPLICAS = int(os.environ.get("AIBOX_TEST_REPLICAS", "1"))
PLAIN = (
    'def made(box):\n    return box.agent("Answer in one sentence.", settings={"temperature": 0, "max_tokens": 32})\n'
)


def of_one(why: str) -> pytest.MarkDecorator:
    """For a test that cannot be asked of two replicas. docs/operations.md names them."""
    return pytest.mark.skipif(REPLICAS == 2, reason=f"asked of one server: {why}")


@dataclass
class Front:
    """Where it is asked, and where it keeps API keys and the log, whose keys are in `keys`; `pids` are those of all."""

    url: str
    api_keys: str | Path
    audit: str | Path
    keys: Path
    log: Callable[[], str]
    pids: list[int]

    async def key(self, tenant: str, *roles: Role) -> str:
        made = ApiKeys(self.api_keys)
        try:
            return await made.create(scope=Scope(tenant=tenant, user="eva"), roles=list(roles) or [Role.USER])
        finally:
            await made.close()

    async def entries(self, tenant: str) -> list[ReceiptEntry]:
        """The tenant's log, which verifies and has no gap."""
        async with AuditChain(self.audit, keys=self.keys) as chain:
            assert (await chain.verify()).ok
            found = [entry async for entry in chain.entries(tenant)]
        assert [entry.seq for entry in found] == list(range(len(found)))
        return found


@contextmanager
def front(
    folder: Path, tables: str, *, database: Callable[[], str], desk: str = PLAIN, policy: str = "version = 1\n"
) -> Iterator[Front]:
    """With these tables of the settings: backends, and whatever else. `database` makes one that is empty."""
    pytest_socket.enable_socket()  # for a fixture that is made before a test says that it may
    if REPLICAS == 2:
        if NGINX is None or REDIS is None:
            pytest.skip("two replicas need nginx and redis-server: apt-get install nginx-light redis-server")
        with platform(folder, database(), backends=tables, desk=desk, policy=policy) as both:
            said = lambda: both.log("a") + both.log("b")  # noqa: E731 - short
            pids = [both.processes[name].pid for name in ("a", "b")]
            yield Front(both.url, both.database, both.database, both.keys, said, pids)
            used = (folder / "nginx" / "at.log").read_text()
            assert "Traceback" not in said()
            assert all(url.removeprefix("http://") in used for url in both.replicas), "one replica was never asked"
        return
    port, log = free_port(), folder / "log"
    (folder / "desk.py").write_text(desk)
    (folder / "policy.toml").write_text(policy)
    (folder / "aibox.toml").write_text(
        f'home = "home"\npolicy = "policy.toml"\n[memory]\nenabled = false\n[server]\nport = {port}\n'
        f'api_keys = "{folder / "keys.db"}"\n{tables}'
    )
    command = [sys.executable, "-m", "aibox", "serve", "desk:made"]
    with log.open("wb") as out, subprocess.Popen(command, cwd=folder, stderr=out) as server:
        try:
            until_ready(f"http://127.0.0.1:{port}", log.read_text, server)
            home = folder / "home"
            url = f"http://127.0.0.1:{port}"
            yield Front(url, folder / "keys.db", home / "audit.db", home / "keys", log.read_text, [server.pid])
        finally:
            server.terminate()
    assert server.returncode == 0, log.read_text()[-3000:]
