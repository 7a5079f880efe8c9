"""The program that runs as the first process of a guest, as a command line that needs no file inside."""

from __future__ import annotations

import marshal
import sys
from functools import cache
from importlib import resources

from aibox.execution import Limits
from aibox.sandbox.paths import WORKSPACE

_AT_ONCE = ("line", "interpreter", "processes", "run", "supervisor")
_AT_NEED = ("files",)
_PACKAGE = "aibox.sandbox.guest"
SILENCE_S = 60
"""Who is told nothing for so long leaves: an engine that was killed forgets the guest, and its line stays open."""
# Byte code where the interpreter inside is this one, which saves half of the time to start; source everywhere else.
_BOOT = f"""
import marshal, posix, select, sys
def take(size):
    data = b""
    while len(data) < size:
        select.select([0], [], [], {SILENCE_S})[0] or sys.exit()
        data += posix.read(0, size - len(data)) or sys.exit()
    return data
version, first, parts = marshal.loads(take(int.from_bytes(take(4), "big")))
same = version == sys.version
exec(marshal.loads(first[0]) if same else first[1])
"""
_FIRST = f"""
def load(name):
    if name not in parts:
        raise AttributeError(name)
    code, source = parts[name]
    module = type(sys)("{_PACKAGE}." + name)
    sys.modules[module.__name__] = module
    exec(marshal.loads(code) if same else compile(source, module.__name__, "exec"), module.__dict__)
    setattr(package, name, module)
    return module
for name in ("aibox", "aibox.sandbox", "{_PACKAGE}"):
    package = sys.modules[name] = type(sys)(name)
package.__getattr__ = load
for name in {_AT_ONCE!r}:
    module = load(name)
module.main()
"""
COMMAND = ("python3", "-I", "-S", "-B", "-c", _BOOT)
"""`-I -S`: nothing but the standard library, whatever lies in the workspace. The program itself comes over the line."""

PACKAGES = (
    "/opt/aibox/packages",
    "/usr/local/lib/python{version}/site-packages",
    "/usr/lib/python3/dist-packages",
)
"""Where the interpreter inside looks for packages besides its standard library, where they are there."""

ENVIRONMENT = {"PATH": "/opt/aibox/bin:/usr/local/bin:/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8"}  # noqa: S108

OPEN_FILES = 1024
INODES_A_MIB = 256
"""Files and folders that a workspace may have for each MiB of it, and /tmp as many."""


@cache
def body(*, same: bool = False) -> bytes:
    """What COMMAND reads before anything else: its length in four bytes, and the program.

    `same` where the interpreter inside is known to be this one, so that the source need not travel.
    """
    folder = resources.files(_PACKAGE)
    first = _part(_FIRST, "boot", same=same)
    parts = {
        name: _part(folder.joinpath(f"{name}.py").read_text("utf-8"), name, same=same)
        for name in (*_AT_ONCE, *_AT_NEED)
    }
    data = marshal.dumps((sys.version, first, parts), 2)
    return len(data).to_bytes(4, "big") + data


def _part(source: str, name: str, *, same: bool) -> tuple[bytes, str]:
    # Its flag holds here as well, and so for what is compiled; to run it inside would take longer than most modules do.
    code = compile(source.replace("from __future__ import annotations", ""), f"{_PACKAGE}.{name}", "exec", optimize=2)
    return marshal.dumps(code), "" if same else source


def greeting(
    limits: Limits, *, count_processes: bool, per_process_memory: bool, count_files: bool, uid: int = 0
) -> bytes:
    """The first frame: what the supervisor is to enforce itself, before anything of the guest has run.

    `count_processes` where the kernel counts the guest's processes by its user, that no other session has;
    `count_files` where nothing else bounds their number; `uid` where the supervisor is root and the guest is not.
    """
    return marshal.dumps(
        {
            "top": WORKSPACE,
            "uid": uid,
            "pids": limits.pids if count_processes else 0,
            "files": OPEN_FILES,
            "file_bytes": limits.workspace_mib * 1024 * 1024,
            "address_bytes": limits.memory_mib * 1024 * 1024 if per_process_memory else 0,
            "inodes": limits.workspace_mib * INODES_A_MIB if count_files else 0,
            "folders": (WORKSPACE, "/tmp", "/dev/shm") if count_files else (),  # noqa: S108  the guest's own
            "output": limits.output_kib * 1024,
            "env": ENVIRONMENT,
            "packages": PACKAGES,
        },
        2,
    )
