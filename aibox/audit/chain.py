"""The audit chain: one log a tenant, one writer thread, entries acknowledged when they are on the disk.

Several processes may write one file: each group of entries takes the head inside its own transaction, so there is one
history. What was noted is committed with whatever comes next, at the latest after LINGER_S.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import queue
import re
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aibox.audit.checkpoint import Checkpoint
from aibox.audit.keys import Keyring
from aibox.audit.merkle import Frontier, inclusion_proof
from aibox.audit.receipt import Receipt, ReceiptEntry
from aibox.audit.record import GENESIS, TERMINAL, Header, body_commit, genesis_prev, leaf_hash, log_id, make_body, tag
from aibox.audit.sqlite import Row, SqliteLog, head_of
from aibox.audit.verify import Report, verify
from aibox.errors import AIBoxError, ConfigError, StoreError
from aibox.types import Entry, Scope

BATCH = 1024
LINGER_S = 0.05
OPEN_TURNS = 10_000
"""Turns whose entries are remembered until they are sealed; of more than that the oldest are forgotten, unsealed."""
_KIND = re.compile(r"[a-z]+(\.[a-z_]+)+")
_ENDS = ("turn.sealed", "turn.failed")


@dataclass(slots=True)
class _Job:
    """What somebody wants written. `done` None: nobody waits. A seal also wants the receipt of its turn."""

    kind: str
    scope: Scope
    turn: str
    detail: dict[str, Any]
    seal: bool = False
    done: Future[Any] | None = None


@dataclass(slots=True)
class _Head:
    """Where a tenant's log stands, inside one transaction."""

    log: bytes
    origin: str
    key: bytes
    prev: bytes
    ts_us: int
    frontier: Frontier
    rows: list[Row] = field(default_factory=list)
    nodes: list[tuple[int, int, bytes]] = field(default_factory=list)


class AuditChain:
    """Keeps evidence. `url` is a file, made when it is first needed, with or without `sqlite:///`.

    `keys` is a Keyring or its folder; None is `keys` beside the file. A Recorder. Raises ConfigError for other urls,
    StoreError when the file cannot be used.
    """

    def __init__(self, url: str | Path, *, keys: Keyring | str | Path | None = None) -> None:
        text = str(url)
        if "://" in text and not text.startswith("sqlite:///"):
            raise ConfigError(f"no audit store for {text.partition('://')[0]}:// in this version", hint="give a file")
        self.path = Path(text.removeprefix("sqlite:///"))
        self._keys = keys if isinstance(keys, Keyring) else Keyring(keys or self.path.parent / "keys")
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._writer: _Writer | None = None
        self._closed = False

    def note(self, kind: str, *, scope: Scope, detail: Mapping[str, Any], turn: str = "") -> None:
        """Put an entry in order now; it is durable when the next `append` or `seal` of this tenant returns.

        Raises StoreError when something noted earlier could not be written.
        """
        writer = self._ready()
        if writer.failed is not None:
            raise StoreError(f"evidence could not be written: {writer.failed.message}", hint=writer.failed.hint)
        self._jobs.put(self._job(kind, scope, turn, detail))

    async def append(self, kind: str, *, scope: Scope, detail: Mapping[str, Any], turn: str = "") -> Entry:
        """Durable when it returns. Raises StoreError, and then nothing was recorded; ConfigError for a bad detail."""
        job = self._job(kind, scope, turn, detail)
        entry: Entry = await self._wait(job)
        return entry

    async def seal(self, turn: str, *, scope: Scope, detail: Mapping[str, Any], kind: str = "turn.sealed") -> Receipt:
        """End a turn: its terminal entry lists its entries, and is durable with them and a checkpoint in one commit.

        A turn ends once: raises ConfigError the second time, StoreError when an entry of it could not be written.
        """
        if kind not in _ENDS:
            raise ConfigError(f"a turn ends with one of {', '.join(_ENDS)}, not with {kind}")
        job = self._job(kind, scope, turn, detail)
        job.seal = True
        receipt: Receipt = await self._wait(job)
        return receipt

    async def entries(self, tenant: str, *, start: int = 0) -> AsyncIterator[ReceiptEntry]:
        """The entries of a tenant in order, what was noted included; without proofs."""
        writer = self._ready()
        await self.flush()
        while rows := await asyncio.to_thread(writer.page, tenant, start):
            for row in rows:
                yield ReceiptEntry(row.header, row.body, ())
            start = rows[-1].seq + 1

    async def receipt(self, turn: str, *, scope: Scope) -> Receipt:
        """The receipt of a turn that was sealed. Raises ConfigError where there is none."""
        writer = self._ready()
        return await asyncio.to_thread(writer.receipt_of, scope.tenant, turn)

    async def flush(self) -> None:
        """Everything noted so far is durable when it returns. Raises StoreError when it could not be."""
        await self._wait(_Job("", Scope.local(), "", {}))

    async def verify(self, tenant: str | None = None) -> Report:
        """Hold the whole log, or a tenant's, against itself and the keys. Raises IntegrityError."""
        self._ready()
        await self.flush()
        return await asyncio.to_thread(verify, self.path, keys=self._keys, tenant=tenant)

    async def close(self) -> None:
        """Write what was noted and give back the file. Closing twice is allowed; all else is refused afterwards."""
        with self._lock:
            writer, self._writer, self._closed = self._writer, None, True
        if writer is not None:
            self._jobs.put(None)
            await asyncio.to_thread(writer.thread.join)

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._ready)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _job(self, kind: str, scope: Scope, turn: str, detail: Mapping[str, Any]) -> _Job:
        if not _KIND.fullmatch(kind):
            raise ConfigError(f"not a kind of entry: {kind!r}", hint="lower case words with dots, such as tool.called")
        return _Job(kind, scope, turn, dict(detail))

    def _ready(self) -> _Writer:
        with self._lock:
            if self._closed:
                raise StoreError("the audit chain is closed")
            if self._writer is None:
                self._writer = _Writer(self.path, self._keys, self._jobs)
            return self._writer

    async def _wait(self, job: _Job) -> Any:
        self._ready()
        job.done = Future()
        self._jobs.put(job)
        # Shielded: a caller who leaves does not take back what was put in order.
        return await asyncio.shield(asyncio.wrap_future(job.done))

    def __repr__(self) -> str:
        return f"AuditChain({str(self.path)!r})"


