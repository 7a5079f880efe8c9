"""How a receipt is made: the rows of a turn, the keys of their sealed parts, their proofs to one checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

from aibox.audit import kinds
from aibox.audit.head import Head
from aibox.audit.ledger import Ledger
from aibox.audit.receipt import Receipt, ReceiptEntry
from aibox.audit.record import Row, read_detail
from aibox.audit.tree import StoredTree
from aibox.errors import ConfigError


def entry_of(ledger: Ledger, head: Head, row: Row, proof: tuple[bytes, ...] = ()) -> ReceiptEntry:
    """A stored row as others may read it."""
    hidden = row.sealed or b""
    return ReceiptEntry(row.header, row.open or b"", hidden, ledger.entry_key(head, hidden), proof)


def make_receipt(ledger: Ledger, head: Head, turn: str, seqs: Sequence[int], point: tuple[int, str]) -> Receipt:
    """Of these entries, to this checkpoint."""
    tree = StoredTree(ledger.store, head.log)
    size, note = point
    entries = []
    for seq in seqs:
        row = next(ledger.store.entries(head.log, start=seq, limit=1))
        if row.open is None:
            raise ConfigError(f"an entry of the turn {turn} of {head.name.tenant} is past its retention")
        entries.append(entry_of(ledger, head, row, tree.inclusion(seq, size)))
    rotations = tuple(
        read_detail(next(ledger.store.entries(head.log, start=act.seq, limit=1)).open or b"")
        for act in (ledger.store.acts(head.log) if head.name.public_key != head.public_key else ())
        if act.kind == kinds.ROTATED and act.seq < size
    )
    return Receipt(turn, head.name.tenant, tuple(entries), note, _key_at(head, rotations, size), rotations)


def receipt_of(ledger: Ledger, tenant: str, turn: str) -> Receipt:
    """Of a turn that was sealed. Raises ConfigError where there is none."""
    head = ledger.head(tenant)
    seq = ledger.store.turn(head.log, turn)
    if seq is None:
        raise ConfigError(f"no turn {turn} of {tenant} has been sealed")
    row = next(ledger.store.entries(head.log, start=seq, limit=1))
    if row.open is None:
        raise ConfigError(f"the turn {turn} of {tenant} is past its retention")
    seqs = [listed for listed, _ in read_detail(row.open)["entries"]] + [seq]
    point = ledger.store.checkpoint_from(head.log, seq + 1)
    if point is None:
        point = (head.size, ledger.checkpoint(head))
    return make_receipt(ledger, head, turn, seqs, point)


def _key_at(head: Head, rotations: Sequence[dict[str, object]], size: int) -> str:
    """The key that signed at a size: a rotation is the last entry that the old key speaks for."""
    key = head.name.public_key
    for rotation in rotations:
        if size > int(str(rotation["until"])):
            key = str(rotation["new"])
    return key
