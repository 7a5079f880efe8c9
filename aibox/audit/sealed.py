"""The private part of an entry: encrypted under a key of one person, so that destroying that key erases it.

    sealed = subject (16) | salt (16) | commitment (32) | AES-256-GCM ciphertext and tag
    entry key = HMAC-SHA256(subject key, "aibox/entry/v1" 0 salt)
    commitment = SHA256("aibox/entry-key/v1" 0 entry key)

`subject` is drawn at random with the key and means nothing without the table that names it: no list of names leads to
it. Each entry has a key of its own, which can be shown (a receipt does) without showing the person's others; GCM does
not bind a ciphertext to one key, so the commitment does. The nonce is constant because no entry key is used twice.
"""

from __future__ import annotations

import hashlib
import os
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from aibox.audit.record import Mac, drawn16

ID_BYTES = 16
SALT_BYTES = 16
FIXED_BYTES = ID_BYTES + SALT_BYTES + 32
KEY_BYTES = 32
_NONCE = bytes(12)


class Subject(NamedTuple):
    """A person in a tenant's log: a random id, a random key, and what derives the keys of their entries from it."""

    id: bytes
    key: bytes
    mac: Mac

    @classmethod
    def of(cls, subject: bytes, key: bytes) -> Subject:
        return cls(subject, key, Mac(key, b"aibox/entry/v1\x00"))

    @classmethod
    def new(cls) -> Subject:
        drawn = os.urandom(ID_BYTES + KEY_BYTES)
        return cls.of(drawn[:ID_BYTES], drawn[ID_BYTES:])

    def seal(self, private: bytes) -> bytes:
        salt = drawn16()
        key = self.mac.of(salt)
        return b"".join((self.id, salt, _commitment(key), AESGCM(key).encrypt(_NONCE, private, None)))

    def entry_key(self, sealed: bytes) -> bytes:
        """The key of one entry of theirs alone."""
        return self.mac.of(sealed[ID_BYTES : ID_BYTES + SALT_BYTES])


def subject_of(sealed: bytes) -> bytes:
    return sealed[:ID_BYTES]


def unseal(sealed: bytes, key: bytes) -> bytes:
    """The private part, by the key of its entry. Raises ValueError for another key or a changed ciphertext."""
    if len(sealed) < FIXED_BYTES or len(key) != KEY_BYTES:
        raise ValueError("not a sealed part of this format")
    if _commitment(key) != sealed[FIXED_BYTES - 32 : FIXED_BYTES]:
        raise ValueError("the key is not the one that this entry was sealed under")
    try:
        return AESGCM(key).decrypt(_NONCE, sealed[FIXED_BYTES:], None)
    except InvalidTag:
        raise ValueError("the sealed part was changed") from None


def wrap(kek: bytes, subject: bytes, key: bytes) -> bytes:
    """A person's key as the store holds it."""
    nonce = os.urandom(12)
    return nonce + AESGCM(kek).encrypt(nonce, key, subject)


def unwrap(kek: bytes, subject: bytes, wrapped: bytes) -> bytes:
    """Raises ValueError where it was wrapped under another key."""
    try:
        return AESGCM(kek).decrypt(wrapped[:12], wrapped[12:], subject)
    except InvalidTag:
        raise ValueError("a person's key was wrapped under another key") from None


def _commitment(key: bytes) -> bytes:
    return hashlib.sha256(b"aibox/entry-key/v1\x00" + key).digest()
