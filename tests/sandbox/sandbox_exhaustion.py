"""What hostile code tries to use up or to bend for all: counts of the whole machine, races at a run's end, clocks."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from sandbox_abuses import LIMITS, good

from aibox.execution import Limits
from aibox.sandbox.session import Session

PYTHON = "python3 -I -S -c"

TERMINALS = """
import os
kept = []
for name in ("/dev/ptmx", "/dev/pts/ptmx"):
    try:
        while True:
            kept.append(os.open(name, os.O_RDWR | os.O_NOCTTY))
    except OSError:
        pass
len(kept)
"""
WATCHES = """
import ctypes
c = ctypes.CDLL(None, use_errno=True)
watchers = [c.inotify_init1(0) for _ in range(500)]
contexts = []
for _ in range(500):
    context = ctypes.c_ulong(0)
    contexts.append(c.syscall(206 if __import__("os").uname().machine == "x86_64" else 0, 64, ctypes.byref(context)))
max(watchers + contexts)
"""
SYSTEM_V = """
import ctypes, os
c = ctypes.CDLL(None, use_errno=True)
made = []
for name, arguments in (("shmget", (0, 1 << 20, 0o1600)), ("semget", (0, 9, 0o1600)), ("msgget", (0, 0o1600))):
    made += [name for _ in range(99) if getattr(c, name)(*arguments) >= 0]
for number in range(99):
    if c.mq_open(f"/q{number}".encode(), os.O_CREAT | os.O_RDWR, 0o600, None) >= 0:
        made.append("mq_open")
made
"""
PASSED = """
import array, os, socket
def flood(channel, many):
    sent = 0
    for _ in range(many):
        files = [os.open("/dev/null", os.O_RDONLY) for _ in range(50)]
        try:
            channel.sendmsg([b"x" * 40], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))], 64)
            sent += 50
        except OSError:
            pass
        for file in files:
            os.close(file)
    return sent
for number in range(3, 64):  # the line to the first process is one of them
    try:
        flood(socket.socket(fileno=os.dup(number)), 200)
    except OSError:
        pass
held = 0
for _ in range(50):  # each holds itself: nobody else can close it
    a, b = socket.socketpair()
    held += flood(a, 20)
    try:
        a.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [a.fileno(), b.fileno()]))])
    except OSError:
        pass
    a.close(), b.close()
held
"""
CLOCKS = """
import ctypes, os, time
c = ctypes.CDLL(None, use_errno=True)
x86 = os.uname().machine == "x86_64"
room = (ctypes.c_long * 64)(0x8000)  # a struct timex that asks for a step of the time
room_of_time = (ctypes.c_long * 2)(1, 0)
done = []
for clock in (0, 1, 7):
    done.append(c.clock_settime(clock, room_of_time))
done.append(c.settimeofday(room_of_time, None))
done.append(c.syscall(159 if x86 else 171, room))
done.append(c.syscall(305 if x86 else 266, 0, room))
for path in ("/dev/rtc", "/dev/rtc0", "/proc/self/timens_offsets"):
    try:
        os.write(os.open(path, os.O_WRONLY), b"monotonic 86400 0")
        done.append(path)
    except OSError:
        pass
print(sorted(set(done), key=str), time.time())
"""
KERNEL = """
import os
SECRET = ("kcore", "kmsg", "keys", "timer_list", "sched_debug", "slabinfo", "vmallocinfo", "kpageflags", "kpagecount",
          "latency_stats", "pagetypeinfo", "sysrq-trigger", "1/mem", "1/maps", "1/stack", "1/syscall", "1/io")
for name in (*(f"/proc/{name}" for name in SECRET), "/sys/firmware/acpi", "/sys/kernel/debug", "/sys/kernel/tracing",
             "/sys/fs/pstore", "/dev/mem", "/dev/port", "/dev/kmsg", "/boot", "/lib/modules"):
    try:
        if os.path.isdir(name):
            found = os.listdir(name)
        else:
            with open(name, "rb") as file:
                found = file.read(64)
        if found:
            print("read", name, found)
    except OSError:
        pass
OWN = ("msg", "shm", "sem", "auto_msgmni", "queues_max", "ns_last_pid", "pid_max")  # of the guest's namespaces alone
for top in ("/proc/sys", "/sys"):
    for folder, _, names in os.walk(top):
        for name in names:
            if name.startswith(OWN):
                continue
            try:
                os.close(os.open(os.path.join(folder, name), os.O_WRONLY))
                print("can write", folder, name)
            except OSError:
                pass
for line in open("/proc/kallsyms", errors="replace").readlines()[:50] if os.path.exists("/proc/kallsyms") else ():
    if int(line.split()[0], 16):
        print("an address of the kernel", line)
"""
KILLS_ITS_PARENT = """
import os, time
me, pause = os.getpid(), {pause}
if not os.fork():
    time.sleep(pause)
    os.kill(me, 9)
    os._exit(0)
x = {number}
time.sleep(pause)
"""
LEAVES_ITS_FIRST_THREAD = """
import ctypes, os, threading, time
def work():
    while True:
        with open("tick", "a") as file:
            file.write("x")
        time.sleep(0.002)
threading.Thread(target=work).start()
time.sleep(0.05)
ctypes.CDLL(None).syscall(60 if os.uname().machine == "x86_64" else 93, 0)
"""
ORPHANS = """
import os, time
for _ in range(8):
    if not os.fork():
        os.setsid()
        if not os.fork():
            os._exit(0)
        os._exit(0)
