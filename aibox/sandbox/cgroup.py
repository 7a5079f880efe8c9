"""Bounds on memory, number and processor time of all processes of one guest together, by control groups (v1 or v2).

Only where this process may make such groups: at the nearest place in each hierarchy, from our own group upward.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_PREFIX = "aibox-"
_CONTROLLERS = ("memory", "pids", "cpu")
# The supervisor and the interpreter.
_OUR_PIDS = 2
_PERIOD_US = 100_000


@dataclass(frozen=True, slots=True)
class Place:
    """Where groups can be made in one hierarchy, and which controllers they have there."""

    parent: Path
    unified: bool
    controllers: tuple[str, ...]


class ControlGroups:
    """Makes a group for each guest, one in every place."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = tuple(places)
        self.bounds = frozenset(name for place in places for name in place.controllers)
        """What is bounded by it: `memory`, `pids`, `cpu`."""

    @classmethod
    def find(cls) -> ControlGroups | None:
        """In each hierarchy the nearest place, from our own group upward, where a group can be made and filled."""
        places: list[Place] = []
        for start, top, unified, controllers in _hierarchies():
            taken = {name for place in places for name in place.controllers}
            wanted = tuple(name for name in controllers if name not in taken)
            parents = [parent for parent in (start, *start.parents) if parent.is_relative_to(top)]
            found = [Place(parent, unified, _usable(parent, wanted, unified=unified)) for parent in parents]
            best = max(found, key=lambda place: len(place.controllers), default=None)  # of equals the nearest
            if best is not None and best.controllers:
                places.append(best)
        groups = cls(places) if places else None
        if groups is not None:
            groups.sweep()
        return groups

    def sweep(self) -> None:
        """Remove empty groups of processes that are gone."""
        for place in self._places:
            for folder in place.parent.glob(f"{_PREFIX}*"):
                owner = folder.name.removeprefix(_PREFIX).partition("-")[0]
                if owner.isdecimal() and not Path("/proc", owner).exists():
                    _remove(folder)

    def new(self, *, memory_mib: int, pids: int, cpus: float) -> ControlGroup:
        """An empty group. Swap counts as memory; `pids` is the guest's, to which the isolation adds its own.

        Raises OSError.
        """
        name = f"{_PREFIX}{os.getpid()}-{secrets.token_hex(8)}"
        group = ControlGroup([(place, place.parent / name) for place in self._places])
        try:
            group.make(memory_mib=memory_mib, pids=pids, cpus=cpus)
        except OSError:
            group.close()
            raise
        return group


class ControlGroup:
    """One guest's group. Its methods write to the kernel and may take some milliseconds."""

    def __init__(self, folders: Sequence[tuple[Place, Path]]) -> None:
        self._folders = {name: (folder, place.unified) for place, folder in folders for name in place.controllers}

    def make(self, *, memory_mib: int, pids: int, cpus: float) -> None:
        size = str(memory_mib * 1024 * 1024)
        for name, (folder, unified) in self._folders.items():
            folder.mkdir(exist_ok=True)  # one folder may have both controllers
            if name == "pids":
                (folder / "pids.max").write_text(str(pids + _OUR_PIDS))
            elif name == "cpu" and unified:
                (folder / "cpu.max").write_text(f"{round(cpus * _PERIOD_US)} {_PERIOD_US}")
            elif name == "cpu":
                (folder / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
                (folder / "cpu.cfs_quota_us").write_text(str(round(cpus * _PERIOD_US)))
            elif unified:
                (folder / "memory.max").write_text(size)
                _write_if_there(folder / "memory.swap.max", "0")
            else:
                (folder / "memory.limit_in_bytes").write_text(size)
                _write_if_there(folder / "memory.memsw.limit_in_bytes", size)

    def add(self, pid: int) -> None:
        """Take in a process; what it starts from now on is in the group as well."""
        for folder in {folder for folder, _ in self._folders.values()}:
            (folder / "cgroup.procs").write_text(str(pid))

    def peak_mib(self) -> float | None:
        """The most memory in use at one time; None without a bound on it, or where the kernel does not say."""
        if "memory" not in self._folders:
            return None
        folder, unified = self._folders["memory"]
        file = folder / ("memory.peak" if unified else "memory.max_usage_in_bytes")  # v2 before Linux 5.19 has none
        return int(file.read_text()) / 1024 / 1024 if file.exists() else None

    def killed(self) -> int:
        """How many processes the kernel ended because the bound on memory was reached."""
        if "memory" not in self._folders:
            return 0
        folder, unified = self._folders["memory"]
        lines = (folder / ("memory.events" if unified else "memory.oom_control")).read_text().splitlines()
        counts = dict(line.split() for line in lines)
        return int(counts.get("oom_kill", 0))

    def close(self) -> None:
        for folder in {folder for folder, _ in self._folders.values()}:
            _remove(folder)


def _usable(parent: Path, controllers: Sequence[str], *, unified: bool) -> tuple[str, ...]:
    """Which of the controllers a group below `parent` would have for us."""
    probe = parent / f"{_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
    try:
        probe.mkdir()
    except OSError:
        return ()
    try:
        # Moving a process needs the right to do so in every group between; ordinary users have it when delegated.
        if not all(os.access(folder / "cgroup.procs", os.W_OK) for folder in (probe, parent)):
            return ()
        return tuple(name for name in controllers if os.access(probe / _limit_file(name, unified=unified), os.W_OK))
    finally:
        probe.rmdir()


def _limit_file(controller: str, *, unified: bool) -> str:
    if controller == "pids":
        return "pids.max"
    if controller == "cpu":
        return "cpu.max" if unified else "cpu.cfs_quota_us"
    return "memory.max" if unified else "memory.limit_in_bytes"


def _remove(folder: Path) -> None:
    # The kernel lets go of the last process a moment after it was reaped.
    for pause_s in (0.001, 0.005, 0.02, 0.1, 0.0):
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            # Still busy; what stays after the last try is swept at the next start.
            time.sleep(pause_s)
        else:
            return


def _write_if_there(file: Path, text: str) -> None:
    """Swap accounting is a choice of the kernel's build; without swap there is no file and nothing to bound."""
    if file.exists():
        file.write_text(text)


def _hierarchies() -> list[tuple[Path, Path, bool, tuple[str, ...]]]:
    """(our own group, the mount point, v2?, controllers) of each mounted hierarchy. cgroups(7), proc(5)."""
    try:
        own = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text("utf-8").splitlines()]
        mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text("utf-8").splitlines()]
    except OSError:
        return []
    found = []
    for mount in mounts:
        root, top = mount[3], Path(mount[4])
        kind, _, options = mount[mount.index("-") + 1 :][:3]
        unified = kind == "cgroup2"
        controllers = tuple(name for name in _CONTROLLERS if unified or name in options.split(","))
        if not controllers or kind not in ("cgroup", "cgroup2"):
            continue
        for _, names, path in own:
            ours = not names if unified else controllers[0] in names.split(",")
            if ours and path.startswith(root):
                found.append((top / path[len(root) :].lstrip("/"), top, unified, controllers))
    return found
