"""The contract and the abuses, on a real Docker engine; and what a container of ours really is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

from aibox.errors import SandboxError
from aibox.execution import Limits
from aibox.protocols import Driver
from aibox.sandbox.docker import DEFAULT_IMAGE, LABEL, Docker
from aibox.sandbox.engine import Engine
from aibox.sandbox.escapes import ESCAPES, TOOLKIT, UnsafeRuntime
from aibox.sandbox.sandbox import Sandbox
from aibox.testing.driver_contract import DriverContract
from aibox.types import Scope

sys.path.insert(0, str(Path(__file__).parent.parent / "sandbox"))
from sandbox_abuses import LIMITS, Abuses
from sandbox_exhaustion import Exhaustion

RUNC = [escape for escape in ESCAPES if escape.component != TOOLKIT]
ACCEPTED = UnsafeRuntime(tuple(escape.cve for escape in ESCAPES))


def docker(host: str, **options: Any) -> Docker:
    """The engine that a distribution ships may have known holes: here only our own flags are on trial."""
    return Docker(host=host, gvisor="off", accept=ACCEPTED, **options)


class TestDockerContract(DriverContract):
    @pytest.fixture
    def driver(self, engine_host: str) -> Driver:
        return docker(engine_host)


class TestContractOfGVisor(DriverContract):
    """Where the engine has gVisor and it starts; where it does not, the reason is the skip's."""

    @pytest.fixture
    async def driver(self, engine_host: str) -> Driver:
        driver = Docker(host=engine_host, gvisor="require")
        health = await driver.available()
        if not health.ok:
            await driver.close()
            pytest.skip(f"gVisor was NOT tried: {health.detail}")
        assert driver.recorded["runtime"] == "runsc"
        return driver


class TestAbuseOfDocker(Abuses, Exhaustion):
    @pytest.fixture
    def driver(self, engine_host: str) -> Driver:
        return docker(engine_host)

    async def test_no_quota_of_files_is_passed(self, sandbox: Sandbox, scope: Scope) -> None:
        """The number of files is bounded by itself, before memory is."""
        async with sandbox.session(scope=scope) as session:
            made = await session.python("import os\nn = 0\ntry:\n    while True:\n        os.mkdir(f'd{n}'); n += 1\n"
                                        "except OSError as error:\n    print(error.errno == 28)\nn")  # fmt: skip
        assert made.stdout == "True\n"
        assert int(made.value or 0) < LIMITS.workspace_mib * 256


@pytest.mark.anyio
async def test_a_live_container_is_what_the_profile_says(engine_host: str, scope: Scope) -> None:
    """`docker inspect` of a running session shows each point of the list: nothing was lost on the way."""
    limits = Limits(memory_mib=128, pids=20, cpus=0.5, workspace_mib=8)
    sandbox = Sandbox(docker(engine_host), limits=limits)
    engine = Engine(engine_host)
    async with sandbox.session(scope=scope) as session:
        inspected = json.loads(await engine.ask("inspect", session._guest.name))[0]  # type: ignore[attr-defined]
    host, config = inspected["HostConfig"], inspected["Config"]
    assert host["Privileged"] is False
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert host["NetworkMode"] == "none"
    assert (host["PidMode"], host["UTSMode"], host["UsernsMode"]) == ("", "", "")
    assert (host["IpcMode"], host["CgroupnsMode"]) == ("private", "private")
    assert host["ReadonlyRootfs"] is True
    assert host["Memory"] == host["MemorySwap"] == 128 * 1024 * 1024
    assert host["NanoCpus"] == 500_000_000
    assert host["PidsLimit"] == 22
    assert "no-new-privileges" in host["SecurityOpt"]
    assert any(option.startswith("seccomp=") and "unconfined" not in option for option in host["SecurityOpt"])
    assert not any("unconfined" in option for option in host["SecurityOpt"])
    assert not host["Binds"]
    assert not host["Devices"]
    assert not host["DeviceRequests"]
    assert not [mount for mount in inspected["Mounts"] if mount["Type"] != "tmpfs"]
    assert {limit["Name"]: limit["Hard"] for limit in host["Ulimits"]} == {
        "core": 0, "nofile": 1024, "fsize": 8 * 1024 * 1024,
    }  # fmt: skip
    assert host["RestartPolicy"]["Name"] == "no"
    assert host["LogConfig"]["Type"] == "none"
    assert host["AutoRemove"] is True
    assert not host["PortBindings"]
    assert host["OomKillDisable"] in (None, False)
    assert config["User"].split(":")[0] not in ("", "0", "root")
    assert config["Image"].startswith("sha256:")
    await sandbox.close()


