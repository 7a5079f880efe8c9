"""Budgets and what was spent: exact, shared, kept, and never overspent by more than what is under way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from aibox.chat import MOST_TOKENS, ChatRequest, Chunk, Completion, ModelInfo, Price, Usage
from aibox.errors import LimitError, StoreError
from aibox.inference.accounts import Accounts, Call
from aibox.inference.ledger import Ledger
from aibox.inference.router import Router
from aibox.policy.budgets import Budget, Budgets
from aibox.policy.policy import Policy
from aibox.policy.retention import Retention
from aibox.testing.scripted import ScriptedBackend
from aibox.types import Scope

pytestmark = pytest.mark.anyio
NOON = 1_772_366_400.0  # 2026-03-01 12:00 UTC
HI = [{"role": "user", "content": "Hi"}]


def spent(scope: Scope, tokens: int, usd: float | None = None) -> Call:
    return Call(scope=scope, model="m", backend="b", external=False, usage=Usage(tokens, 0, cost_usd=usd), total_s=1.0)


@pytest.mark.parametrize("kept", [False, True])
async def test_a_budget_that_is_spent_is_a_limit_with_the_time_until_it_is_renewed(
    kept: bool, tmp_path: Path, scope: Scope, other_scope: Scope
) -> None:
    """The user's own, then the tenant's; others go on; at midnight and on the first of the month there is more."""
    now = [NOON]
    accounts = Accounts(tmp_path / "accounts.db" if kept else None, now=lambda: now[0])
    budgets = Budgets(user=Budget(tokens_per_day=100), tenant=Budget(tokens_per_month=150, usd_per_day=5))
    await accounts.admit(scope, budgets)
    accounts.settle(spent(scope, 100))
    with pytest.raises(LimitError, match="the budget of you for 2026-03-01") as caught:
        await accounts.admit(scope, budgets)
    assert caught.value.retry_after_s == 12 * 3600
    colleague = Scope(tenant=scope.tenant, user="ben")
    await accounts.admit(colleague, budgets)
    await accounts.admit(other_scope, budgets)
    accounts.settle(spent(colleague, 50))
    with pytest.raises(LimitError, match="tenant acme for 2026-03 ") as caught:
        await accounts.admit(colleague, budgets)
    assert caught.value.retry_after_s == 30.5 * 86400
    now[0] += 31 * 86400
    await accounts.admit(scope, budgets)
    accounts.settle(spent(scope, 1, usd=5.0))
    with pytest.raises(LimitError, match="tenant acme"):
        await accounts.admit(scope, budgets)
    await accounts.close()


@pytest.mark.parametrize("kept", [False, True])
async def test_a_budget_of_a_model_is_of_all_of_a_tenant_together(
    kept: bool, shared_place: Path | str, scope: Scope, other_scope: Scope
) -> None:
    """Whoever used it, on whichever server; other models and tenants go on, an erased name changes nothing of it."""
    now = [NOON]
    place = shared_place if kept else None
    accounts = Accounts(place, now=lambda: now[0])
    other = Accounts(place, now=lambda: now[0]) if kept else accounts
    budgets = Budgets(models={"b/m": Budget(tokens_per_day=100, usd_per_month=5), "b/n": Budget(tokens_per_day=1)})

    async def admit(model: str, tenant: str = scope.tenant) -> None:
        await accounts.admit_model(model, budgets, tenant=tenant)

    await admit("b/m")
    other.settle(spent(scope, 60))
    other.settle(spent(Scope(tenant=scope.tenant, user="ben"), 40))
    if kept:
        await other.close()
        accounts._read.clear()  # as two seconds would
    with pytest.raises(LimitError, match="the budget of the model b/m for 2026-03-01 is spent") as caught:
        await admit("b/m")
    assert (caught.value.code, caught.value.retry_after_s) == ("policy.limit.budget_model", 12 * 3600)
    await admit("b/n")
    await admit("b/else")
    await admit("b/m", other_scope.tenant)
    await accounts.admit(scope, budgets)
    for subject in (scope.user, None):
        await accounts.erase(scope=scope, subject=subject)
        with pytest.raises(LimitError):
            await admit("b/m")
    later = Accounts(place, now=lambda: now[0]) if kept else accounts
    assert (await later.spent(scope.tenant, model="b/m")).tokens == 100
    assert await accounts.spent(scope.tenant, model="b/m") == await accounts.spent(scope.tenant)
    assert (await accounts.spent(scope.tenant, model="b/m", period="2026-03")).calls == 2
    assert (await accounts.spent(other_scope.tenant, model="b/m")).calls == 0
    now[0] += 86_400
    await admit("b/m")
    accounts.settle(spent(scope, 1, usd=5.0))
    with pytest.raises(LimitError, match="the model b/m for 2026-03 "):
        await admit("b/m")
    await later.close()
    await accounts.close()


@given(costs=st.lists(st.floats(0, 1e-3, allow_nan=False), max_size=30))
async def test_money_never_counts_for_less_than_it_is(costs: list[float]) -> None:
    """Rounding goes up: calls that cost less than can be written down are not free."""
    accounts, scope = Accounts(), Scope(tenant="a", user="b")
    for usd in costs:
        accounts.settle(spent(scope, 1, usd=usd))
    total = (await accounts.spent("a")).usd
    assert sum(costs) - 1e-12 <= total <= sum(costs) + len(costs) * 1e-6 + 1e-12


async def test_what_was_spent_survives_and_is_shared(shared_place: Path | str, scope: Scope) -> None:
    """Two that write into one place see each other's spending, and so does the next process."""
    path = shared_place
    one, two = Accounts(path), Accounts(path)
    one.settle(spent(scope, 10, usd=0.5))
    two.settle(spent(scope, 5))
    await one.close()
    await two.close()
    third = Accounts(path)
    with pytest.raises(LimitError):
        await third.admit(scope, Budgets(user=Budget(tokens_per_day=15)))
    found = await third.spent(scope.tenant, user=scope.user)
    assert (found.tokens, found.usd, found.calls) == (15, 0.5, 2)
    await third.close()


