"""Hold recorded evidence against itself: every entry, every link, the tree, the checkpoints. Changes nothing."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aibox.audit.checkpoint import open_note, public_bytes
from aibox.audit.keys import Keyring
from aibox.audit.merkle import Frontier
from aibox.audit.receipt import Receipt
from aibox.audit.record import (
    GENESIS,
    TAG_BYTES,
    TERMINAL,
    Header,
    body_commit,
    genesis_prev,
    leaf_hash,
    log_id,
    read_body,
    tag,
)
from aibox.audit.sqlite import Row, SqliteLog
from aibox.errors import ConfigError, IntegrityError, StoreError


@dataclass(frozen=True, slots=True)
class Problem:
    """What no longer holds: of which tenant, at which entry (None: of the log as a whole), and why."""

    tenant: str
    seq: int | None
    cause: str

    def __str__(self) -> str:
        where = f"entry {self.seq}" if self.seq is not None else "the log"
        return f"{where} of tenant {self.tenant}: {self.cause}"


@dataclass(slots=True)
class Report:
    """What was checked, and what does not hold. `tags` False: the HMAC keys were not there, so tags were not checked.

    `unanchored` counts entries newer than the last checkpoint: a checkpoint carried away would not yet speak for them.
    """

    logs: int = 0
    entries: int = 0
    checkpoints: int = 0
    unanchored: int = 0
    tags: bool = True
    pinned: bool = False
    problems: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "ok": self.ok,
            "logs": self.logs,
            "entries": self.entries,
            "checkpoints": self.checkpoints,
            "unanchored": self.unanchored,
            "tags_checked": self.tags,
            "key_pinned": self.pinned,
            "problems": [{"tenant": p.tenant, "seq": p.seq, "cause": p.cause} for p in self.problems],
        }

    def __str__(self) -> str:
        if self.problems:
            return "; ".join(map(str, self.problems))
        said = f"{self.entries} entries in {self.logs} logs, {self.checkpoints} signed checkpoints"
        return said + ("" if self.tags else "; tags not checked, their keys are not here")

    def _repr_markdown_(self) -> str:
        return f"**{'holds' if self.ok else 'does not hold'}**: {self}"


class BrokenEvidenceError(IntegrityError):
    """Evidence that does not hold; `report` says all that was found."""

    def __init__(self, report: Report) -> None:
        super().__init__(str(report.problems[0]), hint=f"{len(report.problems)} problems in all")
        self.report = report


def verify(
    path_or_url: str | Path,
    *,
    key: str | None = None,
    keys: Keyring | None = None,
    tenant: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Verify an audit log or a receipt (`.json`). `key` pins the log's public key.

    Raises IntegrityError (with `.report`) when the evidence does not hold, StoreError or ConfigError when it cannot be
    read. `keys` None takes the folder `keys` beside the log where there is one; `progress` hears the number of entries.
    """
    path = Path(str(path_or_url).removeprefix("sqlite:///"))
    if path.suffix == ".json":
        receipt = Receipt.load(path)
        receipt.verify(key)
        return Report(logs=1, entries=len(receipt.entries), checkpoints=1, tags=False, pinned=key is not None)
    log = SqliteLog(path, read_only=True)
    try:
        report = _Verifier(log, key=key, keys=keys or Keyring(path.parent / "keys"), progress=progress).run(tenant)
    finally:
        log.close()
    if not report.ok:
        raise BrokenEvidenceError(report)
    return report


