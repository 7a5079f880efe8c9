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

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from aibox.audit.record import keyed

ID_BYTES = 16
SALT_BYTES = 16
FIXED_BYTES = ID_BYTES + SALT_BYTES + 32
KEY_BYTES = 32
_NONCE = bytes(12)


def new_subject() -> tuple[bytes, bytes]:
    """A random id and key of a person in a tenant's log."""
    drawn = os.urandom(ID_BYTES + KEY_BYTES)
    return drawn[:ID_BYTES], drawn[ID_BYTES:]


def seal(subject: bytes, key: bytes, private: bytes) -> bytes:
    salt = os.urandom(SALT_BYTES)
    entry_key = keyed(key, b"aibox/entry/v1\x00" + salt)
    return subject + salt + _commitment(entry_key) + AESGCM(entry_key).encrypt(_NONCE, private, None)


def subject_of(sealed: bytes) -> bytes:
    return sealed[:ID_BYTES]


def entry_key(sealed: bytes, key: bytes) -> bytes:
    """The key of this entry alone, by the person's."""
    return keyed(key, b"aibox/entry/v1\x00" + sealed[ID_BYTES : ID_BYTES + SALT_BYTES])


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
