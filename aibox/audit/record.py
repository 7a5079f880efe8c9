"""One line of evidence: a header of 122 bytes, which is the Merkle leaf, and a body of two parts that it commits to.

    off len field              off len field
      0  4  magic "AIBX"        18  8  ts_us   = max(clock, previous ts_us)
      4  1  version = 1         26 32  log_id  = SHA256("aibox/log/v1" 0 origin)
      5  1  flags               58 32  prev    = leaf hash of the entry before
      6  4  epoch               90 32  body_commit = SHA256("aibox/body/v1" 0 SHA256(open) SHA256(sealed))
     10  8  seq

Integers are big-endian. The leaf hash is RFC 6962's SHA256(0x00 header), and also the next header's `prev`: chain and
tree are one structure and cannot disagree. The open part is canonical JSON for everybody; the sealed part is encrypted
under a key of one person (see `sealed`), and the commitment is over what is stored, so verifying needs no key.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Mapping, Sequence
from functools import partial
from hashlib import sha256
from typing import Any, NamedTuple, Self

import msgspec

from aibox.audit import canonical, kinds
from aibox.errors import ConfigError
from aibox.types import Scope

MAGIC = b"AIBX"
VERSION = 1
MAX_BODY_BYTES = 64 * 1024

GENESIS = 1
SEALED = 2
KEY = 8
TOMBSTONE = 16
TERMINAL = 32
KNOWN_FLAGS = GENESIS | SEALED | KEY | TOMBSTONE | TERMINAL
"""Flags of this version. Heartbeats (4) are reserved."""

_STRUCT = struct.Struct(">4sBBIQQ32s32s32s")
HEADER_BYTES = _STRUCT.size
TAG_BYTES = 32
_START = MAGIC + bytes([VERSION])


pack_header = partial(_STRUCT.pack, MAGIC, VERSION)
"""The fields of a Header, packed."""


class Header(NamedTuple):
    """The fixed part of an entry. `unpack` raises ValueError for what is not one."""

    flags: int
    epoch: int
    seq: int
    ts_us: int
    log_id: bytes
    prev: bytes
    body_commit: bytes

    def pack(self) -> bytes:
        return pack_header(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        if len(data) != HEADER_BYTES:
            raise ValueError(f"a header has {HEADER_BYTES} bytes, not {len(data)}")
        magic, version, *rest = _STRUCT.unpack(data)
        if magic != MAGIC or version != VERSION:
            raise ValueError("not a header of this format")
        if rest[0] & ~KNOWN_FLAGS:
            raise ValueError(f"unknown flags {rest[0]:#04x}")
        return cls(*rest)


class Row(NamedTuple):
    """An entry as it is stored. A part that retention has removed is None."""

    seq: int
    header: bytes
    open: bytes | None
    sealed: bytes | None
    tag: bytes


def leaf_hash(header: bytes) -> bytes:
    """RFC 6962 sec. 2.1."""
    return sha256(b"\x00" + header).digest()


def log_id(origin: str) -> bytes:
    return sha256(b"aibox/log/v1\x00" + origin.encode()).digest()


def genesis_prev(log: bytes, public_key: bytes) -> bytes:
    """What stands for a previous leaf in the first entry: it binds the log to its first signing key (32 bytes)."""
    return sha256(b"aibox/genesis/v1\x00" + log + sha256(public_key).digest()).digest()


def body_commit(open_part: bytes, sealed_part: bytes) -> bytes:
    return sha256(b"aibox/body/v1\x00" + sha256(open_part).digest() + sha256(sealed_part).digest()).digest()


_INNER, _OUTER = bytes(n ^ 0x36 for n in range(256)), bytes(n ^ 0x5C for n in range(256))


class Mac:
    """HMAC-SHA256 (RFC 2104) under one key of at most 64 bytes for many messages that begin alike.

    What is the same is hashed once, and nothing is set up as OpenSSL does it for each.
    """

    __slots__ = ("_inner", "_outer")

    def __init__(self, key: bytes, start: bytes = b"") -> None:
        block = key.ljust(64, b"\x00")
        self._inner = sha256(block.translate(_INNER) + start)
        self._outer = sha256(block.translate(_OUTER))

    def of(self, message: bytes) -> bytes:
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(message)
        outer.update(inner.digest())
        return outer.digest()


def tagger(key: bytes) -> Mac:
    """Makes tags of leaves under an epoch's key; a tag is stored beside the leaf and not in it."""
    return Mac(key, b"aibox/tag/v1\x00")


