"""The thread that writes: it takes what has come, writes it in one transaction, then tells everybody who waits.

The queue is bounded. What is noted waits a little for somebody who waits; what is awaited is written at once.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from aibox.audit import orphans
from aibox.audit.ledger import Ledger
from aibox.audit.receipt import Receipt
from aibox.audit.receipts import make_receipt
from aibox.audit.record import TERMINAL, Parts, write_parts
from aibox.audit.retention import Sweeper
from aibox.audit.store import Conflict
from aibox.errors import AIBoxError, ConfigError, IntegrityError, LimitError, StoreError
from aibox.types import Entry, Scope

BATCH = 1024
LINGER_S = 0.05
QUEUE = 65_536
OPEN_TURNS = 10_000
"""Turns whose entries are remembered until they are sealed; of more than that the oldest are forgotten, unsealed."""
TRIES = 20


@dataclass(slots=True)
class Job:
    """What somebody wants written: a body that was made where it came from; neither body nor end: all before it.

    `waiter` None: nobody waits. An `ending` is the two parts of the detail of a turn's last entry, whose body lists the
    others, and `proofs` asks for a receipt.
    """

    kind: str
    scope: Scope
    turn: str
    parts: Parts | None = None
    ending: tuple[dict[str, Any], dict[str, Any]] | None = None
    proofs: bool = True
    waiter: asyncio.Future[Any] | None = None


@dataclass(slots=True)
class Call:
    """An operator's act: runs alone, in a transaction of its own unless it says otherwise."""

    act: Callable[[Ledger], Any]
    done: Future[Any]
    own_transaction: bool = False


@dataclass(frozen=True, slots=True)
class _Sealed:
    """A turn whose entries are written; its receipt waits for the end of the transaction's entries."""

    tenant: str
    turn: str
    seqs: list[int]


