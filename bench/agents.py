"""Agents: what a turn adds to the bare SDK as a conversation grows, and what an attacker gets out of one."""

from __future__ import annotations

import asyncio
import importlib.util
import statistics
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from bare import bare
from report import Report, arguments

# This file has the name of the SDK's package, which must not be looked for here.
sys.path.remove(str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "agents"))
sys.path.append(str(Path(__file__).parent.parent / "tests"))  # what the suite waits with

import aibox
from aibox.agents.exposure import Exposure
from aibox.agents.state import AgentState
from aibox.testing import ScriptedBackend, call
from aibox.types import Scope

INSTRUCTIONS = "Answer in one sentence."
ASKED = "What is the capital of France?"
HISTORY = (1, 20, 200)
WHO = ("sdk", "loop", "agent", "peer")
SUITE = importlib.util.find_spec("injection")


@aibox.tool
def capital(country: str) -> str:
    """The capital of a country.

    Args:
        country: its name
    """
    return {"France": "Paris"}.get(country, "unknown")


def past(turns: int) -> list[dict[str, Any]]:
    """A conversation of that many questions and answers."""
    said: list[dict[str, Any]] = []
    for number in range(turns):
        said.append({"role": "user", "content": f"What is the capital of country {number}?"})
        said.append({"role": "assistant", "content": "It is."})
    return said


def model() -> ScriptedBackend:
    """Answers at once: a tool call, then a sentence. What it was asked is let go, so that nothing grows."""

    class Instant(ScriptedBackend):
        async def complete(self, request: Any, *, scope: Scope) -> Any:
            self._given = 0
            self._answers = [
                "Paris." if request.messages[-1]["role"] == "tool" else call("capital", {"country": "France"})
            ]
            self.requests, self.scopes = [], []
            # Its answer is made of the last message alone: to count the words of all is no work of whom we measure.
            return await super().complete(request.with_fields(messages=request.messages[-1:]), scope=scope)

    return Instant()


