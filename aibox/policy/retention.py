"""How long what is recorded may be read, as a policy describes it."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from aibox.policy.fields import Part

DAY_US = 86_400_000_000
_PATTERN = re.compile(r"\*|[a-z]+(\.[a-z_]+)*")


def _kinds(value: dict[str, int]) -> dict[str, int]:
    for kind in value:
        if not _PATTERN.fullmatch(kind):
            raise ValueError(f'{kind!r} is no kind of entry: "model.called", "model" for all that begin so, or "*"')
    return dict(sorted(value.items()))


Days = Annotated[dict[str, Annotated[int, Field(ge=1, le=36_500)]], AfterValidator(_kinds)]


class Retention(Part):
    """What is not mentioned is kept. Of several levels, and of several lines that fit, the shortest time holds.

    A legal hold outlasts it; headers, links, tags and proofs stay whatever it says.
    """

    bodies_days: Days = Field(default_factory=dict)
    """Kind of entry, its beginning (`tool`) or `*`, to the days after which an entry's body is removed."""

    def __and__(self, other: Retention) -> Retention:
        mine, theirs = self.bodies_days, other.bodies_days
        days = {kind: min(d[kind] for d in (mine, theirs) if kind in d) for kind in {*mine, *theirs}}
        return Retention(bodies_days=days)

    def days(self, kind: str) -> int | None:
        """How long the body of an entry of this kind is kept; None: for ever."""
        fitting = [
            days for name, days in self.bodies_days.items() if name in ("*", kind) or kind.startswith(f"{name}.")
        ]
        return min(fitting, default=None)
