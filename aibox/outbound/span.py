"""A span as OpenTelemetry has it, and the ids of W3C Trace Context that tie spans to each other and to a request.

The id of a trace is the request's correlation id where that is 32 hex digits, as ids of our own are.
"""

from __future__ import annotations

import os
import random
import re
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Value = str | int | float | bool | list[str]
Kind = Literal["internal", "server", "client"]

UNTRACED = "-"
"""In `Scope.trace`: the request is not traced, and so nothing of it is."""
_PARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_TRACE = re.compile(r"[0-9a-f]{32}")
_ZERO = "0" * 32
# An id must be one of a kind, and is no secret: no call into the kernel for each.
_ids = random.Random(os.urandom(32))  # noqa: S311 - see above
os.register_at_fork(after_in_child=lambda: _ids.seed(os.urandom(32)))


class Place(NamedTuple):
    """Where something stands: its trace, its own span, and the span that it is part of, empty for a root."""

    trace: str
    span: str
    parent: str = ""

    @property
    def within(self) -> str:
        """As a scope carries it to whatever is part of this."""
        return f"{self.trace}-{self.span}"


@dataclass(slots=True)
class Span:
    """One step. `texts` are attributes that hold what people or models wrote; `error` is empty where nothing failed."""

    place: Place
    name: str
    tenant: str
    kind: Kind = "internal"
    start_ns: int = 0
    end_ns: int = 0
    attributes: dict[str, Value] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    error: str = ""


def new_trace(correlation: str = "") -> str:
    """A trace of its own for what belongs to this request."""
    if _TRACE.fullmatch(correlation) and correlation != _ZERO:
        return correlation
    return f"{_ids.getrandbits(128) | 1:032x}"


def new_span() -> str:
    return f"{_ids.getrandbits(64) | 1:016x}"


def read_parent(header: bytes) -> tuple[str, str, bool] | None:
    """Trace, span and whether it is sampled, of a `traceparent` (W3C Trace Context sec. 3.2); None for what is none."""
    found = _PARENT.fullmatch(header)
    if found is None or found[1] == b"ff" or (found[1] == b"00" and found[5] is not None):
        return None
    trace, span = found[2].decode(), found[3].decode()
    if trace == _ZERO or span == _ZERO[:16]:
        return None
    return trace, span, bool(int(found[4], 16) & 1)


def kept(trace: str, ratio: float) -> bool:
    """Whether a trace is among the share to keep: the same answer wherever it is asked."""
    return int(trace[16:], 16) < ratio * 2**64
