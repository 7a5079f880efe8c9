"""Tenants and users that are known here, and those of them who are let in no more."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from platform_world import ROLES, Asked, Person, World, world
from typer.testing import CliRunner

from aibox.box import Box
from aibox.cli.app import app
from aibox.errors import AccessError, ConfigError, StoreError
from aibox.outbound.events import Event
from aibox.outbound.outbox import Outbox
from aibox.server import stores
from aibox.server.api_keys import ApiKeys
from aibox.server.people import FRESH_S, SEEN_EVERY_S, STALE_S, People
from aibox.server.principal import Principal, Role
from aibox.settings import Settings
from aibox.types import Scope

pytestmark = pytest.mark.anyio

EVA = Person("acme", "eva", ("user",))
BOSS = Person("acme", "boss", ("user", "tenant_admin"))
ROOT = Person("ours", "root", ("platform_admin",))


class Clock:
    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def people(shared_place: Path | str) -> AsyncIterator[tuple[People, People, Clock]]:
    """Two servers over one store."""
    clock = Clock()
    one, other = (People(shared_place, clock=clock, ticks=clock) for _ in range(2))
    yield one, other, clock
    await one.close()
    await other.close()


def who(tenant: str = "acme", user: str = "eva", *roles: Role) -> Principal:
    return Principal(Scope(tenant=tenant, user=user), frozenset(roles or {Role.USER}))


async def test_who_is_suspended_is_refused_everywhere_in_time(people: tuple[People, People, Clock]) -> None:
    """At once where it was done, on the other server when what it believes is over; so is who is let in again."""
    one, other, clock = people
    await other.admit(who())
    await one.put("acme", "eva", state="suspended", note="left")
    with pytest.raises(AccessError, match="this user is suspended"):
        await one.admit(who())
    await other.admit(who())
    clock.now += FRESH_S
    with pytest.raises(AccessError, match="this user is suspended"):
        await other.admit(who())
    await other.admit(who(user="tom"))
    await other.admit(who(tenant="rival"))
    await one.put("acme", "eva", state="active")
    clock.now += FRESH_S
    await other.admit(who())
    found = await one.find("acme", "eva")
    assert found is not None
    assert (found.state, found.note) == ("active", "left")


async def test_a_clock_that_is_put_back_keeps_nobody_in(tmp_path: Path) -> None:
    """How long somebody is believed to be let in is counted by a clock that nobody sets, in either direction."""
    clock, ticks = Clock(), Clock()
    people = [People(tmp_path / "people.db", clock=clock, ticks=ticks) for _ in range(2)]
    one, other = people
    await other.admit(who())
    await one.put("acme", "eva", state="suspended")
    clock.now += 3600
    await other.admit(who())
    clock.now -= 3602
    ticks.now += FRESH_S
    with pytest.raises(AccessError, match="this user is suspended"):
        await other.admit(who())
    for store in people:
        await store.close()


@pytest.mark.parametrize("by", [Role.TENANT_ADMIN, Role.PLATFORM_ADMIN])
async def test_whose_act_a_suspension_was_decides_for_whom_it_holds(
    people: tuple[People, People, Clock], by: Role
) -> None:
    """Of somebody nobody had seen: a tenant's holds for no platform_admin, whatever came first; the operator's for all.

    What runs for them is no more looked for than what they ask is refused, on another server neither.
    """
    one, other, clock = people
    operator, plain = who("acme", "op", Role.PLATFORM_ADMIN), who("acme", "op")
    await one.put("acme", "op", state="suspended", by=by)
    with pytest.raises(AccessError, match="this user is suspended"):
        await one.admit(plain)
    if by is Role.PLATFORM_ADMIN:
        with pytest.raises(AccessError, match="this user is suspended"):
            await one.admit(operator)
        assert await one.shut_out({"acme": ["op"]}) == {("acme", "op"): "this user is suspended"}
    else:
        await one.admit(operator)
        await other.admit(plain)
        assert await other.shut_out({"acme": ["op"]}) == {}
    found = await other.find("acme", "op")
    assert found is not None
    assert (found.state, found.by) == ("suspended", by)
    await one.put("acme", state="suspended")
    clock.now += FRESH_S
    with pytest.raises(AccessError, match="this tenant is suspended"):
        await one.admit(operator)


async def test_a_tenant_lets_in_nobody_whom_the_operator_shut_out(people: tuple[People, People, Clock]) -> None:
    """Neither by letting them in nor by shutting them out once more in its own name; its own it lets in again."""
    one, _, _ = people
    await one.put("acme", "tom", state="suspended")
    for state in ("active", "suspended"):
        with pytest.raises(AccessError, match="only one lets them in"):
            await one.put("acme", "tom", state=state, by=Role.TENANT_ADMIN)
    assert (await one.put("acme", "tom", state="active")).by is None
    assert (await one.put("acme", "tom", state="suspended", by=Role.TENANT_ADMIN)).by is Role.TENANT_ADMIN
    assert (await one.put("acme", "tom", state="suspended")).by is Role.PLATFORM_ADMIN
    await one.put("acme", "tom", state="active")
    await one.put("acme", "tom", state="suspended", by=Role.TENANT_ADMIN)
    await one.put("acme", "tom", state="active", by=Role.TENANT_ADMIN)
    await one.admit(who("acme", "tom"))


async def test_a_tenant_is_suspended_with_all_its_people(people: tuple[People, People, Clock]) -> None:
    """Also those whom the server believed a moment ago, and those of another tenant are not touched."""
    one, _, _ = people
    for tenant in ("acme", "rival"):
        await one.admit(who(tenant))
    await one.put("acme", state="suspended")
    for user in ("eva", "tom"):
        with pytest.raises(AccessError, match="this tenant is suspended"):
            await one.admit(who(user=user))
    await one.admit(who("rival"))
    assert [(known.tenant, known.state) for known in await one.tenants()] == [
        ("acme", "suspended"),
        ("rival", "active"),
    ]
    assert [known.user for known in await one.users("acme")] == ["eva"]
    assert [known.user for known in await one.users("acme", after="eva")] == []
    with pytest.raises(ConfigError, match="it is suspended"):
        await one.create("acme")


async def test_one_question_in_a_while_however_many_ask(
    people: tuple[People, People, Clock], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred requests at once ask the store once, the next ones not at all; being there is written once an hour."""
    one, _, clock = people
    asked: list[str] = []
    seen = one._seen

    def counted(key: tuple[str, str], roles: frozenset[Role]) -> str:
        asked.append(key[1])
        return seen(key, roles)

    monkeypatch.setattr(one, "_seen", counted)
    await asyncio.gather(*(one.admit(who()) for _ in range(100)))
    await one.admit(who())
    assert asked == ["eva"]
    first = await one.find("acme", "eva")
    assert first is not None
    clock.now += SEEN_EVERY_S - 1
    await one.admit(who())
    assert await one.find("acme", "eva") == first
    clock.now += FRESH_S
    await one.admit(who("acme", "eva", Role.SERVICE))
    after = await one.find("acme", "eva")
    assert after is not None
    assert (after.seen, after.roles) == (int(clock.now), ("service", "user"))


