"""What memory takes from its callers: texts, types, moments, a folder. Raises ConfigError or LimitError."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from aibox.errors import ConfigError, LimitError
from aibox.memory.record import RECORD_TYPES, RecordType, Within
from aibox.protocols import Embedder

MAX_TEXT_CHARS = 8_000


def folder(url: str | Path | None) -> Path | None:
    """The folder that a url names; None for a temporary one."""
    if isinstance(url, str) and "://" in url:
        raise ConfigError(
            f"a memory at {url.split('://', 1)[0]}:// is not in this version",
            hint="name a folder, such as ./memory, qdrant://host:6333, or postgresql://host/name",
        )
    if url == "":
        raise ConfigError("a memory needs a folder", hint="name one, or None for a temporary one")
    return None if url is None else Path(url).expanduser()


def types(names: Sequence[str]) -> list[RecordType]:
    """Types of memories."""
    known: dict[str, RecordType] = {name: name for name in RECORD_TYPES}
    for name in names:
        if name not in known:
            raise ConfigError(f"not a type of memory: {name!r}", hint=f"one of {', '.join(RECORD_TYPES)}")
    return [known[name] for name in names]


def text(words: str) -> str:
    """A text to be remembered: clean, not empty, at most 8,000 characters."""
    words = clean(words)
    if not words:
        raise ConfigError("an empty text cannot be remembered")
    if len(words) > MAX_TEXT_CHARS:
        raise LimitError(
            f"a memory has at most {MAX_TEXT_CHARS} characters, this one has {len(words)}",
            hint="remember what it says in a few sentences",
        )
    return words


def confidence(value: float) -> float:
    """A number from 0 to 1."""
    if not 0.0 <= value <= 1.0:
        raise ConfigError(f"a confidence is a number from 0 to 1, not {value}")
    return float(value)


def moment_us(moment: datetime | None) -> int:
    """A moment with its time zone as Unix time in microseconds; 0 for None."""
    if moment is None:
        return 0
    if moment.tzinfo is None:
        raise ConfigError("a moment needs a time zone", hint="datetime(..., tzinfo=UTC)")
    return round(moment.timestamp() * 1e6)


def within(wanted: Within) -> Within:
    """What a recall looks through."""
    if wanted not in ("user", "agent", "session"):
        raise ConfigError(f"a recall is within user, agent or session, not {wanted!r}")
    return wanted


def minimum(wanted: float | None, embedder: Embedder) -> float:
    """The lowest cosine of a recall; the embedder's own where none is asked for, else 0."""
    lowest = float(getattr(embedder, "floor", 0.0)) if wanted is None else wanted
    if math.isnan(lowest):
        raise ConfigError("the minimum of a recall is a number")
    return lowest


def clean(words: str) -> str:
    """Without what cannot be stored as UTF-8: lone surrogates become question marks; and without outer whitespace."""
    return words.encode("utf-8", "replace").decode().strip()
