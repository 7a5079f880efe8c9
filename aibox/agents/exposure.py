"""The lethal three of a turn: private data, untrusted content, a way out. Two are work, three together are a leak.

The tracking is by what was touched, never by what a text seems to say, so that it holds with every detector off.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aibox.types import Label, Level


@dataclass(frozen=True, slots=True)
class Exposure:
    """Which of the three a turn has touched. Joins only ever add."""

    private: bool = False
    untrusted: bool = False
    way_out: bool = False

    def __or__(self, other: Exposure) -> Exposure:
        return Exposure(self.private or other.private, self.untrusted or other.untrusted, self.way_out or other.way_out)

    @property
    def all_three(self) -> bool:
        return self.private and self.untrusted and self.way_out

    def __str__(self) -> str:
        named = (("private data", self.private), ("untrusted content", self.untrusted), ("a way out", self.way_out))
        return ", ".join(name for name, touched in named if touched) or "nothing"

    def as_dict(self) -> dict[str, bool]:
        return {"private": self.private, "untrusted": self.untrusted, "way_out": self.way_out}

    @classmethod
    def read(cls, value: Mapping[str, Any]) -> Exposure:
        return cls(bool(value.get("private")), bool(value.get("untrusted")), bool(value.get("way_out")))


def of_label(label: Label) -> Exposure:
    """Confidential and above is private data, wherever it came from."""
    return Exposure(private=label.level >= Level.CONFIDENTIAL)


def of_tool(tool: Any) -> Exposure:
    """What calling a tool adds: by its `label`, and by `private`, `untrusted` and `sends` where it says so."""
    marked = getattr(tool, "label", None)
    said = Exposure(
        bool(getattr(tool, "private", False)),
        bool(getattr(tool, "untrusted", False)),
        bool(getattr(tool, "sends", False)),
    )
    return said if marked is None else said | of_label(marked)


def completes(turn: Exposure, call: Exposure) -> bool:
    """Whether a call brings the three together, or uses the way out of a turn where they already are."""
    together = turn | call
    return together.all_three and (not turn.all_three or call.way_out)
