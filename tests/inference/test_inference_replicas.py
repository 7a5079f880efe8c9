"""Several replicas of one model: who is asked, who is let alone, who takes over, and what the caller sees of it."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inference_parts import Notes
from waiting import until

from aibox.chat import ChatRequest, Chunk, Completion, Health, ModelInfo, Price, Usage, Weights, assemble
from aibox.errors import AccessError, BackendError, ConfigError, EgressError, LimitError
from aibox.inference.accounts import Call
from aibox.inference.attempts import RETRY_BURST, Retries
from aibox.inference.balance import SLACK, choose, prefix_key
from aibox.inference.capabilities import hold_addresses
from aibox.inference.replica import MAX_OPEN_S, Circuit, Replica
from aibox.inference.router import Router
from aibox.policy.budgets import Budget, Budgets
from aibox.policy.egress import EgressRules
from aibox.policy.policy import Policy
from aibox.testing.scripted import ScriptedBackend
from aibox.types import Scope

pytestmark = pytest.mark.anyio
HI = [{"role": "user", "content": "Hi"}]


class Server(ScriptedBackend):
    """A replica that can be down, busy, slow, or break off after some words."""

    def __init__(self, name: str, *, external: bool = False, model: str = "m", price: Price | None = None) -> None:
        super().__init__(*["Hello there, friend."] * 10_000, name=name, external=external)
        self.offered = ModelInfo(id=model, backend=name, external=external, price=price)
        self.fails: BackendError | None = None
        self.breaks_after: int | None = None
        self.hold = asyncio.Event()
        self.hold.set()
        self.checks = 0
        self.closed_streams = 0

    @property
    def calls(self) -> int:
        return len(self.requests)

    async def models(self) -> tuple[ModelInfo, ...]:
        return (self.offered,)

    async def complete(self, request: ChatRequest, *, scope: Scope) -> Completion:
        completion = await super().complete(request, scope=scope)
        await self.hold.wait()
        if self.fails:
            raise self.fails
        return completion

    async def stream(self, request: ChatRequest, *, scope: Scope) -> AsyncIterator[Chunk]:
        try:
            number = 0
            async for chunk in super().stream(request, scope=scope):
                if number == self.breaks_after:
                    raise BackendError(f"{self.name} broke off", retryable=True)
                yield chunk
                number += 1
                await asyncio.sleep(0)
        finally:
            self.closed_streams += 1

    async def health(self) -> Health:
        self.checks += 1
        return Health(ok=self.fails is None, detail="down" if self.fails else "")


def down() -> BackendError:
    return BackendError("cannot be reached", retryable=True)


def busy(after_s: float | None = None, status: int = 429) -> BackendError:
    return BackendError("too much to do", retryable=True, status=status, retry_after_s=after_s)


# The circuit.


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_a_circuit_opens_at_once_and_lets_one_trial_through_after_a_good_check() -> None:
    """A connection that fails keeps traffic away; a good check admits one call, whose success brings the rest back."""
    server, clock = Server("a"), Clock()
    replica = Replica(server, check_s=2, clock=clock)
    with pytest.raises(BackendError), replica.call():
        raise down()
    assert (replica.circuit, replica.rank) == (Circuit.OPEN, 2)
    assert not replica.due()
    clock.now += 2
    assert replica.due()
    await replica.check()
    assert (replica.circuit, replica.rank) == (Circuit.HALF_OPEN, 0)
    with replica.call():
        assert replica.rank == 1  # its trial is under way
    assert (replica.circuit, replica.rank) == (Circuit.CLOSED, 0)


async def test_a_circuit_that_opens_again_stays_open_for_longer() -> None:
    """Each failed check doubles the time to the next, up to a bound."""
    server, clock = Server("a"), Clock()
    server.fails = down()
    replica = Replica(server, check_s=2, clock=clock)
    await replica.check()
    waited = []
    for _ in range(8):
        started = clock.now
        while not replica.due():
            clock.now += 0.5
        waited.append(clock.now - started)
        await replica.check()
    assert waited == [2, 4, 8, 16, 30, 30, 30, 30]
    assert max(waited) == MAX_OPEN_S


async def test_a_busy_server_rests_as_long_as_it_asks_for() -> None:
    """429 is no death: the circuit stays closed, and the replica is not preferred until its time is over."""
    clock = Clock()
    replica = Replica(Server("a"), clock=clock)
    with pytest.raises(BackendError), replica.call():
        raise busy(3)
    assert (replica.circuit, replica.rank) == (Circuit.CLOSED, 1)
    clock.now += 3
    assert replica.rank == 0


async def test_one_500_does_not_open_the_circuit_and_three_in_a_row_do() -> None:
    """A single poisonous request must not take a replica from everybody."""
    replica = Replica(Server("a"))
    for expected in (Circuit.CLOSED, Circuit.CLOSED, Circuit.OPEN):
        with pytest.raises(BackendError), replica.call():
            raise busy(status=500)
        assert replica.circuit is expected
    assert replica.outstanding == 0


# Balance.


class Loaded:
    def __init__(self, name: str, load: float) -> None:
        self.seed = Replica(ScriptedBackend(name=name)).seed
        self.load = load
        self.name = name


loads = st.lists(st.integers(0, 50), min_size=1, max_size=16)
keys = st.integers(0, 2**64 - 1)


@given(loads=loads, key=keys)
def test_no_replica_gets_more_than_its_bound(loads: list[int], key: int) -> None:
    """Affinity gives way: whoever is chosen had no more than the bound, or the least of all."""
    replicas = [Loaded(f"r{i}", load) for i, load in enumerate(loads)]
    chosen = choose(replicas, key)
    bound = sum(loads) / len(loads) + SLACK * (1 - 1 / len(loads))
    assert chosen.load <= bound or chosen.load == min(loads)
    assert choose(replicas, None).load == min(loads)


@given(keys=st.lists(keys, min_size=1, max_size=50, unique=True), size=st.integers(2, 12), gone=st.integers(0, 11))
def test_a_replica_that_goes_moves_only_its_own(keys: list[int], size: int, gone: int) -> None:
    """With even loads a conversation stays where it was when another replica comes or goes."""
    replicas = [Loaded(f"r{i}", 0) for i in range(size)]
    left = [replica for i, replica in enumerate(replicas) if i != gone % size]
    for key in keys:
        before = choose(replicas, key)
        assert choose(left, key) is before or before is replicas[gone % size]


def test_conversations_spread_evenly() -> None:
    """No replica gets more than a tenth above its share of many conversations."""
    replicas = [Loaded(f"http-10-0-0-{i}-8000", 0) for i in range(8)]
    got = Counter(choose(replicas, prefix_key({"messages": HI}, tenant=str(i))).name for i in range(16_000))
    assert max(got.values()) < 2200
    assert min(got.values()) > 1800


def test_a_conversation_is_known_by_its_beginning_and_its_tenant() -> None:
    """Later messages change nothing; another tenant with the same words is somebody else."""
    asked = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    first = prefix_key({"messages": asked}, tenant="a")
    assert first == prefix_key({"messages": [*asked, {"role": "assistant", "content": "x"}]}, tenant="a")
    for begin in ([], [{"role": "system", "content": "Be brief."}]):
        turn = [*begin, {"role": "user", "content": "Hi"}]
        later = [*turn, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Go on"}]
        assert prefix_key({"messages": turn}, tenant="a") == prefix_key({"messages": later}, tenant="a")
    assert first != prefix_key({"messages": asked}, tenant="b")
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "image_url", "image_url": {}}]}]
    assert prefix_key({"messages": parts}, tenant="a") != prefix_key({"messages": []}, tenant="a")


async def test_a_conversation_keeps_its_replica_and_gives_way_when_it_is_overloaded(scope: Scope) -> None:
    """Its turns go to one server; when that one has much more to do than the others, another takes them."""
    servers = [Server(f"s{i}") for i in range(4)]
    router = Router(*servers)
    for _ in range(10):
        await router.complete(HI, model="m", scope=scope)
    (home,) = [server for server in servers if server.calls]
    home.hold.clear()
    waiting = [asyncio.create_task(router.complete(HI, model="m", scope=scope)) for _ in range(12)]
    await until(lambda: [server for server in servers if server is not home and server.calls])
    home.hold.set()
    await asyncio.gather(*waiting)
    await router.close()


# Failover.


@pytest.mark.parametrize("stream", [False, True])
async def test_a_dead_replica_costs_one_failed_call_and_comes_back_by_itself(stream: bool, scope: Scope) -> None:
    """Every caller is answered; the dead one gets nothing after its one failure, and traffic again after a check."""
    servers = [Server("a"), Server("b")]
    router = Router(*servers, check_s=0.05)

    async def ask(number: int) -> str:
        asked = [{"role": "user", "content": f"question {number}"}]
        if stream:
            return assemble([chunk async for chunk in router.stream(asked, model="m", scope=scope)]).text
        return (await router.complete(asked, model="m", scope=scope)).text

    servers[0].fails = down()
    answers = [await ask(number) for number in range(30)]
    assert set(answers) == {"Hello there, friend."}
    failed = servers[0].calls
    assert failed <= 1
    servers[0].fails = None
    async with asyncio.timeout(60):
        number = 0
        while servers[0].calls <= failed + 5:
            await ask(number := number + 1)
            await asyncio.sleep(0.005)
    await router.close()


async def test_all_dead_is_the_last_error_with_the_others_as_notes(scope: Scope) -> None:
    """Each is tried once, and the caller reads about all of them."""
    servers = [Server("a"), Server("b"), Server("c")]
    for server in servers:
        server.fails = BackendError(f"{server.name} is gone", retryable=True)
    with pytest.raises(BackendError, match="is gone") as caught:
        await Router(*servers).complete(HI, model="m", scope=scope)
    assert [server.calls for server in servers] == [1, 1, 1]
    assert len(caught.value.__notes__) == 2


@pytest.mark.parametrize("breaks_after", [0, 1])
async def test_before_the_first_word_another_replica_takes_a_stream_over(breaks_after: int, scope: Scope) -> None:
    """What had been said was nothing, so the caller gets one whole answer."""
    broken, well = Server("a"), Server("b")
    broken.breaks_after = breaks_after
    router = Router(broken, well)
    for number in range(20):
        asked = [{"role": "user", "content": str(number)}]
        chunks = [chunk async for chunk in router.stream(asked, model="m", scope=scope)]
        assert assemble(chunks).text == "Hello there, friend."
        assert {chunk.backend for chunk in chunks} == {"b"}
    assert broken.closed_streams == broken.calls > 0
    await router.close()


async def test_after_the_first_word_a_stream_that_breaks_is_an_error_and_never_a_mixture(scope: Scope) -> None:
    """Nobody finishes another one's sentence."""
    servers = [Server("a"), Server("b")]
    for server in servers:
        server.breaks_after = 2
    stream: Any = Router(*servers).stream(HI, model="m", scope=scope)
    said = [await anext(stream), await anext(stream)]
    with pytest.raises(BackendError, match="broke off"):
        await anext(stream)
    assert sum(server.calls for server in servers) == 1
    assert "".join(chunk.text for chunk in said) == "Hello th"