async def test_a_look_that_began_before_somebody_was_shut_out_lets_nobody_in(
    people: tuple[People, People, Clock], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it read was true when it read it, and is not when it is told: it is looked at again."""
    one, _, _ = people
    reading, told_ = threading.Event(), threading.Event()
    seen = one._seen

    def slow(key: tuple[str, str], roles: frozenset[Role]) -> str:
        found = seen(key, roles)
        reading.set()
        told_.wait(60)
        return found

    monkeypatch.setattr(one, "_seen", slow)
    entering = asyncio.create_task(one.admit(who()))
    await asyncio.to_thread(reading.wait, 60)
    await one.put("acme", "eva", state="suspended")
    told_.set()
    with pytest.raises(AccessError, match="this user is suspended"):
        await entering


async def test_a_token_and_a_key_in_turn_are_no_two_questions_each(
    people: tuple[People, People, Clock], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A role that was not seen yet is looked at once; after that who has either is known."""
    one, _, _ = people
    asked = 0
    seen = one._seen

    def counted(key: tuple[str, str], roles: frozenset[Role]) -> str:
        nonlocal asked
        asked += 1
        return seen(key, roles)

    monkeypatch.setattr(one, "_seen", counted)
    for _ in range(5):
        await one.admit(who())
        await one.admit(who("acme", "eva", Role.SERVICE))
    assert asked == 2


async def test_while_the_store_is_away_what_was_known_holds_for_a_minute(
    people: tuple[People, People, Clock], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let in stays in and refused stays out; after that nobody is let in, and a stranger is not from the first."""
    one, _, clock = people
    await one.admit(who())
    await one.put("acme", "tom", state="suspended")
    with pytest.raises(AccessError):
        await one.admit(who(user="tom"))

    def away(*_: Any) -> str:
        raise StoreError("gone")

    monkeypatch.setattr(one, "_seen", away)
    clock.now += FRESH_S + STALE_S - 1
    await one.admit(who())
    with pytest.raises(AccessError):
        await one.admit(who(user="tom"))
    with pytest.raises(StoreError):
        await one.admit(who(user="new"))
    clock.now += 2
    with pytest.raises(StoreError):
        await one.admit(who())


async def test_erasing_forgets_who_was_seen_and_lets_nobody_in(people: tuple[People, People, Clock]) -> None:
    """A person's row goes with them; a refusal stays, and so does the tenant; another tenant's row is not touched."""
    one, _, _ = people
    for tenant, user in (("acme", "eva"), ("acme", "ann"), ("rival", "eva")):
        await one.admit(who(tenant, user))
    await one.put("acme", "tom", state="suspended")
    scope = Scope(tenant="acme", user="boss")
    assert await one.erase(scope=scope, subject="eva") == 1
    assert await one.erase(scope=scope, subject="tom") == 0
    assert [known.user for known in await one.users("acme")] == ["ann", "tom"]
    assert await one.erase(scope=scope) == 1
    assert [known.user for known in await one.users("rival")] == ["eva"]
    assert [known.tenant for known in await one.tenants()] == ["acme", "rival"]
    await one.put("acme", state="suspended")
    await one.put("acme", state="deleted")
    assert await one.erase(scope=scope) == 1
    assert [known.user for known in await one.users("acme")] == []
    with pytest.raises(AccessError, match="not there any more"):
        await one.admit(who(user="tom"))


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


async def told(w: World, method: str, path: str, by: Person, **asked: Any) -> Any:
    return await w.send(method, path, Asked(**asked), by.token())


async def test_tokens_and_keys_of_a_user_are_refused_at_once(w: World) -> None:
    """On the hot path and elsewhere, in the shape of the route; let in again they work as before."""
    key = await w.keys.create(scope=EVA.scope)
    chat = Asked(body={"model": "m", "messages": [{"role": "user", "content": "hi"}]})
    for bearer in (EVA.token(), key):
        assert (await w.send("post", "/v1/chat/completions", chat, bearer)).status_code == 200
    shown = await told(w, "post", "/v1/admin/users/suspend", BOSS, body={"user": "eva", "note": "left"})
    assert (shown.status_code, shown.json()["roles"]) == (200, ["service", "user"])
    for bearer in (EVA.token(), key):
        refused = await w.send("post", "/v1/chat/completions", chat, bearer)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "policy.suspended")
        assert (await w.send("get", "/v1/sessions", Asked(), bearer)).json()["title"] == "policy.suspended"
    assert (await told(w, "post", "/v1/admin/users/resume", BOSS, body={"user": "eva"})).json()["note"] == "left"
    for bearer in (EVA.token(), key):
        assert (await w.send("post", "/v1/chat/completions", chat, bearer)).status_code == 200
    listed = (await told(w, "get", "/v1/admin/users", BOSS)).json()["data"]
    assert [one["user"] for one in listed] == ["boss", "eva"]
    begun = [e.detail["operation"] async for e in w.box.audit.entries("acme") if e.kind == "request.begun"]
    assert begun == ["users.suspend", "users.resume"]


@pytest.mark.parametrize("act", ["suspend", "resume"])
async def test_what_was_done_is_said_to_be_also_when_the_store_goes_right_after(
    w: World, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    """The answer is what the statement itself gave back: there is no second question that could fail."""
    put, away = People.put, False

    async def puts(self: People, *what: Any, **more: Any) -> Any:
        nonlocal away
        transaction = self._tables.transaction

        def once_only(*who_: Any, **how: Any) -> Any:
            nonlocal away
            if away:
                raise StoreError("gone")
            away = True
            return transaction(*who_, **how)

        monkeypatch.setattr(self._tables, "transaction", once_only)
        return await put(self, *what, **more)

    monkeypatch.setattr(People, "put", puts)
    answer = await told(w, "post", f"/v1/admin/users/{act}", BOSS, body={"user": "eva", "note": "n"})
    state = "suspended" if act == "suspend" else "active"
    assert (answer.status_code, answer.json()["state"], answer.json()["note"], away) == (200, state, "n", True)


async def test_what_breaks_on_the_way_has_an_end_on_record_too(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """An act that was begun and met a bug is not left open, and the answer is a problem like any other."""

    async def breaks(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    w.http = httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app=w.app, raise_app_exceptions=False), base_url="http://aibox"
    )
    monkeypatch.setattr(People, "put", breaks)
    answer = await w.send("post", "/v1/admin/users/suspend", Asked(body={"user": "eva"}), BOSS.token())
    await w.http.aclose()
    assert (answer.status_code, answer.json()["detail"]) == (500, "this went wrong, and it is our fault")
    assert answer.headers["content-type"] == "application/problem+json"
    found = [
        (entry.kind, entry.detail.get("outcome"))
        async for entry in w.box.audit.entries("acme")
        if entry.detail["operation"] == "users.suspend"
    ]
    assert found == [("request.begun", None), ("request.ended", "aibox")]


async def test_a_tenants_administrator_shuts_out_neither_the_operator_nor_themselves(w: World) -> None:
    """403 for a platform's administrator in the same tenant and for oneself, and nobody is shut out by it."""
    both = Person("acme", "op", ("platform_admin",))
    assert (await told(w, "get", "/v1/admin/tenants", both)).status_code == 200
    assert (await told(w, "post", "/v1/admin/users/suspend", BOSS, body={"user": "op"})).status_code == 403
    assert (await told(w, "post", "/v1/admin/users/suspend", BOSS, body={"user": "boss"})).status_code == 403
    assert (await told(w, "post", "/v1/admin/tenants/acme/suspend", both, body={})).status_code == 403
    assert (await told(w, "get", "/v1/admin/tenants", both)).status_code == 200
    assert (await told(w, "get", "/v1/admin/users", BOSS)).status_code == 200
    # One whom nobody has seen here yet, and one whom the operator shut out.
    unseen = Person("acme", "new", ("platform_admin",))
    made = await told(w, "post", "/v1/admin/users/suspend", BOSS, body={"user": "new"})
    assert (made.status_code, made.json()["by"]) == (200, "tenant_admin")
    assert (await told(w, "get", "/v1/admin/tenants", unseen)).status_code == 200
    assert (await told(w, "post", "/v1/admin/users/suspend", both, body={"user": "eva"})).json()["by"] == (
        "platform_admin"
    )
    for act in ("suspend", "resume"):
        assert (await told(w, "post", f"/v1/admin/users/{act}", BOSS, body={"user": "eva"})).status_code == 403
    assert (await told(w, "get", "/v1/models", EVA)).status_code == 403


async def test_a_tenant_is_made_suspended_ended_and_its_name_not_given_again(w: World) -> None:
    """Deleting asks for a suspension first (409), and is for good: nobody of it is let in, and no act takes it back."""
    made = await told(w, "post", "/v1/admin/tenants", ROOT, body={"name": "acme", "note": "new"})
    assert (made.status_code, made.json()["state"]) == (201, "active")
    key = await w.keys.create(scope=EVA.scope)
    early = await told(w, "delete", "/v1/admin/tenants/acme", ROOT)
    assert (early.status_code, "is not suspended" in early.text) == (409, True)
    assert (await w.send("get", "/v1/models", Asked(), key)).status_code == 200
    assert (await told(w, "post", "/v1/admin/tenants/acme/suspend", ROOT, body={})).json()["state"] == "suspended"
    assert (await w.send("get", "/v1/models", Asked(), key)).status_code == 403
    assert (await told(w, "get", "/v1/models", EVA)).status_code == 403
    assert (await told(w, "delete", "/v1/admin/tenants/acme", ROOT)).json()["state"] == "deleted"
    assert (await told(w, "get", "/v1/models", EVA)).status_code == 403
    assert (await told(w, "post", "/v1/admin/tenants", ROOT, body={"name": "acme"})).status_code == 409
    for act in ("resume", "suspend"):
        refused = await told(w, "post", f"/v1/admin/tenants/acme/{act}", ROOT, body={} if act == "suspend" else None)
        assert (refused.status_code, "was deleted" in refused.text) == (409, True)
    assert (await w.send("get", "/v1/models", Asked(), key)).status_code == 401
    assert (await told(w, "get", "/v1/models", EVA)).status_code == 403
    assert (await told(w, "get", "/v1/admin/tenants/nobody", ROOT)).status_code == 404
    await w.people.put("rival", state="active")
    with pytest.raises(ConfigError, match="is not suspended"):
        await w.people.put("rival", state="deleted")


TOM = Person("rival", "tom", ("user", "tenant_admin"))


async def kept(w: World, who: Person) -> dict[str, int]:
    """How much each part has of somebody's tenant."""
    tenant = who.tenant
    return {
        "memory": len(await w.box.memory.list(scope=who.scope)),
        "documents": len(await w.box.memory.documents(scope=who.scope)),
        "found": len(await w.box.memory.recall("What do I like to drink?", scope=who.scope)),
        "sessions": len(await w.box.state.sessions.list(scope=Scope(tenant=tenant, user=who.user, agent="default"))),
        "keys": len(await w.keys.list(tenant)),
        "deliveries": len(await Outbox(lambda: w.box.state.store).list(tenant, limit=9)),
        "policies": len(await w.in_force._policies.newest(tenant)),
        "users": len(await w.people.users(tenant)),
    }


async def test_what_is_kept_for_a_tenant_goes_with_it_and_its_evidence_stays(w: World) -> None:
    """From every store, once and for all, and nothing of another tenant; a tenant of that name would find nothing."""
    keys = {}
    for who_ in (EVA, TOM):
        keys[who_] = await w.keys.create(scope=who_.scope)
        await w.box.memory.remember("I like tea.", scope=who_.scope)
        outbox = Outbox(lambda: w.box.state.store)
        await outbox.begin(who_.tenant, 0)
        blocked = Event("msg_1", "turn.blocked", b"{}", ts_us=1, seq=0)
        await outbox.take(who_.tenant, {"ops": [blocked]}, upto=0)
        await w.box.memory.add(b"# Drinks\n\nTea is served at four.", name="drinks.md", scope=who_.scope)
        assert (await told(w, "post", "/v1/chat", who_, body={"message": "hi", "session": "s"})).status_code == 200
        boss = Person(who_.tenant, "boss", ("tenant_admin",))
        denied = {"policy": {"tools": {"deny": ["x"]}}}
        assert (await told(w, "put", "/v1/admin/policy/own", boss, body=denied)).status_code == 200
        assert (await told(w, "post", "/v1/admin/users/suspend", boss, body={"user": "ann"})).status_code == 200
    before = {who_: await kept(w, who_) for who_ in (EVA, TOM)}
    assert all(min(found.values()) > 0 for found in before.values()), before
    await told(w, "post", "/v1/admin/tenants/acme/suspend", ROOT, body={})
    hold = await w.box.audit.hold(scope=Scope(tenant="acme", user="dpo"), subject="eva", reason="a case")
    refused = await told(w, "delete", "/v1/admin/tenants/acme", ROOT)
    assert (refused.status_code, "legal hold" in refused.text) == (403, True)
    assert await kept(w, EVA) == before[EVA]
    await w.box.audit.release(hold.seq, scope=Scope(tenant="acme", user="dpo"), reason="over")
    for _ in range(2):
        gone = (await told(w, "delete", "/v1/admin/tenants/acme", ROOT)).json()
        assert (gone["state"], gone["policy"]) == ("deleted", None)
        assert set((await kept(w, EVA)).values()) == {0}
    assert await kept(w, TOM) == before[TOM]
    entries = [entry async for entry in w.box.audit.entries("acme")]
    assert [one.kind for one in entries if one.kind == "turn.sealed"] == ["turn.sealed"]
    emptied = [one.detail["stores"] for one in entries if one.kind == "tenant.emptied"]
    assert (emptied[0]["memory"], emptied[0]["keys"], emptied[0]["people"]) == (2, 1, 3)
    assert not any(emptied[1].values())
    assert (await w.box.audit.verify()).ok
    await w.people.remove("acme")  # as only somebody with the database in hand can
    await w.in_force.look(anew=True)
    assert w.box.rules("acme") is w.box.policy
    assert (await w.send("get", "/v1/models", Asked(), keys[EVA])).status_code == 401
    assert (await w.send("get", "/v1/models", Asked(), keys[TOM])).status_code == 200


async def test_a_key_is_for_the_models_that_it_names(w: World) -> None:
    """Another model and an agent are refused before anything is asked of them, by the name that is missing."""
    key = await w.keys.create(scope=EVA.scope, scopes=["inference"], models=["m"])

    async def ask(model: str) -> Any:
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
        return await w.send("post", "/v1/chat/completions", Asked(body=body), key)

    assert (await ask("m")).status_code == 200
    asked = len(w.model.requests)
    other, agent = await ask("default"), await ask("agent:default")
    assert (other.status_code, other.json()["error"]["code"]) == (403, "policy.scope")
    assert "not for the model default" in other.text
    assert (agent.status_code, "the scope agents" in agent.text) == (403, True)
    assert len(w.model.requests) == asked


async def test_a_narrow_key_is_shown_what_it_is_for(w: World) -> None:
    """The list of models has no more than the key may ask, under the names that it may use; a wide one has all."""

    async def listed(**narrow: Any) -> list[str]:
        key = await w.keys.create(scope=EVA.scope, **narrow)
        return [model["id"] for model in (await w.send("get", "/v1/models", Asked(), key)).json()["data"]]

    everything = await listed()
    assert {"agent:default", "m"} <= set(everything)
    assert await listed(scopes=["inference"]) == [name for name in everything if not name.startswith("agent:")]
    assert await listed(scopes=["inference", "agents"]) == everything
    assert await listed(scopes=["inference"], models=["m", "absent"]) == ["m"]
    assert await listed(scopes=["inference"], models=["absent"]) == []
    assert await listed(scopes=["inference"], models=["m/m"]) == ["m/m"]
    assert await listed(scopes=["inference"], models=["quick"]) == ["quick"]


async def test_who_may_not_ask_a_model_leaves_an_entry_on_openais_routes_too(w: World) -> None:
    """An auditor, a key for something else, a key for another model: one entry each, as on every other route."""
    body = Asked(body={"model": "m", "messages": [{"role": "user", "content": "hi"}]})
    guard = await w.keys.create(scope=EVA.scope, scopes=["guard"])
    other = await w.keys.create(scope=EVA.scope, scopes=["inference"], models=["large"])
    auditor = Person("acme", "ann", ("auditor",)).token()
    for bearer in (auditor, guard, other):
        assert (await w.send("post", "/v1/chat/completions", body, bearer)).status_code == 403
    found = [entry async for entry in w.box.audit.entries("acme") if entry.kind == "request.ended"]
    assert [(entry.detail["operation"], entry.detail["outcome"]) for entry in found] == [
        ("openai.chat", "policy.access"), ("openai.chat", "policy.scope"), ("openai.chat", "policy.scope"),
    ]  # fmt: skip
    assert found[1].detail["how"] == f"key:{guard.split('-')[1]}"


async def test_a_narrow_key_makes_no_wider_one(w: World) -> None:
    """A key for administration alone makes keys of that and no more, and does not take over one that is wider."""
    roles = [Role.TENANT_ADMIN]
    narrow = await w.keys.create(scope=BOSS.scope, roles=roles, scopes=["admin"])
    wide = (await w.keys.create(scope=EVA.scope)).split("-")[1]

    async def ask(method: str, path: str, body: Any) -> int:
        return (await w.send(method, f"/v1/admin/keys{path}", Asked(body=body), narrow)).status_code

    assert await ask("post", "", {"user": "x"}) == 403
    assert await ask("post", "", {"user": "x", "scopes": ["admin", "agents"]}) == 403
    assert await ask("post", f"/{wide}/rotate", {}) == 403
    assert await ask("post", "", {"user": "x", "scopes": ["admin"]}) == 201


async def test_who_is_erased_from_the_command_line_is_not_listed_any_more(tmp_path: Path) -> None:
    """`aibox audit erase` opens no server, and takes along what one kept; a box that served nobody gets no files."""
    settings = Settings(home=tmp_path / "home", policy="permissive")
    async with world(tmp_path) as w:
        assert (await told(w, "get", "/v1/usage", EVA)).status_code == 200
        await w.box.audit.append("turn.started", scope=EVA.scope, detail={"agent": "a"})
    (settings.home / "aibox.toml").write_text('[server]\napi_keys = "programs.db"\n')
    keys = ApiKeys(settings.home / "programs.db")
    await keys.create(scope=EVA.scope)
    await keys.close()
    runner = partial(CliRunner().invoke, app, env={"AIBOX_HOME": str(settings.home)}, catch_exceptions=False)
    done = await asyncio.to_thread(runner, ["audit", "erase", "eva", "--tenant", "acme", "--reason", "asked"])
    assert "1 from people" in done.output, done.output
    assert "1 from keys" in done.output, done.output
    people = People(settings.home / "people.db")
    assert await people.users("acme") == []
    await people.close()
    async with Box(Settings(home=tmp_path / "other")) as box:
        stores.keep_if_served(box)
        assert not (tmp_path / "other" / "people.db").exists()


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("post", "/v1/admin/tenants", {"name": "fresh"}),
        ("post", "/v1/admin/tenants/acme/suspend", {}),
        ("post", "/v1/admin/users/suspend", {"user": "eva"}),
        ("post", "/v1/admin/users/resume", {"user": "eva"}),
        ("post", "/v1/admin/keys", {"user": "eva"}),
        ("get", "/v1/admin/users?after=a%00b", None),
        ("get", "/v1/memory/a%00b", None),
        ("get", "/v1/approvals/a%00b", None),
        ("get", "/v1/receipts/a%00b", None),
    ],
)
async def test_a_text_that_no_database_keeps_is_a_mistake_of_the_caller(
    w: World, method: str, path: str, body: dict[str, str] | None
) -> None:
    """A NUL in a note, a name to go on from, or an id is a 400 that says so: PostgreSQL refuses the whole statement."""
    sent = None if body is None else {**body, "note": "a\0b"}
    answer = await w.http.request(
        method, path, json=sent, headers={"authorization": f"Bearer {Person('ops', 'o', ROLES).token()}"}
    )
    assert answer.status_code == 400
    assert answer.json()["detail"].endswith("it holds a NUL, which no text does that is kept; leave it out")
