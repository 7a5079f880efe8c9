"""One log after another, inside one transaction of the store: heads, keys, tags, the tree, checkpoints.

Blocking, and owned by one thread. Several ledgers may write one store: each takes the head inside its own transaction
and catches up with what others wrote, so there is one history.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from aibox.audit import kinds, sealed
from aibox.audit.checkpoint import Checkpoint, public_bytes
from aibox.audit.epochs import EPOCH_ENTRIES, EPOCH_S, EpochKeys
from aibox.audit.head import Head
from aibox.audit.highwater import INTERVAL_S, HighWater
from aibox.audit.keys import Keyring
from aibox.audit.merkle import Frontier
from aibox.audit.record import (
    GENESIS,
    KEY,
    SEALED,
    Header,
    Parts,
    Row,
    body_commit,
    genesis_prev,
    leaf_hash,
    log_id,
    make_parts,
    pack_header,
)
from aibox.audit.rotation import rotated_to
from aibox.audit.sealed import Subject
from aibox.audit.signer import public_key, sign
from aibox.audit.store import NODE_LEVELS, Act, LogName, Node, Store
from aibox.audit.tree import StoredTree
from aibox.errors import OPERATORS, ConfigError, IntegrityError
from aibox.types import Entry, Scope

CHECKPOINT_S = 1.0
EPOCH_US = round(EPOCH_S * 1e6)
MAX_HEADS = 10_000
MAX_SUBJECTS = 10_000
OPERATOR = "operator"


class Ledger:
    """The logs of one store under one keyring. Raises ConfigError for a store that was begun under other keys."""

    def __init__(self, store: Store, keys: Keyring, mark: HighWater) -> None:
        self.store = store
        self.keys = keys
        self.mark = mark
        self.epochs = EpochKeys(keys)
        self.use_signer()
        self._origins = keys.secret("origin")
        self._keks = keys.secret("subjects")
        self._heads: OrderedDict[str, Head] = OrderedDict()
        self._touched: dict[str, Head] = {}
        self._marks: dict[bytes, tuple[int, str]] = {}
        self._marked_s = 0.0
        self._moment = 0
        self._scrub_s = float("inf")
        self._hold_key()

    def use_signer(self) -> None:
        """The signer that the keyring has now."""
        self.signer = self.keys.signer()
        self.public_key = public_key(self.signer)

    def _hold_key(self) -> None:
        known = self.store.meta("public_key")
        mine = self.public_key
        if known is None:
            with self.store.transaction():
                self.store.set_meta("public_key", mine)
            known = self.store.meta("public_key")
        if known != mine and self.store.meta(f"rotated {mine}") is None:
            raise ConfigError(
                f"the log was begun under another key than the one in {self.keys.folder}",
                hint="restore its keys",
                code=OPERATORS,
            )

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """What is added inside is durable at the end, keys that it left are gone, and the mark follows."""
        self._touched = {}
        try:
            with self.store.transaction():
                if self.store.changed():
                    self._moment += 1
                yield
                self.flush()
        except BaseException:
            # What was added to the heads in memory is not in the store.
            self._heads.clear()
            raise
        for head in self._touched.values():
            if head.ratcheted:
                self.epochs.keep(head.log, head.key)
                head.ratcheted = False
            if head.note:
                self._marks[head.log] = (head.pointed_size, head.note)
                head.note = ""
        self.raise_mark()

    def raise_mark(self, *, now: bool = False) -> None:
        if self._marks and (now or time.monotonic() - self._marked_s >= INTERVAL_S):
            self.mark.raise_to(self._marks)
            self._marks.clear()
            self._marked_s = time.monotonic()

    def scrub(self) -> None:
        """See that what was destroyed is in no journal either; where somebody reads, a second later again."""
        self._scrub_s = float("inf") if self.store.scrub() else time.monotonic() + 1.0

    @property
    def scrub_due(self) -> bool:
        return time.monotonic() >= self._scrub_s

    @property
    def unanchored(self) -> list[str]:
        """Tenants whose last entries no checkpoint speaks for yet."""
        return [tenant for tenant, head in self._heads.items() if head.pointed_size < head.size]

    def flush(self) -> None:
        """Give the store what was added; checkpoints of logs that have had none for a second."""
        for head in self._touched.values():
            if head.rows:
                self.store.add_entries(head.log, head.frontier.size, head.rows)
                made = head.frontier.extend(head.leaves)
                head.rows, head.leaves = [], []
                if nodes := [Node(*node) for node in made if node[0] % NODE_LEVELS == 0]:
                    self.store.add_nodes(head.log, nodes)
            if head.turns:
                self.store.add_turns(head.log, [*head.turns.items()])
                head.turns = {}
            if head.acts:
                self.store.add_acts(head.log, head.acts)
                head.acts = []
            if head.pointed_size < head.size and time.monotonic() - head.pointed_s >= CHECKPOINT_S:
                self.checkpoint(head)

    def checkpoint(self, head: Head) -> str:
        """Sign how far the log has come in the store. Inside a transaction; what was not flushed is not in it."""
        self._touched[head.name.tenant] = head
        size = head.frontier.size
        note = sign(self.signer, Checkpoint(head.name.origin, size, head.frontier.root()))
        self.store.add_checkpoint(head.log, size, note)
        head.pointed_size, head.pointed_s, head.note = size, time.monotonic(), note
        return note

    # Heads.

    def origin(self, tenant: str) -> str:
        """A name for the log that does not give the tenant's away: checkpoints may leave the house."""
        hidden = hmac.digest(self._origins, tenant.encode(), hashlib.sha256).hex()[:40]
        return f"{self.signer.name}/audit/{hidden}"

    def log(self, tenant: str) -> bytes:
        return log_id(self.origin(tenant))

    def head(self, tenant: str) -> Head:
        head = self._heads.get(tenant)
        if head is None:
            head = self._heads[tenant] = self._load(tenant)
            while len(self._heads) > MAX_HEADS:
                self._heads.popitem(last=False)
            head.moment = self._moment
        elif head.moment != self._moment:
            self._catch_up(head)
            head.moment = self._moment
        if head.public_key != self.public_key:
            # Another process has rotated the key.
            self.use_signer()
            if head.public_key != self.public_key:
                raise ConfigError(
                    f"the log of {tenant} goes on under a key that is not in {self.keys.folder}", code=OPERATORS
                )
        self._touched[tenant] = head
        return head

    def load_put_back(self, tenant: str) -> Head:
        """The head of a log that is behind its keys or its mark, ready to go on in a new epoch."""
        self._heads.pop(tenant, None)
        head = self._heads[tenant] = self._touched[tenant] = self._load(tenant, put_back=True)
        head.moment = self._moment
        return head

    def _load(self, tenant: str, *, put_back: bool = False) -> Head:
        origin = self.origin(tenant)
        log = log_id(origin)
        mine = self.public_key
        # Before the log is read: another process may write to both meanwhile, and the mark never runs ahead.
        marked = self._marked(log)
        name = self.store.log_named(log)
        # From here on nobody else writes to it, so that its end, its nodes and its keys are of one moment.
        self.store.size(log)
        row = self.store.head(log) if name else None
        if name is None or row is None:
            _hold(marked, 0)
            name = LogName(log, tenant, origin, mine)
            self.store.add_log(name)
            prev = genesis_prev(log, public_bytes(name.public_key))
            return Head(name, mine, self.epochs.first(log), self._kek(log), prev)
        size = row.seq + 1
        if not put_back:
            _hold(marked, size)
        header = Header.unpack(row.header)
        epoch = header.epoch + (1 if header.flags & KEY else 0)
        known = self.epochs.known(log)
        if known is None:
            raise ConfigError(
                f"the epoch key of the log of {tenant} is not in {self.keys.folder}", hint="restore it", code=OPERATORS
            )
        # A log that was put back never goes on under a key that entries which were given up were tagged with.
        key = known.at(log, max(known.epoch, epoch) + 1) if put_back else known.at(log, epoch)
        if key is None:
            raise IntegrityError(
                f"the log of {tenant} ends in epoch {epoch}, and its key has come to {known.epoch}: it was put back",
                hint=_RESTORE,
            )
        head = Head(name, name.public_key, key, self._kek(log), leaf_hash(row.header), header.ts_us)
        head.frontier = Frontier.read(size, StoredTree(self.store, log).node)
        head.size = head.epoch_first = size
        self._read_epoch(head, size, epoch)
        for act in self.store.acts(log):
            if act.kind == kinds.ROTATED:
                head.public_key = rotated_to(next(self.store.entries(log, start=act.seq, limit=1)))
        point = self.store.checkpoints(log)
        head.pointed_size = point[-1][0] if point else 0
        return head

    def _read_epoch(self, head: Head, size: int, epoch: int) -> None:
        """The tags of the epoch that the log is in: its end will commit to them."""
        rows: list[Row] = []
        start = size
        while start > 0 and (not rows or Header.unpack(rows[0].header).epoch == epoch):
            before, start = start, max(0, start - EPOCH_ENTRIES // 4)
            rows = [*self.store.entries(head.log, start=start, limit=before - start), *rows]
        for row in rows:
            header = Header.unpack(row.header)
            if header.epoch == epoch and not header.flags & KEY:
                if head.epoch_first == size:
                    head.epoch_first, head.epoch_since_us = row.seq, header.ts_us
                head.tags.update(row.tag)

    def _catch_up(self, head: Head) -> None:
        """Take in what other processes wrote since."""
        size = self.store.size(head.log)
        if size < head.size:
            raise IntegrityError(f"the log of {head.name.tenant} became shorter while it was open", hint=_RESTORE)
        if size == head.size:
            return
        # Whoever was erased by another process was erased by an entry.
        head.subjects.clear()
        for row in self.store.entries(head.log, start=head.size):
            header = Header.unpack(row.header)
            leaf = leaf_hash(row.header)
            if header.prev != head.prev:
                raise IntegrityError(f"the log of {head.name.tenant} was changed while it was open", hint=_RESTORE)
            if head.size == head.epoch_first:
                head.epoch_since_us = header.ts_us
            head.frontier.add(leaf)
            head.size += 1
            head.prev, head.ts_us = leaf, header.ts_us
            head.tags.update(row.tag)
            if header.flags & KEY:
                self._ratchet_key(head, header.epoch + 1)
                if row.open is not None and b'"key.rotated"' in row.open:
                    head.public_key = rotated_to(row)

    def _marked(self, log: bytes) -> int:
        note = self.mark.notes().get(log)
        return 0 if note is None else int(note.split("\n", 2)[1])

    def _kek(self, log: bytes) -> bytes:
        return hmac.digest(self._keks, b"aibox/kek/v1\x00" + log, "sha256")

    # Entries.

    def add(self, kind: str, *, scope: Scope, turn: str, detail: Mapping[str, Any], flags: int = 0) -> Entry:
        """Raises ConfigError for a detail that cannot be recorded; then nothing has changed."""
        entry = self.add_made(kind, make_parts(kind, scope=scope, turn=turn, detail=detail), scope=scope, flags=flags)
        if kind in kinds.OPERATOR:
            acts = self.head(scope.tenant).acts
            acts.append(Act(entry.seq, kind, detail.get("first", 0), detail.get("last", -1)))
        return entry

    def add_made(self, kind: str, parts: Parts, *, scope: Scope, flags: int = 0) -> Entry:
        """Of a body that was made before; not for an operator's act."""
        head = self.head(scope.tenant)
        now_us = time.time_ns() // 1000
        since = head.size - head.epoch_first
        if since and (since >= EPOCH_ENTRIES or now_us - head.epoch_since_us >= EPOCH_US):
            self.ratchet(head)
        head.ts_us = max(head.ts_us, now_us)
        shown, private = parts
        if not private:
            return self._put(head, shown, b"", flags, kind)
        subject = head.subjects.get(scope.user) or self.subject(head, scope.user)
        return self._put(head, shown, subject.seal(private), flags | SEALED, kind)

    def ratchet(
        self, head: Head, kind: str = kinds.RATCHETED, detail: Mapping[str, Any] | None = None, *, turn: str = ""
    ) -> Entry:
        """End the epoch: an entry under its key that commits to its tags; then that key is left for good."""
        committed = {
            "epoch": head.key.epoch,
            "from": head.epoch_first,
            "tags_sha256": head.tags.hexdigest(),
            **(detail or {}),
        }
        scope = Scope(tenant=head.name.tenant, user=OPERATOR)
        parts = make_parts(kind, scope=scope, turn=turn, detail=committed)
        head.ts_us = max(head.ts_us, time.time_ns() // 1000)
        entry = self._put(head, parts.open, b"", KEY, kind)
        head.acts.append(Act(entry.seq, kind))
        self._ratchet_key(head, head.key.epoch + 1)
        head.ratcheted = True
        return entry

    def _ratchet_key(self, head: Head, epoch: int) -> None:
        key = head.key.at(head.log, epoch)
        if key is None:
            raise IntegrityError(f"the log of {head.name.tenant} went back to epoch {epoch}", hint=_RESTORE)
        head.begin_epoch(key, head.size)

    def _put(self, head: Head, shown: bytes, hidden: bytes, flags: int, kind: str) -> Entry:
        seq, ts_us = head.size, head.ts_us
        if seq == 0:
            flags |= GENESIS
        if seq == head.epoch_first:
            head.epoch_since_us = ts_us
        name = head.name
        header = pack_header(flags, head.key.epoch, seq, ts_us, name.log, head.prev, body_commit(shown, hidden))
        leaf = leaf_hash(header)
        tagged = head.tagger.of(leaf)
        head.rows.append(Row(seq, header, shown, hidden, tagged))
        head.leaves.append(leaf)
        head.tags.update(tagged)
        head.prev, head.size = leaf, seq + 1
        return Entry(name.tenant, seq, kind, leaf, ts_us)

    # People.

    def who(self, head: Head, user: str) -> bytes:
        """What stands for a name in the table of people's keys."""
        return hmac.digest(head.kek, b"who\x00" + user.encode(), "sha256")

    def subject(self, head: Head, user: str) -> Subject:
        """A person in this log, drawn when they are first needed."""
        subject = self.known_subject(head, user)
        if subject is None:
            subject = Subject.new()
            wrapped = sealed.wrap(head.kek, subject.id, subject.key)
            self.store.add_subject(head.log, self.who(head, user), subject.id, wrapped)
        while len(head.subjects) >= MAX_SUBJECTS:
            head.subjects.pop(next(iter(head.subjects)))
        head.subjects[user] = subject
        return subject

    def known_subject(self, head: Head, user: str) -> Subject | None:
        """None for somebody of whom nothing was recorded, or who was erased."""
        found = self.store.subject(head.log, self.who(head, user))
        return Subject.of(found[0], sealed.unwrap(head.kek, *found)) if found else None

    def entry_key(self, head: Head, hidden: bytes) -> bytes:
        """The key of one sealed part; empty where the person's key is gone."""
        if not hidden:
            return b""
        subject = sealed.subject_of(hidden)
        for known in head.subjects.values():
            if known.id == subject:
                return known.entry_key(hidden)
        wrapped = self.store.subject_key(head.log, subject)
        if not wrapped:
            return b""
        return Subject.of(subject, sealed.unwrap(head.kek, subject, wrapped)).entry_key(hidden)


def _hold(marked: int, size: int) -> None:
    if size < marked:
        raise IntegrityError(
            f"the log has {size} entries, and its high-water mark says {marked}: it was put back", hint=_RESTORE
        )


_RESTORE = "if a backup was restored on purpose: aibox audit restore --reason ...; another store needs keys of its own"
