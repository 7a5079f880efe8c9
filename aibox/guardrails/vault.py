"""Where pseudonyms keep what they stand for: rows with every value under AES-256-GCM, and nothing legible in them.

A value is found again by keyed digests, so the rows tell neither values nor users to who does not hold the key.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import os
import string
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from aibox.errors import OPERATORS, ConfigError, IntegrityError
from aibox.guardrails.normalise import normalise
from aibox.postgres import Rows
from aibox.tables import open_tables

KEY_BYTES = 32
_NONCE_BYTES = 12
STEM_DIGITS = range(6, 13)
"""Digits in a token's stem. It grows by one whenever so many in a row are taken as only a crowded tenant has."""
_CROWDED = 8
# Letters tell the writings of one value apart: 482139, 482139a, 482139b.
_LETTERS = string.ascii_lowercase
FOR_GOOD = "zz"
"""Ends the id of a pseudonym that is not kept, and of no other."""
FOR_GOOD_DIGITS = 8
_PAIRS = map("".join, itertools.product(_LETTERS, repeat=2))
SUFFIXES = ("", *_LETTERS, *(pair for pair in _PAIRS if pair != FOR_GOOD))
# Written in words or signs, these are the same value.
_WORDED = frozenset({"PERSON", "EMAIL", "URL", "ADDRESS", "PLACE", "LITERAL"})

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS keys (proof BLOB PRIMARY KEY)",
    """
CREATE TABLE IF NOT EXISTS pseudonyms (
    tenant TEXT NOT NULL, token TEXT NOT NULL, stem TEXT NOT NULL,
    same BLOB NOT NULL, exact BLOB NOT NULL, sealed BLOB NOT NULL,
    PRIMARY KEY (tenant, token), UNIQUE (tenant, exact)
) WITHOUT ROWID
""",
    "CREATE INDEX IF NOT EXISTS stems ON pseudonyms (tenant, stem)",
    """
CREATE TABLE IF NOT EXISTS owners (
    tenant TEXT NOT NULL, token TEXT NOT NULL, user BLOB NOT NULL, PRIMARY KEY (tenant, user, token)
) WITHOUT ROWID
""",
)

_OWNED = 'pseudonyms JOIN owners USING (tenant, token) WHERE tenant = ? AND "user" = ?'


_Place = tuple[str, str]
"""A tenant, and a case of it."""


@dataclass(frozen=True, slots=True)
class _Keys:
    digest: bytes
    cipher: AESGCM


