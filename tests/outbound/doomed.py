"""A process with two events to tell, which is killed: `python doomed.py FOLDER`, where the settings are."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from aibox.box import open as open_box
from aibox.outbound import outbox, webhooks
from aibox.types import Scope

outbox.LEASE_S = 0.5
webhooks.POLL_S = 0.01


async def main(folder: Path) -> None:
    who = Scope(tenant="acme", user="eva")
    async with open_box(folder / "aibox.toml") as box:
        await box.audit.append("turn.sealed", scope=who, detail={"outcome": "blocked", "label": "internal"})
        await asyncio.to_thread(sys.stdin.readline)
        # While the first is being delivered nobody reads on: this one is in the log, and nowhere else.
        await box.audit.append("turn.sealed", scope=who, detail={"outcome": "blocked", "label": "restricted"})
        sys.stdout.write("both have happened\n")
        sys.stdout.flush()
        await asyncio.sleep(600)


asyncio.run(main(Path(sys.argv[1])))
