"""A receipt: the entries of one turn, their proofs in the log, the signed checkpoint. A public key verifies it."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from aibox.audit import canonical
from aibox.audit.checkpoint import Checkpoint, open_note
from aibox.audit.merkle import verify_inclusion
from aibox.audit.record import TERMINAL, Header, body_commit, leaf_hash, log_id, read_body
from aibox.errors import ConfigError, IntegrityError, StoreError

FORMAT = "aibox/receipt/v1"
MAX_RECEIPT_BYTES = 64 * 2**20
FIELDS = frozenset({"format", "turn", "tenant", "checkpoint", "public_key", "entries"})


@dataclass(frozen=True, slots=True)
class ReceiptEntry:
    """One entry of the turn, with the hashes that lead from it to the checkpoint's root."""

    header: bytes
    body: bytes
    proof: tuple[bytes, ...]

    @property
    def seq(self) -> int:
        return Header.unpack(self.header).seq

    @property
    def ts_us(self) -> int:
        return Header.unpack(self.header).ts_us

    @property
    def kind(self) -> str:
        return str(read_body(self.body)["action"])

    @property
    def detail(self) -> dict[str, Any]:
        detail: dict[str, Any] = read_body(self.body)["detail"]
        return detail


@dataclass(frozen=True, slots=True, repr=False)
class Receipt:
    """The proof of a turn. It holds what was recorded, which is digests and small facts, and no text of anybody's."""

    turn: str
    tenant: str
    entries: tuple[ReceiptEntry, ...]
    checkpoint: str
    public_key: str

    def verify(self, public_key: str | None = None) -> None:
        """Hold the receipt against itself and the log's public key. Pure and offline; raises IntegrityError.

        `public_key` None uses the one inside: then all fits together, and who signed is only as sure as the receipt's
        way here. Give the key that you got from somebody you trust to pin it.
        """
        try:
            checkpoint = open_note(self.checkpoint, public_key or self.public_key)
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

    def _verify_entry(
        self, entry: ReceiptEntry, checkpoint: Checkpoint, before: list[list[Any]], *, last: bool
    ) -> list[Any]:
        """Its line in the terminal entry's list. Raises ValueError with the reason why it does not belong here."""
        header = Header.unpack(entry.header)
        body = read_body(entry.body)
        leaf = leaf_hash(entry.header)
        if header.log_id != log_id(checkpoint.origin):
            raise ValueError("it belongs to another log")
        if header.body_commit != body_commit(entry.body):
            raise ValueError("its body is not the one that was recorded")
        if body["turn_id"] != self.turn or body["tenant"] != self.tenant:
            raise ValueError("it belongs to another turn")
        verify_inclusion(leaf, header.seq, checkpoint.size, entry.proof, checkpoint.root)
        if bool(header.flags & TERMINAL) != last:
            raise ValueError("the terminal entry is not the last one, or there are two")
        if last and body["detail"].get("entries") != before:
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
                "body": entry.body.decode(),
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
        return cls(texts[0], texts[1], tuple(map(_read_entry, value["entries"])), texts[2], texts[3])

    def __repr__(self) -> str:
        return f"<Receipt of turn {self.turn[:8]}, tenant {self.tenant}, {len(self.entries)} entries>"

    def _repr_markdown_(self) -> str:
        rows = "\n".join(f"| {entry.seq} | {entry.kind} |" for entry in self.entries)
        return f"Receipt `{self.digest[:19]}` of tenant {self.tenant}\n\n| entry | what |\n|---|---|\n{rows}"


def _read_entry(value: Any) -> ReceiptEntry:
    if not isinstance(value, dict) or set(value) != {"header", "body", "proof"}:
        raise ValueError("an entry has the wrong fields")
    try:
        proof = tuple(base64.b64decode(item, validate=True) for item in value["proof"])
        return ReceiptEntry(base64.b64decode(value["header"], validate=True), value["body"].encode(), proof)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"an entry has the wrong types: {error}") from None


def _number(entry: ReceiptEntry) -> str:
    """The seq where the header can be read, for a message about an entry that does not hold."""
    try:
        return str(entry.seq)
    except ValueError:
        return "?"