class Vault:
    """The table behind Pseudonyms. Blocking; safe to call from several threads.

    `place` is a file that processes may share or `postgresql://...` for servers; None keeps it in memory. Raises
    ConfigError for a key that is not the place's, StoreError when the database cannot be used, IntegrityError for a
    value that was changed behind our back.
    """

    def __init__(self, place: str | Path | None, *, key: bytes) -> None:
        self._tables = open_tables(place, schema="aibox_pseudonyms", made_by=_SCHEMA, what="the pseudonyms")
        self._key = key
        self._keys: dict[str, _Keys] = {}
        self._proved = False

    def tokens(self, tenant: str, case: str, user: str, values: Sequence[tuple[str, str]]) -> list[str]:
        """The token of each (type, value) in a case, made where there is none; `user` becomes one of its owners."""
        place, owner = (tenant, case), self._digest(tenant, "user", user)
        with self._rows(tenant, reads=True) as db:
            known = [self._known(db, place, owner, typed) for typed in values]
        if None in known:
            with self._rows(tenant) as db:
                known = [self._own(db, place, owner, typed) for typed in values]
        return [token for token in known if token is not None]

    def for_good(self, tenant: str, case: str, type_: str, value: str) -> str:
        """A token that nothing is kept of: the same for the same value in this case. Only a guess can be tried."""
        canonical = _of_case(case, f"{type_}|{_canonical(type_, value)}")
        stem = int.from_bytes(self._digest(tenant, "for good", canonical)) % 10**FOR_GOOD_DIGITS
        return f"{type_}_{stem:0{FOR_GOOD_DIGITS}}{FOR_GOOD}"

    def everyones(self, tenant: str, tokens: Sequence[str]) -> dict[str, str]:
        """What the tokens of a tenant stand for, whoever gave the values."""
        return self._meant(tenant, tokens, "pseudonyms WHERE tenant = ?", tenant)

    def values(self, tenant: str, user: str, tokens: Sequence[str]) -> dict[str, str]:
        """What the tokens stand for; those that the user does not own are left out."""
        return self._meant(tenant, tokens, _OWNED, tenant, self._digest(tenant, "user", user))

    def _meant(self, tenant: str, tokens: Sequence[str], whose: str, *values: str | bytes) -> dict[str, str]:
        found: dict[str, str] = {}
        with self._rows(tenant, reads=True) as db:
            for token in dict.fromkeys(tokens):
                sql = f"SELECT sealed FROM {whose} AND token = ?"  # noqa: S608 - one of two constants
                if row := db.execute(sql, (*values, token)).fetchone():
                    found[token] = self._open(tenant, token, row[0])
        return found

    def erase(self, tenant: str, user: str | None) -> int:
        """Forget what came from a user and from nobody else, or everything of a tenant; the number of values gone."""
        with self._rows(tenant) as db:
            if user is None:
                db.execute("DELETE FROM owners WHERE tenant = ?", (tenant,))
            else:
                db.execute(
                    'DELETE FROM owners WHERE tenant = ? AND "user" = ?', (tenant, self._digest(tenant, "user", user))
                )
            gone: int = db.execute(
                "DELETE FROM pseudonyms WHERE tenant = ? AND token NOT IN (SELECT token FROM owners WHERE tenant = ?)",
                (tenant, tenant),
            ).rowcount
        self._tables.scrub()
        return gone

    def close(self) -> None:
        self._tables.close()

    def _known(self, db: Rows, place: _Place, owner: bytes, typed: tuple[str, str]) -> str | None:
        row = db.execute(
            f"SELECT token FROM {_OWNED} AND exact = ?",  # noqa: S608 - a constant
            (place[0], owner, self._exact(place, typed)),
        ).fetchone()
        return row[0] if row else None

    def _exact(self, place: _Place, typed: tuple[str, str]) -> bytes:
        return self._digest(place[0], "exact", _of_case(place[1], "|".join(typed)))

    def _own(self, db: Rows, place: _Place, owner: bytes, typed: tuple[str, str]) -> str:
        tenant, exact = place[0], self._exact(place, typed)
        row = db.execute("SELECT token FROM pseudonyms WHERE tenant = ? AND exact = ?", (tenant, exact)).fetchone()
        token: str = row[0] if row else self._make(db, place, typed, exact)
        db.execute("INSERT INTO owners VALUES (?, ?, ?) ON CONFLICT DO NOTHING", (tenant, token, owner))
        return token

    def _make(self, db: Rows, place: _Place, typed: tuple[str, str], exact: bytes) -> str:
        (tenant, case), (type_, value) = place, typed
        canonical = _of_case(case, f"{type_}|{_canonical(type_, value)}")
        same = self._digest(tenant, "same", canonical)
        # Two values may share a stem, and one value may be written in more ways than there are suffixes: either way the
        # next stem in line is tried. A stem is unique whatever its type, so a type and an id that a model has mixed
        # up stand for nothing.
        for attempt in itertools.count():
            digits = STEM_DIGITS[min(attempt // _CROWDED, len(STEM_DIGITS) - 1)]
            stem = f"{int.from_bytes(self._digest(tenant, f'stem{attempt}', canonical)) % 10**digits:0{digits}}"
            taken = db.execute(
                "SELECT token, same FROM pseudonyms WHERE tenant = ? AND stem = ?", (tenant, stem)
            ).fetchall()
            used = {row[0] for row in taken}
            free = (f"{type_}_{stem}{suffix}" for suffix in SUFFIXES)
            if all(row[1] == same for row in taken) and (token := next((t for t in free if t not in used), None)):
                sealed = self._seal(tenant, token, value)
                row = (tenant, token, stem, same, exact, sealed)
                db.execute("INSERT INTO pseudonyms VALUES (?, ?, ?, ?, ?, ?)", row)
                return token
        raise AssertionError("unreachable: stems do not end")

    def _tenant(self, tenant: str) -> _Keys:
        keys = self._keys.get(tenant)
        if keys is None:
            digest = hmac.digest(self._key, f"aibox pseudonyms digest|{tenant}".encode(), "sha256")
            cipher = AESGCM(hmac.digest(self._key, f"aibox pseudonyms cipher|{tenant}".encode(), "sha256"))
            keys = self._keys[tenant] = _Keys(digest, cipher)
        return keys

    def _digest(self, tenant: str, purpose: str, value: str) -> bytes:
        message = f"{purpose}|{value}".encode("utf-8", "surrogatepass")
        return hmac.digest(self._tenant(tenant).digest, message, hashlib.sha256)[:16]

    def _seal(self, tenant: str, token: str, value: str) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        plain = value.encode("utf-8", "surrogatepass")
        return nonce + self._tenant(tenant).cipher.encrypt(nonce, plain, f"{tenant}|{token}".encode())

    def _open(self, tenant: str, token: str, sealed: bytes) -> str:
        try:
            plain = self._tenant(tenant).cipher.decrypt(
                sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], f"{tenant}|{token}".encode()
            )
        except (InvalidTag, ValueError):
            raise IntegrityError(
                f"the value of pseudonym {token} was changed or moved in {self._tables.place}"
            ) from None
        return plain.decode("utf-8", "surrogatepass")

    @contextmanager
    def _rows(self, tenant: str, *, reads: bool = False) -> Iterator[Rows]:
        if not self._proved:
            with self._tables.transaction("") as db:
                self._prove(db)
            self._proved = True
        with self._tables.transaction(tenant, alone="" if reads else tenant, reads=reads) as db:
            yield db

    def _prove(self, db: Rows) -> None:
        proof = hmac.digest(self._key, b"aibox pseudonyms key", hashlib.sha256)
        first = "INSERT INTO keys (proof) SELECT ? WHERE NOT EXISTS (SELECT 1 FROM keys) ON CONFLICT DO NOTHING"
        db.execute(first, (proof,))
        if db.execute("SELECT proof FROM keys").fetchone()[0] != proof:
            raise ConfigError(
                f"the pseudonyms in {self._tables.place} were written with another key",
                hint="give the key file that belongs to them, or another path",
                code=OPERATORS,
            )


def _of_case(case: str, typed: str) -> str:
    """A typed value as it is digested: apart in each case. A type has no digit in it, so no two cases read alike."""
    return f"{len(case)}:{case}|{typed}" if case else typed


def _canonical(type_: str, value: str) -> str:
    """The same for all writings of one value: case and disguise apart, and for numbers their separators."""
    text = normalise(value, fold=False).text.casefold()
    return text if type_ in _WORDED else "".join(char for char in text if char.isalnum() or char == "+")
