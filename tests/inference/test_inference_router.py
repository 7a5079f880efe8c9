"""The Router: which backend answers, what the policy bounds, and what passes through the door."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from inference_parts import Notes, Upstream

from aibox.chat import ChatRequest, Completion, ModelInfo, assemble
from aibox.errors import BackendError, ConfigError, EgressError, StoreError
from aibox.inference.openai_compatible import OpenAICompatible
from aibox.inference.router import Router
from aibox.policy.egress import EgressRules
from aibox.policy.limits import TurnLimits
from aibox.policy.policy import Policy
from aibox.protocols import Backend
from aibox.testing.backend_contract import BackendContract
from aibox.testing.scripted import ScriptedBackend, call
from aibox.types import Label, Scope

pytestmark = pytest.mark.anyio

OPEN = Policy(egress=EgressRules(models=frozenset({"outside/outside"}), ceiling=Label.parse("internal")))
TOOLS = [
    {
        "type": "function",
        "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
    }
]


class TestScriptedBackend(BackendContract):
    @pytest.fixture
    def backend(self) -> Backend:
        return ScriptedBackend(*["Hello there, friend."] * 10)


class TestRouter(BackendContract):
    @pytest.fixture
    async def backend(self) -> AsyncIterator[Backend]:
        router = Router(ScriptedBackend(*["Hello there, friend."] * 10), policy=Policy())
        yield router
        await router.close()


class Serves(ScriptedBackend):
    """A scripted backend with several models."""

    def __init__(self, *models: str, name: str, external: bool = False) -> None:
        super().__init__(*[name] * 10, name=name, external=external)
        self._offers = models
        self.asked = 0
        self.down = False

    async def models(self) -> tuple[ModelInfo, ...]:
        self.asked += 1
        if self.down:
            raise BackendError(f"{self.name} is down", hint="start it", retryable=True)
        return tuple(ModelInfo(id=model, backend=self.name, external=self.external) for model in self._offers)


@pytest.mark.parametrize(
    ("model", "backend", "asked"),
    [
        ("default", "one", "a"),
        ("b", "two", "b"),
        ("two/b", "two", "b"),
        ("org/big", "two", "org/big"),
        ("two/org/big", "two", "org/big"),
        ("one/shared", "one", "shared"),
        ("quick", "two", "b"),
    ],
)
async def test_a_name_finds_its_backend(model: str, backend: str, asked: str, scope: Scope) -> None:
    """`default`, bare ids, ids with a slash, backend/model and aliases; the backend gets its own name of the model."""
    one, two = Serves("a", "shared", name="one"), Serves("b", "org/big", "shared", name="two")
    router = Router(one, two, aliases={"quick": "two/b"})
    completion = await router.complete("Hi", model=model, scope=scope)
    assert completion.backend == backend
    assert {"one": one, "two": two}[backend].requests[0].model == asked


async def test_a_model_that_nobody_offers_is_an_error_that_lists_what_there_is(scope: Scope) -> None:
    """Whoever mistypes a name sees the names."""
    with pytest.raises(ConfigError, match=r"there is no model 'x'.*one/a, two/b"):
        await Router(Serves("a", name="one"), Serves("b", name="two")).complete("Hi", model="x", scope=scope)


async def test_a_backend_that_cannot_be_asked_is_named(scope: Scope) -> None:
    """Down is not the same as unknown; what others offer is still found and listed."""
    one, two = Serves("a", name="one"), Serves("b", name="two")
    two.down = True
    router = Router(one, two)
    with pytest.raises(BackendError, match=r"two is down.*start it") as caught:
        await router.complete("Hi", model="b", scope=scope)
    assert caught.value.retryable
    assert (await router.complete("Hi", model="a", scope=scope)).text == "one"
    assert [info.id for info in await router.models()] == ["a"]


async def test_local_never_becomes_external_by_itself(scope: Scope, notes: Notes) -> None:
    """With every local backend down, an external one that could answer is not asked."""
    local, outside = Serves("m", name="local"), Serves("m", name="outside", external=True)
    router = Router(outside, local, policy=Policy(egress=EgressRules(models=frozenset({"*"}))), audit=notes)
    assert (await router.complete("Hi", model="m", scope=scope, label="public")).backend == "local"
    only = Router(outside, policy=Policy(egress=EgressRules(models=frozenset({"*"}))), audit=notes)
    with pytest.raises(ConfigError, match="no local model"):
        await only.complete("Hi", scope=scope, label="public")
    local.down = True
    with pytest.raises(BackendError, match="local is down"):
        await Router(local, outside, policy=OPEN, audit=notes).complete("Hi", scope=scope, label="public")
    assert not outside.requests


async def test_models_are_not_asked_for_each_time(scope: Scope) -> None:
    """One listing serves many calls."""
    one = Serves("a", name="one")
    router = Router(one)
    for _ in range(5):
        await router.complete("Hi", scope=scope)
    assert one.asked == 1


async def test_what_servers_offer_anew_is_found_when_they_are_asked_again(scope: Scope) -> None:
    """A name that led to one leads to both once the other has said that it has it, and to none that lost it."""
    one, two = Serves("a", name="one"), Serves("a", "x", name="two")
    registry = Router(one, two)._registry

    async def led() -> set[str]:
        return {route.replica.name for route in await registry.find("x", tenant=scope.tenant)}

    async def asked_again() -> None:
        for listing in registry._listings.values():
            listing.fresh_until = 1e-9
        registry._found = {}  # as when the time has come
        await led()
        before = one.asked + two.asked
        async with asyncio.timeout(30):
            while one.asked + two.asked < before + 2:
                await asyncio.sleep(0.001)

    assert await led() == {"two"}
    one._offers = ("a", "x")
    assert await led() == {"two"}
    await asked_again()
    assert await led() == {"one", "two"}
    two._offers = ("a",)
    await asked_again()
    assert await led() == {"one"}
    await registry.close()


@pytest.mark.parametrize(
    ("backends", "says"),
    [
        ([], "needs a backend"),
        ([ScriptedBackend(), ScriptedBackend()], "'scripted'"),
        ([ScriptedBackend(name="a/b")], "'a/b'"),
    ],
)
async def test_backends_that_cannot_be_told_apart_are_refused(backends: Sequence[Backend], says: str) -> None:
    """None, two of one name, or a name that `backend/model` cannot hold."""
    with pytest.raises(ConfigError, match=says):
        Router(*backends)


@pytest.mark.parametrize(("asked", "sent"), [(None, 100), (50, 50), (1000, 100)])
@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
async def test_the_policy_bounds_the_output(field: str, asked: int | None, sent: int, scope: Scope) -> None:
    """The smaller number holds, and without one the policy's is set."""
    model = ScriptedBackend("ok")
    router = Router(model, policy=Policy(limits=TurnLimits(output_tokens=100)))
    await router.complete("Hi", scope=scope, **({} if asked is None else {field: asked}))
    assert model.requests[0].body["max_tokens" if asked is None else field] == sent


