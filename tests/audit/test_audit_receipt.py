"""Receipts: a public key and the file are enough, and nothing in the file can be exchanged."""

from __future__ import annotations

import base64
import dataclasses
import json
from pathlib import Path

import pytest
from audit_parts import ACME, RIVAL, sealed_turns
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from aibox.audit.chain import AuditChain
from aibox.audit.checkpoint import Checkpoint, open_note
from aibox.audit.receipt import Receipt
from aibox.audit.signer import KeySigner, public_key, sign
from aibox.errors import ConfigError, IntegrityError

pytestmark = pytest.mark.anyio


@pytest.fixture
async def receipts(tmp_path: Path) -> list[Receipt]:
    """Three of acme's, then one of the tenant beside it."""
    async with AuditChain(tmp_path / "audit.db") as chain:
        return [*await sealed_turns(chain, ACME, 3), *await sealed_turns(chain, RIVAL, 1)]


async def test_a_receipt_needs_nothing_but_itself_and_a_key(receipts: list[Receipt], tmp_path: Path) -> None:
    """Saved, loaded and verified elsewhere, against the public key that was got on another way."""
    receipts[0].save(tmp_path / "r.json")
    loaded = Receipt.load(tmp_path / "r.json")
    assert loaded == receipts[0]
    loaded.verify((tmp_path / "keys" / "log.pub").read_text())
    assert [entry.kind for entry in loaded.entries] == ["turn.started", "model.called", "turn.sealed"]


async def test_a_receipt_signed_by_somebody_else(receipts: list[Receipt]) -> None:
    """Attack: a log of one's own, with the same name and another key, does not pass for the one that is pinned."""
    mine = KeySigner("aibox", Ed25519PrivateKey.generate())
    checkpoint = open_note(receipts[0].checkpoint, receipts[0].public_key)
    forged = dataclasses.replace(receipts[0], checkpoint=sign(mine, checkpoint), public_key=public_key(mine))
    with pytest.raises(IntegrityError, match="checkpoint"):
        forged.verify(receipts[0].public_key)


async def test_a_receipt_of_another_turn_or_tenant(receipts: list[Receipt]) -> None:
    """Attack: the entries of one turn do not prove another, and a tenant's not those of the tenant beside it."""
    for other in receipts[1:]:
        for name in ("turn", "tenant", "entries"):
            if getattr(receipts[0], name) == getattr(other, name):
                continue
            with pytest.raises(IntegrityError):
                dataclasses.replace(receipts[0], **{name: getattr(other, name)}).verify()
    with pytest.raises(IntegrityError, match="another log"):
        dataclasses.replace(receipts[0], checkpoint=receipts[3].checkpoint).verify()


async def test_an_entry_is_left_out_added_or_moved(receipts: list[Receipt]) -> None:
    """Attack: the terminal entry lists the turn's entries; none can be kept back, doubled or put elsewhere."""
    first, second, last = receipts[0].entries
    orders = [(first, last), (second, last), (last,), (first, second), (second, first, last), (), (first, first, last)]
    orders += [(first, second, second, last), (first, second, last, last), (last, first, second)]
    for entries in orders:
        with pytest.raises(IntegrityError):
            dataclasses.replace(receipts[0], entries=entries).verify()


async def test_each_bit_of_a_receipt_counts(receipts: list[Receipt]) -> None:
    """Attack: a turned bit in any header, body or proof of a receipt is found."""
    for n, entry in enumerate(receipts[1].entries):
        parts = [("header", at) for at in range(len(entry.header))] + [
            ("open", at) for at in range(0, len(entry.open), 7)
        ]
        for name, at in parts:
            data = bytearray(getattr(entry, name))
            data[at] ^= 1
            changed = dataclasses.replace(entry, **{name: bytes(data)})
            entries = [*receipts[1].entries[:n], changed, *receipts[1].entries[n + 1 :]]
            with pytest.raises(IntegrityError):
                dataclasses.replace(receipts[1], entries=tuple(entries)).verify()
        for at in range(len(entry.proof)):
            proof = [*entry.proof[:at], bytes(32), *entry.proof[at + 1 :]]
            entries = [
                *receipts[1].entries[:n],
                dataclasses.replace(entry, proof=tuple(proof)),
                *receipts[1].entries[n + 1 :],
            ]
            with pytest.raises(IntegrityError):
                dataclasses.replace(receipts[1], entries=tuple(entries)).verify()


async def test_a_smaller_tree_is_no_excuse(receipts: list[Receipt]) -> None:
    """Attack: a proof for one size of the tree is not one for another size."""
    later = open_note(receipts[2].checkpoint, receipts[2].public_key)
    assert later == Checkpoint(later.origin, 9, later.root)
    with pytest.raises(IntegrityError):
        dataclasses.replace(receipts[0], checkpoint=receipts[2].checkpoint).verify()


@pytest.mark.parametrize("change", ["format", "entries", "tenant", "more", "fewer", "header", "proof", "body"])
async def test_what_is_no_receipt_is_refused(receipts: list[Receipt], tmp_path: Path, change: str) -> None:
    """Other fields, types or forms are refused when they are read, as a wrong file rather than as broken evidence."""
    value = receipts[0].as_dict()
    bad: dict[str, object] = {
        "format": "aibox/receipt/v9", "entries": {}, "tenant": 1, "more": 1,
        "header": [{**value["entries"][0], "header": "?"}], "proof": [{**value["entries"][0], "proof": [1]}],
        "body": [{**value["entries"][0], "body": 1}],
    }  # fmt: skip
    if change == "fewer":
        del value["turn"]
    else:
        value["entries" if change in ("header", "proof", "body") else change] = bad[change]
    (tmp_path / "r.json").write_text(json.dumps(value))
    with pytest.raises(ConfigError, match="not a receipt"):
        Receipt.load(tmp_path / "r.json")


async def test_any_file_can_be_offered_as_a_receipt(tmp_path: Path) -> None:
    """Attack: nothing, garbage, deep nests and base64 of garbage end in a sentence."""
    for data in (b"", b"{}", b"\xff", b"[" * 200_000, base64.b64encode(bytes(1000))):
        (tmp_path / "r.json").write_bytes(data)
        with pytest.raises(ConfigError, match="not a receipt"):
            Receipt.load(tmp_path / "r.json")


async def test_a_receipt_has_a_bounded_size(receipts: list[Receipt], monkeypatch: pytest.MonkeyPatch) -> None:
    """Attack: a file that is larger than any receipt is refused before it is read as JSON."""
    data = json.dumps(receipts[0].as_dict()).encode()
    assert Receipt.read(data) == receipts[0]
    monkeypatch.setattr("aibox.audit.receipt.MAX_RECEIPT_BYTES", len(data) - 1)
    with pytest.raises(ValueError, match="longer than"):
        Receipt.read(data)
