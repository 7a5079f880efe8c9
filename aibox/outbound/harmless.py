"""What only watches must not harm what it watches."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar


class Counts(Protocol):
    """Counts what was lost, by reason."""

    dropped: Counter[str]


P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=Counts)


def harmless(method: Callable[Concatenate[C, P], R]) -> Callable[Concatenate[C, P], R | None]:
    """A method that goes wrong is counted and gives None; whoever called it never learns of it."""

    @functools.wraps(method)
    def watch(self: C, *args: P.args, **kwargs: P.kwargs) -> R | None:
        try:
            return method(self, *args, **kwargs)
        except Exception:  # noqa: BLE001 - whatever it is, it is no reason to fail a turn; /metrics counts it
            self.dropped["bug"] += 1
            return None

    return watch  # type: ignore[return-value]  # its first argument has a name
