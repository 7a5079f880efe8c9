"""A command's work on the configured box, which is open for as long as the work takes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import aibox.box
from aibox.box import Box
from aibox.cli import interrupt
from aibox.cli.options import load_settings

T = TypeVar("T")


def in_box(work: Callable[[Box], Awaitable[T]], *, config: Path | None, policy: str | None = None) -> T:
    """What comes of it. Ctrl-C cancels the work; the box is closed in any case."""
    settings, _ = load_settings(config=config)

    async def main() -> T:
        async with aibox.box.open(settings=settings, policy=policy) as box:
            return await work(box)

    return interrupt.run(main())