class Everything(ScriptedBackend):
    """Takes a request of any API."""

    async def post(self, api: str, request: ChatRequest, *, scope: Scope) -> Completion:
        return await self.complete(request, scope=scope)


@pytest.mark.parametrize(
    ("api", "asked", "sent"),
    [
        ("chat", {"n_predict": 5000}, {"max_tokens": 100}),
        ("chat", {"max_new_tokens": 50, "max_length": 60, "num_predict": None}, {"max_tokens": 50}),
        ("chat", {"max_completion_tokens": 5000, "n_predict": 5000}, {"max_completion_tokens": 100}),
        ("chat", {"max_output_tokens": 7, "max_tokens": None}, {"max_tokens": 7}),
        ("completions", {"max_completion_tokens": 5000, "max_tokens": 20}, {"max_tokens": 20}),
        ("responses", {"max_tokens": 5000}, {"max_output_tokens": 100}),
        ("chat", {"max_tokens": 500, "min_tokens": 400}, {"max_tokens": 100, "min_tokens": 100}),
        ("chat", {"min_tokens": 3}, {"max_tokens": 100, "min_tokens": 3}),
    ],
)
async def test_no_other_name_of_a_bound_passes_the_policy(
    api: Any, asked: dict[str, Any], sent: dict[str, int], scope: Scope
) -> None:
    """Whatever a server calls it, how much may be written goes under the API's own name, within the policy."""
    model = Everything("ok")
    router = Router(model, policy=Policy(limits=TurnLimits(output_tokens=100)))
    text = {"chat": {"messages": [{"role": "user", "content": "Hi"}]}, "completions": {"prompt": "Hi"}}
    first = {"model": "default", **text.get(api, {"input": "Hi"})}
    await router.post(api, ChatRequest({**first, **asked}), scope=scope)
    body = model.requests[0].body
    assert {key: body[key] for key in body.keys() - {*first, "store"}} == sent


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2},
        {"n_cmpl": 2},
        {"max_tokens": "9999"},
        {"max_tokens": 0},
        {"max_completion_tokens": True},
        {"n_predict": -1},
        {"max_new_tokens": 9999.0},
        {"min_tokens": 9999.0},
    ],
    ids=str,
)
async def test_a_way_round_the_policy_is_refused(fields: dict[str, Any], scope: Scope) -> None:
    """A second answer that no check sees, or a bound that is no number, never reaches a backend."""
    model = ScriptedBackend()
    with pytest.raises(ConfigError):
        await Router(model, policy=Policy()).complete("Hi", scope=scope, **fields)


