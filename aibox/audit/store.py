"""What a log asks of the database under it, and which database a URL means.

A store keeps rows; it knows nothing of keys and hashes. `aibox.testing.AuditStoreContract` is what each must pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Protocol

from aibox.audit.record import Row
from aibox.errors import ConfigError

FORMAT = "aibox/audit/v1"
NODE_LEVELS = 4
"""Only every fourth level of the tree is stored; those between are hashed again from at most eight hashes."""


class LogName(NamedTuple):
    """A log: its id, whose it is, the name that checkpoints carry, the key that it began under."""

    log: bytes
    tenant: str
    origin: str
    public_key: str


class Act(NamedTuple):
    """Where an operator's act stands; `first` and `last` bound the entries that a pruning speaks of."""

    seq: int
    kind: str
    first: int = 0
    last: int = -1


class Node(NamedTuple):
    """The hash of a complete subtree, at its place."""

    level: int
    idx: int
    hash: bytes


class Conflict(Exception):  # noqa: N818 - no failure: somebody else was first, and one reads again
    """Another process wrote this log since its head was read. Nothing was written."""


class Store(Protocol):
    """Blocking, and used by one thread at a time. Raises StoreError, and then nothing was written."""

    def transaction(self) -> AbstractContextManager[None]:
        """All or nothing, durable at the end."""
        ...

    def changed(self) -> bool:
        """Inside a transaction: whether another connection may have written since the last call. True when unsure."""
        ...

    def meta(self, name: str) -> str | None: ...

    def set_meta(self, name: str, value: str) -> None:
        """Once: what stands there stays."""
        ...

    def logs(self) -> list[LogName]:
        """By tenant."""
        ...

    def log_named(self, log: bytes) -> LogName | None: ...

    def add_log(self, name: LogName) -> None: ...

    def head(self, log: bytes) -> Row | None:
        """The last entry."""
        ...

    def size(self, log: bytes) -> int:
        """How many entries there are; inside a transaction, others who would write this log wait."""
        ...

    def entries(self, log: bytes, *, start: int = 0, limit: int = -1, kind: str = "") -> Iterator[Row]:
        """In order of seq. With the beginning of a `kind`: of those alone, where retention has left their open part."""
        ...

    def add_entries(self, log: bytes, size: int, rows: Sequence[Row]) -> None:
        """Behind the `size` entries that are there. Raises Conflict where there are more or fewer."""
        ...

    def nodes(self, log: bytes, level: int, start: int, count: int) -> list[bytes]:
        """Stored hashes of a level that is a multiple of NODE_LEVELS and not 0."""
        ...

    def all_nodes(self, log: bytes) -> Iterator[Node]: ...

    def add_nodes(self, log: bytes, nodes: Sequence[Node]) -> None: ...

    def checkpoints(self, log: bytes) -> list[tuple[int, str]]: ...

    def checkpoint_from(self, log: bytes, size: int) -> tuple[int, str] | None:
        """The first checkpoint of at least this size."""
        ...

    def add_checkpoint(self, log: bytes, size: int, note: str) -> None: ...

    def turn(self, log: bytes, turn: str) -> int | None:
        """The seq of the terminal entry of a turn."""
        ...

    def turns(self, log: bytes) -> dict[str, int]: ...

    def add_turns(self, log: bytes, turns: Sequence[tuple[str, int]]) -> None:
        """Raises Conflict for one that is there: a turn ends once."""
        ...

    def acts(self, log: bytes) -> list[Act]: ...

    def add_acts(self, log: bytes, acts: Sequence[Act]) -> None: ...

    def prune(self, log: bytes, seqs: Sequence[int]) -> None:
        """Remove bodies; refused for entries that no act of pruning in the log speaks of."""
        ...

    def subject(self, log: bytes, who: bytes) -> tuple[bytes, bytes] | None:
        """(id, wrapped key) of a person, by a keyed hash of their name."""
        ...

    def subject_key(self, log: bytes, subject: bytes) -> bytes | None:
        """The wrapped key, by id."""
        ...

    def add_subject(self, log: bytes, who: bytes, subject: bytes, wrapped: bytes) -> None: ...

    def drop_subject(self, log: bytes, subject: bytes) -> None:
        """Destroy a key; the bytes are overwritten as far as the database can."""
        ...

    def scrub(self) -> bool:
        """Outside a transaction: see that dropped keys are in no journal either. False while somebody reads it."""
        ...

    def close(self) -> None: ...


def opening(kind: str) -> tuple[bytes, bytes]:
    """From which bytes, and before which, an open part lies whose kind begins so: canonically, `action` is first."""
    first = b'{"action":"' + kind.encode("ascii")
    return first, first[:-1] + bytes([first[-1] + 1])


def open_store(url: str | Path, *, read_only: bool = False) -> Store:
    """A file, with or without `sqlite:///`, or `postgresql://...`. Raises ConfigError for other URLs."""
    text = str(url)
    scheme, divider, _ = text.partition("://")
    if divider and scheme in ("postgresql", "postgres"):
        from aibox.audit.postgres import PostgresStore

        return PostgresStore(text, read_only=read_only)
    if divider and not text.startswith("sqlite:///"):
        raise ConfigError(f"no audit store for {scheme}:// in this version", hint="give a file, or postgresql://")
    from aibox.audit.sqlite import SqliteStore

    return SqliteStore(text.removeprefix("sqlite:///"), read_only=read_only)
