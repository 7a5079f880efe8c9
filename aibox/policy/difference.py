"""Where two policies decide otherwise, part by part: what gets stricter from the first to the second, what relaxes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from aibox.policy.fields import Steps
from aibox.policy.policy import Policy
from aibox.types import PLACES

MOST_CHARS = 80


@dataclass(frozen=True, slots=True)
class Difference:
    """Checks by name and place (`pii at input: flag from 0 -> block from 0`), the rest by its keys (`tools.deny`).

    A list that loses one thing and gains another stands in both.
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
    old, new, held = (dict(_leaves(one)) for one in (before, after, joined))
    for path in dict.fromkeys((*held, *old, *new)):
        first, second, strictest = (one.get(path, "null") for one in (old, new, held))
        said = f"{path}: {_short(first)} -> {_short(second)}"
        stricter += [said] if strictest != first else []
        relaxed += [said] if strictest != second else []
    return Difference(tuple(stricter), tuple(relaxed))


def steps(ladder: Steps) -> str:
    """A ladder in words."""
    return ", ".join(f"{decision} from {score / 1000:g}" for score, decision in ladder) or "allow"


def _leaves(policy: Policy) -> Iterator[tuple[str, str]]:
    """What a policy says beside its checks: each thing by its keys, as JSON."""
    yield from _below(policy.model_dump(mode="json", exclude={"version", "name", "checks"}), ())


def _below(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _below(inner, (*path, str(key)))
        return
    yield ".".join(path), json.dumps(_in_order(value), ensure_ascii=False)


def _in_order(value: Any) -> Any:
    """A list of a policy is a set, and has no order."""
    return sorted(map(_in_order, value), key=str) if isinstance(value, list) else value


def _short(value: str) -> str:
    return value if len(value) <= MOST_CHARS else f"{value[:MOST_CHARS]}..."
