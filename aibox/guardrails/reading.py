"""A text is read where that holds nobody up: a short one on the event loop, a long one in a thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import TypeVar

from anyio import lowlevel, to_thread

from aibox.errors import LimitError
from aibox.types import Decision, Finding, Verdict, Where

T = TypeVar("T")
LONG_CHARS = 20_000
"""A text from here on is long. A shorter one costs less than the change of thread."""
AT_ONCE = 16
"""After so many short texts the event loop gets its turn, as none of them waits for anything."""
MOST_TEXTS = 10_000
"""More texts in one request are not read."""
_READ = count(1)


async def read(text: str, work: Callable[[str], T]) -> T:
    """What `work` makes of the text. Who is cancelled does not wait for the thread to end."""
    if len(text) < LONG_CHARS:
        return work(text)
    return await to_thread.run_sync(partial(work, text), abandon_on_cancel=True)


async def flagged(text: str, scan: Callable[[str], Sequence[Finding]], *, where: Where) -> Verdict:
    """FLAG with what `scan` finds, or ALLOW. The text is never changed."""
    findings = tuple(await read(text, scan))
    return Verdict(Decision.FLAG if findings else Decision.ALLOW, text, findings, where=where)


async def take_turns() -> None:
    """To be waited for once a text."""
    if next(_READ) % AT_ONCE == 0:
        await lowlevel.checkpoint()


def bound_texts(number: int) -> None:
    """Raises LimitError for more than are read."""
    if number > MOST_TEXTS:
        raise LimitError(f"a request with more than {MOST_TEXTS} texts is not checked", hint="send fewer messages")
