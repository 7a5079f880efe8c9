"""With swap on this machine: a guest gets none of it, on an engine and on bubblewrap, where a plain container does."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_docker_contract import docker

from aibox.execution import Limits
from aibox.protocols import Driver
from aibox.sandbox.bubblewrap import Bubblewrap
from aibox.sandbox.docker import DEFAULT_IMAGE
from aibox.sandbox.engine import Engine
from aibox.sandbox.sandbox import Sandbox
from aibox.types import Scope

pytestmark = pytest.mark.anyio

LIMITS = Limits(memory_mib=64, wall_s=60)
HOLD = "held = bytearray(112 << 20)\nfor at in range(0, len(held), 4096): held[at] = 1\nprint('held')"


@pytest.fixture(scope="module")
def swap(tmp_path_factory: pytest.TempPathFactory, engine_host: str) -> Iterator[None]:
    """256 MiB of it in a file, while these tests run. Some disks take none, and containers may not make any."""
    assert engine_host
    file = tmp_path_factory.mktemp("swap") / "aibox-tests.swap"
    with file.open("wb") as opened:
        os.posix_fallocate(opened.fileno(), 0, 256 << 20)
    file.chmod(0o600)
    subprocess.run(["mkswap", file], check=True, capture_output=True)
    on = subprocess.run(["swapon", file], capture_output=True, text=True)
    if on.returncode != 0:
        file.unlink()
        pytest.skip(f"swap was NOT tried: {on.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["swapoff", file], check=True)
        file.unlink()


@pytest.fixture(params=["docker", "bubblewrap"])
async def driver(request: pytest.FixtureRequest, engine_host: str) -> Driver:
    if request.param == "docker":
        return docker(engine_host)
    driver = Bubblewrap()
    health = await driver.available()
    if not health.ok or driver.recorded["memory"] != "together":
        pytest.skip(f"swap was NOT tried on bubblewrap: {health.detail}")
    return driver


@pytest.mark.usefixtures("swap")
async def test_a_guest_cannot_swap(driver: Driver, engine_host: str, scope: Scope) -> None:
    """What does not fit into its memory is stopped there, though the machine has swap and a plain container uses it."""
    engine = Engine(engine_host)
    image = await engine.image_id(DEFAULT_IMAGE)
    plain = ["run", "--rm", "--network", "none", "--memory", "64m", "--memory-swap", "256m", image, "python3", "-c"]
    assert await engine.ask(*plain, HOLD) == "held"
    sandbox = Sandbox(driver, limits=LIMITS)
    async with sandbox.session(scope=scope) as session:
        stopped = await session.python(HOLD)
        assert "held" not in stopped.stdout
        assert any("memory limit" in hit for hit in stopped.limits_hit), stopped
        assert (await session.python("6 * 7")).value == "42"
    await sandbox.close()
    assert "aibox-tests.swap" in Path("/proc/swaps").read_text()
