"""`/readyz`: whether requests should be sent here, and which part is missing. It tells no names, addresses or reasons.

Without the log, a model or what says who is let in nothing can be answered; memory, the sandbox and Redis are missed
softly, and said.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.responses import JSONResponse

from aibox.box import Box
from aibox.errors import AIBoxError
from aibox.server.route import route
from aibox.server.shapes.inference import Readiness

Check = Callable[[], Awaitable[bool]]
NEEDED = ("audit", "models", "people", "keys")
"""Of those that there are."""
ROOM_BYTES = 1 << 20
"""With less room on the disk of the log, requests are better sent elsewhere: the next entry may not be written."""
CHECK_S = 5.0
"""A part that does not answer in this time is missing."""
FRESH_S = 1.0
"""How long an answer is given again: a probe needs no key, and must not be a way to load the parts."""


class ReadyAPI:
    """Looks at the parts of a box. `people` and `keys` say who is let in, `redis` holds the rates."""

    def __init__(self, box: Box, *, people: Check, keys: Check | None = None, redis: Check | None = None) -> None:
        self._box = box
        self._checks: dict[str, Check] = {"audit": self._audit, "models": self._models, "sandbox": self._sandbox}
        if box.settings.memory.enabled:
            self._checks["memory"] = self._memory
        self._checks["people"] = people
        if keys is not None:
            self._checks["keys"] = keys
        if redis is not None:
            self._checks["redis"] = redis
        self._lock = asyncio.Lock()
        self._found: tuple[float, dict[str, str]] = float("-inf"), {}

    @route("GET", "/readyz", roles=(), answer=Readiness)
    async def readyz(self) -> JSONResponse:
        """Whether requests may be sent here; each part is `ok` or `missing`. 503 without the log, without a model,
        without the stores of people or of keys, and, as any route, when the server is stopping."""
        parts = await self._parts()
        ok = all(parts.get(name, "ok") == "ok" for name in NEEDED)
        body = Readiness(ok=ok, parts=parts).model_dump()
        return JSONResponse(body, status_code=200 if ok else 503)

    async def _parts(self) -> dict[str, str]:
        async with self._lock:
            if time.monotonic() - self._found[0] > FRESH_S:
                answers = await asyncio.gather(*map(_holds, self._checks.values()))
                found = {name: "ok" if ok else "missing" for name, ok in zip(self._checks, answers, strict=True)}
                self._found = time.monotonic(), found
            return self._found[1]

    async def _audit(self) -> bool:
        await self._box.audit.flush()
        # Where nothing waits to be written, that says nothing of whether there is room for the next entry.
        place = self._box.settings.evidence.removeprefix("sqlite:///")
        return "://" in place or await asyncio.to_thread(_free, Path(place)) >= ROOM_BYTES

    async def _models(self) -> bool:
        return await self._box.router.answers()

    async def _sandbox(self) -> bool:
        return (await self._box.sandbox.available()).ok

    async def _memory(self) -> bool:
        return (await self._box.memory.health()).ok


def _free(log: Path) -> int:
    return shutil.disk_usage(log.absolute().parent).free


async def _holds(check: Check) -> bool:
    try:
        async with asyncio.timeout(CHECK_S):
            return await check()
    except (AIBoxError, OSError, TimeoutError):
        return False