class OpenPart(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What everybody may read, under a closed schema; `detail` is left as bytes until somebody asks."""

    action: str
    detail: msgspec.Raw
    id: str
    tenant: str
    turn_id: str
    v: int


_NONE: frozenset[str] = frozenset()
_SAFE = canonical.MAX_SAFE_INTEGER
_decoder = msgspec.json.Decoder(OpenPart)
_encoder = msgspec.json.Encoder()


class Parts(NamedTuple):
    """A body before it is sealed."""

    open: bytes
    private: bytes


def make_parts(kind: str, *, scope: Scope, turn: str, detail: Mapping[str, Any]) -> Parts:
    """The canonical parts of a body; `private` is empty for an operator's act.

    Raises ConfigError for a detail that has no canonical form or is too long: that is a mistake of the caller.
    """
    return write_parts(kind, scope, turn, *split(kind, scope, detail))


def split(kind: str, scope: Scope, detail: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A detail's open fields and those that are sealed, the request's correlation among them. Raises ConfigError."""
    shown: dict[str, Any] = {}
    kept: dict[str, Any] = {}
    allowed = kinds.OPEN.get(kind, _NONE)
    try:
        if kind in kinds.OPERATOR:
            canonical.check(detail)
            return {**detail}, kept
        for name, value in detail.items():
            if name in allowed:
                shown[name] = value
            elif type(name) is str and name.isascii():
                kept[name] = value
            else:
                canonical.check({name: None})
            # Texts are seen when they are written.
            if type(value) is not str and (type(value) is not int or not -_SAFE <= value <= _SAFE):
                canonical.check(value, f"$.{name}")
    except ValueError as error:
        raise _refused(kind, error) from None
    if scope.correlation:
        # Sealed with the person's part: a caller chooses it, and it ends with them.
        kept["correlation"] = scope.correlation
    return shown, kept


def write_parts(kind: str, scope: Scope, turn: str, shown: Mapping[str, Any], kept: Mapping[str, Any]) -> Parts:
    """Of what has been split. Raises ConfigError for what is too long, or holds a text that is none."""
    body = {"action": kind, "detail": shown, "id": uuid7(), "tenant": scope.tenant, "turn_id": turn, "v": 1}
    private = b""
    try:
        data = canonical.encode(body)
        if kind not in kinds.OPERATOR:
            actor = {"agent": scope.agent, "session": scope.session, "user": scope.user}
            private = canonical.encode({"actor": actor, "detail": kept})
    except ValueError as error:
        raise _refused(kind, error) from None
    if len(data) + len(private) > MAX_BODY_BYTES:
        size = len(data) + len(private)
        raise ConfigError(f"the detail of {kind} has {size} bytes; an entry has at most {MAX_BODY_BYTES}")
    return Parts(data, private)


def _refused(kind: str, error: Exception) -> ConfigError:
    return ConfigError(f"the detail of {kind} cannot be recorded: {error}")


def read_open(data: bytes) -> OpenPart:
    """Read an open part under its closed schema. Raises ValueError for anything else."""
    try:
        body = _decoder.decode(data)
        same = _encoder.encode(body) == data
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"not a body of this format: {error}") from None
    if body.v != 1 or not same:
        raise ValueError("not a body of this format, or not in canonical form")
    return body


def read_detail(data: bytes) -> dict[str, Any]:
    """The detail of an open part, whole and canonical. Raises ValueError."""
    read_open(data)
    detail = canonical.loads(data)["detail"]
    if not isinstance(detail, dict):
        raise ValueError("not a body of this format")  # noqa: TRY004 - one error for all
    return detail


def read_private(data: bytes) -> dict[str, Any]:
    """An unsealed private part: `actor` and `detail`. Raises ValueError."""
    body = canonical.loads(data)
    if not isinstance(body, dict) or set(body) != {"actor", "detail"} or not isinstance(body["detail"], dict):
        raise ValueError("not a private part of this format")
    if not isinstance(body["actor"], dict) or set(body["actor"]) != {"user", "agent", "session"}:
        raise ValueError("not a private part of this format")
    return body


def bits_of(seqs: Sequence[int]) -> str:
    """A set of entries in hexadecimal: bit n, from the lowest bit of the first byte, is the first of them plus n."""
    number = 0
    for seq in seqs:
        number |= 1 << (seq - seqs[0])
    return number.to_bytes((seqs[-1] - seqs[0]) // 8 + 1, "little").hex()


def pruned_by(detail: Mapping[str, Any]) -> list[int]:
    """What an entry of pruning says that it removed. Raises ValueError, TypeError or KeyError for what says nothing."""
    first, bits = int(detail["first"]), bytes.fromhex(detail["bits"])
    seqs = [first + n * 8 + bit for n, byte in enumerate(bits) for bit in range(8) if byte >> bit & 1]
    if first < 0 or not seqs or seqs[0] != first or seqs[-1] != detail["last"]:
        raise ValueError("it does not say which bodies it removes")
    return seqs


_begun = (0, "")
_drawn: list[bytes] = []
# Two processes must not draw from what one has drawn.
os.register_at_fork(after_in_child=_drawn.clear)


def drawn16() -> bytes:
    """16 random bytes that nothing else has."""
    try:
        return _drawn.pop()
    except IndexError:
        # Many at once: asking the system lets other threads go first, which splits what would be written together.
        many = os.urandom(16 * 256)
        _drawn.extend(many[n : n + 16] for n in range(16, len(many), 16))
        return many[:16]


def uuid7() -> str:
    """RFC 9562 sec. 5.7: sortable by time, so that a table of them grows at its end; unique by 74 random bits."""
    global _begun  # noqa: PLW0603 - what all ids of a millisecond begin with; a pair, so that threads see one of them
    drawn, ms, (begun_ms, begun) = drawn16(), time.time_ns() // 1_000_000, _begun
    if ms != begun_ms:
        text = f"{ms:012x}"
        begun = f"{text[:8]}-{text[8:]}-7"
        _begun = ms, begun
    rest = drawn.hex()
    return f"{begun}{rest[:3]}-{'89ab'[drawn[-1] & 3]}{rest[3:6]}-{rest[6:18]}"
