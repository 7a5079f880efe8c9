"""Hold recorded evidence against itself: every entry, every link, the tree, the checkpoints. Changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from aibox.audit import bundle, kinds, spot
from aibox.audit.checkpoint import Checkpoint, open_note, public_bytes, read_checkpoint
from aibox.audit.epochs import EpochKey, EpochKeys
from aibox.audit.escrow import open_first
from aibox.audit.highwater import HighWater
from aibox.audit.keys import Keyring
from aibox.audit.receipt import Receipt
from aibox.audit.record import log_id, read_detail
from aibox.audit.report import BrokenEvidenceError, Problem, Report
from aibox.audit.store import LogName, Store, open_store
from aibox.audit.walk import Walk
from aibox.errors import ConfigError, StoreError

PROGRESS_EVERY = 1000


def verify(
    path_or_url: str | Path,
    *,
    key: str | None = None,
    keys: Keyring | None = None,
    tenant: str | None = None,
    high_water: HighWater | None = None,
    checkpoints: Sequence[str] = (),
    auditor: Path | None = None,
    sample: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Verify an audit log, a receipt (`.json`) or an exported log (`.zip`). `key` pins the log's public key.

    Raises IntegrityError (with `.report`) when the evidence does not hold, StoreError or ConfigError when it cannot be
    read. `keys` None takes the folder `keys` beside the log where there is one, `high_water` None the mark in it;
    `checkpoints` are signed notes that were kept elsewhere; `auditor` is the private half that first keys were sealed
    to; `sample` draws so many entries of each log instead of reading all; `progress` hears the number of entries.
    """
    path = Path(str(path_or_url).removeprefix("sqlite:///"))
    if path.suffix == ".zip":
        pin = _read_pin(key) if key is not None else None
        found = bundle.verify(path, key=pin, checkpoints=checkpoints, progress=progress)
        if not found.ok:
            raise BrokenEvidenceError(found)
        return found
    if path.suffix == ".json":
        receipt = Receipt.load(path)
        receipt.verify(key)
        return Report(logs=1, entries=len(receipt.entries), checkpoints=1, tags=False, pinned=key is not None)
    if key is not None:
        key = _read_pin(key)
    keys = keys or Keyring(path.parent / "keys")
    store = open_store(path_or_url, read_only=True)
    try:
        verifier = _Verifier(store, key=key, keys=keys, mark=high_water or default_mark(keys), progress=progress)
        verifier.auditor, verifier.sample = auditor, sample
        report = verifier.run(tenant, checkpoints)
    finally:
        store.close()
    if not report.ok:
        raise BrokenEvidenceError(report)
    return report


def default_mark(keys: Keyring) -> HighWater:
    return HighWater(keys.folder / "highwater.json")


def _read_pin(key: str) -> str:
    try:
        public_bytes(key)
    except ValueError as error:
        raise ConfigError(f"the public key cannot be read: {error}") from None
    return key.strip()


