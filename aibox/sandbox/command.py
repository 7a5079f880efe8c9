"""The command line that makes one guest with bubblewrap: which files it sees, who it is, and what is its own."""

from __future__ import annotations

from typing import Final

from aibox.execution import Limits
from aibox.sandbox.paths import TERMINALS, WORKSPACE
from aibox.sandbox.program import ENVIRONMENT
from aibox.sandbox.runtime import HOLD, Runtime, chooses_user

_MIB = 1024 * 1024
_GUEST = "1000"
_TMP = "/tmp"  # noqa: S108  the guest's own
ETC: Final = {
    "passwd": b"user:x:1000:1000::/tmp:/bin/sh\n",
    "group": b"user:x:1000:\n",
    "hosts": b"127.0.0.1 localhost\n::1 localhost\n",
    "nsswitch.conf": b"passwd: files\ngroup: files\nhosts: files\n",
}

# Tried, not guessed: what the rest relies on, seen from inside. Prints a line for each that does not hold.
TRIAL: Final = """
import ctypes, os, time
status = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
if int(status["CapEff"], 16) or int(status["CapBnd"], 16):
    print("capabilities are left")
if ctypes.CDLL(None).prctl(39, 0, 0, 0, 0) != 1:  # PR_GET_NO_NEW_PRIVS; gVisor has no line for it in status
    print("privileges can be gained")
if {filtered} and status["Seccomp"] != "2":
    print("system calls are not filtered")
if [line.split(":")[0].strip() for line in open("/proc/net/dev").read().splitlines()[2:]] not in ([], ["lo"]):
    print("there is a network")
if len([name for name in os.listdir("/proc") if name.isdecimal()]) > 3:
    print("processes of the host are visible")
for name in ("fd/0", "fd/1", "mem"):
    try:
        os.open("/proc/1/" + name, os.O_RDWR if name == "mem" else os.O_WRONLY)
        print("the first process can be looked into")
    except OSError:
        pass
try:
    for _ in range(12):
        if not os.fork():
            time.sleep(9)
            os._exit(0)
    print("a limit on processes does not bind")
except BlockingIOError:
    pass
"""


def isolate(runtime: Runtime, limits: Limits, *, uid: int, etc: dict[str, int]) -> list[str]:
    """Into namespaces of its own; options for this one start and the guest's words follow.

    `uid` is the guest's user on the host, when that is root's choice; `etc` are descriptors of files to put into /etc.
    """
    outer: list[str] = []
    if runtime.mounts:
        # What only root can reach is laid where that user can, in a mount namespace that ends with the guest.
        outer += [runtime.bwrap_on_host, "--die-with-parent", "--dev-bind", "/", "/", "--perms", "0755"]
        outer += ["--tmpfs", HOLD]
        for source, target in runtime.mounts:
            outer += ["--ro-bind", source, target]
        outer.append("--")
    if chooses_user():
        # Not root outside, whatever it is inside: a process limit does not bind root, and /proc/sys is root's.
        outer += [runtime.setpriv, "--reuid", str(uid), "--regid", str(uid), "--clear-groups", "--"]
    own = "--unshare-all --unshare-user --disable-userns --as-pid-1 --die-with-parent --new-session --cap-drop ALL"
    guest = ["--clearenv", "--uid", _GUEST, "--gid", _GUEST, "--hostname", "sandbox"]
    view = [*runtime.view, "--proc", "/proc", "--dev", "/dev"]
    # No terminals: they are counted for the whole machine, and one guest could take them all.
    view += ["--tmpfs", TERMINALS, "--remount-ro", TERMINALS]
    for folder in ("/dev/shm", _TMP, WORKSPACE):  # noqa: S108  the guest's own
        view += ["--size", str(limits.workspace_mib * _MIB), "--tmpfs", folder]
    for name, descriptor in etc.items():
        view += ["--perms", "0444", "--file", str(descriptor), f"/etc/{name}"]
    view += ["--chdir", WORKSPACE, "--remount-ro", "/dev", "--remount-ro", "/"]
    for name, value in ENVIRONMENT.items():
        view += ["--setenv", name, value]
    return [*outer, runtime.bwrap, *own.split(), *guest, *view]
