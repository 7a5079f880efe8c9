"""People who ask a server without a pause, each in a thread of its own, until the block is left."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self


@dataclass
class Callers:
    """`_call` is one of them, by number, until `over`."""

    url: str
    key: str
    answered: list[str] = field(default_factory=list, init=False)
    """Correlation ids of what was answered with 200, and to the end."""
    refused: list[int] = field(default_factory=list, init=False)
    over: bool = field(default=False, init=False)

    number = 4
    back_s = 60.0
    """How long recovery may take on a busy machine. Nothing is started anew by us but what was killed."""
    ends_s = 90.0

    def __enter__(self) -> Self:
        self._threads = [threading.Thread(target=self._call, args=(n,)) for n in range(self.number)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over = True
        for thread in self._threads:
            thread.join(self.ends_s)
            assert not thread.is_alive(), f"{self.told()}: a caller was never answered"

    def _call(self, number: int) -> None:
        raise NotImplementedError

    def told(self) -> str:
        """What a failure should say of them."""
        raise NotImplementedError

    def goes_on(self, more: int = 10) -> None:
        """Wait until so many more are answered."""
        wanted = len(self.answered) + more
        self._until(lambda: len(self.answered) >= wanted, "nothing is answered any more")

    def is_refused(self, more: int = 10, *, since: int | None = None) -> None:
        """Wait until so many more are refused than now, or than `since` had been."""
        wanted = (len(self.refused) if since is None else since) + more
        self._until(lambda: len(self.refused) >= wanted, "nobody is refused")

    def _until(self, holds: Callable[[], bool], otherwise: str) -> None:
        until = time.monotonic() + self.back_s
        while not holds():
            assert time.monotonic() < until, f"{self.told()}: {otherwise}"
            time.sleep(0.02)