class _Verifier:
    def __init__(
        self,
        store: Store,
        *,
        key: str | None,
        keys: Keyring,
        mark: HighWater,
        progress: Callable[[int], None] | None,
    ) -> None:
        self._store = store
        self._folder = keys.folder
        self._epochs = EpochKeys(keys)
        self.auditor: Path | None = None
        self.sample: int | None = None
        self._pin = key
        self._marks = mark.notes()
        self._progress = progress
        self._report = Report(pinned=key is not None, marked=bool(self._marks))

    def run(self, tenant: str | None, outside: Sequence[str]) -> Report:
        notes = self._outside(outside)
        logs = self._store.logs()
        for name in logs:
            if tenant is None or name.tenant == tenant:
                self._report.logs += 1
                if self.sample is not None:
                    self._spot(name, self.sample)
                    continue
                self._log(name, [note for point, note in notes if point.origin == name.origin])
        known = {name.origin for name in logs}
        for point, _ in notes:
            if point.origin not in known:
                self._problem(
                    "-", None, f"a checkpoint from elsewhere speaks of a log that is not here: {point.origin}"
                )
        if tenant is None:
            for log, note in self._marks.items():
                if log not in {name.log for name in logs}:
                    self._problem("-", None, f"the high-water mark speaks of a log that is not here: {_origin(note)}")
        return self._report

    def _outside(self, notes: Sequence[str]) -> list[tuple[Checkpoint, str]]:
        read = []
        for note in notes:
            try:
                read.append((read_checkpoint(note.rpartition("\n\n")[0] + "\n"), note))
            except ValueError as error:
                raise ConfigError(f"not a signed checkpoint: {error}") from None
        return read

    def _problem(self, tenant: str, seq: int | None, cause: str) -> None:
        self._report.problems.append(Problem(tenant, seq, cause))

    def _key(self, log: bytes) -> EpochKey | None:
        """The earliest epoch key that is here."""
        first = open_first(self._folder, log, self.auditor) if self.auditor else None
        return EpochKey(0, first) if first else self._epochs.known(log)

    def _spot(self, name: LogName, count: int) -> None:
        """Under the last checkpoint, by the key that is pinned, or by the last one that the log names."""
        stored = self._store.checkpoints(name.log)
        if not stored:
            return
        try:
            keys = [self._pin] if self._pin else [*_rotated_to(self._store, name), name.public_key]
            point = _open_any(stored[-1][1], [key for key in keys if key])
            if point.origin != name.origin or point.size != stored[-1][0] or log_id(name.origin) != name.log:
                raise ValueError("its last checkpoint belongs elsewhere")  # noqa: TRY301 - told like the others
            self._report.sampled += spot.check(self._store, name, point, count)
        except (ValueError, TypeError, KeyError, StoreError) as error:
            self._problem(name.tenant, None, str(error))
        self._report.entries += stored[-1][0]
        self._report.checkpoints += 1
        self._report.tags = False

    def _log(self, name: LogName, outside: Sequence[str]) -> None:
        try:
            walk = Walk(name, self._key(name.log))
        except ValueError as error:
            self._problem(name.tenant, None, str(error))
            return
        marked = self._marks.get(name.log)
        stored = self._store.checkpoints(name.log)
        notes = [*(note for _, note in stored), *outside, *([marked] if marked else [])]
        walk.wanted = {size for note in notes if (size := _size(note)) is not None}
        try:
            for row in self._store.entries(name.log):
                try:
                    walk.step(row)
                except (ValueError, TypeError, KeyError) as error:
                    # What follows hangs on this entry; one name is enough.
                    self._problem(name.tenant, walk.frontier.size, str(error))
                    return
                if self._progress and walk.frontier.size % PROGRESS_EVERY == 0:
                    self._progress(self._report.entries + walk.frontier.size)
        except StoreError as error:
            self._problem(name.tenant, walk.frontier.size, f"it cannot be read: {error.message}")
            return
        self._report.entries += walk.frontier.size
        self._report.tagged += walk.tagged
        self._report.tags &= walk.has_key
        self._derived(name, walk)
        self._people(name, walk)
        self._checkpoints(name, walk, stored)
        for note in outside:
            if self._hold_note(name, walk, note, "a checkpoint from elsewhere"):
                self._report.outside += 1
        if marked:
            self._hold_note(name, walk, marked, "the high-water mark")

    def _derived(self, name: LogName, walk: Walk) -> None:
        stored = {(level, index): found for level, index, found in self._store.all_nodes(name.log)}
        if stored != walk.nodes:
            level, index = min({*stored, *walk.nodes}, key=lambda at: (stored.get(at) == walk.nodes.get(at), at))
            first, last = index << level, ((index + 1) << level) - 1
            self._problem(name.tenant, None, f"the tree over entries {first} to {last} was changed")
        ends = {seq: turn for turn, seq in self._store.turns(name.log).items()}
        if ends.keys() != walk.ends.keys() or any(turn and ends[seq] != turn for seq, turn in walk.ends.items()):
            self._problem(name.tenant, None, "the list of its turns was changed")
        if self._store.acts(name.log) != walk.acts:
            self._problem(name.tenant, None, "the list of its operators' acts was changed")
        self._report.restored += walk.restored

    def _people(self, name: LogName, walk: Walk) -> None:
        for seq in sorted(walk.missing - walk.pruned):
            self._problem(name.tenant, seq, "its body is missing, and no act of pruning speaks of it")
        for seq in sorted(walk.pruned - walk.missing):
            self._problem(name.tenant, seq, "its body is there again, after the act that removed it")
        self._report.pruned += len(walk.missing)
        for subject, (seq, count) in walk.subjects.items():
            there = self._store.subject_key(name.log, subject) is not None
            if subject in walk.erased:
                self._report.erased += count
                if there:
                    self._problem(
                        name.tenant, walk.erased[subject], "the key of a person who was erased is there again"
                    )
            elif not there:
                self._problem(name.tenant, seq, "the key of its sealed part is gone, and no erasure speaks of it")

    def _checkpoints(self, name: LogName, walk: Walk, stored: Sequence[tuple[int, str]]) -> None:
        if self._pin is not None and self._pin not in walk.line:
            self._problem(name.tenant, None, "it was never signed under the key that you hold")
        last = 0
        for size, note in stored:
            self._report.checkpoints += 1
            if self._hold_note(name, walk, note, f"the checkpoint at {size}", size=size):
                last = max(last, size)
        self._report.unanchored += max(0, walk.frontier.size - last)

    def _hold_note(self, name: LogName, walk: Walk, note: str, what: str, *, size: int | None = None) -> bool:
        try:
            point = open_note(note, walk.line.at(_size(note) or 0))
        except ValueError as error:
            self._problem(name.tenant, None, f"{what} does not hold: {error}")
            return False
        if point.origin != name.origin or (size is not None and point.size != size):
            self._problem(name.tenant, None, f"{what} belongs elsewhere")
        elif point.size > walk.frontier.size:
            lost = walk.lost_before(point.size)
            cause = f"it is missing: {what} speaks of {point.size} entries"
            self._problem(name.tenant, walk.frontier.size, cause + (f"; {lost}" if lost else ""))
        elif walk.roots[point.size] != point.root:
            lost = walk.lost_before(point.size)
            cause = f"its first {point.size} entries are not those of the signed checkpoint ({what})"
            self._problem(name.tenant, None, cause + (f"; {lost}" if lost else ""))
        else:
            return True
        return False


def _rotated_to(store: Store, name: LogName) -> list[str]:
    """The keys that the log's rotations hand over to, newest first."""
    rows = [
        next(store.entries(name.log, start=a.seq, limit=1)) for a in store.acts(name.log) if a.kind == kinds.ROTATED
    ]
    return [str(read_detail(row.open or b"")["new"]) for row in reversed(rows)]


def _open_any(note: str, keys: Sequence[str]) -> Checkpoint:
    for key in keys[:-1]:
        try:
            return open_note(note, key)
        except ValueError:
            continue
    return open_note(note, keys[-1])


def _size(note: str) -> int | None:
    """The size that a note speaks of, before it is known to hold."""
    text = [*note.split("\n", 2), "", ""][1]
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _origin(note: str) -> str:
    return note.split("\n", 1)[0]
