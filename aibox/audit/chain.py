"""The audit chain: one log a tenant, one writer thread, entries acknowledged when they are on the disk.

Several processes may write one store: each group of entries takes the head inside its own transaction, so there is one
history. What was noted is committed with whatever comes next, at the latest after the sequencer's linger.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from aibox.audit import bundle, holds, kinds, operations
from aibox.audit.highwater import HighWater
from aibox.audit.keys import Keyring
from aibox.audit.ledger import Ledger
from aibox.audit.receipt import Receipt, ReceiptEntry
from aibox.audit.receipts import entry_of, receipt_of
from aibox.audit.record import Row, make_parts, split
from aibox.audit.report import Report
from aibox.audit.retention import Retentions, Sweeper, by_age, by_policy, prune
from aibox.audit.sequencer import Call, Job, Sequencer, refuse_when_full
from aibox.audit.store import open_store
from aibox.audit.verify import default_mark, verify
from aibox.errors import AIBoxError, ConfigError, StoreError
from aibox.policy.retention import Retention
from aibox.protocols import Erasable, Watcher
from aibox.types import Entry, Scope

PAGE = 1024
_KIND = re.compile(r"[a-z]+(\.[a-z_]+)+")
_ENDS = ("turn.sealed", "turn.failed", "request.ended")
T = TypeVar("T")


class _Left:
    """What was recorded while somebody followed. A task that goes on behind it adds nothing more."""

    __slots__ = ("kinds", "over")

    def __init__(self) -> None:
        self.kinds: list[str] = []
        self.over = False

    def add(self, kind: str) -> None:
        if not self.over:
            self.kinds.append(kind)

    def take_back(self, kind: str) -> None:
        if not self.over:
            self.kinds.remove(kind)


# By context and not by the id of a request, which its sender chooses: two at once may have the same.
_LEFT: ContextVar[_Left | None] = ContextVar("left", default=None)


class AuditChain:
    """Keeps evidence. `url` is a file, made when it is first needed, or `postgresql://...`.

    `keys` is a Keyring or its folder; None is `keys` beside the file. `high_water` is where the high-water mark lies,
    best on another disk; None is in the keys' folder. `retention` is the policy's, `tenant_retention` what tenants ask
    for besides: bodies that are past the shorter one are removed by the chain itself, in rounds an hour apart. A
    Recorder. Raises ConfigError for other urls, StoreError when the store cannot be used, IntegrityError when it was
    put back or changed.
    """

    def __init__(
        self,
        url: str | Path,
        *,
        keys: Keyring | str | Path | None = None,
        high_water: str | Path | None = None,
        retention: Retention | None = None,
        tenant_retention: Mapping[str, Retention] | None = None,
    ) -> None:
        self.url = str(url)
        scheme, divider, _ = self.url.partition("://")
        server = bool(divider) and not self.url.startswith("sqlite:///")
        if server and scheme not in ("postgresql", "postgres"):
            raise ConfigError(f"no audit store for {scheme}:// in this version", hint="give a file, or postgresql://")
        if server and keys is None:
            raise ConfigError(
                "a log in a database server needs a folder for its keys", hint="AuditChain(url, keys=...)"
            )
        beside = Path(self.url.removeprefix("sqlite:///")).parent / "keys"
        self.keys = keys if isinstance(keys, Keyring) else Keyring(keys or beside)
        self.mark = HighWater(high_water) if high_water else default_mark(self.keys)
        self.retentions = Retentions(retention or Retention(), dict(tenant_retention or {}))
        self.watcher: Watcher | None = None
        """Who hears of the turns that are recorded here; traces are made so."""
        self._erasables: dict[str, Erasable] = {}
        self._lock = threading.Lock()
        self._sequencer: Sequencer | None = None
        self._closed = False

    def register(self, name: str, store: Erasable) -> None:
        """A store that holds something about people: an erasure takes it along."""
        self._erasables[name] = store

    def note(self, kind: str, *, scope: Scope, detail: Mapping[str, Any], turn: str = "") -> None:
        """Put an entry in order now; it is durable when the next `append` or `seal` of this tenant returns.

        Raises ConfigError for a bad detail, StoreError when something noted earlier could not be written, LimitError
        when too much waits.
        """
        sequencer = self._ready()
        if sequencer.failed is not None:
            failed = sequencer.failed
            raise StoreError(f"evidence could not be written: {failed.message}", hint=failed.hint)
        refuse_when_full(sequencer)
        sequencer.put(_job(kind, scope, turn, detail))
        if (left := _LEFT.get()) is not None:
            left.add(kind)

    async def append(self, kind: str, *, scope: Scope, detail: Mapping[str, Any], turn: str = "") -> Entry:
        """Durable when it returns. Raises StoreError, and then nothing was recorded; ConfigError for a bad detail."""
        entry: Entry = await self._wait(_job(kind, scope, turn, detail))
        return entry

    async def seal(self, turn: str, *, scope: Scope, detail: Mapping[str, Any], kind: str = "turn.sealed") -> Receipt:
        """End a turn: its terminal entry lists its entries, and is durable with them and a checkpoint in one commit.

        A turn ends once: raises ConfigError the second time, StoreError when an entry of it could not be written.
        """
        receipt: Receipt = await self._wait(_ending(kind, scope, turn, detail, proofs=True))
        return receipt

    async def end(self, turn: str, *, scope: Scope, detail: Mapping[str, Any], kind: str = "turn.sealed") -> Entry:
        """As `seal`, without the proofs, which cost as much as all else: `receipt(turn)` makes them when asked for."""
        entry: Entry = await self._wait(_ending(kind, scope, turn, detail, proofs=False))
        return entry

    @contextmanager
    def following(self) -> Iterator[Sequence[str]]:
        """The kinds of what is recorded inside, also by tasks and threads that begin there, until it is over."""
        left = _Left()
        before = _LEFT.set(left)
        try:
            yield left.kinds
        finally:
            _LEFT.reset(before)
            left.over = True

    async def entries(self, tenant: str, *, start: int = 0) -> AsyncIterator[ReceiptEntry]:
        """The entries of a tenant in order, what was noted included; without proofs. Those past retention are empty."""
        await self.flush()
        while page := await self._do(lambda ledger, at=start: _page(ledger, tenant, at)):  # type: ignore[misc]  # at
            for entry in page:
                yield entry
            start = page[-1].seq + 1

    async def size(self, tenant: str) -> int:
        """How many entries the log of a tenant has, what was noted included."""
        return await self._do(lambda ledger: _size(ledger, tenant))

    async def entries_of(self, tenant: str, kind: str) -> list[ReceiptEntry]:
        """Entries whose kind begins so (`egress.`), what was noted included: their open parts alone, without proofs.

        The database finds them, beside the writer: it reads the whole log, and hands on no more than these.
        """
        await self.flush()
        log = await self._do(lambda ledger: ledger.log(tenant))

        def read() -> list[ReceiptEntry]:
            with closing(open_store(self.url, read_only=True)) as store:
                rows = store.entries(log, kind=kind)
                return [ReceiptEntry(row.header, row.open or b"", row.sealed or b"", b"", ()) for row in rows]

        return await asyncio.to_thread(read)

    async def receipt(self, turn: str, *, scope: Scope) -> Receipt:
        """The receipt of a turn that was sealed. Raises ConfigError where there is none."""
        return await self._do(lambda ledger: receipt_of(ledger, scope.tenant, turn))

    async def checkpoint(self, tenant: str) -> str:
        """How far the log has come, signed: a note to keep elsewhere, and to hold the log against later."""
        await self.flush()
        return await self._do(lambda ledger: operations.checkpoint(ledger, tenant))

    async def export(self, tenant: str, path: str | Path) -> int:
        """Write a log to a file, JSON lines with a checkpoint beside them, or a ZIP with its own verifier (`.zip`).

        Up to a checkpoint that is signed for it; sealed parts stay sealed. Returns the number of entries. Raises
        ConfigError where there is no log of the tenant, or a file already.
        """
        note = await self.checkpoint(tenant)
        log = await self._do(lambda ledger: ledger.log(tenant))

        def write() -> int:
            with closing(open_store(self.url, read_only=True)) as store:
                name = store.log_named(log)
                assert name is not None
                return bundle.write(Path(path), store, name, note)

        return await asyncio.to_thread(write)

    async def consistency(self, tenant: str, old: int, new: int) -> tuple[bytes, ...]:
        """RFC 6962 sec. 2.1.2: that the log of `new` entries holds that of `old` unchanged."""
        return await self._do(lambda ledger: operations.consistency(ledger, tenant, old, new))

    async def rotate(self) -> str:
        """A new signing key; the old one signs the handing over and is destroyed. Returns the new public key."""
        return await self._do(operations.rotate, own_transaction=True)

    async def erase(self, *, scope: Scope, subject: str, reason: str) -> Receipt:
        """Destroy the key of `subject` in `scope.tenant`, and what registered stores hold of them.

        Returns a certificate: a receipt of the tombstone. Raises AccessError while a legal hold stands.
        """
        await self._do(lambda ledger: operations.may_erase(ledger, scope.tenant, subject))
        gone = {name: await store.erase(scope=scope, subject=subject) for name, store in self._erasables.items()}
        return await self._do(
            lambda ledger: operations.erase(ledger, scope, subject, reason=reason, stores=gone), own_transaction=True
        )

    async def may_empty(self, tenant: str) -> None:
        """Raises AccessError while a legal hold stands on the tenant or on anybody of it."""
        await self._do(lambda ledger: operations.may_erase(ledger, tenant, None))

    async def empty(self, *, scope: Scope) -> Entry:
        """Have registered stores forget all that they hold of `scope.tenant`; the log stays, and the entry is in it.

        Raises as `may_empty`, and StoreError; done again it takes what was left.
        """
        await self.may_empty(scope.tenant)
        gone = {name: await store.erase(scope=scope) for name, store in self._erasables.items()}
        return await self.append("tenant.emptied", scope=scope, detail={"stores": gone})

    async def hold(self, *, scope: Scope, subject: str | None = None, reason: str) -> Entry:
        """A legal hold on a person's entries, or on all of the tenant's: neither erased nor pruned until released."""
        return await self._do(lambda ledger: holds.hold(ledger, scope, subject, reason=reason))

    async def release(self, hold: int, *, scope: Scope, reason: str) -> Entry:
        """End the hold that was set by entry `hold`."""
        return await self._do(lambda ledger: holds.release(ledger, scope, hold, reason=reason))

    async def prune(self, *, scope: Scope, before_us: int | None = None, reason: str) -> int:
        """Remove bodies that are older, or None: past the policy's retention. Returns how many.

        Headers, proofs, acts on the log, turns under way and what a legal hold stands on stay.
        """
        now_us = time.time_ns() // 1000
        retention = self.retentions.of(scope.tenant)
        due = by_policy(retention, now_us) if before_us is None else by_age(before_us)
        rules = retention.bodies_days if before_us is None else {}
        count = await self._do(lambda ledger: prune(ledger, scope, due, reason=reason, rules=rules))
        await self._do(lambda ledger: ledger.scrub(), own_transaction=True)
        return count

    async def restore(self, *, scope: Scope, reason: str) -> Entry:
        """Go on with a log that was put back from a backup. Recorded; erasures made since are applied again."""
        return await self._do(lambda ledger: operations.restore(ledger, scope, reason=reason), own_transaction=True)

    async def flush(self) -> None:
        """Everything noted so far is durable when it returns. Raises StoreError when it could not be."""
        await self._wait(Job("", Scope.local(), ""))

    async def verify(self, tenant: str | None = None) -> Report:
        """Hold the whole log, or a tenant's, against itself, its keys and its mark. Raises IntegrityError."""
        self._ready()
        await self.flush()
        return await asyncio.to_thread(verify, self.url, keys=self.keys, tenant=tenant, high_water=self.mark)

    async def close(self) -> None:
        """Write what was noted and give back the store. Closing twice is allowed; all else is refused afterwards."""
        with self._lock:
            sequencer, self._sequencer, self._closed = self._sequencer, None, True
        if sequencer is not None:
            sequencer.put(None)
            await asyncio.to_thread(sequencer.thread.join)

    async def open(self) -> None:
        """Open the log, which else happens with the first entry: turns that nobody ended are looked for from now on."""
        await asyncio.to_thread(self._ready)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _ready(self) -> Sequencer:
        sequencer = self._sequencer
        if sequencer is not None:
            return sequencer
        with self._lock:
            if self._closed:
                raise StoreError("the audit chain is closed")
            if self._sequencer is None:
                ledger = Ledger(open_store(self.url), self.keys, self.mark)
                operations.finish_rotation(ledger)
                self._sequencer = Sequencer(ledger, Sweeper(self.retentions))
            return self._sequencer

    async def _wait(self, job: Job) -> Any:
        sequencer = self._ready()
        while sequencer.full:  # noqa: ASYNC110 - another thread empties it
            await asyncio.sleep(0.01)
        job.waiter = asyncio.get_running_loop().create_future()
        sequencer.put(job)
        left = _LEFT.get() if job.kind else None
        if left is not None:
            left.add(job.kind)
        try:
            # A caller who leaves does not take back what was put in order: the writer never looks at the future.
            return await job.waiter
        except AIBoxError:
            if left is not None:
                left.take_back(job.kind)
            raise

    async def _do(self, act: Callable[[Ledger], T], *, own_transaction: bool = False) -> T:
        done: Future[T] = Future()
        self._ready().put(Call(act, done, own_transaction))
        return await asyncio.shield(asyncio.wrap_future(done))

    def __repr__(self) -> str:
        return f"AuditChain({self.url.rpartition('@')[2]!r})"


