"""Who is at work on a run, as the kernel knows it: a lock on a file, which ends with the process however that ends.

So what a killed process left behind is known at once, and not only when its time is over. It holds for the processes of
one machine; where there is no folder (a database of many machines, memory) nothing is known here.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from aibox.errors import StoreError

_TRIES = 50
"""A millisecond apart: somebody who looks holds a lock for a moment, somebody at work for long."""


class Alive:
    """The locks of one process."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._held: dict[str, int] = {}

    def hold(self, run: str) -> None:
        """This process works on the run from now on. Raises StoreError where that cannot be written down."""
        if self._folder is None or run in self._held:
            return
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            held = os.open(self._folder / run, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(f"who works on a run cannot be kept in {self._folder}: {error.strerror}") from None
        for _ in range(_TRIES):
            if _locked(held):
                self._held[run] = held
                return
            time.sleep(0.001)
        os.close(held)  # one whose time is over hangs on to it; the database has given the run to this one

    def let_go(self, run: str) -> None:
        """The run is over or waits, and the database says so already."""
        held = self._held.pop(run, None)
        if held is not None and self._folder is not None:
            (self._folder / run).unlink(missing_ok=True)
            os.close(held)

    def gone(self, run: str) -> bool:
        """Whether the process that worked on the run is no more. False where that is not known."""
        if self._folder is None or run in self._held:
            return False
        try:
            looked = os.open(self._folder / run, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            return _locked(looked)
        finally:
            os.close(looked)

    def close(self) -> None:
        """Let go of all; what was under way is found as left behind."""
        for held in self._held.values():
            os.close(held)
        self._held.clear()


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
