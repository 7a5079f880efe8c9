"""The tenant's log: its entries, its checkpoint, what a verification found, the receipt of a turn."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from aibox.server.shapes.shape import Answer, Asked


class LogQuery(Asked):
    start: int | None = Field(default=None, ge=0, lt=2**53, examples=[0])
    """The number of the first entry; None: so that the last `limit` of the log are read."""
    limit: int = Field(default=100, ge=1, le=1000)
    """How many entries are read. Those of other kinds are left out of the answer."""
    kind: str = Field(default="", max_length=64, examples=["tool.called"])
    """Only kinds that begin so, such as `egress` or `tool.called`."""


class EntryShown(Answer):
    """One entry. `detail` and `actor` are what may be read: a person who was erased is not in it any more."""

    seq: int
    ts_us: int
    kind: str
    turn: str
    actor: dict[str, str] | None
    detail: dict[str, Any]
    leaf: str
    """The RFC 6962 leaf hash, in hex."""


class EntryList(Answer):
    data: list[EntryShown]
    next: int | None
    """The `start` that goes on; None at the end of the log."""


class CheckpointShown(Answer):
    """How far the log has come: a signed note, to keep elsewhere and to hold the log against later."""

    note: str


class Fault(Answer):
    tenant: str
    seq: int | None
    cause: str


class Verified(Answer):
    """What was checked. `ok` False: the evidence does not hold, and `problems` says where."""

    ok: bool
    logs: int
    entries: int
    checkpoints: int
    sampled: int
    tags_checked: int
    key_pinned: bool
    high_water_mark_held: bool
    outside_checkpoints: int
    erased: int
    pruned: int
    restored: int
    problems: list[Fault]


class ReceiptEntryShown(Answer):
    header: str
    open: str
    sealed: str
    key: str
    proof: list[str]


class ReceiptShown(Answer):
    """The proof of a turn, as `aibox verify` and `aibox.Receipt` read it: JSON of the format `aibox/receipt/v1`."""

    format: str
    turn: str
    tenant: str
    checkpoint: str
    public_key: str
    entries: list[ReceiptEntryShown]
    rotations: list[dict[str, Any]]
