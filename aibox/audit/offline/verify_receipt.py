#!/usr/bin/env python3
"""Check a receipt of an aibox audit log without aibox. Needs Python 3.11 and the package `cryptography`.

    python verify_receipt.py receipt.json [log.pub]

Exit code 0: it holds; 1: it does not, and the reason is printed; 2: it could not be read.

What is proved, step by step: the checkpoint (origin, size, root) was signed by the log's key; each entry's header is a
leaf of the tree under that root (RFC 6962); each header commits to the body that stands here; the last entry ends the
turn and lists all the others. Without log.pub the key inside the receipt is used: then all fits together, and who
signed is only as sure as the way that the receipt took.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
import sys
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

MAX_BYTES = 64 * 2**20
FIELDS = {"format", "turn", "tenant", "checkpoint", "public_key", "rotations", "entries"}
ENTRY_FIELDS = {"header", "open", "sealed", "key", "proof"}
OPEN_FIELDS = {"action", "detail", "id", "tenant", "turn_id", "v"}
GENESIS, SEALED, KEY, TOMBSTONE, TERMINAL = 1, 2, 8, 16, 32


class BrokenError(ValueError):
    """The receipt does not hold."""


class UnreadableError(Exception):
    """The file is not a receipt."""


def sha256(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def log_id_of(origin: str) -> bytes:
    return sha256(b"aibox/log/v1\x00", origin.encode())


def hold(condition: object, reason: str) -> None:
    """Every check of this file is one call of this function, or a signature."""
    if not condition:
        raise BrokenError(reason)


def strict_base64(text: str) -> bytes:
    """One text for one value: base64 has several spellings of some."""
    try:
        data = base64.b64decode(text, validate=True)
    except (ValueError, TypeError) as error:
        raise BrokenError(f"not base64: {error}") from None
    hold(base64.b64encode(data).decode() == text, "not canonical base64")
    return data


# The public key and the checkpoint: C2SP signed-note and tlog-checkpoint.


def read_key(text: str) -> tuple[str, bytes, bytes]:
    """`name+id+base64(kind || key)`: the name, the four bytes of the id, the 32 bytes of an Ed25519 key."""
    match = re.fullmatch(r"([^+\s]+)\+([0-9a-f]{8})\+([A-Za-z0-9+/=]+)", text.strip())
    hold(match, "not a verifier key")
    assert match is not None
    name, number, typed = match[1], match[2], strict_base64(match[3])
    hold(len(typed) == 33 and typed[0] == 1, "not an Ed25519 verifier key")
    key_id = sha256(name.encode(), b"\n", typed)[:4]
    hold(key_id.hex() == number, "the verifier key's check sum does not fit")
    return name, key_id, typed[1:]


def signed_by(key: bytes, signature: bytes, text: bytes, what: str) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, text)
    except InvalidSignature:
        raise BrokenError(f"{what}: the signature does not fit") from None


def read_checkpoint(note: str, public_key: str) -> tuple[str, int, bytes]:
    """Origin, size and root of a note that this key signed. Signatures of other keys say nothing and are passed by."""
    name, key_id, key = read_key(public_key)
    text, divider, tail = note.rpartition("\n\n")
    text += "\n"
    lines = tail.removesuffix("\n").split("\n")
    hold(divider and tail.endswith("\n") and len(lines) <= 16 and len(note.encode()) <= 16384, "not a signed note")
    hold(not any(ord(character) < 32 and character != "\n" for character in text), "a control character in the note")
    verified = False
    for line in lines:
        match = re.fullmatch("\N{EM DASH} ([^ +]+) ([A-Za-z0-9+/]+={0,2})", line)
        hold(match, "not a signature line")
        assert match is not None
        signature = strict_base64(match[2])
        if match[1] == name and signature[:4] == key_id:
            signed_by(key, signature[4:], text.encode(), "checkpoint")
            verified = True
    hold(verified, "the checkpoint is not signed by this key")
    match = re.fullmatch(r"([^\n]+)\n(0|[1-9][0-9]{0,18})\n([A-Za-z0-9+/]{43}=)\n", text)
    hold(match, "not a checkpoint")
    assert match is not None
    return match[1], int(match[2]), strict_base64(match[3])


def check_rotation(step: dict[str, Any], log_id: bytes) -> str:
    """The key that the old one hands over to, once its signature is known to fit."""
    old, new, until = str(step.get("old")), str(step.get("new")), step.get("until")
    hold(isinstance(until, int) and not isinstance(until, bool), "not a rotation of a key")
    statement = f"aibox/rotate/v1\n{log_id.hex()}\n{old}\n{new}\n{until}\n".encode()
    read_key(new)
    try:
        signature = bytes.fromhex(str(step.get("signature")))
    except ValueError:
        raise BrokenError("a rotation without a signature") from None
    signed_by(read_key(old)[2], signature, statement, "rotation")
    return new


def follow_rotations(pinned: str, signer: str, rotations: list[dict[str, Any]], log_id: bytes) -> None:
    """From the key that you trust to the one that signed: each key signed the next."""
    for step in rotations:
        if pinned != signer and step.get("old") == pinned:
            pinned = check_rotation(step, log_id)
    hold(pinned == signer, "the checkpoint is not signed by the key that you hold, nor by one that it leads to")


# The tree: RFC 6962 section 2.1, inclusion as in RFC 9162 section 2.1.3.2.


def hold_inclusion(leaf: bytes, index: int, size: int, proof: list[bytes], root: bytes) -> None:
    hold(0 <= index < size, "no such leaf in the tree")
    hold(all(len(item) == 32 for item in proof), "a hash in the proof has another length")
    node, last, current = index, size - 1, leaf
    for sibling in proof:
        hold(last, "the proof is too long")
        if node & 1 or node == last:
            current = sha256(b"\x01", sibling, current)
            # A subtree without a right neighbour rises unchanged to where it has a left one.
            while node and not node & 1:
                node, last = node >> 1, last >> 1
        else:
            current = sha256(b"\x01", current, sibling)
        node, last = node >> 1, last >> 1
    hold(last == 0, "the proof is too short")
    hold(current == root, "the proof leads to another root")


# One entry: a header of 122 bytes, an open part, a sealed part.


def read_json(data: bytes) -> Any:
    """Canonical JSON (RFC 8785, without floats): these bytes and no others for this value."""

    def ascii_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        hold(all(name.isascii() for name, _ in pairs), "a key in a body is not ASCII")
        return dict(pairs)

    def small(text: str) -> int:
        hold(len(text) < 18 and abs(int(text)) < 2**53, "a number in a body is beyond 2^53 - 1")
        return int(text)

    def no_float(text: str) -> Any:
        raise BrokenError(f"{text} in a body is not an integer")

    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=ascii_keys,
            parse_int=small,
            parse_float=no_float,
            parse_constant=no_float,
        )
        again = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise BrokenError(f"a body is not JSON: {error}") from None
    hold(again == data, "a body is not in canonical form")
    return value


class Header(NamedTuple):
    """Integers are big-endian; `commit` is over both parts of the body."""

    magic: bytes
    version: int
    flags: int
    epoch: int
    seq: int
    ts_us: int
    log_id: bytes
    prev: bytes
    commit: bytes


def read_header(data: bytes, log_id: bytes) -> Header:
    hold(len(data) == 122, "a header has another length")
    header = Header(*struct.unpack(">4sBBIQQ32s32s32s", data))
    hold(header.magic == b"AIBX" and header.version == 1, "a header of another format")
    hold(not header.flags & ~(GENESIS | SEALED | KEY | TOMBSTONE | TERMINAL), "a header with unknown flags")
    hold(header.log_id == log_id, f"entry {header.seq} belongs to another log")
    return header


def check_body(header: Header, shown: bytes, sealed: bytes, tenant: str) -> dict[str, Any]:
    seq, parts = header.seq, sha256(b"aibox/body/v1\x00", sha256(shown), sha256(sealed))
    hold(header.commit == parts, f"entry {seq}: its body is not the one that was recorded")
    hold(bool(header.flags & SEALED) == bool(sealed), f"entry {seq}: a sealed part is missing, or one too many")
    body = read_json(shown)
    hold(isinstance(body, dict) and set(body) == OPEN_FIELDS and body["v"] == 1, f"entry {seq}: another schema")
    texts = [body[name] for name in ("action", "id", "tenant", "turn_id")]
    hold(all(isinstance(text, str) for text in texts) and isinstance(body["detail"], dict), f"entry {seq}: types")
    hold(body["tenant"] == tenant, f"entry {seq} belongs to another tenant")
    return dict(body)


def check_entry(entry: dict[str, Any], tree: tuple[str, int, bytes], turn: str, tenant: str) -> dict[str, Any]:
    """What an entry of a receipt says, once it is known to stand in the tree and to be of this turn."""
    origin, size, root = tree
    data = strict_base64(entry["header"])
    header = read_header(data, log_id_of(origin))
    seq, sealed, key = header.seq, strict_base64(entry["sealed"]), strict_base64(entry["key"])
    body = check_body(header, entry["open"].encode(), sealed, tenant)
    hold(body["turn_id"] == turn, f"entry {seq} belongs to another turn")
    leaf = sha256(b"\x00", data)
    hold_inclusion(leaf, seq, size, [strict_base64(item) for item in entry["proof"]], root)
    private = unseal(sealed, key, seq) if key else None
    return {
        "seq": seq,
        "ts_us": header.ts_us,
        "leaf": leaf.hex(),
        "kind": body["action"],
        "terminal": bool(header.flags & TERMINAL),
        "open": body["detail"],
        "private": private,
    }


def unseal(sealed: bytes, key: bytes, seq: int) -> dict[str, Any]:
    """subject (16) | salt (16) | commitment to the key (32) | AES-256-GCM, nonce zero: a key is used once."""
    hold(len(sealed) >= 64 and len(key) == 32, f"entry {seq}: not a sealed part")
    hold(sha256(b"aibox/entry-key/v1\x00", key) == sealed[32:64], f"entry {seq}: another key")
    try:
        private = read_json(AESGCM(key).decrypt(bytes(12), sealed[64:], None))
    except InvalidTag:
        raise BrokenError(f"entry {seq}: the sealed part was changed") from None
    hold(isinstance(private, dict) and set(private) == {"actor", "detail"}, f"entry {seq}: another private schema")
    hold(isinstance(private["detail"], dict), f"entry {seq}: another private schema")
    hold(isinstance(private["actor"], dict), f"entry {seq}: another private schema")
    hold(set(private["actor"]) == {"user", "agent", "session"}, f"entry {seq}: another private schema")
    return dict(private)


def check(receipt: dict[str, Any], pinned: str | None) -> list[dict[str, Any]]:
    """All of it. Raises BrokenError with the first reason why it does not hold."""
    tree = read_checkpoint(receipt["checkpoint"], receipt["public_key"])
    if pinned is not None:
        follow_rotations(pinned.strip(), receipt["public_key"], receipt["rotations"], log_id_of(tree[0]))
    entries = [check_entry(entry, tree, receipt["turn"], receipt["tenant"]) for entry in receipt["entries"]]
    hold(
        [entry["terminal"] for entry in entries] == [False] * (len(entries) - 1) + [True],
        "the terminal entry is not the last one, or there are two",
    )
    listed = [[entry["seq"], entry["leaf"]] for entry in entries[:-1]]
    hold(entries[-1]["open"].get("entries") == listed, "the terminal entry lists other entries than the receipt holds")
    return entries


def read(path: Path) -> dict[str, Any]:
    """The file, with the types that `check` relies on."""
    try:
        data = path.read_bytes()
        if len(data) > MAX_BYTES:
            raise UnreadableError("too long")
        value = json.loads(data)
    except (OSError, ValueError, RecursionError) as error:
        raise UnreadableError(str(error)) from None
    if not isinstance(value, dict) or set(value) != FIELDS or value["format"] != "aibox/receipt/v1":
        raise UnreadableError("not a receipt of this format")
    if not all(isinstance(value[name], str) for name in ("turn", "tenant", "checkpoint", "public_key")):
        raise UnreadableError("a field has the wrong type")
    lists = [value["entries"], value["rotations"]]
    if not all(isinstance(items, list) and all(isinstance(item, dict) for item in items) for items in lists):
        raise UnreadableError("a field has the wrong type")
    for entry in value["entries"]:
        texts = [entry.get(name) for name in ("header", "open", "sealed", "key")]
        proof = entry.get("proof")
        if set(entry) != ENTRY_FIELDS or not isinstance(proof, list):
            raise UnreadableError("an entry has the wrong fields")
        if not all(isinstance(text, str) for text in (*texts, *proof)):
            raise UnreadableError("an entry has the wrong types")
        try:
            entry["open"].encode()
            for text in (entry["header"], entry["sealed"], entry["key"], *proof):
                strict_base64(text)
        except ValueError as error:
            raise UnreadableError(str(error)) from None
    return value


def main(arguments: list[str]) -> int:
    if len(arguments) not in (1, 2):
        print(__doc__)
        return 2
    try:
        receipt = read(Path(arguments[0]))
        pinned = Path(arguments[1]).read_text("utf-8") if len(arguments) == 2 else None
    except (UnreadableError, OSError, UnicodeDecodeError) as error:
        print(f"cannot be read: {error}")
        return 2
    try:
        entries = check(receipt, pinned)
    except ValueError as error:
        print(f"does not hold: {error}")
        return 1
    print(f"holds: turn {receipt['turn']} of tenant {receipt['tenant']}")
    for entry in entries:
        hidden = "sealed" if entry["private"] is None else json.dumps(entry["private"], sort_keys=True)
        print(f"  {entry['seq']} {entry['ts_us']} {entry['kind']} {json.dumps(entry['open'], sort_keys=True)} {hidden}")
    if pinned is None:
        print("the key was taken from the receipt itself; give log.pub to know who signed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
