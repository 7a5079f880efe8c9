"""The stored tree of one log: proofs out of a database that keeps every fourth level."""

from __future__ import annotations

from aibox.audit.merkle import consistency_proof, inclusion_proof, node_hash
from aibox.audit.record import leaf_hash
from aibox.audit.store import NODE_LEVELS, Store
from aibox.errors import StoreError


class StoredTree:
    """Look-ups are remembered: made anew for each moment at which proofs are wanted."""

    def __init__(self, store: Store, log: bytes) -> None:
        self._store = store
        self._log = log
        self._known: dict[tuple[int, int], bytes] = {}

    def node(self, level: int, index: int) -> bytes:
        """The hash of a complete subtree. Raises StoreError where it is missing."""
        found = self._known.get((level, index))
        if found is not None:
            return found
        below = level % NODE_LEVELS
        base, start, count = level - below, index << below, 1 << below
        if base == 0:
            rows = self._store.entries(self._log, start=start, limit=count)
            hashes = [leaf_hash(row.header) for row in rows if start <= row.seq < start + count]
        else:
            hashes = self._store.nodes(self._log, base, start, count)
        if len(hashes) != count:
            raise StoreError(f"the audit log has lost node {level}/{index}", hint="aibox verify says more")
        for height in range(below + 1):
            for n, value in enumerate(hashes):
                self._known[base + height, (start >> height) + n] = value
            hashes = [node_hash(left, right) for left, right in zip(hashes[::2], hashes[1::2], strict=False)]
        return self._known[level, index]

    def inclusion(self, seq: int, size: int) -> tuple[bytes, ...]:
        return tuple(inclusion_proof(seq, size, self.node))

    def consistency(self, old: int, new: int) -> tuple[bytes, ...]:
        return tuple(consistency_proof(old, new, self.node))
