"""The queue in front of a model: tenants take turns, nobody is lost, and no turn is."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aibox.chat import ChatRequest, Completion
from aibox.errors import LimitError
from aibox.inference.fair import FairQueue
from aibox.inference.router import Router
from aibox.testing.scripted import ScriptedBackend
from aibox.types import Scope

pytestmark = pytest.mark.anyio


async def test_a_noisy_tenant_does_not_slow_a_quiet_one() -> None:
    """Behind five hundred calls of another, a quiet tenant's is the next but one, and the other's go on in order."""
    queue = FairQueue(2)
    served: list[str] = []

    async def call(tenant: str, name: str) -> None:
        await queue.take(tenant)
        served.append(name)
        await asyncio.sleep(0)
        queue.give()

    noisy = [asyncio.create_task(call("noisy", f"n{number}")) for number in range(500)]
    await asyncio.sleep(0)
    before = len(served)
    quiet = [asyncio.create_task(call("quiet", f"q{number}")) for number in range(3)]
    await asyncio.gather(*noisy, *quiet)
    assert served.index("q0") <= before + 3
    assert served.index("q2") <= before + 8
    assert [name for name in served if name[0] == "n"] == [f"n{number}" for number in range(500)]
    assert (queue.busy, queue.waiting) == (0, 0)


@settings(max_examples=60)
@given(st.integers(1, 4), st.integers(0, 2**32))
def test_whoever_leaves_takes_no_turn_along(slots: int, seed: int) -> None:
    """Under random cancellations never more than the slots run, all others are served, and the queue ends empty."""
    drawn = random.Random(seed)
    queue, running, most, done = FairQueue(slots), 0, 0, 0

    async def call(tenant: str) -> None:
        nonlocal running, most, done
        await queue.take(tenant)
        running += 1
        most = max(most, running)
        try:
            for _ in range(drawn.randrange(3)):
                await asyncio.sleep(0)
            done += 1
        finally:
            running -= 1
            queue.give()

    async def main() -> None:
        tasks = [asyncio.create_task(call(drawn.choice("abc"))) for _ in range(40)]
        for _ in range(20):
            await asyncio.sleep(0)
            drawn.choice(tasks).cancel()
        left = await asyncio.gather(*tasks, return_exceptions=True)
        assert most <= slots
        assert done >= sum(one is None for one in left)
        assert (queue.busy, queue.waiting) == (0, 0)

    asyncio.run(main())


async def test_a_tenant_that_waits_too_often_is_told() -> None:
    """The queue is bounded for each tenant, and one that is full is no other tenant's."""
    queue = FairQueue(1, waiting=2)
    await queue.take("a")
    waiting = [asyncio.create_task(queue.take("a")) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(LimitError, match="wait for the model already") as told:
        await queue.take("a")
    assert told.value.retry_after_s == 1
    other = asyncio.create_task(queue.take("b"))
    await asyncio.sleep(0)
    for _ in range(4):
        queue.give()
    await asyncio.gather(*waiting, other)


async def test_a_router_holds_calls_back(scope: Scope) -> None:
    """Of many calls as many as were configured are with the backend at a time, streams included."""
    now, most = 0, 0

    async def answer(request: ChatRequest) -> str:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.001)
        now -= 1
        return "Yes."

    router = Router(ScriptedBackend(*[answer] * 30, name="m"), calls_at_once={"m": 3})

    async def stream() -> None:
        async for _ in router.stream("hi", scope=scope):
            pass

    whole: list[Completion | None] = await asyncio.gather(  # type: ignore[assignment]
        *(router.complete("hi", scope=scope) for _ in range(15)), *(stream() for _ in range(15))
    )
    assert len(whole) == 30
    assert most == 3


@pytest.mark.parametrize("noisy", ["whole", "streamed"])
@pytest.mark.parametrize("quiet", ["whole", "streamed"])
async def test_a_noisy_tenant_does_not_slow_a_quiet_one_at_a_router(
    noisy: str, quiet: str, scope: Scope, other_scope: Scope
) -> None:
    """Behind fifty calls of another tenant to a model that takes one at a time, a tenant's one call is next but one."""
    served: list[str] = []
    free = asyncio.Event()

    async def answer(request: ChatRequest) -> str:
        served.append(str(request.messages[-1]["content"]))
        await free.wait()
        return "Yes."

    router = Router(ScriptedBackend(*[answer] * 51, name="m"), calls_at_once={"m": 1})

    async def ask(how: str, text: str, whose: Scope) -> str:
        if how == "whole":
            return (await router.complete(text, scope=whose)).text
        return "".join([chunk.text async for chunk in router.stream(text, scope=whose)])

    many = [asyncio.create_task(ask(noisy, f"noisy {number}", scope)) for number in range(50)]
    (replica,) = router.plan_in_force.registry.replicas
    async with asyncio.timeout(60):
        while replica.queue.waiting < 49:
            await asyncio.sleep(0)
        one = asyncio.create_task(ask(quiet, "quiet", other_scope))
        while replica.queue.waiting < 50:
            await asyncio.sleep(0)
    assert served == ["noisy 0"]
    free.set()
    assert await asyncio.gather(*many, one) == ["Yes."] * 51
    assert served.index("quiet") in (1, 2)
    assert sorted(served) == sorted(["quiet", *(f"noisy {number}" for number in range(50))])
    assert (replica.queue.busy, replica.queue.waiting) == (0, 0)