@pytest.mark.parametrize("api", ["chat", "completions", "responses", "embeddings", "rerank"])
@pytest.mark.parametrize(
    "field",
    [
        {"kv_transfer_params": {"do_remote_prefill": True, "remote_host": "evil.example"}},
        {"vllm_xargs": {"kv_transfer_params": "x"}},
        {"bootstrap_host": "evil.example"},
        {"bootstrap_port": 0},
        {"bootstrap_room": 7},
        {"data_parallel_rank": 0},
    ],
    ids=str,
)
async def test_an_engine_is_not_told_where_to_connect_or_whose_cache_to_read(
    api: Any, field: dict[str, Any], scope: Scope
) -> None:
    """What one engine says to another is refused from a caller, at every API."""
    model = ScriptedBackend("ok")
    text = {"chat": {"messages": [{"role": "user", "content": "Hi"}]}, "completions": {"prompt": "Hi"}}
    body = {"model": "default", **text.get(api, {"input": "Hi", "query": "Hi"}), **field}
    with pytest.raises(EgressError, match=f"`{next(iter(field))}`.*past the door"):
        await Router(model).post(api, ChatRequest(body), scope=scope)
    assert not model.requests


async def test_nobody_overtakes_others_in_the_engine(scope: Scope) -> None:
    """A priority and a slot of a caller's own are left out; the salt of a cache only parts, and goes."""
    model = ScriptedBackend("ok")
    await Router(model).complete("Hi", scope=scope, priority=-5, id_slot=0, cache_salt="mine", top_k=3)
    assert model.requests[0].body.keys() == {"model", "messages", "cache_salt", "top_k"}


@pytest.mark.parametrize("messages", ["", [], "request"])
async def test_an_empty_request_is_refused(messages: Any, scope: Scope) -> None:
    """No message, no call; an empty text is somebody's text and goes."""
    model = ScriptedBackend("ok")
    if messages == "":
        assert (await Router(model).complete("", scope=scope)).text == "ok"
        return
    with pytest.raises(ConfigError, match="messages"):
        await Router(model).complete(ChatRequest({}) if messages == "request" else [], scope=scope)


async def test_a_label_on_a_request_only_rises(scope: Scope) -> None:
    """`label=` joins with what the request is marked with."""
    model = ScriptedBackend("a", "b")
    request = ChatRequest({"messages": [{"role": "user", "content": "x"}]}, Label.parse("confidential/PHI"))
    await Router(model).complete(request, scope=scope, label="public")
    await Router(model).complete(request, scope=scope, label="restricted")
    assert [str(r.label) for r in model.requests] == ["confidential/PHI", "restricted/PHI"]


