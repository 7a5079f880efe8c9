"""A receipt: the entries of one turn, their proofs in the log, the signed checkpoint. A public key verifies it.

The keys of sealed parts travel with it, one for each entry, and can be taken out: what is left still proves what was
decided and when, and shows nobody's name.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from aibox.audit import canonical
from aibox.audit.checkpoint import Checkpoint, open_note, read_base64
from aibox.audit.merkle import verify_inclusion
from aibox.audit.record import (
    SEALED,
    TERMINAL,
    Header,
    body_commit,
    leaf_hash,
    log_id,
    read_detail,
    read_open,
    read_private,
)
from aibox.audit.rotation import hold_rotation
from aibox.audit.sealed import unseal
from aibox.errors import ConfigError, IntegrityError, StoreError

FORMAT = "aibox/receipt/v1"
MAX_RECEIPT_BYTES = 64 * 2**20
FIELDS = frozenset({"format", "turn", "tenant", "checkpoint", "public_key", "entries", "rotations"})
ENTRY_FIELDS = frozenset({"header", "open", "sealed", "key", "proof"})


@dataclass(frozen=True, slots=True)
class ReceiptEntry:
    """One entry of the turn, with the hashes that lead from it to the checkpoint's root.

    `key` opens the sealed part; empty where it is withheld, or where the person was erased.
    """

    header: bytes
    open: bytes
    sealed: bytes
    key: bytes
    proof: tuple[bytes, ...]

    @property
    def seq(self) -> int:
        return Header.unpack(self.header).seq

    @property
    def ts_us(self) -> int:
        return Header.unpack(self.header).ts_us

    @property
    def kind(self) -> str:
        return read_open(self.open).action

    @property
    def turn(self) -> str:
        return read_open(self.open).turn_id

    @property
    def detail(self) -> dict[str, Any]:
        """What may be read of it: the open part, and with the key the sealed one."""
        shown = read_detail(self.open)
        return {**shown, **self.private["detail"]} if self.key else shown

    @property
    def actor(self) -> dict[str, str] | None:
        """Who it was for: user, agent, session. None where that is withheld or erased."""
        actor: dict[str, str] | None = self.private["actor"] if self.key else None
        return actor

    @property
    def private(self) -> dict[str, Any]:
        """Raises ValueError where the key is missing or another one."""
        return read_private(unseal(self.sealed, self.key))


@dataclass(frozen=True, slots=True, repr=False)
class Receipt:
    """The proof of a turn. It holds what was recorded, which is digests and small facts, and no text of anybody's.

    `narrow` takes out the keys of what is nobody else's business before it is passed on.
    """

    turn: str
    tenant: str
    entries: tuple[ReceiptEntry, ...]
    checkpoint: str
    public_key: str
    rotations: tuple[Mapping[str, Any], ...] = ()

    def narrow(self, *, keep: Collection[str] = ()) -> Receipt:
        """The same proof, with the sealed parts of these kinds of entries readable and of no others."""
        kept = tuple(entry if entry.kind in keep else replace(entry, key=b"") for entry in self.entries)
        return replace(self, entries=kept)

    def verify(self, public_key: str | None = None) -> None:
        """Hold the receipt against itself and the log's public key. Pure and offline; raises IntegrityError.

        `public_key` None uses the one inside: then all fits together, and who signed is only as sure as the receipt's
        way here. Give the key that you got from somebody you trust to pin it; an older key of the log leads to the
        present one where each signed the next.
        """
        try:
            checkpoint = open_note(self.checkpoint, self.public_key)
            if public_key is not None:
                self._lead_to(public_key.strip(), log_id(checkpoint.origin))
        except ValueError as error:
            raise IntegrityError(f"the receipt's checkpoint does not hold: {error}") from None
        listed: list[list[Any]] = []
        for entry in self.entries:
            try:
                listed.append(self._verify_entry(entry, checkpoint, listed, last=entry is self.entries[-1]))
            except ValueError as error:
                raise IntegrityError(f"the receipt does not hold: entry {_number(entry)}: {error}") from None
        if not self.entries:
            raise IntegrityError("the receipt does not hold: it has no entries")

    def _lead_to(self, pinned: str, log: bytes) -> None:
        """From the key that is trusted to the one that signed. Raises ValueError."""
        for rotation in self.rotations:
            if pinned == self.public_key:
                return
            if rotation.get("old") == pinned:
                hold_rotation(rotation, log)
                pinned = str(rotation["new"])
        if pinned != self.public_key:
            raise ValueError("the note is not signed by this key")

    def _verify_entry(
        self, entry: ReceiptEntry, checkpoint: Checkpoint, before: list[list[Any]], *, last: bool
    ) -> list[Any]:
        """Its line in the terminal entry's list. Raises ValueError with the reason why it does not belong here."""
        header = Header.unpack(entry.header)
        body = read_open(entry.open)
        detail = read_detail(entry.open)
        leaf = leaf_hash(entry.header)
        if header.log_id != log_id(checkpoint.origin):
            raise ValueError("it belongs to another log")
        if header.body_commit != body_commit(entry.open, entry.sealed):
            raise ValueError("its body is not the one that was recorded")
        if bool(header.flags & SEALED) != bool(entry.sealed):
            raise ValueError("its sealed part is missing, or there is one too many")
        if entry.key:
            read_private(unseal(entry.sealed, entry.key))
        if body.turn_id != self.turn or body.tenant != self.tenant:
            raise ValueError("it belongs to another turn")
        verify_inclusion(leaf, header.seq, checkpoint.size, entry.proof, checkpoint.root)
        if bool(header.flags & TERMINAL) != last:
            raise ValueError("the terminal entry is not the last one, or there are two")
        if last and detail.get("entries") != before:
            raise ValueError("it lists other entries than the receipt holds")
        return [header.seq, leaf.hex()]

    @property
    def digest(self) -> str:
        """`sha256:` and the SHA-256 of the receipt's canonical JSON."""
        return "sha256:" + hashlib.sha256(canonical.dumps(self.as_dict())).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; binary fields in base64, bodies as the text that was hashed."""
        entries = [
            {
                "header": base64.b64encode(entry.header).decode(),
                "open": entry.open.decode(),
                "sealed": base64.b64encode(entry.sealed).decode(),
                "key": base64.b64encode(entry.key).decode(),
                "proof": [base64.b64encode(item).decode() for item in entry.proof],
            }
            for entry in self.entries
        ]
        return {
            "format": FORMAT,
            "turn": self.turn,
            "tenant": self.tenant,
            "checkpoint": self.checkpoint,
            "public_key": self.public_key,
            "rotations": [dict(rotation) for rotation in self.rotations],
            "entries": entries,
        }

    def save(self, path: str | Path) -> None:
        """Write it as JSON. Raises StoreError."""
        try:
            Path(path).write_text(json.dumps(self.as_dict(), indent=1, ensure_ascii=False) + "\n", "utf-8")
        except OSError as error:
            raise StoreError(f"cannot write the receipt {path}: {error.strerror}") from None

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file; nothing is verified yet. Raises ConfigError for what is no receipt."""
        try:
            with Path(path).open("rb") as file:
                data = file.read(MAX_RECEIPT_BYTES + 1)
            return cls.read(data)
        except OSError as error:
            raise ConfigError(f"cannot read the receipt {path}: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path} is not a receipt: {error}") from None

    @classmethod
    def read(cls, data: bytes) -> Self:
        """From JSON. Raises ValueError for what is no receipt."""
        if len(data) > MAX_RECEIPT_BYTES:
            raise ValueError(f"it is longer than {MAX_RECEIPT_BYTES} bytes")
        value = json.loads(data)
        if not isinstance(value, dict) or set(value) != FIELDS or value["format"] != FORMAT:
            raise ValueError("unknown format")
        texts = [value[name] for name in ("turn", "tenant", "checkpoint", "public_key")]
        if not all(isinstance(text, str) for text in texts) or not isinstance(value["entries"], list):
            raise ValueError("a field has the wrong type")
        rotations = value["rotations"]
        if not isinstance(rotations, list) or not all(isinstance(rotation, dict) for rotation in rotations):
            raise ValueError("a field has the wrong type")
        entries = tuple(map(_read_entry, value["entries"]))
        return cls(texts[0], texts[1], entries, texts[2], texts[3], tuple(rotations))

    def __repr__(self) -> str:
        return f"<Receipt of turn {self.turn[:8]}, tenant {self.tenant}, {len(self.entries)} entries>"

    def _repr_markdown_(self) -> str:
        rows = "\n".join(f"| {entry.seq} | {entry.kind} |" for entry in self.entries)
        return f"Receipt `{self.digest[:19]}` of tenant {self.tenant}\n\n| entry | what |\n|---|---|\n{rows}"


def _read_entry(value: Any) -> ReceiptEntry:
    # A proof of another type than a list may be as empty as one.
    if not isinstance(value, dict) or set(value) != ENTRY_FIELDS or not isinstance(value["proof"], list):
        raise ValueError("an entry has the wrong fields")
    try:
        proof = tuple(read_base64(item) for item in value["proof"])
        header, hidden, key = (read_base64(value[name]) for name in ("header", "sealed", "key"))
        return ReceiptEntry(header, value["open"].encode(), hidden, key, proof)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"an entry has the wrong types: {error}") from None


def _number(entry: ReceiptEntry) -> str:
    """The seq where the header can be read, for a message about an entry that does not hold."""
    try:
        return str(entry.seq)
    except ValueError:
        return "?"
