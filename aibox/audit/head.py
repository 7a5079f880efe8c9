"""Where one log stands in memory, and what the transaction under way adds to it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from aibox.audit.epochs import EpochKey
from aibox.audit.merkle import Frontier
from aibox.audit.record import Mac, Row, tagger
from aibox.audit.sealed import Subject
from aibox.audit.store import Act, LogName


@dataclass(slots=True)
class Head:
    """Where a tenant's log stands, and what this transaction adds to it."""

    name: LogName
    public_key: str
    key: EpochKey
    kek: bytes
    prev: bytes
    ts_us: int = 0
    size: int = 0
    frontier: Frontier = field(default_factory=Frontier)
    epoch_first: int = 0
    epoch_since_us: int = 0
    subjects: dict[str, Subject] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    leaves: list[bytes] = field(default_factory=list)
    """Of `rows`: the frontier stands where the store does, and takes them in together."""
    turns: dict[str, int] = field(default_factory=dict)
    acts: list[Act] = field(default_factory=list)
    ratcheted: bool = False
    pointed_size: int = 0
    pointed_s: float = 0.0
    note: str = ""
    moment: int = 0
    tags: Any = field(init=False)
    tagger: Mac = field(init=False)

    def __post_init__(self) -> None:
        self.begin_epoch(self.key, self.epoch_first)

    def begin_epoch(self, key: EpochKey, first: int) -> None:
        """From entry `first` on, tags are made under `key`."""
        self.key, self.epoch_first, self.tags = key, first, hashlib.sha256()
        self.tagger = tagger(key.key)

    @property
    def log(self) -> bytes:
        return self.name.log
