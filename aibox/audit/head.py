"""Where one log stands in memory, and what the transaction under way adds to it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from aibox.audit.epochs import EpochKey
from aibox.audit.merkle import Frontier
from aibox.audit.record import Row
from aibox.audit.store import Act, LogName, Node


@dataclass(slots=True)
class Head:
    """Where a tenant's log stands, and what this transaction adds to it."""

    name: LogName
    public_key: str
    key: EpochKey
    kek: bytes
    prev: bytes
    ts_us: int = 0
    frontier: Frontier = field(default_factory=Frontier)
    epoch_first: int = 0
    epoch_since_us: int = 0
    tags: Any = field(default_factory=hashlib.sha256)
    subjects: dict[str, tuple[bytes, bytes]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    turns: list[tuple[str, int]] = field(default_factory=list)
    acts: list[Act] = field(default_factory=list)
    ratcheted: bool = False
    pointed_size: int = 0
    pointed_s: float = 0.0
    note: str = ""
    moment: int = 0

    @property
    def log(self) -> bytes:
        return self.name.log

    @property
    def size(self) -> int:
        return self.frontier.size