# The door.


@pytest.mark.parametrize(("policy", "audited"), [(None, True), (Policy(), True), (OPEN, False)])
def test_an_external_backend_needs_an_open_door_and_a_chain(policy: Policy | None, audited: bool, notes: Notes) -> None:
    """Without either, the router is not even built."""
    with pytest.raises(ConfigError, match=r"door is shut|audit chain"):
        Router(ScriptedBackend(name="outside", external=True), policy=policy, audit=notes if audited else None)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("label", "policy", "says"),
    [
        ("confidential", OPEN, "marked confidential"),
        ("internal/PHI", OPEN, "marked internal/PHI"),
        (None, Policy(egress=EgressRules(models=frozenset({"*"}))), "marked internal"),
        ("public", Policy(egress=EgressRules(models=frozenset({"other/m"}))), "does not open the door for outside"),
    ],
)
async def test_what_may_not_leave_is_refused_and_on_record(
    label: str | None, policy: Policy, says: str, stream: bool, scope: Scope, notes: Notes
) -> None:
    """The backend is never entered; the entry has the reason and no text."""
    outside = ScriptedBackend(name="outside", external=True)
    router = Router(outside, policy=policy, audit=notes)
    ask = router.stream if stream else router.complete
    asked: Any = ask("Quokka", model="outside/outside", scope=scope, label=label)
    with pytest.raises(EgressError, match=says) as caught:
        await (anext(asked) if stream else asked)
    assert caught.value.hint
    assert not outside.requests
    ((kind, who, detail),) = notes.entries
    assert (kind, who) == ("egress.denied", scope)
    assert detail["reason"] == caught.value.message
    assert detail["model"] == "outside/outside"
    assert "Quokka" not in json.dumps(detail)


@pytest.mark.loopback
@pytest.mark.parametrize("stream", [False, True])
async def test_the_entry_of_a_passage_is_the_digest_of_what_left(
    stream: bool, upstream: Upstream, scope: Scope, notes: Notes
) -> None:
    """The SHA-256 and the size on record are those of the very bytes that the server received."""
    outside = OpenAICompatible(upstream.url, name="outside", external=True)
    policy = Policy(egress=EgressRules(models=frozenset({"outside/m"})))
    router = Router(outside, policy=policy, audit=notes)
    if stream:
        [_ async for _ in router.stream("Hi", model="m", scope=scope, label="public", temperature=0)]
    else:
        await router.complete("Hi", model="m", scope=scope, label="public", temperature=0)
    await router.close()
    (kind, _, detail), (after, _, came) = notes.entries
    (body,) = upstream.bodies
    assert (kind, detail["host"], detail["label"]) == ("egress.allowed", "127.0.0.1", "public")
    assert (detail["sha256"], detail["bytes"]) == (hashlib.sha256(body).hexdigest(), len(body))
    assert detail["policy"] == policy.digest
    assert (after, came["outcome"], came["output_tokens"], came["allowed"]) == ("egress.returned", "answered", 2, 0)
    assert came["bytes"] > 0
    assert len(came["sha256"]) == 64


async def test_what_cannot_be_recorded_is_not_sent(scope: Scope, notes: Notes) -> None:
    """A chain that fails keeps the door shut."""
    outside = ScriptedBackend(name="outside", external=True)
    router = Router(outside, policy=OPEN, audit=notes)
    notes.broken = True
    with pytest.raises(StoreError):
        await router.complete("Hi", model="outside/outside", scope=scope, label="public")
    assert not outside.requests


async def test_a_local_call_asks_no_door(scope: Scope, notes: Notes) -> None:
    """Nothing is recorded here for text that stays."""
    await Router(ScriptedBackend("ok"), policy=Policy(), audit=notes).complete("Hi", scope=scope, label="restricted")
    assert not notes.entries