async def test_a_refusal_is_not_retried(scope: Scope) -> None:
    """What is wrong with the request is wrong everywhere."""
    servers = [Server("a"), Server("b")]
    for server in servers:
        server.fails = BackendError("no such parameter", status=400)
    with pytest.raises(BackendError, match="no such parameter"):
        await Router(*servers).complete(HI, model="m", scope=scope)
    assert sum(server.calls for server in servers) == 1


async def test_a_busy_server_is_asked_again_after_the_time_that_it_asked_for(scope: Scope) -> None:
    """Alone it is waited for, with a random part, and the caller is answered."""
    server = Server("a")
    server.fails = busy(0.1)
    router = Router(server)
    asking = asyncio.create_task(router.complete(HI, model="m", scope=scope))
    await until(lambda: server.calls)
    server.fails = None
    assert (await asking).text == "Hello there, friend."
    assert server.calls >= 2


async def test_a_server_that_asks_for_too_long_a_wait_is_an_error_now(scope: Scope) -> None:
    """Nobody waits for an hour because a header says so, nor beyond the deadline."""
    server = Server("a")
    for after_s, deadline_s in ((3600, None), (2, 1.0)):
        server.fails = busy(after_s)
        with pytest.raises(BackendError, match="too much to do"):
            await Router(server).complete(HI, model="m", scope=scope, deadline_s=deadline_s)
    assert server.calls == 2


