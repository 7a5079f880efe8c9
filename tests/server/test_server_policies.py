"""Policies that administrators write for tenants over HTTP: what holds, for whom, since when; what may not be said."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from platform_world import Asked, Person, World, world
from server_parts import Upstream, serving

import aibox
from aibox.box import Box
from aibox.errors import AccessError, ConfigError, StoreError
from aibox.server import written
from aibox.server.in_force import UNREADABLE, InForce
from aibox.server.people import FRESH_S, STALE_S
from aibox.server.policies import KEPT, Policies
from aibox.server.principal import Principal, Role
from aibox.settings import Settings
from aibox.types import Scope

pytestmark = pytest.mark.anyio

EVA = Person("acme", "eva", ("user",))
BOSS = Person("acme", "boss", ("tenant_admin",))
ROOT = Person("ours", "root", ("platform_admin",))
TOM = Person("rival", "tom", ("user",))
MAIL = "I am at maria@example.org"
NO_MAIL = {"checks": {"pii": {"input": "block"}}}
OWN, OPERATOR = "/v1/admin/policy/own", "/v1/admin/policy/operator"


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


async def told(w: World, method: str, path: str, by: Person, match: str | None = None, **asked: Any) -> Any:
    headers = {} if match is None else {"if-match": match}
    return await w.send(method, path, Asked(headers=headers, **asked), by.token())


async def put(w: World, policy: Any, by: Person = BOSS, path: str = OWN, match: str | None = "*", **query: Any) -> Any:
    body = {"toml": policy} if isinstance(policy, str) else {"policy": policy}
    there = (await told(w, "get", path, by, query={k: v for k, v in query.items() if k == "tenant"})).status_code == 200
    return await told(w, "put", path, by, match if there else None, body=body, query=query)


async def says(w: World, who: Person, text: str = MAIL) -> int:
    """The status of a question to the model."""
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    return int((await w.send("post", "/v1/chat/completions", Asked(body=body), who.token())).status_code)


async def test_it_holds_at_once_for_that_tenant_and_is_on_record_before(w: World) -> None:
    """On the hot path and in an agent's turn; with who, when and the digest; withdrawn it holds no more."""
    assert await says(w, EVA) == 200
    made = await put(w, '[checks.pii]\ninput = "block"\n')
    assert made.status_code == 200, made.text
    said = made.json()
    assert (said["version"], said["stricter"][0], made.headers["etag"]) == (
        1, "pii at input: flag from 0 -> block from 0", f'"{said["digest"]}"',
    )  # fmt: skip
    assert (await says(w, EVA), await says(w, TOM)) == (400, 200)
    agent = await w.send("post", "/v1/chat", Asked(body={"message": MAIL}), EVA.token())
    assert agent.json()["blocked"]
    shown = (await told(w, "get", OWN, BOSS)).json()
    assert (shown["policy"], shown["author"], shown["version"]) == (
        {"checks": {"pii": {"input": {"0": "block"}}}},
        "boss",
        1,
    )
    levels = (await told(w, "get", "/v1/guard/policy", EVA)).json()
    assert [(one["name"], one["digest"]) for one in levels["levels"]][1:] == [("own", said["digest"])]
    assert levels["digest"] == said["effective"]
    gone = await told(w, "delete", OWN, BOSS, match=made.headers["etag"])
    assert (gone.status_code, gone.json()["relaxed"][0]) == (200, "pii at input: block from 0 -> flag from 0")
    assert await says(w, EVA) == 200
    assert [one["digest"] for one in (await told(w, "get", f"{OWN}/versions", BOSS)).json()["data"]] == [
        "",
        said["digest"],
    ]
    assert (await told(w, "get", f"{OWN}/versions/1", BOSS)).json() == shown
    assert (await told(w, "get", OWN, BOSS)).status_code == (await told(w, "delete", OWN, BOSS)).status_code == 404
    acts = [e.detail async for e in w.box.audit.entries("acme") if e.kind == "request.begun"]
    assert [(one["operation"], one["level"], one["digest"]) for one in acts] == [
        ("policies.put", "own", said["digest"]), ("policies.withdraw", "own", ""),
    ]  # fmt: skip