class Sequencer:
    """Owns the ledger. Raises what opening it raises."""

    def __init__(self, ledger: Ledger, sweeper: Sweeper) -> None:
        self._ledger = ledger
        self._sweeper = sweeper
        self._queue: deque[Job | Call | None] = deque()
        # Locked: nobody has rung since the last look. A lock costs half of what an event does, twice for each commit.
        self._bell = threading.Lock()
        self._bell.acquire()
        self._taken: list[Job | Call | None] = []
        self._naps = False
        self._busy = False
        self._turns: OrderedDict[tuple[str, str], list[tuple[int, str, Job, int]]] = OrderedDict()
        self._broken: set[tuple[str, str]] = set()
        self._orphans: dict[tuple[str, str], tuple[orphans.Listed, int]] | None = None
        self.failed: AIBoxError | None = None
        self._dead: AIBoxError | None = None
        self.thread = threading.Thread(target=self._work, name="aibox-audit", daemon=True)
        self.thread.start()

    @property
    def full(self) -> bool:
        return len(self._queue) >= QUEUE

    def put(self, job: Job | Call | None) -> None:
        self._queue.append(job)
        # Behind the append: a thread that stops napping looks at the queue once more.
        noted = isinstance(job, Job) and job.waiter is None
        if not (noted and self._naps) and self._bell.locked():
            with suppress(RuntimeError):  # somebody else has rung between the look and the release
                self._bell.release()
        if self._dead is not None:
            self._turn_away(self._dead)

    def _work(self) -> None:
        try:
            self._run()
        except BaseException as error:
            # A bug of ours. Whoever waits must hear of it, and nobody may go on without evidence.
            message = f"the writer of the evidence has stopped: {type(error).__name__}: {error}"
            self.failed = self._dead = StoreError(message, hint="open the log again; what was acknowledged is there")
            self._queue.extendleft(reversed(self._taken))
            self._turn_away(self._dead)
            raise

    def _turn_away(self, error: AIBoxError) -> None:
        """Refuse all that waits; nothing is written any more."""
        while True:
            try:
                job = self._queue.popleft()
            except IndexError:
                return
            if isinstance(job, Call):
                if not job.done.done():
                    job.done.set_exception(error)
            elif job is not None:
                self._refuse([job], error)

    def _run(self) -> None:
        while True:
            batch, call, last = self._take()
            self._taken = [*batch, call]
            if batch:
                self._write(batch)
            if call is not None:
                self._call(call)
            if not batch and call is None:
                self._anchor()
            if self._sweeper.due and not last:
                self._sweeper.step(self._ledger)
            if self._ledger.scrub_due:
                self._scrub()
            if last:
                self._anchor(now=True)
                self._ledger.store.close()
                return

    def _take(self) -> tuple[list[Job], Call | None, bool]:
        """What is to be written together; all empty when nothing has come for a second."""
        batch: list[Job] = []
        awaited = False
        deadline = 0.0
        quiet_until = time.monotonic() + 1.0
        while len(batch) < BATCH:
            try:
                job = self._queue.popleft()
            except IndexError:
                if awaited:
                    break
                # While there is work what is noted wakes nobody: it is found when a nap is over.
                self._naps = bool(batch) or self._busy
                self._bell.acquire(blocking=False)
                if self._queue:  # something came between the look and the taking
                    continue
                until = deadline if batch else quiet_until
                left_s = until - time.monotonic()
                nap_s = max(0.0, min(left_s, LINGER_S) if self._naps else left_s)
                if not self._bell.acquire(timeout=nap_s) and time.monotonic() >= until and not self._queue:
                    self._busy = bool(batch)
                    break
                continue
            self._busy = True
            if job is None:
                return batch, None, True
            if isinstance(job, Call):
                return batch, job, False
            if not batch:
                deadline = time.monotonic() + LINGER_S
            batch.append(job)
            awaited = awaited or job.waiter is not None
        return batch, None, False

    def _write(self, batch: list[Job]) -> None:
        for attempt in range(TRIES):
            try:
                with self._ledger.transaction():
                    # Whether a turn has ended before is asked the table of turns when it has refused one.
                    values = [self._apply(job, look=attempt > 0) for job in batch]
                    self._ledger.flush()
                    values = [self._receipt(value) if isinstance(value, _Sealed) else value for value in values]
            except Conflict:
                self._forget(batch)
                time.sleep(0.002 * attempt)
                continue
            except AIBoxError as error:
                self._forget(batch)
                self._refuse(batch, error)
                return
            except BaseException as error:
                self._refuse(batch, StoreError(f"evidence could not be written: {type(error).__name__}: {error}"))
                raise
            self.failed = None
            for job in batch:
                if job.ending is not None:
                    self._turns.pop((job.scope.tenant, job.turn), None)
            _tell(batch, values)
            return
        self._refuse(batch, StoreError("others write this log without a pause", retryable=True))

    def _forget(self, batch: list[Job]) -> None:
        """The transaction did not happen: what it added to open turns goes."""
        for job in reversed(batch):
            listed = self._turns.get((job.scope.tenant, job.turn), [])
            while listed and listed[-1][2] is job:
                listed.pop()

    def _refuse(self, batch: list[Job], error: AIBoxError) -> None:
        """Nothing of this batch was written: who waits is told; turns that lost an entry can never be sealed."""
        failure = error
        if not isinstance(error, StoreError | IntegrityError):
            failure = StoreError(f"evidence could not be written: {error.message}", hint=error.hint)
        for job in batch:
            if job.waiter is None:
                self.failed = failure
                if job.turn:
                    self._broken.add((job.scope.tenant, job.turn))
        _tell(batch, [failure] * len(batch))

    def _apply(self, job: Job, *, look: bool) -> Any:
        try:
            if job.parts is not None:
                entry = self._ledger.add_made(job.kind, job.parts, scope=job.scope)
                if job.turn:
                    self._list(job, entry)
                return entry
            return self._end(job, *job.ending, look=look) if job.ending is not None else None
        except ConfigError as error:
            if job.waiter is None:
                raise
            return error

    def _list(self, job: Job, entry: Entry) -> None:
        key = (job.scope.tenant, job.turn)
        listed = self._turns.get(key)
        if listed is None:
            listed = self._turns[key] = []
            while len(self._turns) > OPEN_TURNS:
                self._broken.add(self._turns.popitem(last=False)[0])
        listed.append((entry.seq, entry.leaf.hex(), job, entry.ts_us))

    def _end(self, job: Job, shown: dict[str, Any], kept: dict[str, Any], *, look: bool) -> Any:
        key = (job.scope.tenant, job.turn)
        if key in self._broken:
            return StoreError(f"an entry of turn {job.turn} could not be written; it cannot be sealed as a whole")
        head = self._ledger.head(job.scope.tenant)
        ended = look and self._ledger.store.turn(head.log, job.turn) is not None
        if ended or job.turn in head.turns:
            return ConfigError(f"the turn {job.turn} has been sealed already")
        listed = self._turns.get(key, ())
        shown["entries"] = [one[:2] for one in listed]
        parts = write_parts(job.kind, job.scope, job.turn, shown, kept)
        entry = self._ledger.add_made(job.kind, parts, scope=job.scope, flags=TERMINAL)
        head.turns[job.turn] = entry.seq
        if not job.proofs:
            return entry
        return _Sealed(job.scope.tenant, job.turn, [*(one[0] for one in listed), entry.seq])

    def _receipt(self, sealed: _Sealed) -> Receipt:
        """The proofs of a turn to one checkpoint over all that this transaction holds."""
        head = self._ledger.head(sealed.tenant)
        note = head.note if head.pointed_size == head.size and head.note else self._ledger.checkpoint(head)
        return make_receipt(self._ledger, head, sealed.turn, sealed.seqs, (head.size, note))

    def _call(self, call: Call) -> None:
        if not call.done.set_running_or_notify_cancel():
            return
        try:
            if call.own_transaction:
                value = call.act(self._ledger)
            else:
                with self._ledger.transaction():
                    value = call.act(self._ledger)
        except Conflict:
            call.done.set_exception(StoreError("others write this log without a pause", retryable=True))
        except Exception as error:  # noqa: BLE001 - handed to the caller, who waits for it on another thread
            call.done.set_exception(error)
        else:
            call.done.set_result(value)

    def _anchor(self, *, now: bool = False) -> None:
        """Nothing is going on: sign what no checkpoint speaks for, and raise the mark."""
        try:
            if tenants := self._ledger.unanchored:
                with self._ledger.transaction():
                    for tenant in tenants:
                        self._ledger.checkpoint(self._ledger.head(tenant))
            self._ledger.raise_mark(now=now)
            if not now:
                self._end_orphans()
        except Conflict:
            return  # the other writer anchors
        except AIBoxError as error:
            self.failed = error

    def _scrub(self) -> None:
        try:
            self._ledger.scrub()
        except AIBoxError as error:
            self.failed = error

    def _end_orphans(self) -> None:
        """Turns that have been silent for long, of this process and of those that died before it."""
        if self._orphans is None:
            self._orphans = {key: value for key, value in orphans.find(self._ledger).items() if key not in self._turns}
        before_us = time.time_ns() // 1000 - round(orphans.TURN_S * 1e6)
        if any(ts_us < before_us for _, ts_us in self._orphans.values()):
            # They may be another server's that is alive: when they were found they were under way.
            self._orphans = orphans.gone_on(self._ledger, self._orphans)
        silent: dict[tuple[str, str], Sequence[Sequence[Any]]] = {}
        silent |= {key: listed for key, (listed, ts_us) in self._orphans.items() if ts_us < before_us}
        silent |= {key: listed for key, listed in self._turns.items() if listed and listed[-1][3] < before_us}
        if not silent:
            return
        with self._ledger.transaction():
            for (tenant, turn), listed in silent.items():
                orphans.end(self._ledger, tenant, turn, listed)
        for key in silent:
            self._orphans.pop(key, None)
            self._turns.pop(key, None)


