"""Where two policies decide otherwise, part by part: what gets stricter from the first to the second, what relaxes."""

from __future__ import annotations

from dataclasses import dataclass

from aibox.policy.fields import Steps
from aibox.policy.policy import Policy
from aibox.types import PLACES


@dataclass(frozen=True, slots=True)
class Difference:
    """Checks by name and place (`pii at input: flag from 0 -> block from 0`), other parts by name.

    A part in which one thing gets stricter and another relaxes stands in both.
    """

    stricter: tuple[str, ...]
    relaxed: tuple[str, ...]


def difference(before: Policy, after: Policy) -> Difference:
    """Joining only restricts: where the first adds nothing to the second, the second is as strict."""
    joined = before & after
    stricter: list[str] = []
    relaxed: list[str] = []
    for name in sorted({*before.checks, *after.checks}):
        for place in PLACES:
            was, now, both = (one.checks.get(name, {}).get(place, ()) for one in (before, after, joined))
            said = f"{name} at {place}: {steps(was)} -> {steps(now)}"
            stricter += [said] if both != was else []
            relaxed += [said] if both != now else []
    for part in Policy.model_fields:
        if part not in ("version", "name", "checks"):
            was, now, both = (getattr(one, part) for one in (before, after, joined))
            stricter += [part] if both != was else []
            relaxed += [part] if both != now else []
    return Difference(tuple(stricter), tuple(relaxed))


def steps(ladder: Steps) -> str:
    """A ladder in words."""
    return ", ".join(f"{decision} from {score / 1000:g}" for score, decision in ladder) or "allow"