@pytest.mark.anyio
async def test_tables_and_figures(engine_host: str, scope: Scope) -> None:
    """With pandas and matplotlib in the image a frame is a table and a plot is a PNG; the frame is there afterwards."""
    sandbox = Sandbox(docker(engine_host), limits=Limits(wall_s=60))
    async with sandbox.session(scope=scope) as session:
        frame = await session.python("import pandas as pd\ndf = pd.DataFrame({'n': range(99), 's': 'x'})\ndf")
        assert frame.tables[0].columns == ("index", "n", "s")
        assert (len(frame.tables[0].rows), frame.tables[0].total_rows) == (50, 99)
        plot = await session.python("import matplotlib.pyplot as plt\nplt.plot(df.n, df.n ** 2);")
        assert [figure[:4] for figure in plot.figures] == [b"\x89PNG"]
        assert (await session.python("int(df.n.sum())")).value == "4851"
    await sandbox.close()


@pytest.mark.anyio
async def test_a_runtime_with_a_known_way_out_is_refused(engine_host: str, scope: Scope) -> None:
    """Unless the engine is newer than all on the list, it is named with its CVE; what is accepted is on record."""
    facts = await Engine(engine_host).facts()
    known = [hole.cve for hole in facts.holes("runc")]
    plain = Docker(host=engine_host, gvisor="off")
    health = await plain.available()
    assert health.ok is not bool(known)
    assert all(cve in health.detail for cve in known)
    accepting = docker(engine_host)
    assert (await accepting.available()).ok
    assert accepting.recorded["accepted"] == sorted(known)
    assert accepting.recorded["image"].startswith("sha256:")
    await accepting.close()


@pytest.mark.anyio
async def test_gpus_are_asked_for_as_the_policy_says(engine_host: str, scope: Scope) -> None:
    """An unknown toolkit is refused by its CVEs, an image with an environment by its names; then the engine is asked.

    Where there is no GPU, as here, the engine says so, and nothing is left of it.
    """
    engine = Engine(engine_host)
    named = {scope.tenant: 1}
    plain = Docker(host=engine_host, gvisor="off", accept=UnsafeRuntime(tuple(e.cve for e in RUNC)))
    with pytest.raises(SandboxError, match="CVE-2025-23266"):
        await Sandbox(plain, gpus=named).open(scope=scope, gpus=1)
    made = await engine.ask("create", "--gpus", "1", "--network", "none", await engine.image_id(DEFAULT_IMAGE), "true")
    asked = json.loads(await engine.ask("inspect", made))[0]["HostConfig"]["DeviceRequests"]
    assert [(one["Count"], one["Capabilities"]) for one in asked] == [(1, [["gpu"]])]
    spoiled = await engine.ask("commit", "--change", "ENV LD_PRELOAD=/tmp/x.so", made, "aibox-spoiled:latest")
    await engine.ask("rm", made)
    try:
        sandbox = Sandbox(docker(engine_host, image="aibox-spoiled:latest"), gpus=named)
        with pytest.raises(SandboxError, match="LD_PRELOAD"):
            await sandbox.open(scope=scope, gpus=1)
    finally:
        await engine.ask("image", "rm", "--force", spoiled)
    if not Path("/dev/nvidiactl").exists():
        with pytest.raises(SandboxError, match="could not select device driver"):
            await Sandbox(docker(engine_host), gpus=named).open(scope=scope, gpus=1)
    else:
        async with Sandbox(docker(engine_host), gpus=named).session(scope=scope, gpus=1) as session:
            assert (await session.bash("ls /dev/nvidia0")).ok


