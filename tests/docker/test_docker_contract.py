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
from aibox.sandbox.docker import DEFAULT_IMAGE, Docker
from aibox.sandbox.engine import Engine
from aibox.sandbox.escapes import ESCAPES, TOOLKIT, UnsafeRuntime
from aibox.sandbox.leftovers import LABEL
from aibox.sandbox.sandbox import Sandbox
from aibox.sandbox.session import Session
from aibox.testing.driver_contract import DriverContract
from aibox.types import Scope

sys.path.insert(0, str(Path(__file__).parent.parent / "sandbox"))
from sandbox_abuses import BOMBS, CHILDREN, FORKS, INODES, LIMITS, NEIGHBOUR, Abuses
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


async def gvisor(host: str) -> Docker:
    """Where the engine has it and it starts; where it does not, the reason is the skip's."""
    driver = Docker(host=host, gvisor="require", accept=ACCEPTED)
    health = await driver.available()
    if not health.ok:
        await driver.close()
        pytest.skip(f"gVisor was NOT tried: {health.detail}")
    assert driver.recorded["runtime"] == "runsc"
    return driver


class TestContractOfGVisor(DriverContract):
    @pytest.fixture
    async def driver(self, engine_host: str) -> Driver:
        return await gvisor(engine_host)


# With gVisor the guest has a kernel of its own. Where a test looks at that kernel, or at how a limit ends a run, and
# not at whether somebody else is touched, those of the class below hold in its place, and docs/sandbox.md says so.
OWN_KERNEL = "the kernel is gVisor's, and what is used up or changed there is the session's own"
ENDS = "the session ends, and not the process"
ELSEWHERE = {
    "test_watches_and_contexts_of_the_machine_are_not_used_up": OWN_KERNEL,
    "test_memory_that_belongs_to_no_process": OWN_KERNEL,
    "test_the_kernel_tells_and_takes_nothing": OWN_KERNEL,
    "test_no_privileges": "its status has no line for the filter, which gVisor keeps towards the host",
    "test_what_only_root_may_is_refused": OWN_KERNEL,
    "test_filtered_system_calls": OWN_KERNEL,
    "test_new_namespaces_by_clone": OWN_KERNEL,
    "test_processes_of_the_host_are_not_there": "its numbers of processes may be the host's too",
    "test_fork_bomb": ENDS,
    "test_memory_bomb": ENDS,
    "test_memory_is_bounded_over_all_processes": ENDS,
    "test_files_without_end": ENDS,
}


class TestAbuseOfGVisor(Abuses, Exhaustion):
    @pytest.fixture
    async def driver(self, engine_host: str, request: pytest.FixtureRequest) -> Driver:
        if (why := ELSEWHERE.get(request.function.__name__)) is not None:
            pytest.skip(f"otherwise with gVisor: {why}")
        return await gvisor(engine_host)

    async def test_what_ends_a_session_ends_no_other(self, sandbox: Sandbox, scope: Scope) -> None:
        """Bombs stop at a limit or end their own session; each time a neighbour goes on, and the next is new."""
        bombs = {"forks": FORKS, "files": INODES, "children": CHILDREN, **BOMBS}
        async with sandbox.session(scope=NEIGHBOUR) as neighbour:
            await neighbour.python("x = 1")
            for name, code in bombs.items():
                session = await sandbox.open(scope=scope)
                try:
                    result = await session.python(code)
                    assert not result.ok or result.stdout, (name, result)
                except SandboxError:
                    pass
                finally:
                    await session.close()
                assert (await neighbour.python("x")).value == "1", name
            assert Path("/proc/self/status").exists()

    async def test_no_capability_and_none_to_be_had(self, session: Session) -> None:
        """The guest is not root of gVisor's kernel, cannot become it, and finds nothing of the host in its devices."""
        status = (await session.bash("grep -E '^(Cap|Uid|Gid)' /proc/self/status")).stdout
        fields = dict(line.split(":\t", 1) for line in status.splitlines())
        assert {value for name, value in fields.items() if name.startswith("Cap")} == {"0" * 16}
        assert "0" not in fields["Uid"].split() + fields["Gid"].split()
        code = "import os\nfor call in (os.setuid, os.setgid, os.seteuid):\n    try: print(call(0))\n"
        assert (await session.python(f"{code}    except OSError: pass")).stdout == ""
        await session.bash("mknod mem c 1 1; mknod disk b 8 0; mknod disk2 b 254 0")
        assert (
            await session.bash("cat mem disk disk2 /dev/mem /dev/sda /proc/kcore 2>/dev/null | head -c 1")
        ).stdout == ""


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