@pytest.mark.parametrize("kept", [False, True])
async def test_who_has_used_which_model(kept: bool, shared_place: Path | str) -> None:
    """By user and model, by either, of a day or a month; page by page it is the same; other tenants' is not there."""
    now = [NOON]
    accounts = Accounts(shared_place if kept else None, now=lambda: now[0])
    for tenant, user, model, tokens in (
        ("acme", "eva", "m", 1), ("acme", "eva", "m", 2), ("acme", "eva", "n", 4), ("acme", "ben", "m", 8),
        ("rival", "eva", "m", 100),
    ):  # fmt: skip
        accounts.settle(replace(spent(Scope(tenant=tenant, user=user), tokens, usd=0.25), model=model))
    now[0] += 86_400
    accounts.settle(spent(Scope(tenant="acme", user="ben"), 16))

    async def told(**more: Any) -> list[tuple[Any, ...]]:
        found = await accounts.shares("acme", **more)
        return [(one.user, one.model, one.input_tokens, one.calls, one.usd) for one in found]

    everything = [("ben", "b/m", 24, 2, 0.25), ("eva", "b/m", 3, 2, 0.5), ("eva", "b/n", 4, 1, 0.25)]
    assert await told() == await told(period="2026-03") == everything
    assert await told(by="user") == [("ben", "", 24, 2, 0.25), ("eva", "", 7, 3, 0.75)]
    assert await told(by="model") == [("", "b/m", 27, 4, 0.75), ("", "b/n", 4, 1, 0.25)]
    assert await told(period="2026-03-02") == [("ben", "b/m", 16, 1, 0.0)]
    assert await told(period="2026-02") == []
    assert await told(user="eva", model="b/n") == everything[2:]
    for by, count in (("user_model", 3), ("user", 2), ("model", 2)):
        pages: list[tuple[Any, ...]] = []
        while page := await told(by=by, limit=1, after=pages[-1][:2] if pages else None):
            pages += page
        assert pages == await told(by=by)
        assert len(pages) == count
    await accounts.close()


