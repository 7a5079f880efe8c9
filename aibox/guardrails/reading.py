"""A text is read where that holds nobody up: a short one on the event loop, a long one in a thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from anyio import to_thread

from aibox.types import Decision, Finding, Verdict, Where

T = TypeVar("T")
LONG_CHARS = 20_000
"""A text from here on is long. A shorter one costs less than the change of thread."""


async def read(text: str, work: Callable[[str], T]) -> T:
    """What `work` makes of the text. Who is cancelled does not wait for the thread to end."""
    return (
        work(text) if len(text) < LONG_CHARS else await to_thread.run_sync(partial(work, text), abandon_on_cancel=True)
    )


async def flagged(text: str, scan: Callable[[str], Sequence[Finding]], *, where: Where) -> Verdict:
    """FLAG with what `scan` finds, or ALLOW. The text is never changed."""
    findings = tuple(await read(text, scan))
    return Verdict(Decision.FLAG if findings else Decision.ALLOW, text, findings, where=where)
