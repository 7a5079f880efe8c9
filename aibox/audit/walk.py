"""One log from its first entry to its last, each held against the one before it. Pure: it is handed what it needs."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

from aibox.audit import kinds
from aibox.audit.checkpoint import public_bytes
from aibox.audit.epochs import EpochKey
from aibox.audit.merkle import EMPTY_ROOT, Frontier
from aibox.audit.record import (
    GENESIS,
    KEY,
    SEALED,
    TAG_BYTES,
    TERMINAL,
    TOMBSTONE,
    Header,
    Row,
    body_commit,
    genesis_prev,
    leaf_hash,
    log_id,
    pruned_by,
    read_detail,
    read_open,
    tagger,
)
from aibox.audit.rotation import KeyLine
from aibox.audit.sealed import FIXED_BYTES, ID_BYTES
from aibox.audit.store import NODE_LEVELS, Act, LogName

_KEY_ACTS = frozenset({kinds.RATCHETED, kinds.ROTATED, kinds.RESTORED})


class Walk:
    """What is known after each `step`. `key` is the key of some epoch, or None: then no tag is checked."""

    def __init__(self, name: LogName, key: EpochKey | None) -> None:
        if name.log != log_id(name.origin):
            raise ValueError("its name is not the one that its entries were written under")
        self._log, self._tenant = name.log, name.tenant
        self._use(key)
        self.has_key = key is not None
        self._prev = genesis_prev(name.log, public_bytes(name.public_key))
        self._ts_us = 0
        self._epoch = 0
        self._epoch_first = 0
        self._tags = hashlib.sha256()
        self.line = KeyLine(name.public_key)
        self.frontier = Frontier()
        self.nodes: dict[tuple[int, int], bytes] = {}
        self.wanted: set[int] = set()
        self.roots: dict[int, bytes] = {0: EMPTY_ROOT}
        self.ends: dict[int, str] = {}
        self.acts: list[Act] = []
        self.missing: set[int] = set()
        self.pruned: set[int] = set()
        self.subjects: dict[bytes, tuple[int, int]] = {}
        self.erased: dict[bytes, int] = {}
        self.tagged = 0
        self.restored = 0
        self._lost: list[tuple[int, int, int]] = []

    def step(self, row: Row) -> None:  # noqa: C901, PLR0912 - the list of checks, in order and in one place
        """Raises ValueError with the reason why this entry does not belong here."""
        seq = self.frontier.size
        if row.seq != seq:
            raise ValueError(f"it is missing, and entry {row.seq} follows")
        header = Header.unpack(row.header)
        flags = header.flags
        leaf = leaf_hash(row.header)
        if header.seq != seq:
            raise ValueError(f"it says that it is entry {header.seq}")
        if header.log_id != self._log:
            raise ValueError("it was written for another log")
        if header.prev != self._prev:
            raise ValueError("it does not follow the entry before it")
        if bool(flags & GENESIS) != (seq == 0):
            raise ValueError("only the first entry begins a log")
        if header.ts_us < self._ts_us:
            raise ValueError("its time lies before that of the entry before it")
        detail: dict[str, Any] | None = None
        if row.open is None:
            self._without_body(row, flags)
        else:
            detail = self._body(row, header)
        if header.epoch != self._epoch and not (detail and self._jumps(header, detail)):
            raise ValueError("its epoch is not that of the log")
        self._tag(row.tag, leaf, header.epoch)
        if flags & KEY and detail is not None:
            self._key_act(header, detail)
        else:
            self._tags.update(row.tag)
        self._prev, self._ts_us = leaf, header.ts_us
        for level, index, made in self.frontier.add(leaf):
            if level % NODE_LEVELS == 0:
                self.nodes[level, index] = made
        if seq + 1 in self.wanted:
            self.roots[seq + 1] = self.frontier.root()

    def _body(self, row: Row, header: Header) -> dict[str, Any] | None:
        """The detail, where the walk itself needs it."""
        shown, hidden, flags = row.open or b"", row.sealed or b"", header.flags
        if header.body_commit != body_commit(shown, hidden):
            raise ValueError("its body is not the one that was recorded")
        body = read_open(shown)
        if body.tenant != self._tenant:
            raise ValueError("its body names another tenant")
        if bool(flags & SEALED) != bool(hidden):
            raise ValueError("its flags do not say whether it is sealed")
        if hidden:
            if len(hidden) < FIXED_BYTES:
                raise ValueError("its sealed part is too short")
            subject = hidden[:ID_BYTES]
            first, count = self.subjects.get(subject, (row.seq, 0))
            self.subjects[subject] = first, count + 1
        if flags & TERMINAL:
            self.ends[row.seq] = body.turn_id
        if body.action not in kinds.OPERATOR:
            if flags & (KEY | TOMBSTONE):
                raise ValueError("its flags say that it is an act on the log, and it is none")
            return None
        if hidden:
            raise ValueError("an operator's act is never sealed")
        detail = read_detail(shown)
        self._act(row.seq, flags, body.action, detail)
        return {**detail, "action": body.action}

    def _act(self, seq: int, flags: int, action: str, detail: dict[str, Any]) -> None:
        if bool(flags & KEY) != (action in _KEY_ACTS):
            raise ValueError("its flags do not say whether it changes a key")
        if bool(flags & TOMBSTONE) != (action == kinds.ERASED):
            raise ValueError("its flags do not say whether it is a tombstone")
        first, last = 0, -1
        if action == kinds.ERASED:
            for subject in detail["subjects"]:
                self.erased[bytes.fromhex(subject)] = seq
        elif action == kinds.PRUNED:
            gone = pruned_by(detail)
            first, last = gone[0], gone[-1]
            if last >= seq:
                raise ValueError("it prunes what comes after it")
            self.pruned.update(gone)
        self.acts.append(Act(seq, action, first, last))

    def _without_body(self, row: Row, flags: int) -> None:
        if row.sealed is not None:
            raise ValueError("one part of its body is missing")
        if flags & (KEY | TOMBSTONE):
            raise ValueError("the body of an act on the log is missing")
        self.missing.add(row.seq)
        if flags & TERMINAL:
            self.ends[row.seq] = ""

    def _jumps(self, header: Header, detail: dict[str, Any]) -> bool:
        """A log that was put back goes on in an epoch that nobody has had the key of."""
        return detail["action"] == kinds.RESTORED and header.epoch > self._epoch

    def _use(self, key: EpochKey | None) -> None:
        self._key = key
        self._tagger = None if key is None else tagger(key.key)

    def _tag(self, found: bytes, leaf: bytes, epoch: int) -> None:
        if len(found) != TAG_BYTES:
            raise ValueError("its tag has another length")
        if self._key is not None and epoch > self._key.epoch:
            self._use(self._key.at(self._log, epoch))
        if self._key is not None and self._tagger is not None and epoch == self._key.epoch:
            if not hmac.compare_digest(self._tagger.of(leaf), found):
                raise ValueError("its tag does not fit")
            self.tagged += 1

    def _key_act(self, header: Header, detail: dict[str, Any]) -> None:
        if detail["epoch"] != header.epoch or detail["from"] != self._epoch_first:
            raise ValueError("it ends another epoch")
        if detail["tags_sha256"] != self._tags.hexdigest():
            raise ValueError(f"the tags of entries {self._epoch_first} to {header.seq - 1} were changed")
        if detail["action"] == kinds.ROTATED:
            self.line.rotate(detail, self._log, header.seq + 1)
        elif detail["action"] == kinds.RESTORED:
            self.restored += 1
            self._lost.append((header.seq, int(detail["size"]), int(detail["lost_size"])))
        self._epoch = header.epoch + 1
        self._epoch_first = header.seq + 1
        self._tags = hashlib.sha256()

    def lost_before(self, size: int) -> str:
        """What a restoration says about entries that a checkpoint of this size spoke of."""
        for seq, kept, lost in self._lost:
            if kept < size <= lost:
                return f"entries {kept} to {lost - 1} were given up when the log was put back, at entry {seq}"
        return ""
