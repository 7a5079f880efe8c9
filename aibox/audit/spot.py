"""A spot check: entries drawn at random, each proved to stand in the last signed checkpoint. Seconds for any size."""

from __future__ import annotations

import secrets

from aibox.audit.checkpoint import Checkpoint
from aibox.audit.merkle import verify_inclusion
from aibox.audit.record import SEALED, Header, body_commit, leaf_hash, read_open
from aibox.audit.store import LogName, Store
from aibox.audit.tree import StoredTree


def check(store: Store, name: LogName, point: Checkpoint, count: int) -> int:
    """Of `count` entries under a checkpoint that holds. Returns how many; raises ValueError that names the entry.

    It finds a changed entry when it is drawn; that nothing is missing or was exchanged together with its checkpoint is
    for the full check, and for checkpoints from elsewhere.
    """
    tree = StoredTree(store, name.log)
    drawn = {secrets.randbelow(point.size) for _ in range(count)} | {point.size - 1}
    for seq in sorted(drawn):
        row = next(iter(store.entries(name.log, start=seq, limit=1)), None)
        if row is None or row.seq != seq:
            raise ValueError(f"entry {seq}: it is missing")
        header = Header.unpack(row.header)
        if header.seq != seq or header.log_id != name.log:
            raise ValueError(f"entry {seq}: it is another entry")
        verify_inclusion(leaf_hash(row.header), seq, point.size, tree.inclusion(seq, point.size), point.root)
        if row.open is None:
            continue
        if header.body_commit != body_commit(row.open, row.sealed or b""):
            raise ValueError(f"entry {seq}: its body is not the one that was recorded")
        if bool(header.flags & SEALED) != bool(row.sealed) or read_open(row.open).tenant != name.tenant:
            raise ValueError(f"entry {seq}: its body names another tenant or kind")
    return len(drawn)
