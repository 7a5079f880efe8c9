"""The Router: what it adds to a call, how well it spreads load, and whether a label ever gets past the door."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import fleet
from report import Report, arguments, p

import aibox
from aibox.chat import ChatRequest, ModelInfo
from aibox.errors import BackendError, EgressError
from aibox.inference.egress import Egress
from aibox.inference.registry import Outside
from aibox.inference.replica import Replica
from aibox.policy.budgets import Budget, Budgets
from aibox.policy.egress import EgressRules
from aibox.policy.policy import Policy
from aibox.testing import ScriptedBackend
from aibox.types import Entry, Label, Level, Scope

SCOPE = Scope(tenant="bench", user="b")
REQUEST = ChatRequest({"model": "a", "messages": [{"role": "user", "content": "What is the capital of France?"}]})


class Notes:
    """A recorder that keeps nothing."""

    def note(self, kind: str, *, scope: Scope, detail: Mapping[str, Any], turn: str = "") -> None:
        del kind, scope, detail, turn

    async def append(self, kind: str, *, scope: Scope, detail: Mapping[str, Any], turn: str = "") -> Entry:
        del detail, turn
        return Entry(scope.tenant, 0, kind, b"", 0)


async def added(report: Report, rounds: int) -> None:
    """A model that answers at once: what is left is ours. Taken in turn, so that a drift meets all of them."""

    def model(name: str) -> ScriptedBackend:
        return ScriptedBackend(*[lambda _: "Paris."] * (rounds + 50) * 3, name=name)

    class Same(ScriptedBackend):
        async def models(self) -> tuple[ModelInfo, ...]:
            return (ModelInfo(id="a", backend=self.name),)

    alone = model("a")
    one = aibox.Router(model("a"))
    budgets = Budgets(user=Budget(tokens_per_day=10**12))
    bounded = aibox.Router(model("a"), policy=Policy(budgets=budgets))
    eight = aibox.Router(*(Same(*[lambda _: "Paris."] * (rounds + 50) * 3, name=f"r{n}") for n in range(8)))

    async def streamed(router: aibox.Router) -> None:
        async for _ in router.stream(REQUEST, scope=SCOPE):
            pass

    async def streamed_alone() -> None:
        async for _ in alone.stream(REQUEST, scope=SCOPE):
            pass

    calls: dict[str, Callable[[], Awaitable[Any]]] = {
        "the backend alone": lambda: alone.complete(REQUEST, scope=SCOPE),
        "Router": lambda: one.complete(REQUEST, scope=SCOPE),
        "Router, policy and budgets": lambda: bounded.complete(REQUEST, scope=SCOPE),
        "Router, 8 replicas": lambda: eight.complete(REQUEST, scope=SCOPE),
        "stream, the backend alone": streamed_alone,
        "stream, Router": lambda: streamed(one),
    }
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 20):
        for name, call in calls.items():
            started = time.perf_counter()
            await call()
            if number >= 20:
                taken[name].append((time.perf_counter() - started) * 1e6)
    for name in calls:
        base = taken["stream, the backend alone" if name.startswith("stream") else "the backend alone"]
        report.row(
            f"in process: {name}",
            f"p50 {p(taken[name], 50):.0f} us, p99 {p(taken[name], 99):.0f}",
            f"adds {p(taken[name], 50) - p(base, 50):.0f} us at p50",
        )
    got = p(taken["Router"], 50) - p(taken["the backend alone"], 50)
    report.goal("router.in_process_added_us_p50", got, unit="us", against="the backend alone")
    for router in (one, bounded, eight):
        await router.close()


SEEDS = (1001, 1002, 1003, 1004, 1005)
"""Of the loads: others than those on which the slack in aibox/inference/balance.py was chosen (2, 8 and 64)."""


def balance(report: Report, *, quick: bool) -> None:
    """Simulated servers, one in eight at half speed; seconds until the first token. The worst of several loads."""
    worst, kept = 0.0, 1.0
    seeds = SEEDS[:2] if quick else SEEDS
    for size in (2, 8, 64):
        for rate in (1.5, 2.5, 3.0):
            found = [_balanced(size, rate, seed, quick=quick) for seed in seeds]
            robin, least, hits = (worse(one[at] for one in found) for at, worse in enumerate((max, max, min)))
            report.row(
                f"{size} replicas, {rate} requests/s each: p99 until the first token",
                f"{robin:.3f} of round robin",
                f"{least:.2f} of least loaded, {hits:.3f} of the cache hits of perfect affinity; worst of {len(seeds)}",
            )
            if size == 8:
                worst, kept = max(worst, robin), min(kept, hits)
    note = f"simulated: one server of eight at half speed, bursts, long-tailed lengths; worst of {3 * len(seeds)} loads"
    report.goal("router.p99_vs_round_robin_8_replicas", worst, unit="ratio", against="round robin", note=note)
    report.goal("router.prefix_hits_vs_perfect_affinity", kept, unit="ratio", against="always at home", note=note)


def _balanced(size: int, rate: float, seed: int, *, quick: bool) -> tuple[float, float, float]:
    """(p99 over round robin's, over least loaded's, cache hits over perfect affinity's) for one load."""
    return _compared(
        fleet.load(size, seed=seed, conversations=(40 if quick and size > 8 else 150) * size, rate=rate), size
    )


def _compared(jobs: Sequence[fleet.Job], size: int) -> tuple[float, float, float]:
    picks: dict[str, fleet.Pick] = {
        "round robin": fleet.round_robin(),
        "least loaded": fleet.least_loaded,
        "ours": fleet.ours,
        "always at home": fleet.perfect_affinity,
    }
    found = {name: fleet.simulate(jobs, fleet.fleet(size), pick) for name, pick in picks.items()}
    tails = {name: p(took, 99) for name, (took, _) in found.items()}
    hits = {name: hit for name, (_, hit) in found.items()}
    ours = tails["ours"]
    return ours / tails["round robin"], ours / tails["least loaded"], hits["ours"] / hits["always at home"]


def replayed(report: Report, path: Path) -> None:
    """The same for a load that was recorded, at each size."""
    jobs = fleet.recorded(path)
    for size in (2, 8, 64):
        robin, least, hits = _compared(jobs, size)
        report.row(
            f"{path.name}, {len(jobs)} requests on {size} replicas: p99 until the first token",
            f"{robin:.3f} of round robin",
            f"{least:.2f} of least loaded, {hits:.3f} of the cache hits of perfect affinity",
        )


COMPARTMENTS = ("PHI", "MNPI", "HR")
TENANTS = ("a", "b")


def now(work: Coroutine[Any, Any, Any]) -> Any:
    """Run what never waits, without a loop."""
    try:
        work.send(None)
    except StopIteration as ended:
        return ended.value
    raise AssertionError("it waited")


def labels(report: Report, programs: int) -> None:
    """Programs that read texts, call tools and ask models, against a lattice of a number and a set of bits."""
    draw = random.Random(7)
    every = [
        (Label(Level(level), frozenset(c for i, c in enumerate(COMPARTMENTS) if bits >> i & 1)), level, bits)
        for level in range(4)
        for bits in range(8)
    ]
    outside = ScriptedBackend(name="out", external=True)
    route = Outside(Replica(outside), ModelInfo(id="m", backend="out", external=True))
    doors = []
    for _ in range(64):
        ceiling, level, bits = draw.choice(every)
        tenants = draw.choice((frozenset({"*"}), frozenset({"a"}), frozenset({"b"})))
        models = draw.choice((frozenset({"*"}), frozenset({"out/m"}), frozenset({"out/other"})))
        rules = EgressRules(models=models, ceiling=ceiling, tenants=tenants)
        allowed = {t: bool(models & {"*", "out/m"}) and bool(tenants & {"*", t}) for t in TENANTS}
        doors.append((Policy(egress=rules), level, bits, allowed))
    gates = [(Egress(policy, recorder=Notes()), *rest) for policy, *rest in doors]
    scopes = {tenant: Scope(tenant=tenant, user="u") for tenant in TENANTS}
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    leaks = wrong = 0
    started = time.perf_counter()
    for number in range(programs):
        label, level, bits = every[0]
        gate, top, open_bits, allowed = gates[draw.randrange(64)]
        tenant = TENANTS[number & 1]
        for _ in range(draw.randint(1, 4)):
            read, more, with_bits = every[draw.randrange(32)] if draw.random() < 0.5 else every[draw.randrange(8)]
            # As a turn does: what is read or returned joins what was there, in either order.
            label = label | read if draw.random() < 0.5 else read | label
            level, bits = max(level, more), bits | with_bits
        may = level <= top and not bits & ~open_bits and allowed[tenant]
        try:
            now(gate.open(route, ChatRequest(body, label), scope=scopes[tenant]))
        except EgressError:
            wrong += may
        else:
            leaks += not may
    leaks += fallbacks(doors, every, draw, programs // 50)
    took = time.perf_counter() - started
    report.row(
        f"{programs:,} random programs", f"{leaks} labelled texts through a door that is too low",
        f"{wrong} refused that could have gone; {took:.0f} s",
    )  # fmt: skip
    report.goal(
        "router.label_leaks_1e6_random_programs",
        float(leaks) if programs >= 10**6 else None,
        unit="leaks",
        against="a lattice of a number and a set of bits",
        note=f"{programs} programs, and {programs // 50} through a Router whose local model fails",
    )


def fallbacks(doors: list[Any], every: list[Any], draw: random.Random, programs: int) -> int:
    """The same through Routers whose local model has failed and that may go outside instead."""

    class Seen(ScriptedBackend):
        async def complete(self, request: ChatRequest, *, scope: Scope) -> Any:
            seen.append((request.label, scope.tenant))
            return self._completion(request, "x")

    class Broken(ScriptedBackend):
        async def complete(self, request: ChatRequest, *, scope: Scope) -> Any:
            del request, scope
            raise BackendError("gone", retryable=True)

    class Offers(Seen):
        async def models(self) -> tuple[ModelInfo, ...]:
            return (ModelInfo(id="m", backend="out", external=True),)

    seen: list[tuple[Label, str]] = []
    routers = []
    for policy, *rest in doors:
        router = aibox.Router(
            Broken(name="local"), Offers(name="out", external=True), policy=policy, audit=Notes(),
            fallbacks={"local": ["out/m"]},
        )  # fmt: skip
        routers.append((router, *rest))
    leaks = 0

    async def main() -> None:
        nonlocal leaks
        for number in range(programs):
            router, top, open_bits, allowed = routers[draw.randrange(64)]
            tenant = TENANTS[number & 1]
            label, level, bits = every[draw.randrange(32)]
            seen.clear()
            with contextlib.suppress(BackendError):
                await router.complete("x", model="local", scope=Scope(tenant=tenant, user="u"), label=label)
            may = level <= top and not bits & ~open_bits and allowed[tenant]
            leaks += bool(seen) and not may

    asyncio.run(main())
    return leaks


def main() -> None:
    options = arguments(__doc__, data="a CSV file of a recorded load (bench/fleet.py says its columns): replayed too")
    report = Report("the Router")
    asyncio.run(added(report, 500 if options.quick else 3000))
    balance(report, quick=options.quick)
    if options.data is not None:
        replayed(report, options.data)
    labels(report, 1_000_000)
    report.left_out.append("real servers: bench/gateway.py measures through the wire")
    report.show(as_json=options.json)


if __name__ == "__main__":
    main()