async def test_what_could_not_be_written_is_counted_for_its_model_later(tmp_path: Path, scope: Scope) -> None:
    """A file that cannot be used loses nothing of it, and counts nothing twice; the error says what to do."""
    path = tmp_path / "accounts.db"
    path.write_text("this is no database, and long enough to be recognised as none" * 20)
    accounts = Accounts(path)
    accounts.settle(spent(scope, 7))
    with pytest.raises(StoreError) as told:
        await accounts.shares(scope.tenant)
    assert "restore it from a backup" in told.value.hint
    path.unlink()
    accounts.settle(spent(scope, 1))
    for _ in range(2):
        assert [(one.input_tokens, one.calls) for one in await accounts.shares(scope.tenant)] == [(8, 2)]
    await accounts.close()


async def test_a_server_that_was_idle_sees_what_the_others_spent(
    postgres_url: str, scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had looked before they spent, and looks again before it lets the next call through; tenants stay apart."""
    monkeypatch.setattr("aibox.inference.accounts.STALE_S", -1.0)
    idle, busy = Accounts(postgres_url), Accounts(postgres_url)
    budgets = Budgets(tenant=Budget(tokens_per_day=15))
    other = Scope(tenant="rival", user="eva")
    for who in (scope, other):
        await idle.admit(who, budgets)
    for who, tokens in ((scope, 15), (other, 5)):
        busy.settle(spent(who, tokens))
    assert (await busy.spent(scope.tenant)).tokens == 15
    with pytest.raises(LimitError):
        await idle.admit(scope, budgets)
    await idle.admit(other, budgets)
    assert (await idle.spent("rival")).tokens == 5
    await idle.close()
    await busy.close()


async def test_a_file_that_cannot_be_used_stops_bounded_calls(tmp_path: Path, scope: Scope) -> None:
    """Who must keep to a budget and cannot read what was spent does not spend; what was settled is not forgotten."""
    path = tmp_path / "accounts.db"
    path.write_text("this is no database, and long enough to be recognised as none" * 20)
    accounts = Accounts(path)
    with pytest.raises(StoreError, match="accounts"):
        await accounts.admit(scope, Budgets(user=Budget(tokens_per_day=1)))
    await accounts.admit(scope, Budgets())
    accounts.settle(spent(scope, 7))
    with pytest.raises(StoreError):
        await accounts.close()
    path.unlink()
    assert (await accounts.spent(scope.tenant)).tokens == 7


@given(st.integers(1, 12), st.integers(1, 40))
async def test_calls_at_once_overspend_by_no_more_than_themselves(at_once: int, budget: int) -> None:
    """With n calls under way the sum stays below the budget plus what n calls use."""
    uses = 4  # "Hi", and three words
    model = ScriptedBackend(*["one two three"] * 200)
    policy = Policy(budgets=Budgets(user=Budget(tokens_per_day=budget)))
    router, scope = Router(model, policy=policy), Scope(tenant="a", user="b")
    refused = 0

    async def caller() -> None:
        nonlocal refused
        for _ in range(10):
            try:
                await router.complete(HI, scope=scope)
            except LimitError:
                refused += 1
            await asyncio.sleep(0)

    await asyncio.gather(*(caller() for _ in range(at_once)))
    tokens = (await router.accounts.spent("a", user="b")).tokens
    assert tokens == len(model.requests) * uses
    assert tokens < budget + at_once * uses
    assert refused + len(model.requests) == at_once * 10


async def test_a_call_that_is_refused_costs_nothing(scope: Scope) -> None:
    """Nothing is sent when nothing is left, and a stream is refused as a whole call is."""
    model = ScriptedBackend("one")
    router = Router(model, policy=Policy(budgets=Budgets(tenant=Budget(usd_per_day=0))))
    stream: Any = router.stream(HI, scope=scope)
    for call in (router.complete(HI, scope=scope), anext(stream), router.embed(["x"], scope=scope)):
        with pytest.raises(LimitError):
            await call
    assert not model.requests


budget = st.builds(
    Budget,
    tokens_per_day=st.none() | st.integers(0, 9),
    tokens_per_month=st.none() | st.integers(0, 9),
    usd_per_day=st.none() | st.floats(0, 9),
)
models = st.dictionaries(st.sampled_from(["b/m", "b/n"]), budget)
budgets = st.builds(Budgets, tenant=budget, user=budget, models=models)


@given(budgets, budgets, budgets)
def test_joining_budgets_only_restricts(a: Budgets, b: Budgets, c: Budgets) -> None:
    """Order, grouping and repetition change nothing, and no bound is ever raised."""
    assert a & b == b & a
    assert (a & b) & c == a & (b & c)
    assert a & a == a == a & Budgets()
    both = a & b
    pairs = [(a.tenant, both.tenant), (a.user, both.user), *((a.models[name], both.models[name]) for name in a.models)]
    assert both.models.keys() == a.models.keys() | b.models.keys()
    for mine, joined in pairs:
        for name in Budget.model_fields:
            own, bound = getattr(mine, name), getattr(joined, name)
            assert own is None or (bound is not None and bound <= own)


def test_a_price_is_for_a_million_tokens() -> None:
    """Cached input has its own price, and output another."""
    usage = Usage(input_tokens=1_000_000, output_tokens=500_000, cached_tokens=400_000)
    assert Price(3, 15, cached_usd=0.3).cost_usd(usage) == pytest.approx(0.6 * 3 + 0.4 * 0.3 + 7.5)
    assert Usage.read({"prompt_tokens": -5, "completion_tokens": "x", "cost": -1}) == Usage()
    info = ModelInfo(id="m", backend="b", price=Price(1, 1))
    assert info.price is not None
    assert ChatRequest({}).model == ""


async def test_what_two_write_at_once_is_not_forgotten(
    tmp_path: Path, scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has read the sums first and hands them on last does not take away what was spent in between."""
    monkeypatch.setattr("aibox.inference.accounts.STALE_S", -1.0)
    accounts = Accounts(tmp_path / "accounts.db")
    ledger = accounts._ledger
    assert ledger is not None
    read, first, written = ledger.spent, threading.Event(), threading.Event()

    def slow(*asked: Any) -> Any:
        rows = read(*asked)
        if not first.is_set():
            first.set()
            assert written.wait(60)
        return rows

    await accounts.admit(scope, Budgets(user=Budget(tokens_per_day=100)))
    monkeypatch.setattr(ledger, "spent", slow)
    looking = asyncio.create_task(accounts.spent(scope.tenant, user=scope.user))
    assert await asyncio.to_thread(first.wait, 60)
    accounts.settle(spent(scope, 100))
    assert (await accounts.spent(scope.tenant)).tokens == 100
    written.set()
    assert (await looking).tokens == 100
    with pytest.raises(LimitError):
        await accounts.admit(scope, Budgets(user=Budget(tokens_per_day=100)))
    await accounts.close()


async def test_what_it_takes_does_not_grow_with_the_tenants_that_were_here(
    shared_place: Path | str, scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call and a look say as much to the database for one of fifty tenants as for the only one."""
    accounts, said = Accounts(shared_place), []
    tables = accounts._here._tables
    transaction = tables.transaction

    @contextmanager
    def heard(*asked: Any, **more: Any) -> Iterator[Any]:
        with transaction(*asked, **more) as rows:
            yield SimpleNamespace(execute=lambda *sql: (said.append(sql[0]), rows.execute(*sql))[1])

    monkeypatch.setattr(tables, "transaction", heard)

    async def turn(who: Scope) -> int:
        said.clear()
        await accounts.admit(who, Budgets(user=Budget(tokens_per_day=100)))
        accounts.settle(spent(who, 1))
        assert (await accounts.spent(who.tenant, user=who.user)).tokens == 1
        return len(said)

    alone = await turn(scope)
    for number in range(49):
        await turn(Scope(tenant=f"t{number}", user="eva"))
    assert await turn(Scope(tenant="last", user="eva")) == alone
    await accounts.close()


async def test_what_was_spent_on_a_day_that_is_over_is_told(shared_place: Path | str, scope: Scope) -> None:
    """Also by a process that had not begun then."""
    now = [NOON]
    for spends in (True, False):
        accounts = Accounts(shared_place, now=lambda: now[0])
        if spends:
            accounts.settle(spent(scope, 7))
        now[0] += 86_400
        for user in (None, scope.user):
            assert (await accounts.spent(scope.tenant, user=user, period="2026-03-01")).tokens == 7
            assert (await accounts.spent(scope.tenant, user=user, period="2026-03")).tokens == 7
            assert (await accounts.spent(scope.tenant, user=user)).tokens == 0
        await accounts.close()


async def test_spendings_of_many_are_written_together(shared_place: Path | str) -> None:
    """More of them than one statement takes, of several tenants; nothing is lost or counted twice."""
    accounts = Accounts(shared_place)
    for tenant in ("acme", "rival"):
        for number in range(130):
            accounts.settle(spent(Scope(tenant=tenant, user=f"u{number}"), number))
    assert (await accounts.spent("acme")).tokens == sum(range(130))
    await accounts.close()
    again = Accounts(shared_place)
    for tenant in ("acme", "rival"):
        assert (await again.spent(tenant)).calls == 130
        assert (await again.spent(tenant, user="u129")).tokens == 129
        assert [one.input_tokens for one in await again.shares(tenant, user="u129")] == [129]
    await again.close()


@pytest.mark.parametrize("kept", [False, True])
async def test_who_is_erased_is_in_no_sum_any_more_and_the_tenants_sums_stay(
    kept: bool, shared_place: Path | str, scope: Scope
) -> None:
    """Of a user and of each: the name goes from every table; the tenant's budget and use of models stay."""
    now = [NOON]
    accounts = Accounts(shared_place if kept else None, now=lambda: now[0])
    people = [Scope(tenant=tenant, user=user) for tenant in ("acme", "rival") for user in ("eva", "ben", "ian")]
    for _ in range(2):
        for who in people:
            for model in ("m", "n"):
                accounts.settle(replace(spent(who, 10, usd=0.5), model=model))
        now[0] += 86_400
    now[0] -= 86_400
    budgets = Budgets(tenant=Budget(tokens_per_month=120), user=Budget(tokens_per_month=40))

    async def names(tenant: str) -> list[str]:
        return [one.user for one in await accounts.shares(tenant, by="user")]

    before = await accounts.spent("acme"), await accounts.spent("acme", period="2026-03")
    models = await accounts.shares("acme", by="model")
    for subject, left in (("eva", ["", "ben", "ian"]), ("ian", ["", "ben"]), ("nobody", ["", "ben"]), (None, [""])):
        gone = await accounts.erase(scope=scope, subject=subject)
        assert bool(gone) == (subject != "nobody")
        assert await names("acme") == left
        assert (await accounts.spent("acme"), await accounts.spent("acme", period="2026-03")) == before
        assert await accounts.shares("acme", by="model") == models
        if subject == "eva":
            assert (await accounts.spent("acme", user="eva", period="2026-03")).tokens == 0
            with pytest.raises(LimitError, match="tenant acme"):
                await accounts.admit(scope, budgets)
    assert await names("rival") == ["ben", "eva", "ian"]
    assert (await accounts.spent("rival", user="eva", period="2026-03")).tokens == 40
    await accounts.close()
    if isinstance(shared_place, Path) and kept:
        again = Accounts(shared_place)
        await again.erase(scope=people[-1])
        await again.close()
        for file in shared_place.parent.iterdir():
            assert not any(name in file.read_bytes() for name in (b"eva", b"ben", b"ian")), file


async def test_names_are_kept_for_as_long_as_the_entries_of_calls(shared_place: Path | str) -> None:
    """Who used what before is nobody's any more, in this tenant; the month that counts for a budget is still theirs."""
    now = [NOON + 9 * 86_400]
    rules = {"acme": Retention(bodies_days={"model": 5}), "rival": Retention(bodies_days={"tool": 5})}
    accounts = Accounts(shared_place, retention=rules.__getitem__, now=lambda: now[0])
    for tenant in rules:
        accounts.settle(spent(Scope(tenant=tenant, user="eva"), 10))
    assert [one.user for one in await accounts.shares("acme")] == ["eva"]
    for days, kept in ((5, ["eva"]), (6, ["", "ben"])):
        now[0] = NOON + (9 + days) * 86_400
        for tenant in rules:
            accounts.settle(spent(Scope(tenant=tenant, user="ben" if days == 6 else "eva"), 1))
        found = await accounts.shares("acme", period="2026-03-10")
        assert [(one.user, one.input_tokens) for one in found] == [(kept[0], 10)]
    assert (await accounts.spent("acme", user="eva", period="2026-03")).tokens == 11
    assert (await accounts.spent("acme", user="eva", period="2026-03-10")).tokens == 0
    assert (await accounts.spent("rival", user="eva", period="2026-03-10")).tokens == 10
    assert (await accounts.spent("acme", period="2026-03-10")).tokens == 10
    await accounts.close()


async def test_what_is_used_while_a_name_goes_is_counted(shared_place: Path | str) -> None:
    """Two servers add while a third erases, again and again: nothing is lost, and nobody waits for another for ever."""
    one, two, third = Ledger(shared_place), Ledger(shared_place), Ledger(shared_place)
    key, of_model = ("acme", "eva", "2026-03-01"), ("acme", "2026-03-01", "eva", "b/m")

    def adds(ledger: Ledger) -> None:
        for _ in range(40):
            ledger.add({key: (1, 0, 1, 0), ("acme", "", "2026-03-01"): (1, 0, 1, 0)}, {of_model: (1, 0, 1, 0)})

    def erases() -> None:
        for _ in range(20):
            third.forget("acme", user="eva")

    await asyncio.gather(*(asyncio.to_thread(adds, ledger) for ledger in (one, two)), asyncio.to_thread(erases))
    third.forget("acme", user="eva")
    days = ("2026-03-01", "2026-03-31")
    found = third.by_model("acme", days, by="user_model", user=None, model=None, after=None, limit=9)
    assert found == [(("", "b/m"), (80, 0, 80, 0))]
    assert third.spent("acme", "eva", ["2026-03-01"]) == {("acme", "", "2026-03-01"): (80, 0, 80, 0)}
    for ledger in (one, two, third):
        ledger.close()


COUNTS: tuple[Any, ...] = (
    {"prompt_tokens": 2**63, "completion_tokens": 10**30},
    {"prompt_tokens": 3, "cost": 1e308},
    {"prompt_tokens": 3, "cost": 10**400},
    {"prompt_tokens": 3, "prompt_tokens_details": [1], "completion_tokens_details": 7},
    {"prompt_tokens": True},
    "many",
    [3],
)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("usage", COUNTS, ids=str)
async def test_no_count_of_a_model_server_keeps_the_sums_from_being_written(
    usage: Any, streamed: bool, tmp_path: Path, scope: Scope, other_scope: Scope
) -> None:
    """A number that no sum can hold would stand before what everybody else has used, for good."""
    choice = {"index": 0, "message": {"content": "Hi."}, "delta": {"content": "Hi."}, "finish_reason": "stop"}

    class Liar(ScriptedBackend):
        async def complete(self, request: ChatRequest, *, scope: Scope) -> Completion:
            return Completion({"choices": [choice], "usage": usage}, "liar")

        async def stream(self, request: ChatRequest, *, scope: Scope) -> AsyncIterator[Chunk]:
            yield Chunk({"choices": [choice], "usage": usage}, "liar")

    router = Router(Liar(["."], name="liar"), accounts=Accounts(tmp_path / "accounts.db"))
    router.accounts.settle(spent(other_scope, 7))
    for _ in range(3):
        if streamed:
            assert [chunk.text async for chunk in router.stream(HI, model="liar/liar", scope=scope)] == ["Hi."]
        else:
            assert (await router.complete(HI, model="liar/liar", scope=scope)).text == "Hi."
    await router.close()
    again = Accounts(tmp_path / "accounts.db")
    assert (await again.spent(other_scope.tenant)).tokens == 7
    assert 0 < (await again.spent(scope.tenant)).tokens <= 6 * MOST_TOKENS
    assert (await again.spent(scope.tenant)).calls == 3
    await again.close()


async def test_what_is_being_written_when_the_server_stops_is_counted_once(
    tmp_path: Path, scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that writes is not stopped by whoever no longer waits for it: what it writes was not left unwritten."""
    accounts = Accounts(tmp_path / "accounts.db")
    ledger = accounts._ledger
    assert ledger is not None
    add, begun, go_on = ledger.add, threading.Event(), threading.Event()

    def slow(*added: Any) -> Any:
        begun.set()
        assert go_on.wait(60)
        return add(*added)

    monkeypatch.setattr(ledger, "add", slow)
    accounts.settle(spent(scope, 5))
    asked = asyncio.create_task(accounts.spent(scope.tenant))
    await asyncio.to_thread(begun.wait, 60)
    asked.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await asked
    await accounts.close()
    again = Accounts(tmp_path / "accounts.db")
    assert (await again.spent(scope.tenant)).tokens == 5
    await again.close()
