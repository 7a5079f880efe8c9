"""`/v1/admin/observability`: pages that hold together, and who sees what of the process."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from platform_world import Asked, Person, World, world

from aibox.chat import Usage
from aibox.inference.accounts import Call
from aibox.outbound.events import Event
from aibox.outbound.outbox import Outbox
from aibox.outbound.traces import Traces
from aibox.settings_outbound import TraceSettings
from aibox.types import Scope

pytestmark = pytest.mark.anyio

BOSS = Person("acme", "boss", ("tenant_admin",))
OTHER_BOSS = Person("acme", "ann", ("tenant_admin",))
OPERATOR = Person("platform", "root", ("platform_admin",))
PATH = "/v1/admin/observability"


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


async def get(w: World, who: Person, path: str = "", **query: Any) -> Any:
    answered = await w.send("get", PATH + path, Asked(query=query), who.token())
    assert answered.status_code == 200, answered.text
    return answered.json()


async def pages(w: World, who: Person, path: str, **query: Any) -> list[list[Any]]:
    found, after = [], {}
    while True:
        page = await get(w, who, path, **query, **after)
        found.append(page["data"])
        if page["next"] is None:
            return found
        after = {"after": page["next"]}


def flat(split: list[list[Any]]) -> list[Any]:
    return [one for page in split for one in page]


def use(w: World, tenant: str, user: str, model: str, tokens: int, usd: float | None = None) -> None:
    scope, usage = Scope(tenant=tenant, user=user), Usage(tokens, 1, cost_usd=usd)
    call = Call(scope=scope, model=model, backend="b", external=False, usage=usage, total_s=1.0)
    w.box.router.accounts.settle(call)


async def test_usage_comes_by_user_and_model_a_page_at_a_time(w: World) -> None:
    """Pages of any length are the list; the operator names a tenant; what an odd name holds comes back whole."""
    for n in range(5):
        use(w, "acme", f'u"{n},[', "m", 10 + n)
        use(w, "acme", f'u"{n},[', "ä model", 1)
    use(w, "rival", "eve", "m", 1000)
    (whole,) = await pages(w, BOSS, "/usage")
    assert [(one["user"], one["model"], one["input_tokens"]) for one in whole] == [
        row for n in range(5) for row in ((f'u"{n},[', "b/m", 10 + n), (f'u"{n},[', "b/ä model", 1))
    ]
    for limit in (1, 3, 10):
        split = await pages(w, OTHER_BOSS, "/usage", limit=limit)
        assert flat(split) == whole
        assert all(len(page) == limit for page in split[:-1])
    assert [one["input_tokens"] for one in (await get(w, BOSS, "/usage", by="model"))["data"]] == [60, 5]
    assert [one["input_tokens"] for one in (await get(w, OPERATOR, "/usage", tenant="rival"))["data"]] == [1000]
    assert (await get(w, OPERATOR, "/usage"))["data"] == []


async def test_usage_says_what_it_cost_by_user_by_model_and_to_the_caller(w: World) -> None:
    """All views add up to the same calls, tokens and dollars, without another tenant's; what has no price is free."""
    for user, model, tokens, usd in (
        ("eva", "m", 10, 0.25), ("eva", "m", 20, 0.5), ("eva", "free", 5, None), ("tom", "m", 40, 1.125),
    ):  # fmt: skip
        use(w, "acme", user, model, tokens, usd)
    use(w, "rival", "eva", "m", 1000, 64.0)

    def row(user: str, model: str, tokens: int, calls: int, usd: float) -> dict[str, Any]:
        counted = {"input_tokens": tokens, "output_tokens": calls, "calls": calls, "usd": usd}
        return {"user": user, "model": model, **counted}

    split = [row("eva", "b/free", 5, 1, 0.0), row("eva", "b/m", 30, 2, 0.75), row("tom", "b/m", 40, 1, 1.125)]
    users = [row("eva", "", 35, 3, 0.75), row("tom", "", 40, 1, 1.125)]
    assert (await get(w, BOSS, "/usage"))["data"] == split
    assert (await get(w, BOSS, "/usage", by="user_model"))["data"] == split
    assert (await get(w, BOSS, "/usage", by="user"))["data"] == users
    assert await pages(w, BOSS, "/usage", by="user", limit=1) == [[one] for one in users]
    assert (await get(w, BOSS, "/usage", by="user", user="tom"))["data"] == users[1:]
    models = [row("", "b/free", 5, 1, 0.0), row("", "b/m", 70, 3, 1.875)]
    assert (await get(w, BOSS, "/usage", by="model"))["data"] == models
    eva, tenant = {"tokens": 38, "usd": 0.75, "calls": 3}, {"tokens": 79, "usd": 1.875, "calls": 4}
    spent = (await get(w, BOSS))["spent"]
    assert spent == {"day": tenant, "month": tenant}

    for who, told in (("eva", eva), ("nobody", {"tokens": 0, "usd": 0.0, "calls": 0})):
        budgets = await w.send("get", "/v1/admin/budgets", Asked(query={"user": who}), BOSS.token())
        assert budgets.json()["user"] == {"day": told, "month": told}
        assert budgets.json()["spent"] == {"day": tenant, "month": tenant}
    assert (await w.send("get", "/v1/admin/budgets", Asked(), BOSS.token())).json()["user"] is None

    free = {"tokens": 6, "usd": 0.0, "calls": 1}
    budgets = await w.send("get", "/v1/admin/budgets", Asked(query={"model": "b/free"}), BOSS.token())
    assert budgets.json()["model"] == {"day": free, "month": free}
    assert (await w.send("get", "/v1/admin/budgets", Asked(), BOSS.token())).json()["model"] is None

    own = await w.send("get", "/v1/usage", Asked(), Person("acme", "eva", ("user",)).token())
    assert own.status_code == 200
    shown = own.json()
    assert (shown["user"], shown["tenant"]) == ({"day": eva, "month": eva}, None)
    assert shown["models"] == [{**one, "user": "eva"} for one in split[:2]]
    boss = (await w.send("get", "/v1/usage", Asked(), BOSS.token())).json()
    nothing = {"tokens": 0, "usd": 0.0, "calls": 0}
    assert (boss["user"], boss["models"]) == ({"day": nothing, "month": nothing}, [])
    assert boss["tenant"] == {"day": tenant, "month": tenant}


