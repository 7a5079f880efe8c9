"""Versions of container runtimes that code is known to have escaped from, and what to do about it.

A distribution may have put the repair into an older version: its package revisions stand in BACKPORTS, with what was
read in that package's changelog. What is on neither list counts as its version says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Escape:
    """A hole in `component`, repaired in each branch from the version given (branches in ascending order)."""

    cve: str
    component: str
    repaired: tuple[tuple[int, int, int], ...]
    what: str


NO_REPAIR: Final = (1 << 30, 0, 0)
"""In place of a version: none was known to repair it when this was written, so it is there until it is accepted."""

TOOLKIT: Final = "nvidia-container-toolkit"
"""What gives a container its GPUs; it counts for sessions that have some, and for no others."""

ESCAPES: Final = (
    Escape("CVE-2019-5736", "runc", ((1, 0, 0),), "a container overwrites the runtime's program"),
    Escape("CVE-2024-21626", "runc", ((1, 1, 12),), "a leaked descriptor leads to the host's files"),
    Escape("CVE-2025-31133", "runc", ((1, 2, 8), (1, 3, 3), (1, 4, 0)), "masked paths can be redirected"),
    Escape("CVE-2025-52565", "runc", ((1, 2, 8), (1, 3, 3), (1, 4, 0)), "/dev/console can be redirected"),
    Escape("CVE-2025-52881", "runc", ((1, 2, 8), (1, 3, 3), (1, 4, 0)), "writes to /proc can be redirected"),
    Escape("CVE-2020-15257", "containerd", ((1, 3, 9), (1, 4, 3)), "the shim's socket can be reached"),
    Escape("CVE-2022-23648", "containerd", ((1, 4, 13), (1, 5, 10), (1, 6, 1)), "an image can read the host's files"),
    Escape("CVE-2024-0132", "nvidia-container-toolkit", ((1, 16, 2),), "a race mounts the host's files"),
    Escape("CVE-2025-23359", "nvidia-container-toolkit", ((1, 17, 4),), "the repair of CVE-2024-0132 is passed by"),
    Escape("CVE-2025-23266", "nvidia-container-toolkit", ((1, 17, 8),), "an image's environment runs code as root"),
    Escape("CVE-2026-24260", "nvidia-container-toolkit", (NO_REPAIR,), "a race while a container is made"),
)

BACKPORTS: Final[Mapping[str, tuple[str, ...]]] = {
    # Debian 12, changelog of runc: repairs CVE-2024-21626; nothing is said there of those of 2025.
    "1.1.5+ds1-1+deb12u1": ("CVE-2024-21626",),
}


@dataclass(frozen=True, slots=True)
class UnsafeRuntime:
    """An operator's word that these holes are accepted, each named. It is recorded with every session."""

    cves: tuple[str, ...]


def holes(component: str, version: str, revision: str = "") -> list[Escape]:
    """What is known of a component's version. A version that cannot be read has every hole of its component.

    `revision` is what the engine says it was built from; distributions put their package revision there.
    """
    known = [escape for escape in ESCAPES if escape.component == component]
    backported = BACKPORTS.get(revision, BACKPORTS.get(version, ()))
    numbers = re.match(r"v?(\d+)\.(\d+)\.(\d+)(?:-(rc|alpha|beta)[.-]?(\d*))?", version)
    if numbers is None:
        return known
    have = (int(numbers[1]), int(numbers[2]), int(numbers[3]))
    early = numbers[4] is not None  # a release candidate comes before what it is a candidate for
    return [
        escape for escape in known if escape.cve not in backported and not _repaired(have, escape.repaired, early=early)
    ]


def _repaired(have: tuple[int, int, int], branches: tuple[tuple[int, int, int], ...], *, early: bool) -> bool:
    for branch in branches:
        if have[:2] == branch[:2]:
            return have > branch or (have == branch and not early)
    return have > branches[-1]