def refuse_when_full(sequencer: Sequencer) -> None:
    if sequencer.full:
        raise LimitError(
            f"{QUEUE} entries wait to be written", hint="the disk is slower than the work; do less at once"
        )


def _tell(batch: list[Job], values: list[Any]) -> None:
    """One call into each event loop, however many wait there."""
    loops: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
    for job, value in zip(batch, values, strict=True):
        if job.waiter is not None:
            loops.setdefault(job.waiter.get_loop(), []).append((job.waiter, value))
    for loop, waiting in loops.items():
        try:
            loop.call_soon_threadsafe(_settle, waiting)
        except RuntimeError:
            continue  # that loop is closed: nobody waits there any more


def _settle(waiting: list[tuple[asyncio.Future[Any], Any]]) -> None:
    for waiter, value in waiting:
        if waiter.done():
            continue  # cancelled
        if isinstance(value, AIBoxError):
            # Each its own object: a traceback grows on what is raised.
            waiter.set_exception(_again(value))
        else:
            waiter.set_result(value)


def _again(error: AIBoxError) -> AIBoxError:
    # By hand: classes of errors are made from different things, and a failure here would leave the others waiting.
    fresh = type(error).__new__(type(error), *error.args)
    fresh.__dict__.update(error.__dict__)
    return fresh
