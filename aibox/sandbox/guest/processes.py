"""The processes inside, as their first one sees them: counted, bounded and ended."""

from __future__ import annotations

import posix
import resource
import sys
import time
from posix import _exit

KILL, STOP, CONTINUE, INTERRUPT = 9, 19, 18, 2
SET_DUMPABLE, GET_DUMPABLE, CAPABILITY_DROP = 4, 3, 24  # linux/prctl.h
_SWEEP_S = 3


def prctl(option: int, value: int) -> int:
    import _ctypes  # half a millisecond the first time, which who asks for nothing does without

    call = _ctypes.dlsym(_ctypes.dlopen(None, posix.RTLD_NOW), "prctl")  # type: ignore[arg-type]  # None: what is loaded
    return int(_ctypes.call_function(call, (option, value, 0, 0, 0)))


def part(uid: int) -> None:
    """From root: act as another user, whose processes can still not touch this one. For them no capability is left."""
    for capability in range(64):
        prctl(CAPABILITY_DROP, capability)
    posix.setgroups([])
    posix.setresgid(uid, uid, uid)
    posix.setresuid(0, uid, 0)


def limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def surroundings(values: dict[str, str]) -> None:
    """Put an environment in place of the one that there was, also for an `os` that is imported later."""
    for old in posix.environ:
        posix.unsetenv(old)
    posix.environ.clear()
    for name, value in values.items():
        posix.putenv(name, value)
        posix.environ[name.encode()] = value.encode()
    if loaded := sys.modules.get("os"):
        loaded.environ.clear()
        loaded.environ.update(values)


def sweep(*, keep: int) -> None:
    """End every process inside but this one and `keep`, which is stopped.

    All are stopped before the first is killed: what is stopped cannot fork, and keeps its place below the limit on
    processes, so that even a fork bomb runs out of room. Raises OSError when some do not end within 3 s.
    """
    until = time.monotonic() + _SWEEP_S
    while True:
        seen: set[int] = set()
        while new := others(keep) - seen:
            for pid in new:
                signal_one(pid, STOP)
            seen |= new
        if not seen:
            return
        for pid in seen:
            signal_one(pid, KILL)
        reap(keep)
        if all(dead(pid) for pid in others(keep)):
            return
        if time.monotonic() > until:
            _exit(1)  # rather end everything than let something go on unseen
        time.sleep(0.001)


def settle(pid: int) -> bool:
    """Stop a child and wait until it has stopped, or has died: True then, and it is buried.

    A kill that was sent before takes its time to arrive, and so does the end of the last thread. One whose first thread
    has left the others will never answer again: it is killed, and so is what does not stop within 3 s.
    """
    signal_one(pid, STOP)
    until = time.monotonic() + _SWEEP_S
    while posix.waitpid(pid, posix.WNOHANG)[0] == 0:
        letter, _, threads = state(pid)
        if letter in (b"T", b"t"):  # the latter where somebody outside looks at it with a debugger
            return False
        if (letter == b"Z" and threads > 1) or time.monotonic() > until:
            signal_one(pid, KILL)
        time.sleep(0.00005)
    return True


def others(keep: int) -> set[int]:
    me = posix.getpid()
    # Process 1 of a namespace sees its own and no other; anybody else is one of many, and has what it started.
    return (everybody() if me == 1 else below(me)) - {me, keep}


def everybody() -> set[int]:
    return {int(name) for name in posix.listdir("/proc") if name.isdecimal()}


def below(pid: int) -> set[int]:
    """What a process has started, and what that has; orphans too, where it takes them in: PR_SET_CHILD_SUBREAPER."""
    parents = {one: state(one)[1] for one in everybody()}
    found: set[int] = set()
    while new := {one for one, parent in parents.items() if parent.isdigit() and int(parent) in found | {pid}} - found:
        found |= new
    return found


def dead(pid: int) -> bool:
    """Gone to its last thread, or waiting for a parent that is stopped to let go of it; ours to let go of is not."""
    letter, parent, threads = state(pid)
    return letter in (b"Z", b"X") and parent != b"%d" % posix.getpid() and threads < 2


def state(pid: int) -> tuple[bytes, bytes, int]:
    """The letter of its first thread, its parent and its number of threads, by proc(5); one that is gone has none."""
    try:
        descriptor = posix.open(f"/proc/{pid}/stat", posix.O_RDONLY)
    except OSError:
        return b"X", b"", 0
    try:
        fields = posix.read(descriptor, 4096).rpartition(b")")[2].split()
    except OSError:
        return b"X", b"", 0
    finally:
        posix.close(descriptor)
    return fields[0], fields[1], int(fields[17])


def signal_one(pid: int, number: int) -> None:
    try:
        posix.kill(pid, number)
    except ProcessLookupError:
        pass


def reap(keep: int) -> None:
    """Bury the dead, but leave the interpreter's own status to its run."""
    for pid in others(keep):
        try:
            posix.waitpid(pid, posix.WNOHANG)
        except ChildProcessError:
            pass  # a child of another; it becomes ours when that one is gone


def own_group() -> dict[str, int]:
    """What the kernel says of this guest's memory, where an engine mounts its control group; read-only, cgroups(7)."""
    facts: dict[str, int] = {}
    for peak, events in (
        ("/sys/fs/cgroup/memory.peak", "/sys/fs/cgroup/memory.events"),
        ("/sys/fs/cgroup/memory/memory.max_usage_in_bytes", "/sys/fs/cgroup/memory/memory.oom_control"),
    ):
        try:
            with open(peak) as file:
                facts["peak"] = int(file.read())
            with open(events) as file:
                facts["oom"] = next(int(line.split()[1]) for line in file if line.startswith("oom_kill "))
        except (OSError, ValueError, StopIteration):
            continue
    return facts
