"""Bounds on memory, number and processor time of all processes of one guest together, by control groups (v1 or v2).

Only where this process may make such groups: at the nearest place in each hierarchy, from our own group upward.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio

_PREFIX = "aibox-"
_CONTROLLERS = ("memory", "pids", "cpu")
# The supervisor and the interpreter, and up to two of bubblewrap; limits of the kernel's count the guest's own exactly.
_OUR_PIDS = 4
_PERIOD_US = 100_000


@dataclass(frozen=True, slots=True)
class Place:
    """Where groups can be made in one hierarchy, and which controllers they have there."""

    parent: Path
    unified: bool
    controllers: tuple[str, ...]
    own: Path
    """Our own group."""


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
            found = [Place(parent, unified, _usable(parent, wanted, unified=unified), start) for parent in parents]
            if not unified and not os.access(start / "tasks", os.W_OK):
                continue  # there would be no way back
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
            group.remove()
            raise
        return group


class ControlGroup:
    """One guest's group. Its methods write to the kernel and may take some milliseconds."""

    def __init__(self, folders: Sequence[tuple[Place, Path]]) -> None:
        self._folders = {name: (folder, place.unified) for place, folder in folders for name in place.controllers}
        self._apart = [(folder, place.own) for place, folder in folders if not place.unified]
        self.late = {folder for place, folder in folders if place.unified}

    def make(self, *, memory_mib: int, pids: int, cpus: float) -> None:
        size = str(memory_mib * 1024 * 1024)
        for name, (folder, unified) in self._folders.items():
            folder.mkdir(exist_ok=True)  # one folder may have both controllers
            if name == "pids":
                (folder / "pids.max").write_text(str(pids + _OUR_PIDS))
            elif name == "cpu" and unified:
                (folder / "cpu.max").write_text(f"{round(cpus * _PERIOD_US)} {_PERIOD_US}")
            elif name == "cpu":
                (folder / "cpu.cfs_quota_us").write_text(str(round(cpus * _PERIOD_US)))
            elif unified:
                (folder / "memory.max").write_text(size)
                _write_if_there(folder / "memory.swap.max", "0")
            else:
                (folder / "memory.limit_in_bytes").write_text(size)
                _write_if_there(folder / "memory.memsw.limit_in_bytes", size)

    @contextmanager
    def joined(self) -> Iterator[None]:
        """What the calling thread starts meanwhile is in the group from the beginning: in v1, where one thread can be.

        A thread that moves itself waits for nobody. For any other move the kernel waits until each processor has come
        by, which takes it milliseconds, and holds up every fork of the machine.
        """
        try:
            for folder, _ in self._apart:
                (folder / "tasks").write_text("0")
            yield
        finally:
            for _, own in self._apart:
                (own / "tasks").write_text("0")

    def add(self, pid: int) -> None:
        """Take in a process where `joined` cannot: in v2. What it starts from now on is in the group as well."""
        for folder in self.late:
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

    async def close(self) -> None:
        """Remove it. The kernel may let go of the last process a moment after it was reaped."""
        for pause_s in (0.001, 0.005, 0.02, 0.1):
            if self.remove():
                return
            await anyio.sleep(pause_s)
        self.remove()  # what stays is swept at the next start

    def remove(self) -> bool:
        """Whether it is gone, where nothing is in it any more."""
        gone = [_remove(folder) for folder in {folder for folder, _ in self._folders.values()}]
        return all(gone)


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


def _remove(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError as error:
        return isinstance(error, FileNotFoundError)  # else it is still busy
    return True


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
