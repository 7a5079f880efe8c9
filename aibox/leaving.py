"""Work that is broken off: `task.cancel(error)` says why, and whoever records its end asks here.

A caller who goes away gives no reason; a server that ends what it may not go on with does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from aibox.errors import AIBoxError, BackendError


def given(left: BaseException) -> AIBoxError | None:
    """The error that the work was cancelled with, if it was with one."""
    error = left.args[0] if left.args else None
    return error if isinstance(error, AIBoxError) else None


def reason(left: BaseException, otherwise: str) -> AIBoxError:
    """As `given`; a BackendError that says `otherwise` where none was."""
    return given(left) or BackendError(otherwise)


async def leave(made: AsyncIterator[Any], left: asyncio.CancelledError) -> None:
    """End a generator that nobody reads any more, so that it hears why; closing it would not tell.

    Nothing happens to one that has ended. Whoever calls raises `left` again.
    """
    if isinstance(made, AsyncGenerator):
        try:
            await made.athrow(left)
        except (StopAsyncIteration, asyncio.CancelledError):
            return
