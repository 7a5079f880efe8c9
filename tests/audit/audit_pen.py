"""A pen that writes a log entry by entry, as a chain would, with any rule broken on the way."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from aibox.audit import kinds
from aibox.audit.epochs import EpochKey
from aibox.audit.record import (
    GENESIS,
    KEY,
    SEALED,
    TERMINAL,
    TOMBSTONE,
    Header,
    Row,
    body_commit,
    genesis_prev,
    leaf_hash,
    log_id,
    make_parts,
    tagger,
)
from aibox.audit.rotation import statement
from aibox.audit.sealed import Subject
from aibox.audit.signer import KeySigner, public_key
from aibox.audit.store import LogName
from aibox.audit.walk import Walk
from aibox.types import Scope

ACME = Scope(tenant="acme", user="eva")
SIGNER = KeySigner("aibox", Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
OTHER = KeySigner("aibox", Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33))))
NAME = LogName(log_id("o"), "acme", "o", public_key(SIGNER))


@dataclasses.dataclass
class Pen:
    """Writes a log entry by entry, as a chain would, with any rule broken on the way."""

    key: EpochKey = EpochKey(0, bytes(range(32)))  # noqa: RUF009 - a tuple
    rows: list[Row] = dataclasses.field(default_factory=list)
    prev: bytes = genesis_prev(NAME.log, SIGNER.public_bytes)
    first: int = 0

    def write(
        self, kind: str = "tool.called", detail: dict[str, Any] | None = None, *, flags: int | None = None,
        tenant: str = "acme", hidden: bytes | None = None, shown: bytes | None = None, **header: Any,
    ) -> None:  # fmt: skip
        seq = len(self.rows)
        if kind in (kinds.RATCHETED, kinds.ROTATED, kinds.RESTORED):
            tags = hashlib.sha256(b"".join(row.tag for row in self.rows[self.first :]))
            detail = {"epoch": self.key.epoch, "from": self.first, "tags_sha256": tags.hexdigest(), **(detail or {})}
        parts = make_parts(kind, scope=Scope(tenant=tenant, user="eva"), turn="t", detail=detail or {})
        shown = parts.open if shown is None else shown
        if hidden is None:
            hidden = Subject.of(bytes(16), bytes(32)).seal(parts.private) if parts.private else b""
        if flags is None:
            flags = (
                (SEALED if hidden else 0) | (KEY if kind in _KEYS else 0) | (TOMBSTONE if kind == kinds.ERASED else 0)
            )
        fields = {
            "flags": flags | (GENESIS if seq == 0 else 0), "epoch": self.key.epoch, "seq": seq, "ts_us": 1000 + seq,
            "log_id": NAME.log, "prev": self.prev, "body_commit": body_commit(shown, hidden), **header,
        }  # fmt: skip
        packed = Header(**fields).pack()
        self.prev = leaf_hash(packed)
        self.rows.append(Row(seq, packed, shown, hidden, tagger(self.key.key).of(self.prev)))
        if fields["flags"] & KEY:
            self.key, self.first = self.key.next(NAME.log), seq + 1

    def walk(self, key: EpochKey | None = EpochKey(0, bytes(range(32)))) -> Walk:  # noqa: B008 - a tuple
        walk = Walk(NAME, key)
        for row in self.rows:
            walk.step(row)
        return walk


_KEYS = (kinds.RATCHETED, kinds.ROTATED, kinds.RESTORED)


def rotation(until: int, *, old: KeySigner = SIGNER, new: KeySigner = OTHER, signed_by: KeySigner | None = None) -> Any:
    text = statement(NAME.log, public_key(old), public_key(new), until)
    signature = (signed_by or old).sign_bytes(text).hex()
    return {"old": public_key(old), "new": public_key(new), "until": until, "signature": signature}


def good_log() -> Pen:
    """All kinds of acts in one log, in their places."""
    pen = Pen()
    pen.write()
    pen.write(kinds.RATCHETED)
    pen.write("turn.sealed", {"entries": []}, flags=SEALED | TERMINAL)
    pen.write(kinds.ROTATED, rotation(4))
    pen.write(kinds.ERASED, {"subjects": ["00" * 16]})
    pen.write(kinds.PRUNED, {"first": 0, "last": 2, "bits": "05"})
    pen.key = pen.key.next(NAME.log)
    pen.write(kinds.RESTORED, {"size": 6, "lost_size": 9})
    pen.write()
    return pen


BROKEN: dict[str, tuple[Callable[[Pen], object], str]] = {
    "gap": (lambda pen: pen.write(seq=2), "says that it is entry 2"),
    "link": (lambda pen: pen.write(prev=bytes(32)), "does not follow"),
    "log": (lambda pen: pen.write(log_id=bytes(32)), "another log"),
    "second first": (lambda pen: pen.write(flags=GENESIS | SEALED), "only the first entry"),
    "time": (lambda pen: pen.write(ts_us=1), "its time lies before"),
    "epoch early": (lambda pen: pen.write(epoch=1), "its epoch is not"),
    "body": (lambda pen: pen.write(body_commit=bytes(32)), "its body is not the one"),
    "tenant": (lambda pen: pen.write(tenant="rival"), "another tenant"),
    "schema": (lambda pen: pen.write(shown=b"{}"), "not a body"),
    "sealed without a flag": (lambda pen: pen.write(flags=0), "whether it is sealed"),
    "flag without sealed": (lambda pen: pen.write(hidden=b""), ""),
    "short sealed": (lambda pen: pen.write(hidden=b"x" * 10), "too short"),
    "key flag": (lambda pen: pen.write(flags=SEALED | KEY), "an act on the log, and it is none"),
    "tombstone flag": (lambda pen: pen.write(flags=SEALED | TOMBSTONE), "an act on the log, and it is none"),
    "sealed act": (lambda pen: pen.write(kinds.PRUNED, {}, hidden=b"x" * 80), "never sealed"),
    "sealed hold": (lambda pen: pen.write(kinds.HELD, {}, hidden=b"x" * 80), "never sealed"),
    "ratchet without a flag": (lambda pen: pen.write(kinds.RATCHETED, flags=0), "whether it changes a key"),
    "hold with a key flag": (lambda pen: pen.write(kinds.HELD, {}, flags=KEY), "whether it changes a key"),
    "erasure without a flag": (lambda pen: pen.write(kinds.ERASED, {"subjects": []}, flags=0), "tombstone"),
    "prune ahead": (lambda pen: pen.write(kinds.PRUNED, {"first": 0, "last": 1, "bits": "03"}), "what comes after"),
    "prune nothing": (lambda pen: pen.write(kinds.PRUNED, {"first": 0, "last": 0, "bits": "00"}), "does not say which"),
    "prune before": (lambda pen: pen.write(kinds.PRUNED, {"first": -1, "last": 0, "bits": "03"}), "does not say which"),
    "prune vaguely": (lambda pen: pen.write(kinds.PRUNED, {"first": 0, "last": 1, "bits": "01"}), "does not say which"),
    "prune late": (lambda pen: pen.write(kinds.PRUNED, {"first": 0, "last": 1, "bits": "02"}), "does not say which"),
    "other epoch": (lambda pen: pen.write(kinds.RATCHETED, {"epoch": 7}), "ends another epoch"),
    "other start": (lambda pen: pen.write(kinds.RATCHETED, {"from": 1}), "ends another epoch"),
    "other tags": (lambda pen: pen.write(kinds.RATCHETED, {"tags_sha256": "00"}), "the tags of entries 0 to 0"),
    "rotation unsigned": (lambda pen: pen.write(kinds.ROTATED, rotation(2, signed_by=OTHER)), "not signed by"),
    "rotation elsewhere": (lambda pen: pen.write(kinds.ROTATED, rotation(5)), "where it says"),
    "rotation from another": (lambda pen: pen.write(kinds.ROTATED, rotation(2, old=OTHER)), "not in use"),
    "rotation without": (lambda pen: pen.write(kinds.ROTATED, {}), "not a rotation"),
    "rotation text": (lambda pen: pen.write(kinds.ROTATED, {**rotation(2), "until": "2"}), "not a rotation"),
    "rotation to nothing": (lambda pen: pen.write(kinds.ROTATED, _to_nothing()), "verifier key"),
}


def _to_nothing() -> dict[str, Any]:
    text = statement(NAME.log, public_key(SIGNER), "nothing", 2)
    return {"old": public_key(SIGNER), "new": "nothing", "until": 2, "signature": SIGNER.sign_bytes(text).hex()}


def broken_log(rule: str) -> tuple[Pen, str]:
    """Two entries, of which the second breaks the rule; and what is said of it."""
    write, says = BROKEN[rule]
    pen = Pen()
    pen.write()
    write(pen)
    if rule == "flag without sealed":
        row = pen.rows[1]
        header = Header.unpack(row.header)._replace(flags=SEALED).pack()
        pen.rows[1] = row._replace(header=header, tag=tagger(Pen().key.key).of(leaf_hash(header)))
        says = "whether it is sealed"
    return pen, says