time.sleep(0.05)
"""
FAR = """
import socket
for address in ("fd00:ec2::254", "fe80::1%lo", "2001:4860:4860::8888", "::ffff:169.254.169.254"):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET6, kind) as probe:
            probe.settimeout(2)
            try:
                probe.connect((address, 80))
                print("reached", address)
            except OSError:
                pass
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as shout:
    shout.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    for address in ("255.255.255.255", "224.0.0.251"):
        try:
            shout.sendto(b"x", (address, 5353))
            print("sent to", address)
        except OSError:
            pass
"""


def counted(path: str) -> int:
    """What this machine's kernel says of all its processes, of which there are others."""
    return int(Path(path).read_text().split()[0])


class Exhaustion:
    """Beside `Abuses`, whose fixtures it uses."""

    pytestmark = pytest.mark.anyio

    async def test_terminals_of_the_machine_are_not_used_up(self, session: Session) -> None:
        """They are counted for the whole machine: a guest gets none."""
        before = counted("/proc/sys/kernel/pty/nr")
        assert (await session.python(TERMINALS)).value == "0"
        assert counted("/proc/sys/kernel/pty/nr") < before + 100

    async def test_watches_and_contexts_of_the_machine_are_not_used_up(self, session: Session) -> None:
        """inotify, which the kernel counts by user, and asynchronous I/O, which it counts for all, are refused."""
        before = counted("/proc/sys/fs/aio-nr")
        assert (await session.python(WATCHES)).value == "-1"
        assert counted("/proc/sys/fs/aio-nr") < before + 500 * 64

    async def test_memory_that_belongs_to_no_process(self, session: Session) -> None:
        """System V shared memory, semaphores and messages, and POSIX queues, cannot be made."""
        result = await session.python(SYSTEM_V)
        assert result.value == "[]", result

    async def test_descriptors_in_flight(self, session: Session) -> None:
        """Files passed over sockets, to the first process and in rings that hold themselves, use up nothing."""
        opened = counted("/proc/sys/fs/file-nr")
        result = await session.python(PASSED)
        assert result.exit_code is not None, result
        assert (await session.python("1 + 1")).value == "2"
        assert (await session.bash("echo fine; ls /proc/self/fd | wc -l")).stdout.split()[0] == "fine"
        assert counted("/proc/sys/fs/file-nr") < opened + LIMITS.pids * 1024

    async def test_clocks_stay_as_they_are(self, session: Session) -> None:
        """No clock can be set, stepped or shifted."""
        printed = good(await session.python(CLOCKS))
        assert printed.startswith("[-1] ")
        assert abs(float(printed.split()[-1]) - time.time()) < 60

    async def test_the_kernel_tells_and_takes_nothing(self, session: Session) -> None:
        """Its logs, keys, memory and addresses cannot be read, and none of its settings written, whatever its name."""
        # An ordinary user's guest is that user, and the kernel names a user's own keyrings to it.
        code = KERNEL if os.geteuid() == 0 else KERNEL.replace('"keys", ', "")
        assert good(await session.python(code)) == ""

    async def test_orphans_that_ended_are_let_go_of(self, session: Session) -> None:
        """Dead processes do not fill the places of later ones."""
        for _ in range(4):
            assert (await session.python(ORPHANS)).ok
            assert (await session.bash("for i in 1 2 3 4 5; do (true) & done; wait; echo fine")).stdout == "fine\n"

    async def test_a_call_that_loses_the_interpreter_says_so_itself(self, session: Session) -> None:
        """Killed by its own child as it ends, or just before: the call says it, and the next never finds out first."""
        for number in range(16):
            killed = await session.python(
                KILLS_ITS_PARENT.format(pause=(0, 0.0005, 0.002, 0.004)[number % 4], number=number)
            )
            after = await session.python("x if 'x' in globals() else 'gone'")
            assert not after.state_lost, (killed, after)
            assert after.value == ("'gone'" if killed.state_lost else str(number)), (killed, after)
        for _ in range(8):
            await session.python("x = 1")
            killed = await session.bash("kill -9 -1")
            assert not (await session.python("1 + 1")).state_lost, killed

    @pytest.mark.parametrize("limits", [LIMITS & Limits(wall_s=4)])
    async def test_a_process_that_left_its_first_thread_is_not_taken_for_dead(self, session: Session) -> None:
        """It looks ended and goes on: it ends with the run, and so does an interpreter that does so."""
        await session.write("leave.py", LEAVES_ITS_FIRST_THREAD)
        until = "while [ ! -s tick ]; do sleep 0.02; done; sleep 0.1"
        await session.bash(f"{PYTHON} 'exec(open(\"leave.py\").read())' & {until}")
        before = await session.read("tick")
        assert before
        await session.bash("sleep 0.2")
        assert await session.read("tick") == before
        assert (await session.python(LEAVES_ITS_FIRST_THREAD)).state_lost
        before = await session.read("tick")
        assert (await session.python("import time; time.sleep(0.2); 1 + 1")).value == "2"
        assert await session.read("tick") == before

    async def test_no_address_answers(self, session: Session) -> None:
        """Neither IPv6, where a cloud tells secrets, nor link-local, broadcast or multicast."""
        assert good(await session.python(FAR)) == ""
        assert os.uname().sysname == "Linux"
