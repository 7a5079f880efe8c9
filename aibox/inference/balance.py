"""Which of several replicas a request goes to: where its beginning is cached, unless that one has too much to do.

Rendezvous hashing (Thaler and Ravishankar 1998) with bounded loads (Mirrokni, Thorup and Zadimoghaddam 2018): a
conversation keeps its replica, a replica that comes or goes moves only its own, and none gets far more than the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

PREFIX_CHARS = 4096
"""Of the system message and of the first of the user: with them a conversation is known again."""
SLACK = 2.8
"""A replica is overloaded that has this many requests more than the others have in the mean: measured by simulation."""

_MASK = (1 << 64) - 1


class Loaded(Protocol):
    @property
    def seed(self) -> int: ...

    @property
    def load(self) -> float: ...


R = TypeVar("R", bound=Loaded)


def prefix_key(body: Mapping[str, Any], *, tenant: str) -> int:
    """A number for the beginning of a request, another one for each tenant: prompts are cached by what begins them."""
    digest = hashlib.blake2b(tenant.encode(), digest_size=8)
    messages = body.get("messages")
    if isinstance(messages, list):
        # Up to the first word of the user and no further: what comes after it differs from turn to turn.
        for message in messages[:4]:
            if not isinstance(message, Mapping):
                break
            digest.update(b"\0" + _beginning(message.get("content")))
            if message.get("role") == "user":
                break
    else:
        digest.update(b"\0" + _beginning(body.get("prompt", body.get("input"))))
    return int.from_bytes(digest.digest())


def choose(replicas: Sequence[R], key: int | None) -> R:
    """The replica for a request of this key; None asks for the least loaded. The sequence is not empty."""
    if len(replicas) == 1:
        return replicas[0]
    if key is not None:
        # As much above the mean of the others is less above the mean of all, which it raises itself: of two by half.
        many = len(replicas)
        bound = sum(replica.load for replica in replicas) / many + SLACK * (1 - 1 / many)
        for replica in sorted(replicas, key=lambda r: _mix(key ^ r.seed), reverse=True):
            if replica.load <= bound:
                return replica
    return min(replicas, key=lambda r: r.load)


def _mix(x: int) -> int:
    """splitmix64's finaliser (Steele, Lea and Flood 2014): neighbours in, no neighbours out."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
    return x ^ (x >> 31)


def _beginning(content: Any) -> bytes:
    if isinstance(content, list):
        parts = (part.get("text") if isinstance(part, dict) else part for part in content[:8])
        content = "\0".join(part[:PREFIX_CHARS] for part in parts if isinstance(part, str))
    return content[:PREFIX_CHARS].encode("utf-8", "surrogatepass") if isinstance(content, str) else b""
