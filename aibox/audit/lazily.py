"""A store that an erasure takes along whether it is open or not."""

from __future__ import annotations

from collections.abc import Callable

from aibox.protocols import Erasable
from aibox.types import Scope


class Lazily:
    """A store that is opened when somebody is erased from it, if nothing has opened it before."""

    def __init__(self, store: Callable[[], Erasable]) -> None:
        self._store = store

    async def erase(self, *, scope: Scope, subject: str | None = None) -> int:
        return await self._store().erase(scope=scope, subject=subject)
