"""How one signing key hands over to the next: an entry that the old key signs, anchored before the new one is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aibox.audit.checkpoint import public_bytes, verify_signature
from aibox.audit.record import Row, read_detail


def statement(log: bytes, old: str, new: str, until: int) -> bytes:
    """What the old key signs. `until` is the size of the last tree that it speaks for."""
    return f"aibox/rotate/v1\n{log.hex()}\n{old}\n{new}\n{until}\n".encode()


def hold_rotation(detail: Mapping[str, Any], log: bytes) -> None:
    """Raises ValueError unless the old key signed the statement."""
    try:
        old, new, until = str(detail["old"]), str(detail["new"]), detail["until"]
        signature = bytes.fromhex(detail["signature"])
    except (KeyError, TypeError, ValueError):
        raise ValueError("not a rotation of a key") from None
    if type(until) is not int:
        raise ValueError("not a rotation of a key")
    public_bytes(new)
    try:
        verify_signature(old, signature, statement(log, old, new, until))
    except ValueError as error:
        raise ValueError(f"the rotation was not signed by the key before it: {error}") from None


def rotated_to(row: Row) -> str:
    """The key that an entry of rotation hands over to."""
    return str(read_detail(row.open or b"")["new"])


class KeyLine:
    """The keys of one log, each with the size of the last tree that it may sign."""

    def __init__(self, first: str) -> None:
        self.keys: list[tuple[str, int | None]] = [(first, None)]

    def rotate(self, detail: Mapping[str, Any], log: bytes, size: int) -> None:
        """At the entry that makes the log `size` entries long. Raises ValueError."""
        hold_rotation(detail, log)
        if detail["old"] != self.keys[-1][0]:
            raise ValueError("the rotation hands over from a key that was not in use")
        if detail["until"] != size:
            raise ValueError("the rotation does not stand where it says")
        self.keys[-1] = self.keys[-1][0], size
        self.keys.append((str(detail["new"]), None))

    def at(self, size: int) -> str:
        """The key that may sign a tree of this size."""
        return next(key for key, until in self.keys if until is None or size <= until)

    def __contains__(self, key: str) -> bool:
        return any(known == key for known, _ in self.keys)
