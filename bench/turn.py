"""What a turn costs: through Agent, the Router, the bare SDK, and the model call alone, side by side in one run."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from bare import bare
from report import Report, arguments, p

import aibox
from aibox.chat import ChatRequest
from aibox.inference import demo_model
from aibox.testing import ScriptedBackend
from aibox.types import Scope

SCOPE = Scope(tenant="bench", user="b")
ASKED = [{"role": "user", "content": "What is the capital of France?"}]
REQUEST = ChatRequest({"model": "scripted", "messages": ASKED})
INSTRUCTIONS = "Answer in one sentence."


async def side_by_side(
    calls: dict[str, Callable[[], Awaitable[Any]]], rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """(wall, CPU) seconds of each call, taken in turn so that a drift of the machine meets all of them."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for number in range(rounds + 5):
        for name, call in calls.items():
            wall, cpu = time.perf_counter(), time.process_time()
            await call()
            if number >= 5:
                taken[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return taken


async def scripted(report: Report, rounds: int, folder: Path) -> None:
    """A model that answers at once, so that what is left is ours."""
    model = ScriptedBackend(*[lambda _: "Paris."] * (rounds + 5) * 6)
    router = aibox.Router(model)
    policy = aibox.Policy.profile("balanced")
    async with aibox.AuditChain(folder / "audit.db") as chain:
        plain = aibox.Agent(INSTRUCTIONS, router=router)
        full = aibox.Agent(INSTRUCTIONS, router=router, guardrail=aibox.Guardrail(policy), audit=chain)
        sdk = bare(model, instructions=INSTRUCTIONS, messages=ASKED, tool=None)

        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            "backend alone": lambda: model.complete(REQUEST, scope=SCOPE),
            "through Router": lambda: router.complete(ASKED, scope=SCOPE),
            "bare SDK": sdk,
            "Agent, no parts": lambda: plain.run(ASKED[0]["content"], scope=SCOPE),
            "Agent, checks and audit": lambda: full.run(ASKED[0]["content"], scope=SCOPE),
        }
        taken = await side_by_side(calls, rounds)
    wall = {name: [w * 1e3 for w, _ in values] for name, values in taken.items()}
    cpu = {name: statistics.mean(c for _, c in values) * 1e3 for name, values in taken.items()}
    for name in calls:
        report.row(
            f"scripted model: {name}",
            f"p50 {p(wall[name], 50):.3f} ms",
            f"p95 {p(wall[name], 95):.3f}, CPU {cpu[name]:.3f} ms",
        )
    router_us = (p(wall["through Router"], 50) - p(wall["backend alone"], 50)) * 1e3
    report.goal("router.in_process_added_us_p50", router_us, unit="us", against="the backend alone")
    added = cpu["Agent, checks and audit"] - cpu["bare SDK"]
    note = "one model call, no tools, no history; process CPU, so the audit writer's thread is in it"
    against = "the SDK with its own chat model over the same backend"
    report.goal("agents.turn_added_cpu_ms_vs_bare_sdk", added, unit="ms", against=against, note=note)


async def real(report: Report, rounds: int) -> None:
    """The embedded model: how long until the first piece of text, directly, through the Router, through an Agent."""
    if demo_model.find() is None:
        report.left_out.append("the embedded model is not installed")
        return
    backend = aibox.Embedded()
    router = aibox.Router(backend)
    agent = aibox.Agent(INSTRUCTIONS, router=router, settings={"max_tokens": 16, "temperature": 0})
    messages = [{"role": "system", "content": INSTRUCTIONS}, *ASKED]
    body = {"model": "default", "messages": messages, "max_tokens": 16, "temperature": 0, "stream": True}
    try:
        name = (await backend.models())[0].id
        request = ChatRequest({**body, "model": name})
        taken = await side_by_side(
            {
                "backend alone": lambda: first(backend.stream(request, scope=SCOPE)),
                "through Router": lambda: first(router.stream(messages, scope=SCOPE, max_tokens=16, temperature=0)),
                "Agent (first checked sentence)": lambda: first(agent.stream(ASKED[0]["content"], scope=SCOPE)),
            },
            rounds,
        )
    finally:
        await router.close()
    base = p([w for w, _ in taken["backend alone"]], 50)
    for name, values in taken.items():
        got = p([w for w, _ in values], 50)
        report.row(
            f"embedded model, first text: {name}", f"p50 {got * 1e3:.1f} ms", f"{got / base:.2f} of the backend alone"
        )


async def first(stream: AsyncIterator[Any]) -> None:
    """Until the first piece of text; what is left of the answer is cancelled."""
    try:
        async for piece in stream:
            if getattr(piece, "text", ""):
                return
    finally:
        await stream.aclose()  # type: ignore[attr-defined]  # an async generator


async def main() -> None:
    options = arguments(__doc__)
    report = Report("one turn")
    with tempfile.TemporaryDirectory() as folder:
        await scripted(report, 200 if options.quick else 1000, Path(folder))
    await real(report, 5 if options.quick else 20)
    report.left_out.append("memory and sandbox; they have benches of their own to come")
    report.show(as_json=options.json)


if __name__ == "__main__":
    asyncio.run(main())
