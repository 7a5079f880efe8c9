"""The tree: RFC 6962 and RFC 9162, against a definition written from the text, mutations, published vectors."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence

import pytest
from audit_parts import published
from hypothesis import given
from hypothesis import strategies as st

from aibox.audit.merkle import (
    EMPTY_ROOT,
    Frontier,
    consistency_proof,
    inclusion_proof,
    root,
    verify_consistency,
    verify_inclusion,
)

# The leaves and roots that the implementations of Certificate Transparency have shared since 2013.
INPUTS = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def leaf(data: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + data).digest()


def leaves_of(count: int) -> list[bytes]:
    return [leaf(str(n).encode()) for n in range(count)]


def definition(leaves: Sequence[bytes]) -> bytes:
    """RFC 6962 sec. 2.1, word for word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + definition(leaves[:k]) + definition(leaves[k:])).digest()


def nodes_over(leaves: Sequence[bytes]) -> Callable[[int, int], bytes]:
    return lambda level, index: definition(leaves[index << level : (index + 1) << level])


def test_the_shared_roots_of_certificate_transparency() -> None:
    """The eight trees that every implementation of RFC 6962 is tried with have their known roots."""
    leaves = [leaf(bytes.fromhex(text)) for text in INPUTS]
    assert [root(leaves[: n + 1]).hex() for n in range(8)] == ROOTS
    assert root([]) == EMPTY_ROOT == definition([])


def test_a_growing_frontier_has_the_defined_root_and_can_be_read_back() -> None:
    """At each size up to 130 the root is the definition's, and a frontier read from stored nodes goes on as before."""
    frontier, stored = Frontier(), {}
    leaves = leaves_of(130)
    for n, item in enumerate(leaves):
        stored[0, n] = item
        stored.update({(level, index): made for level, index, made in frontier.add(item)})
        assert frontier.root() == definition(leaves[: n + 1])
        again = Frontier.read(n + 1, lambda level, index: stored[level, index])
        assert (again.size, again.roots) == (frontier.size, frontier.roots)
    assert all(definition(leaves[i << lv : (i + 1) << lv]) == value for (lv, i), value in stored.items())


def test_a_frontier_that_takes_in_many_at_once_is_the_one_that_took_each() -> None:
    """From every size up to 40 by every count up to 40: the same roots, and the same subtrees are complete."""
    leaves = leaves_of(80)
    for old in range(41):
        for count in range(41):
            one, many = Frontier(), Frontier()
            for item in leaves[:old]:
                one.add(item)
                many.add(item)
            made = [each for item in leaves[old : old + count] for each in one.add(item)]
            assert sorted(many.extend(leaves[old : old + count])) == sorted(made)
            assert (many.size, many.roots) == (one.size, one.roots)


def test_every_proof_of_every_small_tree_holds() -> None:
    """Inclusion of each leaf, and consistency of each pair of sizes, in all trees of up to 33 leaves."""
    leaves = leaves_of(33)
    node = nodes_over(leaves)
    for size in range(1, 34):
        whole = definition(leaves[:size])
        for index in range(size):
            verify_inclusion(leaves[index], index, size, inclusion_proof(index, size, node), whole)
        for old in range(1, size + 1):
            verify_consistency(old, size, consistency_proof(old, size, node), definition(leaves[:old]), whole)


def mutated(proof: Sequence[bytes], *values: bytes) -> Iterator[list[bytes]]:
    """What the published vectors do to a proof: bits, garbage, roots in front and behind, parts more and fewer."""
    for n, item in enumerate(proof):
        for bit in (0, 4, 255):
            flipped = (int.from_bytes(item) ^ 1 << bit).to_bytes(32)
            yield [*proof[:n], flipped, *proof[n + 1 :]]
        yield [*proof[:n], *proof[n + 1 :]]
        yield [*proof[:n], bytes(32), *proof[n:]]
    for value in (b"", bytes(32), b"\xff" * 32, *values):
        yield [value, *proof]
        yield [*proof, value]
    for n in range(len(proof)):
        yield list(proof[:n])


@given(st.integers(2, 70), st.data())
def test_no_changed_inclusion_proof_holds(size: int, data: st.DataObject) -> None:
    """No change that the published vectors make to a proof, an index, a size, a leaf or a root is accepted."""
    leaves = leaves_of(size)
    index = data.draw(st.integers(0, size - 1))
    proof, whole = inclusion_proof(index, size, nodes_over(leaves)), definition(leaves)
    for changed in mutated(proof, whole, leaves[index]):
        with pytest.raises(ValueError, match=r"proof"):
            verify_inclusion(leaves[index], index, size, changed, whole)
    for other in {index ^ 1, index ^ 2, index + 1, index - 1, size, -1} - {index}:
        with pytest.raises(ValueError, match=r"proof|leaf"):
            verify_inclusion(leaves[index], other, size, proof, whole)
    for wrong in (EMPTY_ROOT, bytes(32), leaves[index]):
        with pytest.raises(ValueError, match="another root"):
            verify_inclusion(leaves[index], index, size, proof, wrong)
    with pytest.raises(ValueError, match="another root"):
        verify_inclusion(leaf(b"another"), index, size, proof, whole)


