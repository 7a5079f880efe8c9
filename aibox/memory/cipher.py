"""Rows under the key of the person whom they are about: drawn at random, kept wrapped, and lost once and for all.

AES-256-GCM. What a row belongs to is authenticated with it, so that no sealed text can be moved to another row, user,
tenant or label. Keyed digests find equal texts again and tell nothing to who does not hold the key.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from aibox.errors import OPERATORS, ConfigError, IntegrityError

KEY_BYTES = 32
_NONCE_BYTES = 12

TABLES = (
    "CREATE TABLE proofs (proof BLOB PRIMARY KEY)",
    # `user` is empty for what belongs to the tenant as a whole.
    """
    CREATE TABLE subjects (
        tenant TEXT NOT NULL, user TEXT NOT NULL, wrapped BLOB NOT NULL, PRIMARY KEY (tenant, user)
    ) WITHOUT ROWID
    """,
)


class SubjectKey:
    """One subject's key, unwrapped: seals, opens, and makes digests that only this key can make."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(hmac.digest(key, b"aibox memory cipher", "sha256"))
        self._digests = hmac.digest(key, b"aibox memory digest", "sha256")

    def seal(self, plain: bytes, place: str) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, plain, place.encode())

    def open(self, sealed: bytes, place: str) -> bytes:
        """Raises IntegrityError for what was changed, or moved from another place."""
        try:
            return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], place.encode())
        except (InvalidTag, ValueError):
            raise IntegrityError("a row of the memory was changed or moved behind our back") from None

    def digest(self, text: str) -> bytes:
        return hmac.digest(self._digests, text.encode(), hashlib.sha256)[:16]


class Wrapping:
    """Draws subjects' keys, wraps and unwraps them under the `master`. Raises ConfigError for one of a wrong length."""

    def __init__(self, master: bytes) -> None:
        if len(master) != KEY_BYTES:
            raise ConfigError(f"the key of the memory has {len(master)} bytes and needs {KEY_BYTES}")
        self._cipher = AESGCM(hmac.digest(master, b"aibox memory wrap", "sha256"))
        # By the wrapped bytes and not by the name: another process may erase a subject and draw a new key for it.
        self._unwrapped: dict[bytes, SubjectKey] = {}

    def draw(self, tenant: str, user: str) -> bytes:
        """A new key, wrapped."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, os.urandom(KEY_BYTES), f"{tenant}|{user}".encode())

    def unwrap(self, wrapped: bytes, tenant: str, user: str) -> SubjectKey:
        """Raises IntegrityError for one of another subject, or under another master."""
        key = self._unwrapped.get(wrapped)
        if key is None:
            try:
                plain = self._cipher.decrypt(
                    wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], f"{tenant}|{user}".encode()
                )
            except (InvalidTag, ValueError):
                raise IntegrityError("a key of the memory was changed or moved behind our back") from None
            key = self._unwrapped[wrapped] = SubjectKey(plain)
        return key

    def clear(self) -> None:
        """Let go of every key."""
        self._unwrapped.clear()


class SubjectKeys:
    """The keys of the subjects in one file, each wrapped under the `master` key of 32 bytes.

    A key is drawn with the subject's first row and overwritten when the subject is erased: then not even the master
    opens a copy of a row that was left somewhere. Raises ConfigError for a master that is not the file's.
    """

    def __init__(self, db: Any, place: str, *, master: bytes) -> None:
        self._wrapping = Wrapping(master)
        self._db = db
        proof = hmac.digest(master, b"aibox memory key", hashlib.sha256)
        first = "INSERT INTO proofs (proof) SELECT ? WHERE NOT EXISTS (SELECT 1 FROM proofs) ON CONFLICT DO NOTHING"
        db.execute(first, (proof,))
        if db.execute("SELECT proof FROM proofs").fetchone()[0] != proof:
            raise ConfigError(
                f"the memory in {place} was written with another key",
                hint="give the key that belongs to it, or name another folder",
                code=OPERATORS,
            )

    def find(self, tenant: str, user: str) -> SubjectKey | None:
        """The key of a subject that has rows; None for one that has none."""
        row = self._db.execute(
            'SELECT wrapped FROM subjects WHERE tenant = ? AND "user" = ?', (tenant, user)
        ).fetchone()
        return self._wrapping.unwrap(row[0], tenant, user) if row else None

    def get(self, tenant: str, user: str) -> SubjectKey:
        """The key of a subject, drawn now where there is none. Only inside a write transaction."""
        if (known := self.find(tenant, user)) is not None:
            return known
        wrapped = self._wrapping.draw(tenant, user)
        self._db.execute("INSERT INTO subjects VALUES (?, ?, ?)", (tenant, user, wrapped))
        return self._wrapping.unwrap(wrapped, tenant, user)

    def destroy(self, tenant: str, user: str | None) -> None:
        """Overwrite the key of a subject, or with None of all of the tenant. Only inside a write transaction."""
        self._db.execute('DELETE FROM subjects WHERE tenant = ? AND (? IS NULL OR "user" = ?)', (tenant, user, user))
        self._wrapping.clear()
