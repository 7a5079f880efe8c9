"""The Merkle tree of RFC 6962 sec. 2.1: roots, inclusion and consistency proofs, and their verification. Pure.

A proof for n leaves has at most ceil(log2 n) hashes (one more for consistency): 960 bytes at 10^9.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256

Node = Callable[[int, int], bytes]
"""`node(level, index)`: the hash of the complete subtree over leaves [index * 2^level, (index + 1) * 2^level)."""

HASH_BYTES = 32
EMPTY_ROOT = sha256(b"").digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()


class Frontier:
    """The roots of the complete subtrees that a tree of `size` leaves consists of; grows by one leaf in O(log n)."""

    def __init__(self, size: int = 0, roots: Sequence[bytes] = ()) -> None:
        self.size = size
        self.roots = list(roots)

    @classmethod
    def read(cls, size: int, node: Node) -> Frontier:
        """Of a stored tree: one look-up for each bit of its size."""
        roots = [node(level, (size >> level) - 1) for level in reversed(range(size.bit_length())) if size >> level & 1]
        return cls(size, roots)

    def add(self, leaf: bytes) -> list[tuple[int, int, bytes]]:
        """Append a leaf; the (level, index, hash) of each subtree above it that is now complete."""
        made: list[tuple[int, int, bytes]] = []
        current, index, level = leaf, self.size, 0
        while index & 1:
            current = node_hash(self.roots.pop(), current)
            index >>= 1
            level += 1
            made.append((level, index, current))
        self.roots.append(current)
        self.size += 1
        return made

    def extend(self, leaves: Sequence[bytes]) -> list[tuple[int, int, bytes]]:
        """Append many; as `add` would say for each, but level by level, which is half the work."""
        if len(leaves) == 1:
            return self.add(leaves[0])
        made: list[tuple[int, int, bytes]] = []
        start, row, level, roots = self.size, list(leaves), 0, []
        self.size += len(row)
        while row:
            if start & 1:
                # This level has waited for its right neighbour.
                row.insert(0, self.roots.pop())
            if len(row) & 1:
                roots.append(row.pop())
            start, level = start >> 1, level + 1
            row = [sha256(b"\x01" + left + right).digest() for left, right in zip(row[::2], row[1::2], strict=True)]
            made += [(level, start + n, value) for n, value in enumerate(row)]
        self.roots += reversed(roots)
        return made

    def root(self) -> bytes:
        if not self.roots:
            return EMPTY_ROOT
        current = self.roots[-1]
        for left in reversed(self.roots[:-1]):
            current = node_hash(left, current)
        return current


def root(leaves: Sequence[bytes]) -> bytes:
    frontier = Frontier()
    for leaf in leaves:
        frontier.add(leaf)
    return frontier.root()


def inclusion_proof(index: int, size: int, node: Node) -> list[bytes]:
    """RFC 6962 sec. 2.1.1: the hashes that lead from leaf `index` to the root of `size` leaves."""
    if not 0 <= index < size:
        raise ValueError(f"there is no leaf {index} among {size}")
    return _path(index, 0, size, node)


def _path(index: int, start: int, end: int, node: Node) -> list[bytes]:
    if end - start == 1:
        return []
    middle = start + _split(end - start)
    if index < middle:
        return [*_path(index, start, middle, node), _range(middle, end, node)]
    return [*_path(index, middle, end, node), _range(start, middle, node)]


def _range(start: int, end: int, node: Node) -> bytes:
    """The root over leaves [start, end), where start is a multiple of the largest power of two that fits."""
    size = end - start
    if size & (size - 1) == 0:
        level = size.bit_length() - 1
        return node(level, start >> level)
    middle = start + _split(size)
    return node_hash(_range(start, middle, node), _range(middle, end, node))


def _split(size: int) -> int:
    """The largest power of two smaller than size."""
    return 1 << (size - 1).bit_length() - 1


def consistency_proof(old: int, new: int, node: Node) -> list[bytes]:
    """RFC 6962 sec. 2.1.2: that the first `old` of `new` leaves are the tree that was there before."""
    if not 0 < old <= new:
        raise ValueError(f"a tree of {old} leaves has no consistency proof to one of {new}")
    return _subproof(old, 0, new, node, whole=True) if old < new else []


def _subproof(old: int, start: int, end: int, node: Node, *, whole: bool) -> list[bytes]:
    if start + old == end:
        return [] if whole else [_range(start, end, node)]
    middle = start + _split(end - start)
    if start + old <= middle:
        return [*_subproof(old, start, middle, node, whole=whole), _range(middle, end, node)]
    return [*_subproof(old - (middle - start), middle, end, node, whole=False), _range(start, middle, node)]


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], expected_root: bytes) -> None:
    """RFC 9162 sec. 2.1.3.2. Raises ValueError unless the proof leads from the leaf to the root."""
    if not 0 <= index < size:
        raise ValueError(f"there is no leaf {index} among {size}")
    _hold_lengths(leaf, expected_root, *proof)
    current = leaf
    for sibling, left in _climb(index, size - 1, proof):
        current = node_hash(sibling, current) if left else node_hash(current, sibling)
    if current != expected_root:
        raise ValueError("the proof leads to another root")


def verify_consistency(old: int, new: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes) -> None:
    """RFC 9162 sec. 2.1.4.2. Raises ValueError unless the new tree holds the old one unchanged."""
    if not 0 < old <= new:
        raise ValueError(f"no tree of {old} leaves can be a part of one of {new}")
    _hold_lengths(*proof)
    if old == new:
        if proof or old_root != new_root:
            raise ValueError("trees of one size are one tree")
        return
    path = list(proof)
    if old & (old - 1) == 0:
        path.insert(0, old_root)
    if not path:
        raise ValueError("the proof is empty")
    position, last = old - 1, new - 1
    while position & 1:
        position >>= 1
        last >>= 1
    first = second = path[0]
    for sibling, left in _climb(position, last, path[1:]):
        first = node_hash(sibling, first) if left else first
        second = node_hash(sibling, second) if left else node_hash(second, sibling)
    if first != old_root or second != new_root:
        raise ValueError("the trees do not agree")


def _hold_lengths(*hashes: bytes) -> None:
    if any(len(item) != HASH_BYTES for item in hashes):
        raise ValueError(f"a hash in a proof has {HASH_BYTES} bytes")


def _climb(position: int, last: int, path: Sequence[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Up to the root of leaves 0 to `last`: each hash of the path, and whether it stands on the left.

    Raises ValueError unless the path is exactly as long as the way.
    """
    for sibling in path:
        if last == 0:
            raise ValueError("the proof is too long")
        left = position & 1 == 1 or position == last
        yield sibling, left
        # A subtree without a right neighbour rises unchanged to the level where it has a left one.
        while left and position and not position & 1:
            position, last = position >> 1, last >> 1
        position, last = position >> 1, last >> 1
    if last != 0:
        raise ValueError("the proof is too short")