@given(st.integers(2, 70), st.data())
def test_no_changed_consistency_proof_holds(size: int, data: st.DataObject) -> None:
    """No change of a proof, of a size or of either root is accepted, and roots cannot be swapped."""
    leaves = leaves_of(size)
    old = data.draw(st.integers(1, size - 1))
    proof = consistency_proof(old, size, nodes_over(leaves))
    before, after = definition(leaves[:old]), definition(leaves)
    for changed in mutated(proof, before, after):
        with pytest.raises(ValueError, match=r"proof|agree"):
            verify_consistency(old, size, changed, before, after)
    for roots in ((after, before), (before, before), (EMPTY_ROOT, after), (before, EMPTY_ROOT)):
        with pytest.raises(ValueError, match=r"proof|agree"):
            verify_consistency(old, size, proof, *roots)
    with pytest.raises(ValueError, match=r"proof|agree|one tree"):
        verify_consistency(old + 1, size, proof, before, after)
    for sizes in ((0, size), (size + 1, size), (-1, size)):
        with pytest.raises(ValueError, match="no tree"):
            verify_consistency(*sizes, proof, before, after)


@pytest.mark.parametrize("doubled", [False, True], ids=["3", "4-with-the-last-twice"])
def test_odd_leaf_duplication(doubled: bool) -> None:
    """Attack: a, b, c and a, b, c, c have different roots; a lone subtree is promoted and never paired with itself."""
    a, b, c = leaves_of(3)
    assert root([a, b, c]) != root([a, b, c, c])
    assert root([a, b, c, *([c] if doubled else [])]) == definition([a, b, c, *([c] if doubled else [])])


def test_a_node_as_a_leaf() -> None:
    """Attack: an inner node offered as an entry has another hash, so no shorter tree has the same root."""
    a, b = leaves_of(2)
    assert leaf(a + b) != root([a, b])


def test_a_proof_at_a_thousand_million_entries_is_small() -> None:
    """30 hashes, 960 bytes, at 10^9 leaves; counted on a tree that is never built."""
    proof = inclusion_proof(123_456_789, 10**9, lambda level, index: bytes(32))
    assert len(proof) * 32 <= 960


@pytest.mark.parametrize("kind", ["inclusion", "consistency"])
def test_published_vectors(kind: str) -> None:
    """The language-neutral vectors of transparency-dev: valid proofs hold, and no other does."""
    files = sorted(published("merkle/" + kind).rglob("*.json"))
    assert len(files) > 90
    for file in files:
        v = json.loads(file.read_text())
        proof = [base64.b64decode(item) for item in v["proof"] or []]
        try:
            if kind == "inclusion":
                data = base64.b64decode(v["leafHash"] or ""), v["leafIdx"], v["treeSize"], proof
                verify_inclusion(*data, base64.b64decode(v["root"] or ""))
            else:
                roots = base64.b64decode(v["root1"] or ""), base64.b64decode(v["root2"] or "")
                verify_consistency(v["size1"], v["size2"], proof, *roots)
            refused = False
        except ValueError:
            refused = True
        assert refused == v["wantErr"], file


def test_a_hash_that_is_cut_in_another_place() -> None:
    """Attack: two hashes of 31 and 33 bytes join to the same bytes as two of 32; an empty leaf has no empty root."""
    a, b = leaves_of(2)
    verify_inclusion(a, 0, 2, [b], root([a, b]))
    with pytest.raises(ValueError, match="32 bytes"):
        verify_inclusion(a[:31], 0, 2, [a[31:] + b], root([a, b]))
    with pytest.raises(ValueError, match="32 bytes"):
        verify_consistency(1, 2, [a[31:] + b], a[:31], root([a, b]))
    with pytest.raises(ValueError, match="32 bytes"):
        verify_inclusion(b"", 0, 1, [], b"")
    with pytest.raises(ValueError, match="too long"):
        verify_inclusion(a, 0, 1, [b], root([a, b]))


def test_there_is_no_proof_of_what_is_not_there() -> None:
    """A leaf beyond the tree has no inclusion proof, and an empty or larger tree is no beginning of a smaller one."""
    node = nodes_over(leaves_of(4))
    for index in (-1, 4):
        with pytest.raises(ValueError, match="no leaf"):
            inclusion_proof(index, 4, node)
    for old in (0, 5):
        with pytest.raises(ValueError, match="no consistency proof"):
            consistency_proof(old, 4, node)