def test_retries_are_a_share_of_the_calls() -> None:
    """A burst at first; then, however many fail, a fifth of the calls at most."""
    retries = Retries()
    spent = 0
    for _ in range(1000):
        retries.earn()
        spent += retries.spend()
    assert spent <= RETRY_BURST + 200


@pytest.mark.parametrize("stream", [False, True])
async def test_a_deadline_ends_a_call(stream: bool, scope: Scope) -> None:
    """Time that is over is a time-out, and the server is let go."""
    server = Server("a")
    server.hold.clear()
    router = Router(server)
    asked: Any = (router.stream if stream else router.complete)(HI, model="m", scope=scope, deadline_s=0.05)
    with pytest.raises(BackendError, match="deadline") as caught:
        await (anext(asked) if stream else asked)
    assert caught.value.timeout


async def test_leaving_or_cancelling_closes_the_stream_of_the_replica(scope: Scope) -> None:
    """The backend's own stream is closed at once, and nothing counts as outstanding."""
    server = Server("a")
    calls: list[Call] = []
    router = Router(server, on_call=calls.append)
    stream: Any = router.stream(HI, model="m", scope=scope)
    async for chunk in stream:
        if chunk.text:
            break
    await stream.aclose()
    assert server.closed_streams == 1
    server.hold.clear()
    task = asyncio.create_task(router.complete(HI, model="m", scope=scope))
    await until(lambda: server.calls == 2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert [call.outcome for call in calls] == ["left", "left"]
    assert calls[0].usage.output_tokens > 0
    assert not calls[0].counted


# Names.


async def test_a_dedicated_backend_is_there_for_its_tenant_alone_and_comes_first(
    scope: Scope, other_scope: Scope
) -> None:
    """Its owner is answered by it; for others it does not exist, by any name."""
    shared, own = Server("shared"), Server("own")
    router = Router(shared, own, owners={"own": {scope.tenant}})
    assert (await router.complete(HI, model="m", scope=scope)).backend == "own"
    assert (await router.complete(HI, scope=scope)).backend == "own"
    assert (await router.complete(HI, model="m", scope=other_scope)).backend == "shared"
    with pytest.raises(ConfigError, match="there is no model 'own/m'"):
        await router.complete(HI, model="own/m", scope=other_scope)
    assert {info.backend for info in await router.models(scope=scope)} == {"own", "shared"}
    assert {info.backend for info in await router.models()} == {"shared"}
    with pytest.raises(ConfigError, match="no backend 'x'"):
        Router(shared, owners={"x": {"acme"}})


async def test_roles_lead_to_a_model_that_can(scope: Scope, notes: Notes) -> None:
    """An alias decides, a tenant's before everybody's; without one a chat role is the default; never one outside."""
    one, two = Server("one", model="big"), Server("two", model="small")
    outside = Server("outside", external=True, model="title")
    policy = Policy(egress=EgressRules(models=frozenset({"*"})))
    router = Router(one, two, outside, aliases={"title": "small"}, tenant_aliases={"rival": {"title": "big"}},
                    policy=policy, audit=notes)  # fmt: skip
    assert (await router.complete(HI, model="title", scope=scope)).backend == "two"
    assert (await router.complete(HI, model="title", scope=Scope(tenant="rival", user="x"))).backend == "one"
    assert (await router.complete(HI, model="memory", scope=scope)).backend == "one"
    plain = Router(one, outside, policy=policy, audit=notes)
    assert (await plain.complete(HI, model="title", scope=scope)).backend == "one"
    with pytest.raises(BackendError, match="no local backend offers a model for 'vision'"):
        await router.complete(HI, model="vision", scope=scope)


async def test_other_weights_under_the_same_name_are_not_a_replica(scope: Scope) -> None:
    """Two backends share calls only where nothing says that their weights differ."""
    one, two = Server("one"), Server("two")
    one.offered = ModelInfo(id="m", backend="one", weights=Weights("declared", sha256="a" * 64))
    two.offered = ModelInfo(id="m", backend="two", weights=Weights("declared", sha256="b" * 64))
    router = Router(one, two)
    for number in range(20):
        await router.complete(str(number), model="m", scope=scope)
    assert (one.calls, two.calls) == (20, 0)


@pytest.mark.parametrize(
    ("content", "fields", "missing"),
    [
        ([{"type": "image_url", "image_url": {"url": "data:,"}}], {}, "vision"),
        ([{"type": "input_audio", "input_audio": {}}], {}, "audio"),
        ("x", {"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ],
)
async def test_what_a_model_cannot_do_is_refused_before_it_is_sent(
    content: Any, fields: dict[str, Any], missing: str, scope: Scope
) -> None:
    """The error names what is missing; a model of which nobody has said anything is asked."""
    server = Server("a")
    asked = [{"role": "user", "content": content}]
    await Router(server).complete(asked, model="m", scope=scope, **fields)
    server.offered = ModelInfo(id="m", backend="a", capabilities=frozenset({"chat"}))
    with pytest.raises(ConfigError, match=f"cannot do what is asked: {missing}"):
        await Router(server).complete(asked, model="m", scope=scope, **fields)
    assert server.calls == 1


# Fallbacks, and what is counted.


async def test_a_fallback_outside_is_named_by_the_operator_and_passes_the_door(scope: Scope, notes: Notes) -> None:
    """It is on record why, the answer says who gave it, and a label that is too high keeps the local error."""
    local, outside = Server("local"), Server("outside", external=True, model="big")
    policy = Policy(egress=EgressRules(models=frozenset({"outside/big"})))
    router = Router(local, outside, policy=policy, audit=notes, fallbacks={"m": ["outside/big"]})
    assert (await router.complete(HI, model="m", scope=scope, label="public")).backend == "local"
    assert not notes.entries
    local.fails = down()
    assert (await router.complete(HI, model="m", scope=scope, label="public")).backend == "outside"
    assert [(kind, detail.get("attempt")) for kind, _, detail in notes.entries[:1]] == [
        ("egress.allowed", "instead of m")
    ]
    with pytest.raises(BackendError, match="cannot be reached") as caught:
        await router.complete(HI, model="m", scope=scope, label="confidential")
    assert "marked confidential" in caught.value.__notes__[0]
    assert notes.entries[-1][0] == "egress.denied"
    assert outside.calls == 1


async def test_only_models_that_the_policy_names_are_asked(scope: Scope) -> None:
    """Of two replicas the one that is named, by whatever name it is asked for; another is no fallback either."""
    one, other = Server("one"), Server("other")
    router = Router(one, other, policy=Policy(models=frozenset({"one/m"})), fallbacks={"one/m": ["other/m"]})
    for name in ("m", "default", "one/m"):
        assert (await router.complete(HI, model=name, scope=scope)).backend == "one"
    with pytest.raises(AccessError, match="does not let the model 'other/m' be asked") as caught:
        await router.complete(HI, model="other/m", scope=scope)
    assert caught.value.code == "policy.models"
    assert [info.backend for info in await router.models(scope=scope)] == ["one"]
    one.fails = down()
    with pytest.raises(BackendError, match="cannot be reached") as failed:
        await router.complete(HI, model="one/m", scope=scope)
    assert "and not other/m" in failed.value.__notes__[0]
    with pytest.raises(AccessError):
        await router.complete(HI, model="one/m", scope=scope, policy=Policy(models=frozenset({"other/m"})))
    assert other.calls == 0


async def test_every_retry_outside_is_an_entry_of_its_own(scope: Scope, notes: Notes) -> None:
    """One entry an attempt, each before it, each with the number of the attempt."""
    outside = [Server(name, external=True) for name in ("x", "y")]
    for server in outside:
        server.fails = down()
    policy = Policy(egress=EgressRules(models=frozenset({"*"})))
    with pytest.raises(BackendError):
        await Router(*outside, policy=policy, audit=notes).complete(HI, model="m", scope=scope, label="public")
    kinds = [(kind, detail.get("attempt"), detail.get("outcome")) for kind, _, detail in notes.entries]
    assert kinds == [
        ("egress.allowed", None, None),
        ("egress.returned", None, "failed"),
        ("egress.allowed", "attempt 2", None),
        ("egress.returned", None, "failed"),
    ]


@pytest.mark.parametrize("stream", [False, True])
async def test_every_call_is_counted_with_its_cost(stream: bool, scope: Scope) -> None:
    """Streams too, though nobody asked for usage; who did not ask does not see it."""
    calls: list[Call] = []
    router = Router(Server("a", price=Price(input_usd=2, output_usd=10)), on_call=calls.append)
    if stream:
        chunks = [chunk async for chunk in router.stream(HI, model="m", scope=scope)]
        assert not any("usage" in chunk.body for chunk in chunks)
        assert calls[0].first_token_s is not None
    else:
        completion = await router.complete(HI, model="m", scope=scope)
        assert completion.usage.cost_usd == pytest.approx(32e-6)
    assert calls[0].usage == Usage(input_tokens=1, output_tokens=3, cost_usd=pytest.approx(32e-6))
    assert calls[0].counted
    assert (await router.accounts.spent(scope.tenant, user=scope.user)).tokens == 4


class Teller(Server):
    """A replica that counts as it is told to; a list is what a stream says, one after the other."""

    def __init__(self, usage: Any, *, price: Price | None = None) -> None:
        super().__init__("teller", price=price)
        self.usage = usage

    async def complete(self, request: ChatRequest, *, scope: Scope) -> Completion:
        completion = await super().complete(request, scope=scope)
        return Completion({**completion.body, "usage": self.usage}, self.name)

    async def stream(self, request: ChatRequest, *, scope: Scope) -> AsyncIterator[Chunk]:
        self.requests.append(request)
        for usage in self.usage if isinstance(self.usage, list) else [None, self.usage]:
            choice = {"index": 0, "delta": {"content": "word"}, "finish_reason": "stop" if usage is not None else None}
            yield Chunk({"choices": [choice], "usage": usage}, self.name)


async def used(server: Server, scope: Scope, *, stream: bool) -> Call:
    calls: list[Call] = []
    router = Router(server, on_call=calls.append)
    if stream:
        assert [chunk async for chunk in router.stream(HI, model="m", scope=scope)]
    else:
        assert (await router.complete(HI, model="m", scope=scope)).text == "Hello there, friend."
    return calls[0]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        {"prompt_tokens": 0, "completion_tokens": 0},
        {"prompt_tokens": -5, "completion_tokens": -5},
        {"prompt_tokens": "12", "completion_tokens": "30"},
        {"prompt_tokens": 0.5, "completion_tokens": math.nan},
        {"prompt_tokens": True, "completion_tokens": True},
        5,
    ],
    ids=str,
)
async def test_a_server_whose_counts_say_nothing_is_not_asked_for_nothing(
    usage: Any, stream: bool, scope: Scope
) -> None:
    """The prompt and the answer are estimated, and marked so."""
    call = await used(server := Teller(usage), scope, stream=stream)
    said = 2 if stream else len(str({"role": "assistant", "content": "Hello there, friend."})) // 4
    assert call.usage == Usage(len(server.requests[0].encoded()) // 4, said)
    assert not call.counted


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("usage", "counted"),
    [
        ({"prompt_tokens": 12.0, "completion_tokens": 30.0}, Usage(12, 30)),
        ({"completion_tokens": 30, "total_tokens": 42}, Usage(12, 30)),
    ],
    ids=str,
)
async def test_counts_are_read_however_a_server_writes_them(
    usage: Any, counted: Usage, stream: bool, scope: Scope
) -> None:
    """A whole number with a point is one, and a total says what a part leaves out."""
    call = await used(Teller(usage), scope, stream=stream)
    assert (call.usage, call.counted) == (counted, True)


async def test_a_part_that_a_server_does_not_count_is_estimated(scope: Scope) -> None:
    """What it counts stays, and the call is marked."""
    call = await used(Teller({"prompt_tokens": 12}), scope, stream=True)
    assert (call.usage, call.counted) == (Usage(12, 2), False)


async def test_a_later_count_takes_nothing_back(scope: Scope) -> None:
    """Of the counts of one stream the largest holds, each for itself."""
    counts = [
        {"prompt_tokens": 900, "completion_tokens": 50, "cost": 0.5},
        {"prompt_tokens": 0, "completion_tokens": 60, "cost": 0},
        {"prompt_tokens": 0, "completion_tokens": 0},
    ]
    assert (await used(Teller(counts), scope, stream=True)).usage == Usage(900, 60, cost_usd=0.5)


@pytest.mark.parametrize("stream", [False, True])
async def test_the_price_of_the_operator_goes_before_a_servers_cost(stream: bool, scope: Scope) -> None:
    """A server that says that it costs nothing costs what it is said to cost here; without a price its word counts."""
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "cost": 0}
    call = await used(Teller(usage, price=Price(input_usd=2, output_usd=10)), scope, stream=stream)
    assert call.usage.cost_usd == pytest.approx(70e-6)
    assert (await used(Teller({**usage, "cost": 0.25}), scope, stream=stream)).usage.cost_usd == 0.25


@pytest.mark.parametrize("stream", [False, True])
async def test_who_leaves_before_the_first_piece_has_had_the_prompt_read(stream: bool, scope: Scope) -> None:
    """The prompt of a call that was sent counts, as it is estimated; of one that failed before it said a word, none."""

    class Slow(Server):
        async def stream(self, request: ChatRequest, *, scope: Scope) -> AsyncIterator[Chunk]:
            yield Chunk((await self.complete(request, scope=scope)).body)

    calls: list[Call] = []
    router = Router(server := Slow("a"), on_call=calls.append)
    server.hold.clear()
    asks = anext(router.stream(HI, model="m", scope=scope)) if stream else router.complete(HI, model="m", scope=scope)
    task = asyncio.ensure_future(asks)
    await until(lambda: server.calls == 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert calls[0].usage == Usage(len(server.requests[0].encoded()) // 4, 0)
    assert (calls[0].outcome, calls[0].counted) == ("left", False)
    server.hold.set()
    server.fails = down()
    with pytest.raises(BackendError):
        await router.complete(HI, model="m", scope=scope)
    assert calls[1].usage == Usage()


@given(st.floats(0, 1e4), st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 10**9))
def test_a_price_is_never_negative_and_cached_input_costs_no_more(
    usd: float, asked: int, cached: int, said: int
) -> None:
    """Cost grows with tokens; a cached count larger than the input does not turn into a gain."""
    usage = Usage(input_tokens=asked, output_tokens=said, cached_tokens=cached)
    full = Price(usd, usd).cost_usd(usage)
    assert math.isclose(full, (asked + said) * usd / 1e6)
    assert 0 <= Price(usd, usd, cached_usd=usd / 2).cost_usd(usage) <= full * (1 + 1e-9)


async def test_a_label_too_high_is_refused_for_a_tenant_or_a_call_that_narrows(scope: Scope, notes: Notes) -> None:
    """A tenant's and a caller's policy only ever take away."""
    outside = Server("outside", external=True)
    policy = Policy(egress=EgressRules(models=frozenset({"*"})))
    shut = Policy(egress=EgressRules())
    wide = Policy(egress=EgressRules(models=frozenset({"*"}), ceiling=policy.egress.ceiling | outside_label()))
    router = Router(outside, policy=policy, audit=notes, tenant_policies={"rival": shut, "acme": wide})
    await router.complete(HI, model="m", scope=scope, label="public")
    for kwargs in (
        {"scope": Scope(tenant="rival", user="x"), "label": "public"},
        {"scope": scope, "label": "internal"},
        {"scope": scope, "label": "public", "policy": shut},
    ):
        with pytest.raises(EgressError):
            await router.complete(HI, model="m", **kwargs)
    only = Router(
        outside, policy=Policy(egress=EgressRules(models=frozenset({"*"}), tenants=frozenset({"acme"}))), audit=notes
    )
    await only.complete(HI, model="m", scope=scope, label="public")
    with pytest.raises(EgressError, match="the tenant rival"):
        await only.complete(HI, model="m", scope=Scope(tenant="rival", user="x"), label="public")
    assert outside.calls == 2


def outside_label() -> Any:
    from aibox.types import Label

    return Label.parse("restricted")


async def test_one_that_never_says_a_word_takes_no_other_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that accepts and is silent: the router answers as long as another does, and says which does not."""

    class Silent(Server):
        async def health(self) -> Health:
            await asyncio.Event().wait()
            raise AssertionError

    silent, well = Silent("silent"), Server("well")
    async with asyncio.timeout(4):
        assert await Router(silent, well).answers()
    monkeypatch.setattr("aibox.inference.replica.CHECK_TIMEOUT_S", 0.05)
    assert not await Router(silent).answers()
    health = await Router(silent, well).health()
    assert (health.ok, health.detail) == (False, "silent: no answer to a check within 0.05 s")


@pytest.mark.parametrize(
    "item",
    [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://evil.example/?secret"}}]},
        {"type": "input_image", "image_url": "http://evil.example/?secret"},
        {"type": "computer_call_output", "output": {"type": "computer_screenshot", "image_url": "http://evil.example"}},
        {"role": "tool", "content": [{"type": "text", "text": "x", "within": [{"file_url": "HTTP://evil.example"}]}]},
    ],
)
@pytest.mark.parametrize("key", ["messages", "input"])
def test_no_address_to_fetch_goes_to_a_model_server(key: str, item: dict[str, Any]) -> None:
    """Wherever it stands in a message or an item, whichever API reads them; a picture that is sent inline may go."""
    told = {"role": "user", "content": "look at this"}
    with pytest.raises(EgressError, match="past the door"):
        hold_addresses({key: [told, item]})
    inline = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}]}
    hold_addresses({key: [told, inline], "prompt": "http://a.example is a text"})


async def test_a_model_whose_budget_is_spent_is_asked_no_more_and_another_in_its_place_is(scope: Scope) -> None:
    """Behind one name the other backend; then nobody, whoever asks in that tenant, and a stream is refused likewise."""
    one, other = Server("one"), Server("other")
    budgets = Budgets(models={f"{name}/m": Budget(tokens_per_day=1) for name in ("one", "other")})
    router = Router(one, other, policy=Policy(budgets=budgets))
    for _ in range(2):
        await router.complete(HI, model="m", scope=scope)
    assert (one.calls, other.calls) == (1, 1)
    stream: Any = router.stream(HI, model="m", scope=Scope(tenant=scope.tenant, user="ben"))
    for call in (router.complete(HI, model="m", scope=scope), anext(stream)):
        with pytest.raises(LimitError, match=r"the budget of the model (one|other)/m for ") as caught:
            await call
        assert caught.value.code == "policy.limit.budget_model"
    assert (one.calls, other.calls) == (1, 1)
    await router.complete(HI, model="m", scope=Scope(tenant="else", user="eva"))


async def test_where_a_call_may_go_instead_a_spent_budget_is_passed_over(scope: Scope) -> None:
    """The next in the row answers; where there is none, the failure is the first's, and says of the others why not."""
    down, spent, left = Server("down"), Server("spent"), Server("left")
    down.fails = BackendError("it is down", retryable=True)
    policy = Policy(budgets=Budgets(models={"spent/m": Budget(usd_per_month=0)}))
    for row, calls in ((["spent/m", "left/m"], 1), (["spent/m"], 0)):
        router = Router(down, spent, left, policy=policy, fallbacks={"down/m": row})
        asked = router.complete(HI, model="down/m", scope=scope)
        if calls:
            assert (await asked).backend == "left"
        else:
            with pytest.raises(BackendError, match="it is down") as caught:
                await asked
            assert "the budget of the model spent/m" in caught.value.__notes__[0]
        assert (spent.calls, left.calls) == (0, 1)