def _ending(kind: str, scope: Scope, turn: str, detail: Mapping[str, Any], *, proofs: bool) -> Job:
    if kind not in _ENDS:
        raise ConfigError(f"a turn ends with one of {', '.join(_ENDS)}, not with {kind}")
    return Job(kind, scope, turn, ending=split(kind, scope, detail), proofs=proofs)


def _job(kind: str, scope: Scope, turn: str, detail: Mapping[str, Any]) -> Job:
    if kind not in kinds.OPEN:
        if not _KIND.fullmatch(kind):
            raise ConfigError(f"not a kind of entry: {kind!r}", hint="lower case words with dots, such as tool.called")
        if kind in kinds.OPERATOR:
            raise ConfigError(f"{kind} is written by the chain alone", hint="rotate, erase, hold, prune or restore")
    # Here and not in the writer: whoever made a mistake hears of it at once, and what is changed later stays as it was.
    return Job(kind, scope, turn, make_parts(kind, scope=scope, turn=turn, detail=detail))


def _size(ledger: Ledger, tenant: str) -> int:
    return 0 if ledger.store.log_named(ledger.log(tenant)) is None else ledger.head(tenant).size


def _page(ledger: Ledger, tenant: str, start: int) -> list[ReceiptEntry]:
    if ledger.store.log_named(ledger.log(tenant)) is None:
        return []
    head = ledger.head(tenant)
    rows: list[Row] = list(ledger.store.entries(head.log, start=start, limit=PAGE))
    return [entry_of(ledger, head, row) for row in rows]