# Emulated tools.


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
async def test_a_demanded_tool_is_emulated_where_it_cannot_be_enforced(choice: Any, scope: Scope) -> None:
    """The backend is asked for JSON of a schema, and the caller gets a tool call, whole or streamed."""
    answer = '{"name": "add", "arguments": {"a": 3}}'
    model = ScriptedBackend(answer, answer, tools=False)
    router = Router(model)
    whole = await router.complete("3?", scope=scope, tools=TOOLS, tool_choice=choice)
    chunks = [
        c
        async for c in router.stream(
            "3?", scope=scope, tools=TOOLS, tool_choice=choice, stream_options={"include_usage": True}
        )
    ]
    for completion in (whole, assemble(chunks)):
        assert [(c.name, c.arguments) for c in completion.tool_calls] == [("add", '{"a":3}')]
        assert completion.finish_reason == "tool_calls"
        assert completion.message["content"] is None
    assert whole.tool_calls[0].id != assemble(chunks).tool_calls[0].id
    assert chunks[-1].usage is not None
    sent = model.requests[0].body
    assert sent["response_format"]["type"] == "json_schema"
    assert not sent.keys() & {"tools", "tool_choice", "stream"}


async def test_tools_are_left_to_a_backend_that_has_them(scope: Scope) -> None:
    """Nothing is rewritten for a server that enforces `tool_choice`."""
    model = ScriptedBackend(call("add", {"a": 1}))
    await Router(model).complete("1?", scope=scope, tools=TOOLS, tool_choice="required")
    assert model.requests[0].body["tools"] == TOOLS
    assert model.requests[0].body["tool_choice"] == "required"


async def test_optional_tools_go_natively_and_forbidden_ones_do_not(scope: Scope) -> None:
    """`auto` is the backend's own affair; `none` takes the tools out where they could not be held back."""
    model = ScriptedBackend("prose", "prose", tools=False)
    router = Router(model)
    await router.complete("?", scope=scope, tools=TOOLS, tool_choice="auto")
    await router.complete("?", scope=scope, tools=TOOLS, tool_choice="none")
    assert "tools" in model.requests[0].body
    assert "tools" not in model.requests[1].body


@pytest.mark.parametrize(
    "answer", ["prose", '{"name": "rm"}', '{"name": "rm", "arguments": {}}', '{"name": "add", "argu']
)
async def test_an_envelope_that_does_not_hold_a_call_is_an_error(answer: str, scope: Scope) -> None:
    """A cut-off or invented call is never passed on."""
    with pytest.raises(BackendError, match="did not write the tool call"):
        await Router(ScriptedBackend(answer, tools=False)).complete(
            "?", scope=scope, tools=TOOLS, tool_choice="required"
        )


async def test_a_router_says_whether_it_is_recorded(notes: Notes) -> None:
    """The repr names the backends, which are external, and a missing chain."""
    assert repr(Router(ScriptedBackend(name="a"))) == "Router(a; unrecorded)"
    router = Router(ScriptedBackend(name="outside", external=True), policy=OPEN, audit=notes)
    assert repr(router) == "Router(outside (external); recorded)"
    assert router.external


async def test_a_router_in_a_router_keeps_the_door(scope: Scope, notes: Notes) -> None:
    """A composite is external when a part is, and refuses to be wired without a policy."""
    inner = Router(ScriptedBackend(name="outside", external=True), policy=OPEN, audit=notes)
    with pytest.raises(ConfigError, match="door is shut"):
        Router(inner)


async def test_health_names_the_part_that_ails() -> None:
    """Good only when all are; the detail says who is not."""
    one, two = ScriptedBackend(name="one"), ScriptedBackend(name="two")
    router = Router(one, two)
    assert (await router.health()).ok
    await two.close()
    health = await router.health()
    assert not health.ok
    assert health.detail == "two: closed"


async def test_a_script_that_does_not_fit_fails_the_test(scope: Scope) -> None:
    """One answer too few or too many is an AssertionError."""
    model = ScriptedBackend("one", "two")
    request = ChatRequest({"model": "scripted", "messages": []})
    await model.complete(request, scope=scope)
    with pytest.raises(AssertionError, match="1 of 2"):
        model.assert_done()
    await model.complete(request, scope=scope)
    model.assert_done()
    with pytest.raises(AssertionError, match="one more was asked for"):
        await model.complete(request, scope=scope)
