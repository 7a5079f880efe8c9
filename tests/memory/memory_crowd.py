"""Many tenants at once on one memory, each with a word of its own that must never be seen by another.

Run as a program it goes on until it is killed: `python memory_crowd.py FOLDER TENANTS`.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Callable
from pathlib import Path

from memory_words import WordEmbedder

from aibox.memory.memory import Memory
from aibox.types import Scope


def scope_of(number: int) -> Scope:
    """All tenants have users, agents and sessions of the same names."""
    return Scope(tenant=f"tenant-{number}", user=f"user-{number % 3}", agent="agent", session="session")


def groups(scope: Scope) -> set[str]:
    return {"team"}


def word(number: int) -> str:
    return f"secret{number:05d}x"


async def once(memory: Memory, number: int, draw: random.Random) -> None:
    """One random call of the whole interface for one tenant; whatever comes back is the tenant's own."""
    scope, own = scope_of(number), word(number)
    step = draw.randrange(10)
    if step == 0:
        await memory.remember(f"The heron {own} nests in {draw.randrange(9)}.", scope=scope)
    elif step == 1:
        name = f"birds{draw.randrange(3)}.txt"
        visibility = draw.choice(["private", "shared", "restricted"])
        await memory.add(
            f"The heron report of {own}.".encode(),
            name=name,
            scope=scope,
            visibility=visibility,  # type: ignore[arg-type]  # one of the three
            groups=["team"] if visibility == "restricted" else [],
        )
    elif step in (2, 3, 4):
        asked = draw.choice(["the heron", f"heron {word(draw.randrange(200))}"])
        await see(number, [hit.record.text for hit in await memory.recall(asked, scope=scope, minimum=-1)])
    elif step == 5:
        await see(number, [record.text for record in await memory.list(scope=scope)])
        await see(number, [document.source for document in await memory.documents(scope=scope)], document=True)
    elif step == 6:
        await memory.said([{"role": "user", "content": own}], scope=scope)
        await see(number, [str(message["content"]) for message in await memory.window(scope=scope)])
    elif step == 7:
        await see(number, (await memory.export(scope=scope)).splitlines())
    elif step == 8 and draw.random() < 0.3:
        records = await memory.list(scope=scope)
        await memory.forget(scope=scope, ids=[record.id for record in records[:1]])
    else:
        # Another tenant's ids, told or guessed, are nobody's here.
        other = (number + 1) % 200
        for record in await memory.list(scope=scope_of(other)):
            assert await memory.get(record.id, scope=scope) is None
            assert await memory.forget(scope=scope, ids=[record.id]) == 0


async def see(number: int, texts: list[str], *, document: bool = False) -> None:
    for text in texts:
        assert document or word(number) in text, f"tenant {number} saw {text}"


async def crowd(folder: Path, tenants: int, calls: int, told: Callable[[int], object] = lambda _: None) -> None:
    """`calls` random calls of 50 tasks, each of which serves all tenants in turn at random."""
    async with Memory(folder, embedder=WordEmbedder(), groups=groups) as memory:

        async def task(seed: int) -> None:
            draw = random.Random(seed)
            for _ in range(calls // 50):
                await once(memory, draw.randrange(tenants), draw)
                told(seed)

        async with asyncio.TaskGroup() as tasks:
            for seed in range(50):
                tasks.create_task(task(seed))


async def look(folder: Path, tenants: int) -> int:
    """After a reopening: everything that each tenant finds, counted; raises where it is not its own."""
    seen = 0
    async with Memory(folder, embedder=WordEmbedder(), groups=groups) as memory:
        for number in range(tenants):
            texts = [h.record.text for h in await memory.recall("the heron", scope=scope_of(number), minimum=-1)]
            await see(number, texts)
            seen += len(texts)
    return seen


def said(seed: int) -> None:
    sys.stdout.write(f"{seed}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(crowd(Path(sys.argv[1]), int(sys.argv[2]), 10**9, said))
