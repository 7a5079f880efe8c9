"""The supervisor without its protection: a process among others, which takes in the orphans of what it started."""

from __future__ import annotations

from aibox.sandbox.guest.processes import prctl
from aibox.sandbox.guest.supervisor import Supervisor

SET_CHILD_SUBREAPER = 36  # linux/prctl.h


class UnsafeSupervisor(Supervisor):
    """Serves as the one inside does, and protects nobody from the code that it runs."""

    def _protected(self) -> bool:
        return prctl(SET_CHILD_SUBREAPER, 1) == 0


def main() -> None:
    UnsafeSupervisor().serve()