class _Verifier:
    def __init__(
        self, log: SqliteLog, *, key: str | None, keys: Keyring, progress: Callable[[int], None] | None
    ) -> None:
        self._log = log
        self._keys = keys
        self._progress = progress
        self._report = Report(pinned=key is not None)
        self._public_key = key or log.meta("public_key") or ""
        try:
            self._public_bytes = public_bytes(self._public_key)
        except ValueError as error:
            if key is not None:
                raise ConfigError(f"the public key cannot be read: {error}") from None
            self._public_bytes = b""
            self._problem("-", None, f"its public key cannot be read: {error}")

    def run(self, tenant: str | None) -> Report:
        for log, name, origin in self._log.logs():
            if tenant is None or name == tenant:
                self._report.logs += 1
                self._verify_log(log, name, origin)
        return self._report

    def _problem(self, tenant: str, seq: int | None, cause: str) -> None:
        self._report.problems.append(Problem(tenant, seq, cause))

    def _verify_log(self, log: bytes, tenant: str, origin: str) -> None:
        if log != log_id(origin):
            self._problem(tenant, None, "its name is not the one that its entries were written under")
            return
        tag_key = self._tag_key(log)
        frontier, nodes, roots = Frontier(), {}, {}
        wanted = {size for size, _ in self._log.checkpoints(log)}
        prev, ts_us = genesis_prev(log, self._public_bytes), 0
        ends: dict[str, int] = {}
        try:
            for row in self._log.entries(log):
                try:
                    header, turn = _entry(row, seq=frontier.size, log=log, prev=prev, ts_us=ts_us, tenant=tenant)
                    leaf = leaf_hash(row.header)
                    _hold_tag(row.tag, leaf, tag_key)
                except (ValueError, TypeError, KeyError) as error:
                    # What follows hangs on this entry; one name is enough.
                    self._problem(tenant, frontier.size, str(error))
                    return
                if header.flags & TERMINAL:
                    ends[turn] = row.seq
                prev, ts_us = leaf, header.ts_us
                nodes.update({(level, index): made for level, index, made in frontier.add(leaf)})
                if frontier.size in wanted:
                    roots[frontier.size] = frontier.root()
                self._report.entries += 1
                if self._progress:
                    self._progress(self._report.entries)
        except StoreError as error:
            self._problem(tenant, frontier.size, f"it cannot be read: {error.message}")
            return
        self._verify_derived(log, tenant, nodes, ends)
        self._verify_checkpoints(log, tenant, origin, roots, frontier.size)

    def _tag_key(self, log: bytes) -> bytes | None:
        key = self._keys.known_epoch_key(log)
        if key is None:
            self._report.tags = False
        return key

    def _verify_derived(
        self, log: bytes, tenant: str, nodes: dict[tuple[int, int], bytes], ends: dict[str, int]
    ) -> None:
        stored = {(level, index): found for level, index, found in self._log.nodes(log)}
        if stored != nodes:
            level, index = min({*stored, *nodes}, key=lambda at: (stored.get(at) == nodes.get(at), at))
            first, last = index << level, ((index + 1) << level) - 1
            self._problem(tenant, None, f"the tree over entries {first} to {last} was changed")
        if self._log.turns(log) != ends:
            self._problem(tenant, None, "the list of its turns was changed")

    def _verify_checkpoints(self, log: bytes, tenant: str, origin: str, roots: dict[int, bytes], size: int) -> None:
        last = 0
        for stored_size, note in self._log.checkpoints(log):
            self._report.checkpoints += 1
            try:
                checkpoint = open_note(note, self._public_key)
            except ValueError as error:
                self._problem(tenant, None, f"the checkpoint at {stored_size} does not hold: {error}")
                continue
            if (checkpoint.origin, checkpoint.size) != (origin, stored_size):
                self._problem(tenant, None, f"the checkpoint at {stored_size} belongs elsewhere")
            elif checkpoint.size > size:
                self._problem(tenant, size, f"it is missing: a checkpoint speaks of {checkpoint.size} entries")
            elif roots[stored_size] != checkpoint.root:
                self._problem(tenant, None, f"its first {stored_size} entries are not those of the signed checkpoint")
            last = max(last, checkpoint.size)
        self._report.unanchored += max(0, size - last)


def _hold_tag(found: bytes, leaf: bytes, key: bytes | None) -> None:
    if len(found) != TAG_BYTES:
        raise ValueError("its tag has another length")
    if key is not None and not hmac.compare_digest(tag(key, leaf), found):
        raise ValueError("its tag does not fit")


def _entry(row: Row, *, seq: int, log: bytes, prev: bytes, ts_us: int, tenant: str) -> tuple[Header, str]:
    """One entry in its place. Raises ValueError with the reason why it does not belong there."""
    if row.seq != seq:
        raise ValueError(f"it is missing, and entry {row.seq} follows")
    header = Header.unpack(row.header)
    if header.seq != seq:
        raise ValueError(f"it says that it is entry {header.seq}")
    if header.log_id != log:
        raise ValueError("it was written for another log")
    if header.prev != prev:
        raise ValueError("it does not follow the entry before it")
    if header.epoch != 0:
        raise ValueError("its epoch is not that of the log")
    if bool(header.flags & GENESIS) != (seq == 0):
        raise ValueError("only the first entry begins a log")
    if header.ts_us < ts_us:
        raise ValueError("its time lies before that of the entry before it")
    if header.body_commit != body_commit(row.body):
        raise ValueError("its body is not the one that was recorded")
    body = read_body(row.body)
    if body["tenant"] != tenant:
        raise ValueError("its body names another tenant")
    return header, str(body["turn_id"])
