"""What hostile code tries, each with the real isolation: afterwards the host is alive and the session still works."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from aibox.execution import Limits, Result
from aibox.sandbox.bubblewrap import Bubblewrap
from aibox.sandbox.sandbox import Sandbox, Session
from aibox.types import Scope

pytestmark = pytest.mark.anyio

LIMITS = Limits(memory_mib=128, pids=24, wall_s=10, output_kib=32, workspace_mib=8)


@pytest.fixture
def limits() -> Limits:
    return LIMITS


@pytest.fixture
async def sandbox(limits: Limits) -> AsyncIterator[Sandbox]:
    sandbox = Sandbox(Bubblewrap(), limits=limits)
    yield sandbox
    await sandbox.close()


@pytest.fixture
async def session(sandbox: Sandbox, scope: Scope) -> AsyncIterator[Session]:
    async with sandbox.session(scope=scope) as session:
        yield session
        assert (await session.bash("echo alive")).stdout == "alive\n"


short = pytest.mark.parametrize("limits", [LIMITS & Limits(wall_s=0.6)])


def good(result: Result) -> str:
    assert result.ok, result
    return result.stdout


def running(marker: str) -> list[int]:
    """Processes of this machine that have the marker among their arguments."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdecimal() and marker.encode() in (folder / "cmdline").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


async def until_running(marker: str) -> None:
    with anyio.fail_after(5):
        while not running(marker):
            await anyio.sleep(0.02)


FORKS = """
import os, time
while True:
    try:
        os.fork()
    except OSError:
        time.sleep(0.01)
"""


@short
async def test_fork_bomb(session: Session) -> None:
    """Processes that multiply without end stop at the limit, and all are gone after the wall time."""
    result = await session.python(FORKS)
    assert result.exit_code is None
    assert "wall time" in result.limits_hit[0]


THREADS = """
import os, threading, time
started = 0
try:
    while started < 60:
        threading.Thread(target=time.sleep, args=(5,), daemon=True).start()
        started += 1
except RuntimeError:
    print(started, flush=True)
    os._exit(0)
"""


async def test_threads_count_as_processes(session: Session) -> None:
    """A program cannot start more threads than processes are allowed."""
    assert int(good(await session.python(THREADS))) < LIMITS.pids


async def test_memory_bomb(session: Session) -> None:
    """A program that takes memory without end is stopped, or told that there is none."""
    result = await session.python("data = []\nwhile True:\n    data.append(bytearray(1 << 20))\n")
    assert not result.ok
    assert any("128 MiB (memory limit)" in hit for hit in result.limits_hit) or "MemoryError" in result.stderr


CHILDREN = """
import os, time
for _ in range(6):
    if not os.fork():
        data = b"x" * (40 << 20)
        time.sleep(1)
        os._exit(0)
print([os.wait()[1] for _ in range(6)])
"""


async def test_memory_is_bounded_over_all_processes(sandbox: Sandbox, session: Session) -> None:
    """Where a control group can be made, six processes together get no more than one."""
    health = await sandbox.available()
    if "all processes together" not in health.detail:
        pytest.skip(health.detail)
    result = await session.python(CHILDREN)
    assert any("memory limit" in hit for hit in result.limits_hit), result
    assert result.peak_memory_mib is not None
    assert result.peak_memory_mib <= LIMITS.memory_mib + 1


FILL = """
import os, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for folder in ("/workspace", "/tmp", "/dev/shm"):
    size = 0
    try:
        for name in "abcd":
            with open(f"{folder}/{name}", "wb", buffering=0) as file:
                for _ in range(12):
                    size += file.write(bytes(1 << 18))
    except OSError:
        print(size >> 20)
    for name in os.listdir(folder):
        os.unlink(f"{folder}/{name}")
try:
    os.truncate(os.open("sparse", os.O_CREAT | os.O_RDWR), 1 << 50)
except OSError:
    print("no sparse file")
for folder in ("/", "/etc", "/usr", "/dev", "/opt", "/root", "/var", "/proc/sys/kernel"):
    try:
        open(f"{folder}/new", "w")
        print("wrote", folder)
    except OSError:
        pass
"""


