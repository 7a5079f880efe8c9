"""What several checks work out about one text is worked out once, and forgotten when they have all been asked.

Only time depends on it: outside of `once` everything is worked out anew. Threads that are started within share it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

P = ParamSpec("P")
T = TypeVar("T")

_KNOWN: ContextVar[dict[Hashable, Any] | None] = ContextVar("known", default=None)


@contextmanager
def once(*, remember: bool = True) -> Iterator[None]:
    """Within, what functions under `shared` have worked out is remembered by their arguments; not where `remember` is
    False, as for a long text, of which all at once takes more memory than the time is worth."""
    before = _KNOWN.get()
    _KNOWN.set(None if not remember else {} if before is None else before)
    try:
        yield
    finally:
        _KNOWN.set(before)


def shared(work: Callable[P, T]) -> Callable[P, T]:
    """For a function of hashable arguments whose result nobody changes."""

    @wraps(work)
    def remembered(*args: P.args, **kwargs: P.kwargs) -> T:
        known = _KNOWN.get()
        if known is None:
            return work(*args, **kwargs)
        key = (work, args, *kwargs.items())
        if key not in known:
            known[key] = work(*args, **kwargs)
        return cast("T", known[key])

    return remembered