HOST = """
import asyncio, sys
sys.path.insert(0, "tests/docker")
from test_docker_contract import docker
from aibox.sandbox.sandbox import Sandbox
from aibox.types import Scope
async def main():
    async with Sandbox(docker(sys.argv[1])).session(scope=Scope.local()) as session:
        print(session._guest.name, flush=True)
        await session.bash("setsid sleep 999 & sleep 999")
asyncio.run(main())
"""


@pytest.mark.anyio
async def test_nothing_outlives_a_host_that_was_killed(engine_host: str) -> None:
    """After kill -9 of the process that opened the session its container goes; one that stays is swept later."""
    engine = Engine(engine_host)
    host = subprocess.Popen([sys.executable, "-c", HOST, engine_host], stdout=subprocess.PIPE, text=True)
    assert host.stdout is not None
    name = host.stdout.readline().strip()
    host.send_signal(signal.SIGKILL)
    host.wait()
    host.stdout.close()
    assert name
    with anyio.fail_after(10):
        while name in await engine.ask("ps", "-a", "--format", "{{.Names}}"):
            await anyio.sleep(0.1)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    image = await engine.image_id("aibox-sandbox:latest")
    orphan = f"aibox-orphan-{os.getpid()}"
    foreign = f"{orphan}-foreign"
    for container, owner in ((orphan, f"{boot}:{host.pid}:1"), (foreign, "another-machine:1:1")):
        await engine.ask(
            "create", "--name", container, "--label", f"{LABEL}={owner}", "--network", "none", image, "true"
        )
    driver = docker(engine_host)
    assert (await driver.available()).ok
    names = await engine.ask("ps", "-a", "--format", "{{.Names}}")
    assert foreign in names
    assert orphan not in names.split()
    await engine.ask("rm", foreign)
    await driver.close()


@pytest.mark.anyio
async def test_many_at_once_and_many_in_turn_leave_nothing(engine_host: str, scope: Scope) -> None:
    """Twelve sessions at once all answer; after them and twelve more no container, volume or process is there."""
    sandbox = Sandbox(docker(engine_host), limits=LIMITS, pool=2)
    answers: list[str | None] = []

    async def one(number: int) -> None:
        async with sandbox.session(scope=scope) as session:
            await session.bash("setsid sleep 999 & echo x > file")
            answers.append((await session.python(f"{number} * 2")).value)

    async with anyio.create_task_group() as tasks:
        for number in range(12):
            tasks.start_soon(one, number)
    for number in range(12, 20):
        await one(number)
    assert sorted(map(int, filter(None, answers))) == [2 * number for number in range(20)]
    await sandbox.close()
    engine = Engine(engine_host)
    mine = f"aibox-{os.getpid()}-"
    began = time.monotonic()
    while mine in await engine.ask("ps", "-a", "--format", "{{.Names}}") and time.monotonic() - began < 5:
        await anyio.sleep(0.1)
    assert mine not in await engine.ask("ps", "-a", "--format", "{{.Names}}")
    assert await engine.ask("volume", "ls", "-q") == ""


@pytest.mark.anyio
async def test_no_engine_is_said_in_one_line(tmp_path: Path, scope: Scope) -> None:
    """An engine that does not answer is not available, and a session says what to do."""
    driver = Docker(host=f"unix://{tmp_path}/none.sock")
    health = await driver.available()
    assert not health.ok
    assert "apt install docker.io" in health.detail
