"""Signed checkpoints: C2SP tlog-checkpoint in a signed note, Ed25519. What a log had grown to, to carry away."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

ED25519 = 0x01
"""The signature type of C2SP signed-note; others are other rows of a table to come."""
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


class Signer:
    """Signs checkpoints with a private key that does not leave it."""

    def __init__(self, name: str, key: Ed25519PrivateKey) -> None:
        self.name = name
        self._key = key
        self.public_bytes = key.public_key().public_bytes_raw()

    @property
    def public_key(self) -> str:
        """The verifier key of C2SP signed-note: `name+id+base64(type || key)`."""
        typed = bytes([ED25519]) + self.public_bytes
        return f"{self.name}+{_key_id(self.name, typed).hex()}+{base64.b64encode(typed).decode()}"

    def sign(self, checkpoint: Checkpoint) -> str:
        """The signed note."""
        text = checkpoint.text()
        typed = bytes([ED25519]) + self.public_bytes
        signature = _key_id(self.name, typed) + self._key.sign(text.encode())
        return f"{text}\n\N{EM DASH} {self.name} {base64.b64encode(signature).decode()}\n"


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
        signature = _base64(match[2])
        if match[1] != name or signature[:4] != _key_id(name, typed):
            continue
        try:
            Ed25519PublicKey.from_public_bytes(typed[1:]).verify(signature[4:], text.encode())
        except InvalidSignature:
            raise ValueError("the signature does not fit") from None
        verified = True
    if not verified:
        raise ValueError("the note is not signed by this key")
    return _read_text(text)


def _read_text(text: str) -> Checkpoint:
    match = re.fullmatch(r"([^\n]+)\n(0|[1-9][0-9]{0,18})\n([A-Za-z0-9+/]{43}=)\n", text)
    if match is None:
        raise ValueError("not a checkpoint")
    return Checkpoint(match[1], int(match[2]), _base64(match[3]))


def _read_key(public_key: str) -> tuple[str, bytes]:
    match = re.fullmatch(r"([^+\s]+)\+([0-9a-f]{8})\+([A-Za-z0-9+/=]+)", public_key.strip())
    if match is None:
        raise ValueError("not a verifier key")
    typed = _base64(match[3])
    if len(typed) != 33 or typed[0] != ED25519 or _key_id(match[1], typed).hex() != match[2]:
        raise ValueError("not an Ed25519 verifier key")
    return match[1], typed


def _key_id(name: str, typed: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + typed).digest()[:4]


def _base64(text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from None
    if base64.b64encode(data).decode() != text:
        raise ValueError("not canonical base64")
    return data
