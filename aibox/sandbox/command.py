"""The command lines that make a session and a run: which files a guest sees, who it is, and what it may use."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from aibox.execution import Limits
from aibox.sandbox.paths import WORKSPACE
from aibox.sandbox.runtime import EMPTY, HOLD, Runtime

PYTHON: Final = ("/opt/aibox/bin/python3", "-I", "-S", "-B", "-c")
"""For programs of our own: nothing but the standard library, whatever lies in the workspace."""

NOBODY: Final = 65534

_MIB = 1024 * 1024
_GUEST = "1000"
_TMP = "/tmp"  # noqa: S108  the guest's own
_FOLDER = f"{HOLD}{WORKSPACE}"
_ETC = {
    "passwd": "user:x:1000:1000::/tmp:/bin/sh\\n",
    "group": "user:x:1000:\\n",
    "hosts": "127.0.0.1 localhost\\n::1 localhost\\n",
    "nsswitch.conf": "passwd: files\\ngroup: files\\nhosts: files\\n",
}

# Tried, not guessed: what the rest relies on, seen from inside. Prints a line for each that does not hold.
TRIAL: Final = """
import os, time
status = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
if int(status["CapEff"], 16) or int(status["CapBnd"], 16):
    print("capabilities are left")
if status["NoNewPrivs"] != "1":
    print("privileges can be gained")
if {filtered} and status["Seccomp"] != "2":
    print("system calls are not filtered")
if [line.split(":")[0].strip() for line in open("/proc/net/dev").read().splitlines()[2:]] not in ([], ["lo"]):
    print("there is a network")
if len([name for name in os.listdir("/proc") if name.isdecimal()]) > 3:
    print("processes of the host are visible")
try:
    for _ in range(12):
        if not os.fork():
            time.sleep(9)
            os._exit(0)
    print("a limit on processes does not bind")
except BlockingIOError:
    pass
"""


def chooses_user() -> bool:
    """Whether guests can run as another user: as root, where the user namespace that this runs in has another."""
    return os.geteuid() == 0 and is_mapped(NOBODY)


def is_mapped(uid: int) -> bool:
    """Whether the user namespace that this process runs in knows the user. user_namespaces(7)."""
    rows = [[int(word) for word in line.split()] for line in Path("/proc/self/uid_map").read_text("ascii").splitlines()]
    return any(first <= uid < first + count for first, _, count in rows)


def session(runtime: Runtime, limits: Limits) -> list[str]:
    """Makes the mounts of a session, says the pid that holds them, and waits until its stdin is closed."""
    command = [runtime.bwrap_on_host]
    if not chooses_user():
        command += ["--unshare-user", "--uid", "0", "--gid", "0"]
    command += ["--die-with-parent", "--dev-bind", "/", "/", "--perms", "0755", "--tmpfs", HOLD]
    command += ["--perms", "0777", "--size", str(limits.workspace_mib * _MIB), "--tmpfs", _FOLDER]
    for source, target in runtime.mounts:
        command += ["--ro-bind", source, target]
    files = [f"printf '{text}' > {HOLD}/etc/{name}" for name, text in _ETC.items()]
    steps = ["umask 022", f"mkdir {EMPTY} {HOLD}/etc", *files, 'echo "$$"', "exec cat"]
    return [*command, "--", "/bin/sh", "-c", " && ".join(steps)]


def enter(runtime: Runtime, limits: Limits, *, holder: int, uid: int) -> list[str]:
    """Into the mounts that `holder` holds, and from there into namespaces of the run's own; the guest's words follow.

    `uid` is the guest's user on the host, when that is root's choice.
    """
    target = ["--target", str(holder), "--mount"]
    if chooses_user():
        # Not root outside, whatever it is inside: a process limit does not bind root, and /proc/sys is root's.
        identity = ["--reuid", str(uid), "--regid", str(uid), "--clear-groups"]
        inner = [runtime.nsenter, *target, runtime.setpriv, *identity]
    else:
        inner = [runtime.nsenter, *target, "--user", "--preserve-credentials"]
    size = str(limits.workspace_mib * _MIB)
    isolate = "--unshare-all --unshare-user --disable-userns --die-with-parent --new-session --cap-drop ALL --clearenv"
    guest = ["--uid", _GUEST, "--gid", _GUEST, "--hostname", "sandbox"]
    environment = {"PATH": "/opt/aibox/bin:/usr/local/bin:/usr/bin:/bin", "HOME": _TMP, "LANG": "C.UTF-8"}
    view = ["--proc", "/proc", "--dev", "/dev", "--size", size, "--tmpfs", "/dev/shm", "--size", size, "--tmpfs", _TMP]  # noqa: S108  the guest's own
    view += runtime.view
    for name in _ETC:
        view += ["--ro-bind", f"{HOLD}/etc/{name}", f"/etc/{name}"]
    view += ["--bind", _FOLDER, WORKSPACE, "--chdir", WORKSPACE, "--remount-ro", "/dev", "--remount-ro", "/"]
    for name, value in environment.items():
        view += ["--setenv", name, value]
    return [*inner, runtime.bwrap, *isolate.split(), *guest, *view]


def limited(argv: Sequence[str], limits: Limits, *, per_process: bool) -> list[str]:
    """Limits that the kernel keeps per process or per namespace, set by the guest's first command.

    Only there does the count of processes begin with this run, the last user namespace having been made.
    """
    import resource  # only systems that get this far have it

    def at_most(kind: int, wanted: int) -> int:
        hard = resource.getrlimit(kind)[1]
        return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)

    pids = at_most(resource.RLIMIT_NPROC, limits.pids)
    steps = [
        "umask 022",
        "ulimit -c 0",
        f"ulimit -n {at_most(resource.RLIMIT_NOFILE, 1024)}",
        f"ulimit -f {at_most(resource.RLIMIT_FSIZE, limits.workspace_mib * _MIB) // 512}",
    ]
    if per_process:
        steps.append(f"ulimit -v {at_most(resource.RLIMIT_AS, limits.memory_mib * _MIB) // 1024}")
    # dash calls it -p, which to bash is something else that cannot be set.
    steps += [f"{{ ulimit -u {pids} 2>/dev/null || ulimit -p {pids}; }}", 'exec "$@"']
    return ["/bin/sh", "-c", " && ".join(steps), "sh", *argv]