async def test_deliveries_come_newest_first_and_without_their_text(w: World) -> None:
    """Also those of one moment, for two addresses; a status can be asked for."""
    outbox, now = Outbox(lambda: w.box.state.store), time.time_ns() // 1000
    await outbox.begin("acme", 0)
    events = [Event(f"msg_{n}", "turn.blocked", b'{"a":"SECRET"}', ts_us=now + n // 3, seq=0) for n in range(7)]
    await outbox.take("acme", {"one": events, "two": events}, upto=0)
    (taken,) = await outbox.due("acme", limit=1)
    await outbox.settle("acme", taken, status="delivered", answered="answered 200")
    (whole,) = await pages(w, BOSS, "/deliveries")
    assert len(whole) == 14
    assert [one["created_us"] for one in whole] == sorted((one["created_us"] for one in whole), reverse=True)
    assert "SECRET" not in str(whole)
    for limit in (1, 4, 14):
        assert flat(await pages(w, BOSS, "/deliveries", limit=limit)) == whole
    (done,) = (await get(w, OTHER_BOSS, "/deliveries", status="delivered"))["data"]
    assert (done["id"], done["attempts"], done["answered"]) == (taken.id, 1, "answered 200")
    assert flat(await pages(w, BOSS, "/deliveries", status="waiting", limit=5)) == [o for o in whole if o != done]
    assert (await get(w, OPERATOR, "/deliveries"))["data"] == []


async def test_traces_are_the_operators_to_see(w: World) -> None:
    """Where they go and what became of them tells of every tenant; a tenant's people see that they may not."""
    traces = Traces(TraceSettings(url="http://127.0.0.1:9/v1/traces"), rules=w.box.rules, recorder=w.box.audit)
    w.box.__dict__["traces"] = traces
    traces.sent, traces.last_error, traces.last_error_us = 7, "the collector answered 500", 5
    traces.dropped["full"] += 2
    shown = (await get(w, OPERATOR))["traces"]
    assert (shown["host"], shown["waiting"], shown["sent"], shown["dropped"]) == ("127.0.0.1", 0, 7, {"full": 2})
    assert (shown["last_error"], shown["last_error_us"]) == ("the collector answered 500", 5)
    for who in (BOSS, OTHER_BOSS):
        assert (await get(w, who))["traces"] is None
    await traces.close()


@pytest.mark.parametrize(
    "after", ["x", "[]", '["a"]', "[1,2]", '["a\\u0000", "b"]', '["\\ud800", "b"]', '[1e400,"a","b"]', "[" * 500]
)
@pytest.mark.parametrize("path", ["/usage", "/deliveries"])
async def test_what_is_no_cursor_is_the_callers_mistake(w: World, path: str, after: str) -> None:
    """A 400 that says what to do, whatever it is."""
    answered = await w.send("get", PATH + path, Asked(query={"after": after}), BOSS.token())
    assert (answered.status_code, "take the `next`" in answered.text) == (400, True), answered.text