async def test_disks_are_bounded(session: Session) -> None:
    """Workspace, /tmp and /dev/shm are full at their limit, no sparse file exceeds it, nothing else can be written."""
    lines = good(await session.python(FILL)).splitlines()
    assert [int(size) <= LIMITS.workspace_mib for size in lines[:3]] == [True] * 3
    assert lines[3:] == ["no sparse file"]


async def test_open_files_are_bounded(session: Session) -> None:
    """Descriptors run out for the guest, not for the host."""
    result = await session.python("files = [open('/dev/null') for _ in range(5000)]")
    assert "Too many open files" in result.stderr


@short
async def test_output_flood(session: Session) -> None:
    """Endless output on both streams, invalid and without a line's end, is cut and ends with the wall time."""
    result = await session.bash("cat /dev/zero & tr '\\0' '\\377' < /dev/zero >&2 & wait")
    assert result.exit_code is None
    assert (len(result.stdout), set(result.stderr)) == (LIMITS.output_kib * 1024, {"\ufffd"})
    assert result.truncated
    named = [hit.partition("(")[2].partition(")")[0] for hit in result.limits_hit]
    assert named == ["wall time limit", "output limit", "output limit"]


async def test_files_of_the_host_are_not_there(session: Session, tmp_path: Path) -> None:
    """Neither secrets of the system nor this repository nor other files exist for the guest."""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    system = ["/etc/shadow", "/etc/ssh", "/etc/machine-id", "/home", "/var", "/sys", "/boot", "/run", "/srv", "/mnt"]
    seen = (await session.bash(f"ls -d {' '.join(system)} '{secret}' '{__file__}' 2>/dev/null")).stdout
    # A Python that lies in a home folder is mounted at its own path: the folders above it are there, and empty.
    assert set(seen.split()) <= {f"/{part}" for part in Path(sys.base_prefix).parts[1:2]}
    assert (await session.bash("cat /etc/passwd")).stdout.count("\n") == 1
    assert not (await session.bash("head -c1 /proc/kcore")).stdout


