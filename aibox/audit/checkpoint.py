"""Signed checkpoints: C2SP tlog-checkpoint in a signed note, Ed25519. What a log had grown to, to carry away."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

ED25519 = 0x01
"""The signature type of C2SP signed-note."""


def _ed25519(key: bytes, signature: bytes, text: bytes) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, text)
    except InvalidSignature:
        raise ValueError("the signature does not fit") from None


KINDS: Mapping[int, tuple[int, Callable[[bytes, bytes, bytes], None]]] = {ED25519: (32, _ed25519)}
"""What can be verified: kind to (bytes of a public key, verify(key, signature, text) that raises ValueError)."""

MAX_NOTE_BYTES = 16 * 1024
MAX_SIGNATURES = 16


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A tree of `size` leaves with this root, in the log of this origin."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


def verifier_key(name: str, kind: int, key: bytes) -> str:
    """The verifier key of C2SP signed-note: `name+id+base64(kind || key)`."""
    typed = bytes([kind]) + key
    return f"{name}+{key_id(name, typed).hex()}+{base64.b64encode(typed).decode()}"


def verify_signature(public_key: str, signature: bytes, text: bytes) -> None:
    """A bare signature under a verifier key. Raises ValueError."""
    _, typed = _read_key(public_key)
    KINDS[typed[0]][1](typed[1:], signature, text)


def public_bytes(public_key: str) -> bytes:
    """The 32 bytes of a verifier key. Raises ValueError for a text that is none."""
    name, typed = _read_key(public_key)
    del name
    return typed[1:]


def open_note(note: str, public_key: str) -> Checkpoint:
    """The checkpoint in a note that this key signed. Raises ValueError for any other.

    Signatures of unknown keys are ignored; one of the known key that does not fit refuses the note (C2SP signed-note).
    """
    name, typed = _read_key(public_key)
    if len(note.encode()) > MAX_NOTE_BYTES:
        raise ValueError("the note is too long")
    # The last empty line divides text and signatures.
    head, divider, tail = note.rpartition("\n\n")
    lines = tail.removesuffix("\n").split("\n")
    if not divider or not tail.endswith("\n") or len(lines) > MAX_SIGNATURES:
        raise ValueError("not a signed note")
    text = head + "\n"
    if any(ord(character) < 32 and character != "\n" for character in text):
        raise ValueError("a note holds no control characters")
    verified = False
    for line in lines:
        match = re.fullmatch("\N{EM DASH} ([^ +]+) ([A-Za-z0-9+/]+={0,2})", line)
        if match is None:
            raise ValueError("not a signature line")
        signature = read_base64(match[2])
        if match[1] != name or signature[:4] != key_id(name, typed):
            continue
        KINDS[typed[0]][1](typed[1:], signature[4:], text.encode())
        verified = True
    if not verified:
        raise ValueError("the note is not signed by this key")
    return read_checkpoint(text)


def read_checkpoint(text: str) -> Checkpoint:
    """The text of a note. Raises ValueError."""
    match = re.fullmatch(r"([^\n]+)\n(0|[1-9][0-9]{0,18})\n([A-Za-z0-9+/]{43}=)\n", text)
    if match is None:
        raise ValueError("not a checkpoint")
    return Checkpoint(match[1], int(match[2]), read_base64(match[3]))


def _read_key(public_key: str) -> tuple[str, bytes]:
    match = re.fullmatch(r"([^+\s]+)\+([0-9a-f]{8})\+([A-Za-z0-9+/=]+)", public_key.strip())
    if match is None:
        raise ValueError("not a verifier key")
    typed = read_base64(match[3])
    if not typed or typed[0] not in KINDS or len(typed) != 1 + KINDS[typed[0]][0]:
        raise ValueError("not a verifier key of a known kind")
    if key_id(match[1], typed).hex() != match[2]:
        raise ValueError("not a verifier key: its check sum does not fit")
    return match[1], typed


def key_id(name: str, typed: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + typed).digest()[:4]


def read_base64(text: str) -> bytes:
    """One text for one value: base64 has several spellings of some. Raises ValueError."""
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from None
    if base64.b64encode(data).decode() != text:
        raise ValueError("not canonical base64")
    return data
