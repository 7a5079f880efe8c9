"""One line of evidence: a header of 122 bytes, which is the Merkle leaf, and a canonical JSON body that it commits to.

    off len field              off len field
      0  4  magic "AIBX"        18  8  ts_us   = max(clock, previous ts_us)
      4  1  version = 1         26 32  log_id  = SHA256("aibox/log/v1" 0 origin)
      5  1  flags               58 32  prev    = leaf hash of the entry before
      6  4  epoch               90 32  body_commit = SHA256("aibox/body/v1" 0 body)
     10  8  seq

Integers are big-endian. The leaf hash is RFC 6962's SHA256(0x00 header), and also the next header's `prev`: chain and
tree are one structure and cannot disagree.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from aibox.audit import canonical
from aibox.errors import ConfigError
from aibox.types import Scope

MAGIC = b"AIBX"
VERSION = 1
MAX_BODY_BYTES = 64 * 1024

GENESIS = 1
TERMINAL = 32
KNOWN_FLAGS = GENESIS | TERMINAL
"""Flags of this version. Sealed bodies (2), heartbeats (4), key events (8) and tombstones (16) are reserved."""

_STRUCT = struct.Struct(">4sBBIQQ32s32s32s")
HEADER_BYTES = _STRUCT.size
TAG_BYTES = 32

BODY_FIELDS = frozenset({"v", "id", "tenant", "actor", "action", "turn_id", "detail", "nonce"})
ACTOR_FIELDS = frozenset({"user", "agent", "session"})


@dataclass(frozen=True, slots=True)
class Header:
    """The fixed part of an entry. `unpack` raises ValueError for what is not one."""

    flags: int
    epoch: int
    seq: int
    ts_us: int
    log_id: bytes
    prev: bytes
    body_commit: bytes

    def pack(self) -> bytes:
        return _STRUCT.pack(
            MAGIC, VERSION, self.flags, self.epoch, self.seq, self.ts_us, self.log_id, self.prev, self.body_commit
        )

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        if len(data) != HEADER_BYTES:
            raise ValueError(f"a header has {HEADER_BYTES} bytes, not {len(data)}")
        magic, version, flags, *rest = _STRUCT.unpack(data)
        if magic != MAGIC or version != VERSION:
            raise ValueError("not a header of this format")
        if flags & ~KNOWN_FLAGS:
            raise ValueError(f"unknown flags {flags:#04x}")
        return cls(flags, *rest)


def leaf_hash(header: bytes) -> bytes:
    """RFC 6962 sec. 2.1."""
    return hashlib.sha256(b"\x00" + header).digest()


def log_id(origin: str) -> bytes:
    return hashlib.sha256(b"aibox/log/v1\x00" + origin.encode()).digest()


def genesis_prev(log: bytes, public_key: bytes) -> bytes:
    """What stands for a previous leaf in the first entry: it binds the log to its signing key (32 bytes, Ed25519)."""
    return hashlib.sha256(b"aibox/genesis/v1\x00" + log + hashlib.sha256(public_key).digest()).digest()


def body_commit(body: bytes) -> bytes:
    return hashlib.sha256(b"aibox/body/v1\x00" + body).digest()


def tag(key: bytes, leaf: bytes) -> bytes:
    """HMAC-SHA256 under the epoch's key; stored beside the leaf and not in it."""
    return hmac.digest(key, b"aibox/tag/v1\x00" + leaf, "sha256")


def make_body(kind: str, *, scope: Scope, turn: str, detail: Mapping[str, Any]) -> bytes:
    """The canonical body of an entry. The nonce keeps a commitment to a small fact from being guessed by trial.

    Raises ConfigError for a detail that has no canonical form or is too long: that is a mistake of the caller.
    """
    body = {
        "v": 1,
        "id": _uuid7(),
        "tenant": scope.tenant,
        "actor": {"user": scope.user, "agent": scope.agent, "session": scope.session},
        "action": kind,
        "turn_id": turn,
        "detail": dict(detail),
        "nonce": secrets.token_hex(16),
    }
    try:
        data = canonical.dumps(body)
    except ValueError as error:
        raise ConfigError(f"the detail of {kind} cannot be recorded: {error}") from None
    if len(data) > MAX_BODY_BYTES:
        raise ConfigError(f"the detail of {kind} has {len(data)} bytes; an entry has at most {MAX_BODY_BYTES}")
    return data


def read_body(data: bytes) -> dict[str, Any]:
    """Read a body under its closed schema. Raises ValueError for anything else."""
    body = canonical.loads(data)
    if not isinstance(body, dict) or set(body) != BODY_FIELDS or body["v"] != 1:
        raise ValueError("not a body of this format")
    if (
        not isinstance(body["actor"], dict)
        or set(body["actor"]) != ACTOR_FIELDS
        or not isinstance(body["detail"], dict)
    ):
        raise ValueError("not a body of this format")
    return body


def _uuid7() -> str:
    """RFC 9562 sec. 5.7: sortable by time, unique by 74 random bits."""
    value = (time.time_ns() // 1_000_000) << 80 | 7 << 76 | secrets.randbits(12) << 64 | 2 << 62 | secrets.randbits(62)
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