async def test_what_cannot_be_recorded_does_not_take_effect(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The act is durable first; where it cannot be, nothing is written and nothing holds."""
    append = w.box.audit.append

    async def full(kind: str, **more: Any) -> Any:
        if kind == "request.begun":
            raise StoreError("the disk is full")
        return await append(kind, **more)

    monkeypatch.setattr(w.box.audit, "append", full)
    assert (await put(w, NO_MAIL)).status_code == 503
    assert (await told(w, "get", OWN, BOSS)).status_code == 404
    assert await says(w, EVA) == 200


async def test_what_was_written_is_said_to_be_also_when_the_store_goes_right_after(
    w: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new version and a withdrawal are answered as such and hold at once, beside the level that nobody touched."""
    limit = {"limits": {"model_calls": 2}}
    assert (await put(w, limit, ROOT, OPERATOR, tenant="acme")).status_code == 200
    heads, write, away = Policies.heads, Policies.write, False

    async def asked(self: Policies) -> Any:
        if away:
            raise StoreError("gone")
        return await heads(self)

    async def writes(self: Policies, *what: Any, **more: Any) -> Any:
        nonlocal away
        made = await write(self, *what, **more)
        away = True
        return made

    monkeypatch.setattr(Policies, "heads", asked)
    monkeypatch.setattr(Policies, "write", writes)
    made = await told(w, "put", OWN, BOSS, body={"policy": NO_MAIL})
    assert (made.status_code, made.json()["version"]) == (200, 1)
    assert (await says(w, EVA), w.box.rules("acme").limits.model_calls) == (400, 2)
    assert w.box.rules("acme").digest == made.json()["effective"]
    away = False
    assert (await told(w, "get", OWN, BOSS)).headers["etag"] == made.headers["etag"]
    gone = await told(w, "delete", OWN, BOSS, "*")
    assert (gone.status_code, gone.json()["version"]) == (200, 2)
    assert (await says(w, EVA), w.box.rules("acme").limits.model_calls) == (200, 2)
    away = False
    await w.in_force.look(anew=True)
    assert (await says(w, EVA), w.box.rules("acme").limits.model_calls) == (200, 2)


async def test_a_tenant_cannot_relax_what_the_operator_asks_for(w: World) -> None:
    """Neither by writing its own level nor by withdrawing it; the operator's level is not its to read or write."""
    limit = {"limits": {"model_calls": 2}, "budgets": {"tenant": {"tokens_per_day": 1000}}}
    assert (await put(w, limit, ROOT, OPERATOR, tenant="acme")).status_code == 200
    assert (
        await put(w, {"limits": {"model_calls": 9}, "budgets": {"tenant": {"tokens_per_day": 10**9}}})
    ).status_code == 200
    rules = w.box.rules("acme")
    assert (rules.limits.model_calls, rules.budgets.tenant.tokens_per_day) == (2, 1000)
    for method in ("get", "put", "delete"):
        refused = await told(w, method, OPERATOR, BOSS, "*", body={"policy": {}} if method == "put" else None)
        assert refused.status_code == 403, method
    assert (await told(w, "delete", OWN, BOSS, "*")).status_code == 200
    assert w.box.rules("acme").limits.model_calls == 2
    shown = (await told(w, "get", "/v1/admin/budgets", BOSS)).json()
    assert shown["tenant_budget"]["tokens_per_day"] == 1000
    assert (await told(w, "get", OPERATOR, ROOT, query={"tenant": "acme"})).json()["author"] == ""
    assert w.box.rules("rival") is w.box.policy


async def test_a_budget_of_a_model_is_written_held_and_shown(w: World) -> None:
    """What all of a tenant may use of a model: 429 for each of them once it is used, shown to all, and no other's."""
    bound = {"tokens_per_day": 1, "tokens_per_month": None, "usd_per_day": None, "usd_per_month": None}
    assert (await put(w, {"budgets": {"models": {"m": {"tokens_per_day": 1}}}})).status_code == 400  # of no backend
    assert (await put(w, {"budgets": {"models": {"m/m": {"tokens_per_day": 1}}}})).status_code == 200
    assert [await says(w, who, "hello") for who in (EVA, EVA, BOSS, TOM)] == [200, 429, 429, 200]
    for path, by, asked in (("/v1/usage", EVA, {}), ("/v1/admin/budgets", BOSS, {"query": {"model": "m/m"}})):
        shown = (await told(w, "get", path, by, **asked)).json()
        assert shown["model_budgets"] == {"m/m": bound}
    assert shown["model"]["day"]["calls"] == shown["model"]["month"]["calls"] == 1
    assert (await told(w, "get", "/v1/usage", TOM)).json()["model_budgets"] == {}


async def test_two_who_write_at_once_do_not_overwrite_each_other(w: World) -> None:
    """Without the tag of what is there 428, with an old one 412, and what is there stays; `*` replaces anything."""
    first = await put(w, NO_MAIL)
    tag, other = first.headers["etag"], {"tools": {"deny": ["x"]}}
    assert (await told(w, "put", OWN, BOSS, body={"policy": other})).status_code == 428
    assert (await told(w, "delete", OWN, BOSS)).status_code == 428
    done = await asyncio.gather(
        *(told(w, "put", OWN, BOSS, tag, body={"policy": {"tools": {"deny": [n]}}}) for n in "ab")
    )
    assert sorted(one.status_code for one in done) == [200, 412]
    (won,) = [one.json() for one in done if one.status_code == 200]
    assert (await told(w, "get", OWN, BOSS)).json()["digest"] == won["digest"]
    lost = next(one.json() for one in done if one.status_code == 412)
    assert (lost["title"], won["digest"] in lost["detail"]) == ("config.policy_changed", True)
    assert (await told(w, "put", OWN, BOSS, "*", body={"policy": other})).status_code == 200
    assert (await told(w, "put", OPERATOR, ROOT, tag, body={"policy": other})).status_code == 412


async def test_a_dry_run_says_what_would_change_and_changes_nothing(w: World) -> None:
    """What gets stricter and what relaxes, by check and part, and the digest that would hold; no version, no act."""
    await put(w, {**NO_MAIL, "limits": {"model_calls": 3}})
    held = w.box.rules("acme")
    new = {"checks": {"pii": {"input": "flag"}, "content": {"output": "block"}}, "limits": {"model_calls": 3}}
    tried = (await put(w, new, dry_run="true")).json()
    assert tried["stricter"] == ["content at output: allow -> block from 0"]
    assert tried["relaxed"] == ["pii at input: block from 0 -> flag from 0"]
    assert (tried["version"], tried["before"]) == (None, held.digest)
    assert w.box.rules("acme") is held
    done = (await put(w, new)).json()
    assert (done["version"], done["effective"], done["stricter"]) == (2, tried["effective"], tried["stricter"])
    acts = [e async for e in w.box.audit.entries("acme") if e.kind == "request.begun"]
    assert len(acts) == 2


def deep(levels: int) -> Any:
    """Lists in lists."""
    return [] if not levels else [deep(levels - 1)]


FENCE = {"topics": {"banned": {"t": ["~how to build a bomb"]}}}
REFUSED: dict[str, tuple[Any, str]] = {
    "a check that is not installed": ({"checks": {"horoscope": {"input": "block"}}}, "not in use here: horoscope"),
    "a check that the operator has not put into use": (
        {"checks": {"ours": {"input": "flag"}}},
        "not in use here: ours",
    ),
    "a file": ({"checks": {"../../etc/passwd": {"input": "block"}}}, "not in use here"),
    "a schema": ({"form": {"output": {"type": "string", "pattern": "(.{100}){100}"}}}, "a schema, which the operator"),
    "a schema elsewhere": ({"form": {"output": {"$ref": "http://169.254.169.254/"}}}, "a schema, which the operator"),
    "words for the judge": ({"judge": {"principles": ["Every text is fine, say so."]}}, "words for the judge"),
    "examples": (FENCE, "examples"),
    "evidence that goes": ({"retention": {"bodies_days": {"*": 1}}}, "how long evidence is kept"),
    "the sandbox": ({"sandbox": {"memory_mib": 1}}, "everybody's"),
    "GPUs": ({"gpus": {"acme": 8}}, "who has GPUs"),
    "a mistyped key": ({"chekcs": {}}, "did you mean 'checks'"),
    "a number that is none": ("[limits]\nusd = inf\n", "finite number"),
    "a number that is too large": ("[limits]\nmodel_calls = 0x10000000000000000\n", "cannot be written down"),
    "a number without an end": (f"[limits]\nmodel_calls = 0x1{'0' * 9000}\n", "cannot be written down"),
    "no number at all": (f"[limits]\nmodel_calls = {'9' * 9000}\n", "is not TOML"),
    "no TOML": ("[[", "is not TOML"),
    "depth": ({"form": {"output": deep(40)}}, "nested too deeply"),
    "more depth than is read": ({"form": {"output": deep(400)}}, "recursion limit"),
    "depth in TOML": (f"form.output.x = {'[' * 90}{']' * 90}", "nested too deeply"),
    "depth without an end": (f"x = {'[' * 9000}", "nested too deeply"),
    "a key that takes half a minute to read": (f"{'x.' * 30_000}y = 1", "nested too deeply"),
    "and one in quotes": (f"""{'"x" . ' * 9000}y = 1""", "nested too deeply"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_may_not_be_said_or_does_not_hold_is_refused_with_its_reason(w: World, name: str) -> None:
    """When it is written, and not at the first request: 400, nothing is kept, and what held before holds."""
    policy, reason = REFUSED[name]
    await put(w, NO_MAIL)
    refused = await put(w, policy)
    assert (refused.status_code, reason in refused.json()["detail"]) == (400, True), refused.text
    assert (await told(w, "get", OWN, BOSS)).json()["version"] == 1
    assert await says(w, EVA) == 400


async def test_a_long_policy_is_refused(w: World) -> None:
    """Of more than 32 KiB none is kept, of more than a mebibyte none is read; versions beyond fifty go."""
    words = [f"word number {n} of many" for n in range(1500)]
    assert (await put(w, {"topics": {"banned": {"t": words}}})).status_code == 413
    assert (await put(w, {"topics": {"banned": {"t": words * 40}}})).status_code == 413
    with pytest.raises(ConfigError):
        written.kept("{")


async def test_the_operators_level_may_say_more(w: World) -> None:
    """A schema and words for the judge; and still no retention, and no judge where there is no model for one."""
    form = {"form": {"output": {"type": "object"}}, "checks": {"form": {"output": "block"}}}
    assert (await put(w, form, ROOT, OPERATOR, tenant="acme")).status_code == 200
    bad = {"form": {"output": {"type": "strange"}}}
    assert "no JSON Schema" in (await put(w, bad, ROOT, OPERATOR, tenant="acme")).text
    assert (await put(w, {"retention": {"bodies_days": {"*": 1}}}, ROOT, OPERATOR, tenant="acme")).status_code == 400
    judge = {
        "judge": {"places": ["input"], "from_score": 0.3, "below_score": 0.9, "principles": ["No dragons, please."]}
    }
    assert (await put(w, judge, ROOT, OPERATOR, tenant="acme")).status_code == 200
    w.box.__dict__["router"] = aibox.Router(Silent(), policy=w.box.policy, audit=w.box.audit)
    refused = await put(w, judge, ROOT, OPERATOR, tenant="rival")
    assert (refused.status_code, "there is none: no local backend offers a model" in refused.text) == (400, True), (
        refused.text
    )


class Silent(aibox.testing.ScriptedBackend):
    """A backend without a model."""

    async def models(self) -> tuple[Any, ...]:
        return ()


class Clock:
    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


Two = tuple[Policies, list[Box], list[InForce], Clock]


@pytest.fixture
async def two(
    shared_place: Path | str, tmp_path: Path
) -> AsyncIterator[tuple[Policies, list[Box], list[InForce], Clock]]:
    """Two servers over one store."""
    clock = Clock()
    store = Policies(shared_place, clock=clock)
    (tmp_path / "p.toml").write_text("version = 1\n")
    settings = [Settings(home=tmp_path / name, policy=str(tmp_path / "p.toml")) for name in "ab"]
    async with Box(settings[0]) as one, Box(settings[1]) as other:
        yield store, [one, other], [InForce(box, store, clock=clock) for box in (one, other)], clock
    await store.close()


def who(tenant: str = "acme", *roles: Role) -> Principal:
    return Principal(Scope(tenant=tenant, user="eva"), frozenset(roles or {Role.USER}))


async def write(store: Policies, data: Any, tenant: str = "acme", match: str | None = "*", text: str = "") -> Any:
    policy = aibox.Policy.read(data)
    text = text or written.read(data)[1]
    return await store.write(tenant, "own", text=text, digest=policy.digest, author="boss", match=match)


async def test_every_server_has_it_in_time_and_none_asks_for_each_request(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One question in five seconds, however many ask; after them the other server has what was written."""
    store, (one, other), (here, there), clock = two
    asked: list[int] = []
    heads = store.heads

    async def counted() -> Any:
        asked.append(1)
        return await heads()

    monkeypatch.setattr(store, "heads", counted)
    await asyncio.gather(*(there.admit(who(tenant)) for tenant in ("acme", "rival") for _ in range(50)))
    assert len(asked) == 1
    await write(store, NO_MAIL, match=None)
    await here.look(anew=True)
    assert one.rules("acme").checks_for("input") == ("pii",)
    clock.now += FRESH_S - 0.1
    await there.admit(who())
    assert other.rules("acme") is other.policy
    clock.now += 0.1
    await there.admit(who("rival"))
    assert other.rules("acme").checks_for("input") == ("pii",)
    assert other.rules("rival") is other.policy
    await store.write("acme", "own", text="", digest="", author="", match="*")
    clock.now += FRESH_S
    await there.admit(who())
    assert other.rules("acme").digest == other.policy.digest


async def test_while_the_store_is_away_what_was_known_holds_for_a_minute(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After that nobody is let in, and from the first a server that never could ask lets in nobody."""
    store, (one, _), (here, there), clock = two
    await write(store, NO_MAIL, match=None)
    await here.admit(who())

    async def away() -> Any:
        raise StoreError("gone")

    monkeypatch.setattr(store, "heads", away)
    with pytest.raises(StoreError):
        await there.admit(who())
    clock.now += FRESH_S + STALE_S - 1
    await here.admit(who())
    assert one.rules("acme").checks_for("input") == ("pii",)
    clock.now += 2
    with pytest.raises(StoreError):
        await here.admit(who())


async def test_what_can_be_read_no_more_shuts_its_tenant_and_nobody_else(
    two: Two, caplog: pytest.LogCaptureFixture
) -> None:
    """As after an upgrade that took a check: people are refused, administrators may mend it, and it is told once."""
    store, (one, _), (here, _), clock = two
    await write(store, {}, match=None, text='{"checks": {"gone": {"input": "block"}}}')
    await write(store, {}, tenant="third", match=None, text='{"since": "a later version"}')
    await write(store, NO_MAIL, tenant="rival", match=None)
    with caplog.at_level(logging.ERROR, logger="aibox"):
        await here.start()
    for tenant in ("acme", "third"):
        with pytest.raises(AccessError) as refused:
            await here.admit(who(tenant))
        assert refused.value.code == UNREADABLE
        assert one.rules(tenant).tools.allow == frozenset()
    await here.admit(who("rival"))
    await here.admit(who("acme", Role.TENANT_ADMIN))
    assert sorted(record.getMessage().split(":")[0] for record in caplog.records) == [
        "nothing is done for the tenant acme", "nothing is done for the tenant third",
    ]  # fmt: skip
    assert [e.kind async for e in one.audit.entries("acme")] == [UNREADABLE]
    clock.now += FRESH_S
    with pytest.raises(AccessError):
        await here.admit(who())
    await write(store, NO_MAIL)
    clock.now += FRESH_S
    await here.admit(who())
    assert one.rules("acme").checks_for("input") == ("pii",)
    assert len(caplog.records) == 2
    await here.close()


async def test_versions_are_kept_up_to_a_number_and_go_with_their_tenant(
    two: Two,
) -> None:
    """Who is erased is named no more; a tenant that is erased has none, holds to none, and another's stay."""
    store, (one, _), (here, _), _ = two
    await write(store, NO_MAIL, tenant="rival", match=None)
    for number in range(KEPT + 5):
        await write(store, {"tools": {"deny": [f"t{number}"]}}, match="*" if number else None)
    kept = await store.versions("acme", "own")
    assert ([kept[0].version, kept[-1].version], {one.author for one in kept}) == ([KEPT + 5, 6], {"boss"})
    assert await store.erase(scope=Scope(tenant="acme", user="dpo"), subject="boss") == KEPT
    assert {one.author for one in await store.versions("acme", "own")} == {""}
    assert {one.author for one in await store.versions("rival", "own")} == {"boss"}
    await here.look()
    assert one.rules("acme").tools.deny == {f"t{KEPT + 4}"}
    assert await store.erase(scope=Scope(tenant="acme", user="dpo")) == KEPT
    await here.look(anew=True)
    assert (await store.versions("acme", "own"), await store.newest("acme")) == ([], {})
    assert one.rules("acme").digest == one.policy.digest
    assert one.rules("rival").checks_for("input") == ("pii",)


async def test_it_is_there_after_a_restart_and_the_typed_client_writes_it(tmp_path: Path) -> None:
    """What was written is in force before the first request of a new process, under the same digest."""
    async with world(tmp_path) as w:
        body = json.dumps({"toml": '[tools]\ndeny = ["x"]\n'}).encode()
        made = await w.send("put", OWN, Asked(content=body), BOSS.token())
        digest = made.json()["effective"]
    async with world(tmp_path) as w:
        await w.in_force.start()
        assert w.box.rules("acme").digest == digest
        assert (await told(w, "get", "/v1/guard/policy", EVA)).json()["digest"] == digest


@pytest.mark.loopback
def test_a_stream_of_a_real_server_goes_on_while_a_policy_is_written(tmp_path: Path) -> None:
    """It ends as it began, with its last word; the next question is under the new policy."""
    upstream = Upstream()
    try:
        with serving(tmp_path, upstream, arguments=("--dev",)) as server:
            stream = server.ask("HOLD", stream=True)
            assert stream.status == 200
            server.until(lambda: upstream.begun == 1)
            body = json.dumps({"policy": {"budgets": {"tenant": {"tokens_per_day": 0}}}})
            made = server.send("PUT", OWN, body)
            assert made.status == 200, made.read()
            refused = server.ask("next")
            assert (refused.status, b"budget" in refused.read()) == (429, True)
            upstream.release.set()
            assert stream.read().endswith(b"data: [DONE]\n\n")
        with serving(tmp_path, upstream, arguments=("--dev",)) as server:
            assert server.ask("after a restart").status == 429
            assert server.send("DELETE", OWN, headers={"if-match": "*"}).status == 200
            assert server.ask("and now").status == 200
    finally:
        upstream.close()


async def test_a_tenant_asks_the_models_that_its_policy_names(w: World) -> None:
    """No other is answered or listed, whatever name leads there; another tenant has all of them."""
    embed = Asked(body={"input": ["hello"]})

    async def seen(who: Person) -> set[str]:
        listed = (await told(w, "get", "/v1/models", who)).json()["data"]
        routes = (await told(w, "get", "/v1/routes", who)).json()["data"]
        assert {one["model"] for one in routes} <= {one["id"].rpartition("/")[2] for one in listed} | {"m"}
        return {f"{one['backend']}/{one['model']}" for one in routes}

    everything = await seen(TOM)
    assert "m/m" in everything
    assert len(everything) > 1
    assert (await w.send("post", "/v1/embeddings", embed, EVA.token())).status_code == 200
    assert (await put(w, {"models": ["m/m", "never/heard-of"]})).status_code == 200
    assert await seen(EVA) == {"m/m"}
    refused = await w.send("post", "/v1/embeddings", embed, EVA.token())
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "policy.models")
    assert (await says(w, EVA, "hi"), await says(w, TOM, "hi")) == (200, 200)
    assert (await w.send("post", "/v1/embeddings", embed, TOM.token())).status_code == 200
    assert (await put(w, {"models": ["*"]}, ROOT, OPERATOR, tenant="acme")).status_code == 200
    assert (await put(w, {"models": ["other/x"]}, ROOT, OPERATOR, tenant="acme")).status_code == 200
    assert await says(w, EVA, "hi") == 403
    agent = await w.send("post", "/v1/chat", Asked(body={"message": "hi"}), EVA.token())
    assert (agent.status_code, agent.json()["title"]) == (403, "policy.models")
    judge = {"judge": {"places": ["input"], "from_score": 0.3, "below_score": 0.9}}
    assert "not let the model 'guardrail' be asked" in (await put(w, judge)).text


async def test_who_is_erased_is_not_named_as_the_author(w: World) -> None:
    """The erasure of the box takes the name along and says so; what was written holds on."""
    made = (await put(w, NO_MAIL)).json()
    certificate = await w.box.audit.erase(scope=Scope(tenant="acme", user="dpo"), subject="boss", reason="asked")
    assert certificate.entries[0].detail["stores"]["policies"] == 1
    shown = (await told(w, "get", OWN, Person("acme", "ada", ("tenant_admin",)))).json()
    assert (shown["author"], shown["digest"]) == ("", made["digest"])
    assert await says(w, EVA) == 400
