"""One backend as the Router sees it: what it is doing for us, what it says of itself, and whether it is let alone.

A circuit opens when a backend fails, keeps traffic away, and lets one trial call through after a good check.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from enum import Enum

from aibox.chat import Health
from aibox.errors import BackendError
from aibox.inference.fair import FairQueue
from aibox.protocols import Backend

CHECK_S = 2.0
"""Between two checks of a backend that has others beside it, and how long a circuit stays open at first."""
MAX_OPEN_S = 30.0
MAX_COOLING_S = 60.0
CHECK_TIMEOUT_S = 5.0
REFUSALS = 3
"""Answers of 5xx in a row that open the circuit; a connection that fails opens it at once."""
FULL_CACHE = 0.9
OPEN_RANK = 2
CALLS_AT_ONCE = 256
"""Of a backend that does not say itself: as many as a vLLM server works on together. More wait here, in turns."""


class Circuit(Enum):
    CLOSED = "closed"
    HALF_OPEN = "half-open"
    OPEN = "open"


class Replica:
    """A backend with its circuit and its load. Belongs to one Router; `clock` counts seconds, monotonic."""

    def __init__(
        self,
        backend: Backend,
        *,
        check_s: float = CHECK_S,
        calls_at_once: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.backend = backend
        self.name = backend.name
        self.seed = int.from_bytes(hashlib.blake2b(backend.name.encode(), digest_size=8).digest())
        self.outstanding = 0
        self.wanted = 0
        """Calls that have found it, from before they begin until they have an answer or their first word."""
        self.queue = FairQueue(calls_at_once or int(getattr(backend, "calls_at_once", CALLS_AT_ONCE)))
        self.circuit = Circuit.CLOSED
        self.why = ""
        """Of an open circuit, in words."""
        self._check_s = check_s
        self._clock = clock
        self._open_s = check_s
        self._opened = 0.0
        self._cooling_until = 0.0
        self._refused = 0
        self._trial = False
        self._waiting = 0
        self._cache_used = 0.0
        self._checked = -1e9

    @property
    def load(self) -> float:
        """Requests that stand before the next one, our own and those that the server has waiting from others."""
        pressure = max(0.0, self._cache_used - FULL_CACHE) / (1 - FULL_CACHE)
        return self.outstanding + self._waiting + pressure * (1 + self.outstanding)

    @property
    def idle(self) -> bool:
        """Whether nobody uses it, or is about to."""
        return not self.outstanding and not self.wanted

    @property
    def rank(self) -> int:
        """The lowest comes first. 0: take it; 1: cooling, or busy with its trial; 2: only when nothing else is left."""
        if self.circuit is Circuit.OPEN:
            return OPEN_RANK
        return int(self._trial or self._clock() < self._cooling_until)

    def call(self) -> _Call:
        """Around one call, its stream included: counts it, and learns from how it ends."""
        return _Call(self)

    def begun(self) -> bool:
        """A call begins; whether it is the trial of a circuit that is half open."""
        trial = self.circuit is Circuit.HALF_OPEN
        self._trial = self._trial or trial
        self.outstanding += 1
        return trial

    def ended(self, error: BaseException | None, *, trial: bool) -> None:
        """It has ended. An error that is not the backend's says nothing about it."""
        self.outstanding -= 1
        if trial:
            self._trial = False
        if error is None:
            self._worked()
        elif isinstance(error, BackendError):
            self._failed(error)

    def due(self) -> bool:
        """Whether it is time to ask the backend how it is; then `check` is to be called."""
        now = self._clock()
        if now < (self._opened + self._open_s if self.circuit is Circuit.OPEN else self._checked + self._check_s):
            return False
        self._checked = now
        return True

    async def health(self) -> Health:
        """What the backend says of itself, within `CHECK_TIMEOUT_S`: one that says nothing is not well."""
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                return await self.backend.health()
        except TimeoutError:
            return Health(ok=False, detail=f"no answer to a check within {CHECK_TIMEOUT_S:g} s")

    async def check(self) -> None:
        """Ask the backend how it is. A good answer half-opens an open circuit, a bad one opens it. Never raises."""
        health = await self.health()
        self._waiting, self._cache_used = health.waiting, health.cache_used
        if not health.ok:
            self._open(health.detail)
        elif self.circuit is Circuit.OPEN:
            self.circuit, self.why = Circuit.HALF_OPEN, ""

    def _failed(self, error: BackendError) -> None:
        if not error.retryable:
            return
        if error.status == 429 or (error.status == 503 and error.retry_after_s is not None):
            # It lives and has too much to do: let it rest as long as it asks for.
            self._cooling_until = self._clock() + min(error.retry_after_s or 1.0, MAX_COOLING_S)
            return
        self._refused += 1
        if error.status is None or self._refused >= REFUSALS or self.circuit is not Circuit.CLOSED:
            self._open(error.message)

    def _worked(self) -> None:
        self._refused = 0
        if self.circuit is not Circuit.CLOSED:
            self.circuit, self.why, self._open_s = Circuit.CLOSED, "", self._check_s

    def _open(self, why: str) -> None:
        # Each time that it fails again it is left alone for longer.
        self._open_s = self._check_s if self.circuit is Circuit.CLOSED else min(2 * self._open_s, MAX_OPEN_S)
        self.circuit, self.why, self._opened = Circuit.OPEN, why, self._clock()

    def __repr__(self) -> str:
        return f"Replica({self.name}: {self.circuit.value}, {self.outstanding} outstanding)"


class _Call:
    # A class: a generator as a context costs three times as much, for every call.
    __slots__ = ("_replica", "_trial")

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._trial = False

    def __enter__(self) -> None:
        self._trial = self._replica.begun()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._replica.ended(error, trial=self._trial)