class _Writer:
    """The thread that owns the file: takes what has come, writes it in one transaction, then tells who waits."""

    def __init__(self, path: Path, keys: Keyring, jobs: queue.SimpleQueue[_Job | None]) -> None:
        self._log = SqliteLog(path)
        self._keys = keys
        self._signer = keys.signer()
        self._origins = keys.secret("origin")
        known = self._log.meta("public_key")
        if known is None:
            with self._log.transaction():
                self._log.set_meta("public_key", self._signer.public_key)
            known = self._log.meta("public_key")
        if known != self._signer.public_key:
            raise ConfigError(
                f"{path} was begun under another key than the one in {keys.folder}", hint="restore its keys"
            )
        self._jobs = jobs
        self._turns: OrderedDict[tuple[str, str], list[list[Any]]] = OrderedDict()
        self._broken: set[tuple[str, str]] = set()
        self._reading = threading.Lock()
        self.failed: StoreError | None = None
        self.thread = threading.Thread(target=self._run, name="aibox-audit", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while True:
            batch, last = self._take()
            if batch:
                self._write(batch)
            if last:
                self._log.close()
                return

    def _take(self) -> tuple[list[_Job], bool]:
        """What is to be written together: notes wait a little for somebody who waits."""
        batch: list[_Job] = []
        deadline = 0.0
        while len(batch) < BATCH:
            try:
                if not batch:
                    job = self._jobs.get()
                    deadline = time.monotonic() + LINGER_S
                elif any(waiting.done for waiting in batch):
                    job = self._jobs.get_nowait()
                else:
                    job = self._jobs.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            if job is None:
                return batch, True
            batch.append(job)
        return batch, False

    def _write(self, batch: list[_Job]) -> None:
        heads: dict[str, _Head] = {}
        try:
            with self._reading, self._log.transaction():
                results = [self._apply(job, heads) for job in batch]
                for head in heads.values():
                    self._log.add_entries(head.log, head.rows)
                    self._log.add_nodes(head.log, head.nodes)
                results = [self._receipt(value, heads) if isinstance(value, _Sealed) else value for value in results]
        except AIBoxError as error:
            self._refuse(batch, error)
            return
        self.failed = None
        for job, value in zip(batch, results, strict=True):
            if job.seal:
                self._turns.pop((job.scope.tenant, job.turn), None)
            if job.done is not None:
                job.done.set_exception(value) if isinstance(value, AIBoxError) else job.done.set_result(value)

    def _refuse(self, batch: list[_Job], error: AIBoxError) -> None:
        """Nothing of this batch was written: who waits is told; turns that lost an entry can never be sealed."""
        failure = (
            error if isinstance(error, StoreError) else StoreError(f"evidence could not be written: {error.message}")
        )
        for job in batch:
            if job.done is not None:
                job.done.set_exception(StoreError(failure.message, hint=failure.hint))
            else:
                self.failed = failure
                if job.turn:
                    self._broken.add((job.scope.tenant, job.turn))

    def _apply(self, job: _Job, heads: dict[str, _Head]) -> Any:
        if not job.kind:
            return None
        key = (job.scope.tenant, job.turn)
        if job.seal and key in self._broken:
            return StoreError(f"an entry of turn {job.turn} could not be written; it cannot be sealed as a whole")
        try:
            head = self._head(job.scope.tenant, heads)
            if job.seal:
                if self._log.turn(head.log, job.turn) is not None:
                    return ConfigError(f"the turn {job.turn} has been sealed already")
                job.detail["entries"] = self._turns.get(key, [])
            body = make_body(job.kind, scope=job.scope, turn=job.turn, detail=job.detail)
        except ConfigError as error:
            if job.done is None:
                raise
            return error
        entry = self._add(head, body, flags=TERMINAL if job.seal else 0, kind=job.kind, tenant=job.scope.tenant)
        if job.turn:
            self._turns.setdefault(key, []).append([entry.seq, entry.leaf.hex()])
            while len(self._turns) > OPEN_TURNS:
                self._broken.add(self._turns.popitem(last=False)[0])
        if job.seal:
            self._log.add_turn(head.log, job.turn, entry.seq)
            return _Sealed(job.scope.tenant, job.turn, [seq for seq, _ in self._turns[key]])
        return entry

    def _head(self, tenant: str, heads: dict[str, _Head]) -> _Head:
        if tenant in heads:
            return heads[tenant]
        origin = self._origin(tenant)
        log = log_id(origin)
        self._log.add_log(log, tenant, origin)
        size, prev, ts_us = head_of(self._log.head(log)) or (0, genesis_prev(log, self._signer.public_bytes), 0)
        frontier = Frontier.read(size, lambda level, index: self._log.node(log, level, index))
        head = heads[tenant] = _Head(log, origin, self._keys.epoch_key(log), prev, ts_us, frontier)
        return head

    def _origin(self, tenant: str) -> str:
        """A name for the log that does not give the tenant's away: checkpoints may leave the house."""
        hidden = hmac.digest(self._origins, tenant.encode(), hashlib.sha256).hex()[:32]
        return f"{self._signer.name}/{self._signer.public_bytes.hex()[:16]}/audit/{hidden}"

    def _add(self, head: _Head, body: bytes, *, flags: int, kind: str, tenant: str) -> Entry:
        head.ts_us = max(head.ts_us, time.time_ns() // 1000)
        seq = head.frontier.size
        flags |= GENESIS if seq == 0 else 0
        header = Header(flags, 0, seq, head.ts_us, head.log, head.prev, body_commit(body)).pack()
        leaf = leaf_hash(header)
        head.rows.append(Row(seq, header, body, tag(head.key, leaf)))
        head.nodes += head.frontier.add(leaf)
        head.prev = leaf
        return Entry(tenant, seq, kind, leaf, head.ts_us)

    def _receipt(self, sealed: _Sealed, heads: dict[str, _Head]) -> Receipt:
        """The proofs of a turn to one checkpoint over all that this transaction holds."""
        head = heads[sealed.tenant]
        checkpoint = Checkpoint(head.origin, head.frontier.size, head.frontier.root())
        note = self._signer.sign(checkpoint)
        self._log.add_checkpoint(head.log, checkpoint.size, note)
        return self._prove(head.log, sealed, checkpoint.size, note)

    def _prove(self, log: bytes, sealed: _Sealed, size: int, note: str) -> Receipt:
        def node(level: int, index: int) -> bytes:
            return self._log.node(log, level, index)

        entries = []
        for seq in sealed.seqs:
            row = next(self._log.entries(log, start=seq, limit=1))
            entries.append(ReceiptEntry(row.header, row.body, tuple(inclusion_proof(seq, size, node))))
        return Receipt(sealed.turn, sealed.tenant, tuple(entries), note, self._signer.public_key)

    # Reading, from other threads; the connection is one, so each read waits for the transaction that is under way.

    def page(self, tenant: str, start: int) -> list[Row]:
        with self._reading:
            return list(self._log.entries(log_id(self._origin(tenant)), start=start, limit=BATCH))

    def receipt_of(self, tenant: str, turn: str) -> Receipt:
        log = log_id(self._origin(tenant))
        with self._reading:
            seq = self._log.turn(log, turn)
            if seq is None:
                raise ConfigError(f"no turn {turn} of {tenant} has been sealed")
            terminal = ReceiptEntry(*next(self._log.entries(log, start=seq, limit=1))[1:3], ())
            seqs = [listed for listed, _ in terminal.detail["entries"]] + [seq]
            size, note = next((size, note) for size, note in self._log.checkpoints(log) if size > seq)
            return self._prove(log, _Sealed(tenant, turn, seqs), size, note)


@dataclass(frozen=True, slots=True)
class _Sealed:
    """A turn whose entries are written; its receipt waits for the end of the transaction's entries."""

    tenant: str
    turn: str
    seqs: list[int]