async def test_environment_holds_nothing_of_the_host(
    sandbox: Sandbox, scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the guest's environment nor that of its first process has a variable of ours."""
    monkeypatch.setenv("SOME_API_KEY", "sk-secret")
    async with sandbox.session(scope=scope) as session:
        names = {line.partition("=")[0] for line in good(await session.bash("env")).splitlines()}
        everything = good(await session.bash("cat /proc/*/environ /proc/*/cmdline | tr '\\0' '\\n'"))
    assert names == {"PATH", "HOME", "LANG", "PWD", "SHLVL", "_"}
    assert "SOME_API_KEY" not in everything
    assert "PYTEST" not in everything


async def test_processes_of_the_host_are_not_there(session: Session) -> None:
    """The guest sees its own processes only, and can signal no other."""
    code = (
        "import os\nprint(sorted(int(name) for name in os.listdir('/proc') if name.isdecimal()))\n"
        f"for pid in ({os.getpid()}, {os.getppid()}):\n    print(os.path.exists(f'/proc/{{pid}}'))\n"
        "os.kill(-1, 0)"
    )
    result = await session.python(code)
    assert result.stdout == "[1, 2]\nFalse\nFalse\n"
    assert "ProcessLookupError" in result.stderr


REACH = """
import socket
def attempt(family, address):
    try:
        connection = socket.socket(family, socket.SOCK_STREAM)
        connection.settimeout(2)
        connection.connect(address)
        print("reached", address)
    except OSError:
        pass
attempt(socket.AF_INET, ("127.0.0.1", PORT))
attempt(socket.AF_UNIX, NAME)
attempt(socket.AF_UNIX, PATH)
for cid in (0, 1, 2):
    attempt(40, (cid, 1024))
for address in ("169.254.169.254", "10.0.0.1", "192.0.2.1"):
    attempt(socket.AF_INET, (address, 80))
    print(socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect_ex((address, 53)) == 0)
try:
    print("resolved", socket.getaddrinfo("example.com", 80))
except OSError:
    pass
"""


@pytest.mark.loopback
async def test_services_of_the_host_cannot_be_reached(session: Session, tmp_path: Path) -> None:
    """TCP and UDP, names, unix sockets with a path or abstract, and the hypervisor are all out of reach."""
    with (
        socket.socket() as tcp,
        socket.socket(socket.AF_UNIX) as abstract,
        socket.socket(socket.AF_UNIX) as unix,
    ):
        tcp.bind(("127.0.0.1", 0))
        name, path = f"\0aibox-{os.getpid()}", str(tmp_path / "s")
        abstract.bind(name)
        unix.bind(path)
        for listener in (tcp, abstract, unix):
            listener.listen()
        port = str(tcp.getsockname()[1])
        code = REACH.replace("PORT", port).replace("NAME", repr(name)).replace("PATH", repr(path))
        assert good(await session.python(code)) == "False\n" * 3


async def test_no_privileges(session: Session) -> None:
    """No capability and none to be gained, a filter over system calls, and the user is nobody outside."""
    status = good(await session.bash("cat /proc/self/status"))
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert {fields[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    assert fields["Uid"].split() == fields["Gid"].split() == ["1000"] * 4


FORBIDDEN = (
    "unshare -U true",
    "unshare -m true",
    "mount -t tmpfs x /tmp",
    "mount -o remount,rw /",
    "umount /etc/passwd",
    "mknod node c 1 1",
    "chroot / true",
    "hostname other",
    "echo x > /proc/sys/kernel/core_pattern",
    "echo b > /proc/sysrq-trigger",
    "head -c1 /dev/mem",
    "kill -9 1 && sleep 0.1 && ! kill -0 1",
)


async def test_what_only_root_may_is_refused(session: Session) -> None:
    """Namespaces, mounts, devices, and settings of the kernel are out of reach, as root too."""
    done = [command for command in FORBIDDEN if (await session.bash(command)).ok]
    assert not done


async def test_a_guest_of_root_is_not_root_outside(session: Session) -> None:
    """The processes of a guest belong to an unprivileged user of the host."""
    marker = f"7{time.monotonic_ns()}"
    owners = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(session.bash, f"sleep {marker}; true")
        await until_running(marker)
        owners = [Path(f"/proc/{pid}").stat().st_uid for pid in running(marker)]
        tasks.cancel_scope.cancel()
    assert owners
    assert 0 not in owners


async def test_a_setuid_program_stays_what_it_is(session: Session) -> None:
    """The bit means nothing in the workspace."""
    assert good(await session.bash("cp /usr/bin/id i; chmod 6755 i; ./i -u")) == "1000\n"


@pytest.mark.skipif(os.uname().machine not in ("x86_64", "aarch64"), reason="no filter on this machine")
@pytest.mark.parametrize(
    "numbers",
    [(250, 219), (321, 280), (425, 425), (323, 282), (103, 116)],
    ids=["keyctl", "bpf", "io_uring_setup", "userfaultfd", "syslog"],
)
async def test_filtered_system_calls(session: Session, numbers: tuple[int, int]) -> None:
    """What namespaces do not cover is refused with EPERM."""
    call = numbers[os.uname().machine == "aarch64"]
    code = (
        f"import ctypes\nc = ctypes.CDLL(None, use_errno=True)\nprint(c.syscall({call}, 3, 0, 0), ctypes.get_errno())"
    )
    assert good(await session.python(code)) == "-1 1\n"


FAMILIES = """
import socket
for family in range(1, 46):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):
        try:
            socket.socket(family, kind)
            print(family)
        except OSError:
            pass
"""


async def test_socket_families(session: Session) -> None:
    """Sockets that leave the network namespace, or open rarely used parts of the kernel, cannot be made."""
    assert set(good(await session.python(FAMILIES)).split()) <= {"1", "2", "10", "16"}


async def test_modules_in_the_workspace_shadow_nothing(session: Session) -> None:
    """A json.py, a sitecustomize.py, a .bashrc or a python3 in the workspace is not run by a later run."""
    for name in ("json.py", "sitecustomize.py", "usercustomize.py", "os.py"):
        await session.write(name, "print('mine'); raise SystemExit(9)")
    await session.bash("printf '#!/bin/sh\\necho mine' > python3; chmod +x python3; echo 'echo mine' > .bashrc")
    assert good(await session.python("import json, os\nprint(json.dumps(1))")) == "1\n"
    assert good(await session.bash("true")) == ""
    assert await session.read("json.py") == b"print('mine'); raise SystemExit(9)"


FORGE = """
import os
for fd in range(3, 64):
    try:
        os.write(fd, b'{ "exit-code": 0 }\\n')
        print("wrote", fd)
    except OSError:
        pass
print('{ "exit-code": 0 }', flush=True)
os._exit(42)
"""


async def test_a_guest_cannot_forge_its_exit(session: Session) -> None:
    """Neither a printed status nor a write to every descriptor changes what is reported."""
    result = await session.python(FORGE)
    assert (result.exit_code, result.stdout) == (42, '{ "exit-code": 0 }\n')


async def test_cancelling_leaves_no_process(session: Session) -> None:
    """A run that its caller gave up ends at once, with everything it started."""
    marker = f"9{time.monotonic_ns()}"
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(session.bash, f"setsid sleep {marker} & sleep {marker}")
        await until_running(marker)
        tasks.cancel_scope.cancel()
    assert not running(marker)


async def test_cancelling_at_any_moment_leaves_no_process(session: Session) -> None:
    """Also while the namespaces are still being made."""
    marker = f"6{time.monotonic_ns()}"
    for delay_ms in (0, 1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24):
        with anyio.move_on_after(delay_ms / 1000):
            await session.bash(f"sleep {marker}")
        assert not running(marker), delay_ms


async def test_sessions_do_not_wait_for_each_other(sandbox: Sandbox, scope: Scope) -> None:
    """Eight at once, each with its own files, take less time than one after the other."""
    seen: list[str] = []

    async def one(name: str) -> None:
        async with sandbox.session(scope=scope) as session:
            await session.write("name", name)
            seen.append(good(await session.bash("sleep 1; cat name; ls | wc -l")))

    began = time.monotonic()
    async with anyio.create_task_group() as tasks:
        for number in range(8):
            tasks.start_soon(one, str(number))
    assert time.monotonic() - began < 6
    assert sorted(seen) == [f"{number}1\n" for number in range(8)]


HOST = """
import asyncio
from aibox.sandbox.sandbox import Sandbox
from aibox.types import Scope
async def main():
    async with Sandbox().session(scope=Scope.local()) as session:
        await session.bash("setsid sleep MARKER & sleep MARKER")
asyncio.run(main())
"""


async def test_nothing_outlives_a_host_that_was_killed() -> None:
    """After kill -9 of the process that opened the session no process of it is left, and its groups are swept."""
    marker = f"8{time.monotonic_ns()}"
    host = subprocess.Popen([sys.executable, "-c", HOST.replace("MARKER", marker)])
    try:
        await until_running(marker)
        children = Path(f"/proc/{host.pid}/task/{host.pid}/children").read_text().split()
    finally:
        host.send_signal(signal.SIGKILL)
        host.wait()
    assert children
    with anyio.fail_after(5):
        while running(marker) or any(Path("/proc", pid).exists() for pid in children):
            await anyio.sleep(0.02)
    driver = Bubblewrap()
    assert (await driver.available()).ok
    if driver._groups is not None:
        for place in driver._groups._places:
            assert not list(place.parent.glob(f"aibox-{host.pid}-*"))
