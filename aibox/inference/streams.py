"""The chunks of an answer on their way: given to whoever takes them, from below, in the moment in which they come.

A chunk then costs a few calls of functions. Where each part iterated over the next, it cost a turn of the event loop
and a step of every generator in between. Who would rather iterate has `iterated`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator
from typing import Any, TypeVar

from aibox.chat import Chunk
from aibox.leaving import leave

T = TypeVar("T")
Take = Callable[[list[Chunk]], Awaitable[None] | None]
"""Takes chunks that came together. None: it is ready for more; else what it returns is waited for before.

It may be called outside of any task, and is never called while what it has returned is still waited for.
"""


class Left(BaseException):
    """Whoever takes the chunks has failed, by `error`. As GeneratorExit it passes by all who look after errors."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def apart(take: Take) -> Take:
    """`take`, with its errors told apart from those of the parts which it is called by: they come out as Left."""

    def taken(batch: list[Chunk]) -> Awaitable[None] | None:
        try:
            busy = take(batch)
        except Exception as error:  # noqa: BLE001 - whichever: raised again as itself, behind the backend
            raise Left(error) from None
        return None if busy is None else _Apart(busy)

    return taken


class _Apart:
    # A class: a coroutine that is never begun could not end the one that it is around.
    __slots__ = ("_busy",)

    def __init__(self, busy: Awaitable[None]) -> None:
        self._busy = busy

    def __await__(self) -> Generator[Any, Any, None]:
        try:
            yield from self._busy.__await__()
        except Exception as error:  # noqa: BLE001 - likewise
            raise Left(error) from None

    def close(self) -> None:
        forgo(self._busy)


def forgo(busy: Awaitable[None] | None) -> None:
    """Nobody will wait for what `take` has returned: what is a coroutine ends before it has begun."""
    if (close := getattr(busy, "close", None)) is not None:
        close()


async def waited(busy: Awaitable[None] | None) -> None:
    """For what `take` has returned, in a coroutine that has time."""
    if busy is not None:
        await busy


async def pushed(made: AsyncIterator[T], take: Callable[[T], Awaitable[None] | None]) -> None:
    """All that an iterator gives. However this ends, the iterator is closed, and hears why where it was cancelled."""
    try:
        async for one in made:
            if (busy := take(one)) is not None:
                await busy
    except asyncio.CancelledError as left:
        await leave(made, left)
        raise
    finally:
        if (close := getattr(made, "aclose", None)) is not None:
            await close()


async def iterated(stream_to: Callable[[Take], Awaitable[None]]) -> AsyncGenerator[Chunk, None]:
    """What is pushed, one chunk after the other. Nothing more is taken while the reader is at one; leaving ends it."""
    loop = asyncio.get_running_loop()
    given: list[Chunk] = []
    came, read = asyncio.Event(), loop.create_future()

    def take(batch: list[Chunk]) -> Awaitable[None]:
        nonlocal read
        given.extend(batch)
        read = loop.create_future()
        came.set()
        return read

    def over(task: asyncio.Future[None]) -> None:
        came.set()
        if not task.cancelled():
            task.exception()  # also where nobody waits for it any more

    task = asyncio.ensure_future(stream_to(take))
    task.add_done_callback(over)
    why: tuple[Any, ...] = ()
    try:
        while not task.done() or given:
            await came.wait()
            came.clear()
            for chunk in given:
                yield chunk
            given.clear()
            if not read.done():
                read.set_result(None)
    except asyncio.CancelledError as left:
        why = left.args
        raise
    finally:
        # Its own way out has to be gone to the end: a turn is given back, and what was used is told.
        if not task.done():
            task.cancel(*why)
            await asyncio.wait((task,))
    await task