async def cpu_ms(calls: dict[str, Callable[[], Awaitable[Any]]], rounds: int) -> dict[str, float]:
    """Median CPU of each, all threads of this process, taken in turn so that a drift meets all of them."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 3):
        for name, one in calls.items():
            began = time.process_time()
            await one()
            if number >= 3:
                taken[name].append((time.process_time() - began) * 1e3)
    return {name: statistics.median(values) for name, values in taken.items()}


def peer(messages: list[dict[str, Any]]) -> Callable[[], Awaitable[Any]] | None:
    """The same turn in Pydantic AI, with an instant model of its own; None where it is not installed."""
    try:
        from pydantic_ai import Agent
        from pydantic_ai import messages as said
        from pydantic_ai.models.function import FunctionModel
    except ImportError:
        return None

    def answer(history: list[Any], _: Any) -> Any:
        if any(isinstance(part, said.ToolReturnPart) for part in history[-1].parts):
            return said.ModelResponse(parts=[said.TextPart("Paris.")])
        return said.ModelResponse(parts=[said.ToolCallPart("capital", {"country": "France"})])

    agent = Agent(FunctionModel(answer), instructions=INSTRUCTIONS)
    agent.tool_plain(capital.function, name="capital")
    past = [
        said.ModelRequest(parts=[said.UserPromptPart(m["content"])])
        if m["role"] == "user"
        else said.ModelResponse(parts=[said.TextPart(m["content"])])
        for m in messages
    ]

    async def turn() -> None:
        result = await agent.run(ASKED, message_history=past)
        assert result.output == "Paris.", result.output

    return turn


async def overhead(report: Report, rounds: int, folder: Path) -> None:
    """Checks, chain, state and policy on; one model call for a tool, one for the answer; a conversation of N turns."""
    policy = aibox.Policy.profile("balanced")
    async with aibox.AuditChain(folder / "audit.db") as chain:
        state = AgentState(folder / "agents.db", key=bytes(range(32)), audit=chain)
        calls: dict[str, Callable[[], Awaitable[Any]]] = {}
        for turns in HISTORY:
            backend, messages = model(), past(turns)
            agent = aibox.Agent(
                INSTRUCTIONS,
                router=aibox.Router(backend),
                tools=[capital],
                guardrail=aibox.Guardrail(policy),
                audit=chain,
                state=state,
                history_chars=1_000_000,
            )
            # A session of N turns for each round, written beforehand: the turn reads it as its own past.
            sessions = [Scope(tenant="bench", user="b", session=f"{turns}-{n}") for n in range(rounds + 3)]
            for scope in sessions:
                mine = scope.narrow(agent="default")
                await state.sessions.add(messages, scope=mine, label=aibox.Label(), exposure=Exposure())

            async def full(agent: Any = agent, sessions: Any = sessions) -> None:
                assert (await agent.run(ASKED, scope=sessions.pop())).text == "Paris."

            given: dict[str, Any] = {
                "instructions": INSTRUCTIONS,
                "messages": [*messages, {"role": "user", "content": ASKED}],
                "tool": capital.function,
            }
            calls[f"sdk {turns}"] = bare(backend, **given)
            calls[f"loop {turns}"] = bare(backend, **given, instant=True)
            calls[f"agent {turns}"] = full
            if (other := peer(messages)) is not None:
                calls[f"peer {turns}"] = other
        # All lengths in the same rounds: what is compared is what the machine was asked at the same time.
        found = await cpu_ms(calls, rounds)
        cost = {turns: {who: found[f"{who} {turns}"] for who in WHO if f"{who} {turns}" in found} for turns in HISTORY}
        for turns, of in cost.items():
            against = f", Pydantic AI {of['peer']:.2f}" if "peer" in of else ""
            report.row(
                f"{turns} turns of history", f"{of['agent']:.2f} ms CPU",
                f"bare SDK {of['sdk']:.2f}, its loop alone {of['loop']:.2f}{against}",
            )  # fmt: skip
        await at_once(report, chain, state)
        await state.close()
    note = "two model calls and a tool; checks, audit, state, policy on; no memory; CPU of all threads, median"
    added = {turns: of["agent"] - of["sdk"] for turns, of in cost.items()}
    above = {turns: of["agent"] - of["loop"] for turns, of in cost.items()}
    beyond = ", ".join(f"{above[turns]:.2f} at {turns}" for turns in HISTORY)
    report.row("above the SDK's loop alone", f"{max(above.values()):.2f} ms CPU at most", beyond)
    report.goal(
        "agents.turn_added_cpu_ms_vs_bare_sdk", max(added.values()), unit="ms",
        against="the SDK with its own chat model and client, same backend, tool and messages, in one run", note=note,
    )  # fmt: skip
    # All growth counts as ours, also that of the loop underneath.
    first, last = (cost[turns]["agent"] - cost[HISTORY[0]]["loop"] for turns in (HISTORY[0], HISTORY[-1]))
    report.goal(
        "agents.added_growth_1_to_200_turns", last / first, unit="ratio", against="1 turn of history",
        note="of all that a turn takes above the SDK's loop alone at 1 turn; " + note,
    )  # fmt: skip
    if "peer" not in cost[HISTORY[0]]:
        report.left_out.append("Pydantic AI, which is not installed here")


async def at_once(report: Report, chain: aibox.AuditChain, state: AgentState) -> None:
    """A hundred agents at the same time, each a turn of its own."""
    policy, backend = aibox.Policy.profile("balanced"), model()
    router, guardrail = aibox.Router(backend), aibox.Guardrail(policy)
    agents = [
        aibox.Agent(
            INSTRUCTIONS, name=f"a{n}", router=router, tools=[capital], guardrail=guardrail, audit=chain, state=state
        )
        for n in range(100)
    ]
    asked = [{"role": "user", "content": ASKED}]
    wall, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(a.run(ASKED, scope=Scope(tenant=f"t{n % 5}", user="b")) for n, a in enumerate(agents)))
    full = (time.perf_counter() - wall, time.process_time() - cpu)
    turns = [bare(backend, instructions=INSTRUCTIONS, messages=asked, tool=capital.function) for _ in agents]
    wall, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(turn() for turn in turns))
    alone = (time.perf_counter() - wall, time.process_time() - cpu)
    report.row(
        "100 agents at once", f"adds {(full[1] - alone[1]) * 10:.2f} ms CPU a turn",
        f"{full[0] / alone[0]:.2f} of the bare SDK's time",
    )  # fmt: skip


async def injections(report: Report, *, quick: bool) -> None:
    """Every source under every setting (quick: half of the settings), and where the tries were stopped."""
    if SUITE is None:
        for name in ("canaries_out", "canaries_out_detectors_off", "utility_under_attack_vs_clean"):
            report.goal(f"agents.{name}", None, unit="count", against="", note="the suite is not in this copy")
        return
    from injection import SETTINGS, suite

    settings = SETTINGS[2:] if quick else SETTINGS
    useful = sum(o.useful for o in await suite(detectors=True, settings=settings, clean=True))
    ratio = 1.0
    for detectors, name in ((True, "canaries_out"), (False, "canaries_out_detectors_off")):
        outcomes = await suite(detectors=detectors, settings=settings)
        stopped = sum((o.stopped for o in outcomes), Counter[str]())
        tries, out = sum(o.attempts for o in outcomes), sum(o.out for o in outcomes)
        where = ", ".join(f"{part} {n}" for part, n in stopped.most_common())
        mode = "on" if detectors else "off"
        report.row(f"{len(outcomes)} attacks, detectors {mode}", f"{tries} tries, {out} out", f"stopped by: {where}")
        note = f"{len(outcomes)} attacks, {tries} tries of a model that has changed sides"
        report.goal(f"agents.{name}", out, unit="canaries", against="every way out there is", note=note)
        ratio = min(ratio, sum(o.useful for o in outcomes) / useful)
    report.goal("agents.utility_under_attack_vs_clean", ratio, unit="ratio", against="the same tasks without poison")


async def main() -> None:
    options = arguments(__doc__)
    report = Report("agents")
    # The SDK's own about what it will change one day.
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        await overhead(report, 30 if options.quick else 150, Path(folder))
    await injections(report, quick=options.quick)
    report.left_out += [
        "code in the sandbox as a way out: it has no network, and bench of its own attacks",
        "links that a person's client loads from an answer: the answer is theirs to read",
    ]
    report.show(as_json=options.json)


if __name__ == "__main__":
    asyncio.run(main())
