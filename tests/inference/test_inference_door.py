"""The door: every way out passes it, what it records, what it conceals, and where a name may lead."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inference_parts import Notes, Upstream

import aibox
from aibox.chat import ChatRequest, assemble
from aibox.errors import BackendError, ConfigError, EgressError
from aibox.guardrails.outgoing import Outgoing
from aibox.guardrails.pii import PII
from aibox.guardrails.pseudonyms import Pseudonyms
from aibox.inference.addresses import is_inside_address, is_public_address, literal
from aibox.inference.openai_compatible import OpenAICompatible
from aibox.inference.openrouter import OpenRouter
from aibox.inference.router import Router
from aibox.inference.transport import Transport
from aibox.policy.egress import EgressRules
from aibox.policy.policy import Policy
from aibox.testing.scripted import ScriptedBackend, call
from aibox.types import Label, Scope

pytestmark = pytest.mark.anyio
OPEN = Policy(egress=EgressRules(models=frozenset({"*"})))
HI = [{"role": "user", "content": "Hi"}]
CARD = "4111 1111 1111 1111"


class Everything(ScriptedBackend):
    """An external backend with all of the APIs."""

    async def post(self, api: str, request: ChatRequest, *, scope: Scope) -> Any:
        return await self.complete(request, scope=scope)

    async def events(self, api: str, request: ChatRequest, *, scope: Scope) -> Any:
        async for chunk in self.stream(request, scope=scope):
            yield chunk


async def _drain(stream: Any) -> None:
    async for _ in stream:
        pass


# Every way in which text can leave. A part that adds one adds its row.
WAYS: dict[str, Callable[[Router, Scope, str], Awaitable[object]]] = {
    "complete": lambda r, s, label: r.complete(HI, model="out/out", scope=s, label=label),
    "stream": lambda r, s, label: _drain(r.stream(HI, model="out/out", scope=s, label=label)),
    "emulated tool": lambda r, s, label: r.complete(
        HI, model="out/out", scope=s, label=label, tool_choice="required",
        tools=[{"type": "function", "function": {"name": "f"}}]),
    "fallback": lambda r, s, label: r.complete(HI, model="broken/broken", scope=s, label=label),
    "streamed fallback": lambda r, s, label: _drain(r.stream(HI, model="broken/broken", scope=s, label=label)),
    "completions": lambda r, s, label: r.post(
        "completions", ChatRequest({"model": "out/out", "prompt": "Hi"}, Label.parse(label)), scope=s),
    "embeddings": lambda r, s, label: r.embed(["Hi"], model="out/out", scope=s, label=label),
    "responses": lambda r, s, label: r.post(
        "responses", ChatRequest({"model": "out/out", "input": "Hi"}, Label.parse(label)), scope=s),
    "streamed responses": lambda r, s, label: _drain(r.events(
        "responses", ChatRequest({"model": "out/out", "input": "Hi"}, Label.parse(label)), scope=s)),
    "rerank": lambda r, s, label: r.post(
        "rerank", ChatRequest({"model": "out/out", "query": "Hi"}, Label.parse(label)), scope=s),
    "openai client": lambda r, s, label: r.openai(scope=s, label=label).chat.completions.create(
        model="out/out", messages=HI),  # type: ignore[arg-type]
    "openai client's responses": lambda r, s, label: r.openai(scope=s, label=label).responses.create(
        model="out/out", input="Hi"),
    "openai client's embeddings": lambda r, s, label: r.openai(scope=s, label=label).embeddings.create(
        model="out/out", input="Hi"),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("label", ["internal", "restricted/PHI"])
async def test_every_way_out_obeys_the_door(way: str, label: str, scope: Scope, notes: Notes) -> None:
    """A text that is labelled too high reaches no external backend, and the refusal is on record."""
    outside = Everything(*["x"] * 5, name="out", external=True)
    broken = ScriptedBackend(*[BackendError("gone", retryable=True)] * 5, name="broken")
    router = Router(outside, broken, policy=OPEN, audit=notes, fallbacks={"broken/broken": ["out/out"]})
    with pytest.raises((EgressError, BackendError)):
        await WAYS[way](router, scope, label)
    assert not outside.requests
    assert [kind for kind, _, _ in notes.entries] == ["egress.denied"]


async def test_a_person_reads_what_was_refused_and_why(scope: Scope, notes: Notes) -> None:
    """The reason names what raised the label."""
    outside = ScriptedBackend(name="out", external=True)
    request = ChatRequest({"model": "out/out", "messages": HI}, Label.parse("confidential").because("the tool chart"))
    with pytest.raises(EgressError, match="because of the tool chart"):
        await Router(outside, policy=OPEN, audit=notes).complete(request, scope=scope)


# Pseudonyms on the way out.


OPEN_ALL = {"models": ["*"], "hosts": ["*"], "ceiling": "restricted"}


def concealing(*answers: Any, notes: Notes) -> tuple[ScriptedBackend, Router]:
    outside = ScriptedBackend(*answers, name="out", external=True)
    policy = Policy(egress=EgressRules(models=frozenset({"*"}), pseudonymise=True))
    return outside, Router(outside, policy=policy, audit=notes, concealer=Outgoing(PII(), pseudonyms=Pseudonyms()))


@pytest.mark.parametrize("stream", [False, True])
async def test_personal_data_leaves_as_pseudonyms_and_is_restored(stream: bool, scope: Scope, notes: Notes) -> None:
    """The provider sees tokens in every text; the caller reads its own values, also in arguments of tool calls."""

    def echo(request: ChatRequest) -> str:
        return "You wrote: " + request.messages[-1]["content"]

    def tool(request: ChatRequest) -> Any:
        return call("pay", {"card": request.messages[-1]["content"], "note": 'say "hi"'})

    outside, router = concealing(echo, tool, notes=notes)
    asked = [
        {"role": "system", "content": "Mail bob@example.com."},
        {"role": "user", "content": [{"type": "text", "text": f"Card {CARD}"}]},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": json.dumps({"card": CARD})}}]},
        {"role": "tool", "tool_call_id": "1", "content": f"charged {CARD}"},
        {"role": "user", "content": f"It is {CARD}"},
    ]  # fmt: skip
    fields: dict[str, Any] = {"model": "out/out", "scope": scope, "label": "public", "user": "eva@example.com"}

    async def ask() -> Any:
        if stream:
            return assemble([chunk async for chunk in router.stream(asked, **fields)])
        return await router.complete(asked, **fields)

    assert (await ask()).text == f"You wrote: It is {CARD}"
    (made,) = (await ask()).tool_calls
    assert json.loads(made.arguments) == {"card": f"It is {CARD}", "note": 'say "hi"'}
    sent = json.dumps([request.body for request in outside.requests])
    assert "4111" not in sent
    assert "example.com" not in sent
    assert "<CARD_" in sent
    assert all(detail["pseudonymised"] for kind, _, detail in notes.entries if kind == "egress.allowed")


async def test_what_cannot_be_read_does_not_leave_in_disguise(scope: Scope, notes: Notes) -> None:
    """An image, a sound, token ids or an unknown part may hold anything, and are refused."""
    outside, router = concealing("x", notes=notes)
    for part in ({"type": "image_url", "image_url": {"url": "data:,"}}, {"type": "input_audio"}, {"type": "new"}, 17):
        with pytest.raises(EgressError, match="personal data cannot be found"):
            await router.complete([{"role": "user", "content": [part]}], model="out/out", scope=scope, label="public")
    assert not outside.requests
    assert {kind for kind, _, _ in notes.entries} == {"egress.denied"}


FIELDS: dict[str, dict[str, Any]] = {
    "prediction": {"prediction": {"type": "content", "content": CARD}},
    "documents": {"documents": [{"title": "Account", "text": CARD}]},
    "template": {"chat_template_kwargs": {"card": CARD, CARD: True}},
    "stop": {"stop": [CARD]},
    "thought": {"messages": [{"role": "assistant", "content": "Yes.", "thinking": CARD}, *HI]},
    "details": {"messages": [{"role": "assistant", "content": "Yes.", "reasoning_details": [{"text": CARD}]}, *HI]},
    "old call": {"messages": [
        {"role": "assistant", "function_call": {"name": "pay", "arguments": json.dumps([CARD])}}, *HI]},
    "object": {"messages": [{"role": "assistant", "content": None, "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "pay", "arguments": {"card": CARD}}}]}, *HI]},
    "id": {"messages": [{"role": "tool", "tool_call_id": CARD, "content": "Paid."}, *HI]},
}  # fmt: skip


@pytest.mark.parametrize("given", FIELDS.values(), ids=FIELDS)
async def test_personal_data_leaves_in_no_other_field(given: dict[str, Any], scope: Scope, notes: Notes) -> None:
    """A field that few look at holds a pseudonym when it leaves, and names and numbers of the API stay as they are."""
    outside, router = concealing("x", notes=notes)
    body = {"model": "out/out", "messages": HI, "temperature": 0.5, "service_tier": "auto", **given}
    await router.complete(ChatRequest(body, Label.parse("public")), scope=scope)
    (request,) = outside.requests
    sent = json.dumps(request.body)
    assert "4111" not in sent
    assert "<CARD_" in sent
    assert (request.body["temperature"], request.body["service_tier"]) == (0.5, "auto")


async def test_what_is_nested_out_of_sight_does_not_leave(scope: Scope, notes: Notes) -> None:
    """Text deeper in an unknown field than is looked at is refused, on record."""
    outside, router = concealing("x", notes=notes)
    deep: Any = CARD
    for _ in range(400):
        deep = [deep]
    with pytest.raises(EgressError, match="nested more than"):
        await router.complete(HI, model="out/out", scope=scope, label="public", documents=deep)
    assert not outside.requests
    assert {kind for kind, _, _ in notes.entries} == {"egress.denied"}


async def test_what_leaves_is_concealed_as_tenant_and_caller_have_it(scope: Scope, notes: Notes) -> None:
    """What a tenant, or the caller's own policy, keeps nothing of does not come back from outside either."""

    def echo(request: ChatRequest) -> str:
        return str(request.messages[-1]["content"])

    outside = ScriptedBackend(echo, echo, name="out", external=True)
    platform = Policy(egress=EgressRules(models=frozenset({"*"}), pseudonymise=True))
    tenant = platform & Policy.read({"egress": OPEN_ALL, "pseudonyms": {"irreversible": ["CARD"]}})
    agent = platform & Policy.read({"egress": OPEN_ALL, "pseudonyms": {"irreversible": ["EMAIL"]}})
    rules: dict[str, Any] = {"tenant_policies": {scope.tenant: tenant}, "audit": notes}
    router = Router(outside, policy=platform, concealer=Outgoing(PII(), pseudonyms=Pseudonyms()), **rules)
    asked = [{"role": "user", "content": f"{CARD} eva@example.com"}]
    fields: dict[str, Any] = {"model": "out/out", "scope": scope, "label": "public"}
    assert re.fullmatch(r"<CARD_\d{8}zz> eva@example.com", (await router.complete(asked, **fields)).text)
    narrowed = await router.complete(asked, **fields, policy=agent)
    assert re.fullmatch(r"<CARD_\d{8}zz> <EMAIL_\d{8}zz>", narrowed.text)


def test_a_door_that_must_conceal_and_cannot_is_not_built(notes: Notes) -> None:
    """A policy that asks for pseudonyms is never met by sending the text as it is."""
    policy = Policy(egress=EgressRules(models=frozenset({"*"}), pseudonymise=True))
    with pytest.raises(ConfigError, match="pseudonyms only"):
        Router(ScriptedBackend(name="out", external=True), policy=policy, audit=notes)


async def test_a_tenant_may_ask_for_pseudonyms_where_nobody_can_make_them(scope: Scope, notes: Notes) -> None:
    """A narrowing that cannot be kept is a refusal, and not a passage."""
    outside = ScriptedBackend("x", name="out", external=True)
    narrow = Policy(egress=EgressRules(models=frozenset({"*"}), pseudonymise=True))
    router = Router(outside, policy=OPEN, audit=notes, tenant_policies={scope.tenant: narrow})
    with pytest.raises(EgressError, match="pseudonyms"):
        await router.complete(HI, model="out/out", scope=scope, label="public")
    assert not outside.requests


# OpenRouter.


@pytest.mark.loopback
async def test_openrouter_is_asked_for_providers_that_keep_nothing(
    upstream: Upstream, scope: Scope, notes: Notes
) -> None:
    """A request cannot loosen that, nor send the text to other models or plugins; no header says who we are."""
    backend = OpenRouter(api_key="sk-x", models=["a/b"], only=["p"], base_url=upstream.url)
    router = Router(backend, policy=OPEN, audit=notes)
    await router.complete(
        HI, model="a/b", scope=scope, label="public", provider={"data_collection": "allow", "sort": "price"},
        models=["c/d"], plugins=[{"id": "web"}], user="eva")  # fmt: skip
    await router.close()
    body = json.loads(upstream.bodies[0])
    assert body["provider"] == {
        "data_collection": "deny", "zdr": True, "require_parameters": True, "allow_fallbacks": False, "only": ["p"],
        "sort": "price",
    }  # fmt: skip
    assert not body.keys() & {"models", "plugins", "user"}
    assert not {name.lower() for name in upstream.headers[0]} & {"http-referer", "x-title", "referer"}
    assert notes.entries[0][2]["bytes"] == len(upstream.bodies[0])


@pytest.mark.loopback
async def test_openrouter_may_be_slow_and_may_fail_inside_a_200(upstream: Upstream, scope: Scope, notes: Notes) -> None:
    """Its comments are skipped, and an error in the body is an error of the status that it names."""
    router = Router(OpenRouter(api_key="sk-x", models=["a/b"], base_url=upstream.url), policy=OPEN, audit=notes)
    chunk = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
    end = b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1,"cost":0.5}}\n\ndata: [DONE]\n\n'
    upstream.answer = upstream.sends(b": OPENROUTER PROCESSING\n\n", chunk, b": OPENROUTER PROCESSING\n\n", end)
    chunks = [c async for c in router.stream(HI, model="a/b", scope=scope, label="public")]
    assert assemble(chunks).text == "a"
    assert notes.entries[-1][2]["cost_usd"] == "0.500000000"
    upstream.answer = upstream.says({"error": {"code": 402, "message": "no credits"}})
    with pytest.raises(BackendError, match="no credits") as caught:
        await router.complete(HI, model="a/b", scope=scope, label="public")
    assert (caught.value.retryable, caught.value.status) == (False, 402)
    await router.close()


def test_openrouter_wants_its_models_named() -> None:
    """What may be asked for is a list, and not whatever somebody else offers today."""
    with pytest.raises(ConfigError, match="needs the models"):
        OpenRouter(api_key="x", models=[])


# Where a name leads.


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.0.0.1", "169.254.169.254", "100.64.0.1", "100.100.100.200", "192.0.0.8", "168.63.129.16",
     "0.0.0.0", "224.0.0.1", "255.255.255.255", "::1", "::", "fd00::1", "fe80::1", "ff02::1", "::ffff:10.0.0.1",
     "64:ff9b::a9fe:a9fe", "64:ff9b:1::808:808", "2002:a9fe:a9fe::", "2002:7f00:1::", "2001:0:a9fe:a9fe::1"],
)  # fmt: skip
def test_no_address_that_leads_inside_passes_for_a_public_one(address: str) -> None:
    """Metadata services, carriers' networks and every wrapping of a private address are recognised."""
    parsed = literal(address)
    assert parsed is not None
    assert not is_public_address(parsed)


@given(st.ip_addresses())
def test_no_address_is_both_inside_and_public(address: Any) -> None:
    """The two rules never agree about an address."""
    assert not (is_inside_address(address) and is_public_address(address))


def test_ordinary_addresses_are_public() -> None:
    """The rule does not refuse the internet."""
    assert all(is_public_address(literal(a)) for a in ("8.8.8.8", "1.1.1.1", "2001:4860:4860::8888"))  # type: ignore[arg-type]


def _resolving(monkeypatch: pytest.MonkeyPatch, *answers: str) -> list[str]:
    asked: list[str] = []

    def getaddrinfo(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        asked.append(host)
        v6 = socket.AF_INET6, socket.SOCK_STREAM, 6, ""
        v4 = socket.AF_INET, socket.SOCK_STREAM, 6, ""
        return [(*v6, (a, port, 0, 0)) if ":" in a else (*v4, (a, port)) for a in answers]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


@pytest.mark.loopback
@pytest.mark.parametrize(
    ("url", "answers", "networks"),
    [
        ("https://llm.example.com/v1", ["127.0.0.1"], None),
        ("https://llm.example.com/v1", ["8.8.8.8", "169.254.169.254"], None),
        ("https://llm.example.com/v1", ["64:ff9b::7f00:1"], None),
        ("http://gpu.lan:8000/v1", ["8.8.8.8"], None),
        ("http://vllm:8000/v1", ["93.184.216.34"], None),
        ("https://llm.example.com/v1", ["127.0.0.1"], ["10.0.0.0/8"]),
    ],
)
async def test_a_name_that_leads_elsewhere_is_refused(
    monkeypatch: pytest.MonkeyPatch, scope: Scope, url: str, answers: list[str], networks: list[str] | None
) -> None:
    """Rebinding outward to inward and inward to outward: every address that a name has must be where it belongs."""
    backend = OpenAICompatible(url, name="there", transport=Transport(networks=networks))
    asked = _resolving(monkeypatch, *answers)
    with pytest.raises(EgressError, match="nothing was sent"):
        await backend.complete(ChatRequest({"model": "m", "messages": HI}), scope=scope)
    assert len(asked) == 1
    await backend.close()


@pytest.mark.loopback
async def test_a_name_that_leads_where_it_should_is_reached(
    monkeypatch: pytest.MonkeyPatch, upstream: Upstream, scope: Scope
) -> None:
    """A name inside that resolves inside, and one outside whose network the operator listed, are connected to."""
    port = upstream.url.split(":")[2].removesuffix("/v1")
    _resolving(monkeypatch, "127.0.0.1")
    inside = OpenAICompatible(f"http://vllm:{port}/v1")
    listed = OpenAICompatible(f"http://llm.example.com:{port}/v1", transport=Transport(networks=["127.0.0.0/8"]))
    for backend in (inside, listed):
        assert (await backend.complete(ChatRequest({"model": "m", "messages": HI}), scope=scope)).text == "Hello there."
        await backend.close()


async def test_a_transport_that_cannot_be_right_is_refused() -> None:
    """Mistakes are found when the parts are wired, and no repr shows the proxy's password."""
    for wrong in ({"client_key": "k"}, {"proxy": "ftp://x"}, {"proxy": "corp:3128"}):
        with pytest.raises(ConfigError):
            Transport(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="not a network"):
        OpenAICompatible("http://x/v1", transport=Transport(networks=["ten"]))
    assert "secret" not in repr(Transport(proxy="http://u:secret@proxy:3128"))


async def test_a_box_puts_the_door_together(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings alone make an external backend with pseudonyms, a price and an owner; the chain has the entries."""
    policy = Policy(egress=EgressRules(models=frozenset({"*"}), pseudonymise=True))
    tables: Any = [
        {"kind": "openai", "url": "http://127.0.0.1:9/v1", "models": ["m"], "external": True, "name": "out",
         "tenants": ["acme"], "input_usd": 1.0}
    ]  # fmt: skip
    settings = aibox.Settings(home=tmp_path, policy="permissive", backends=tables)
    scope = Scope(tenant="acme", user="eva")
    with pytest.raises(ConfigError, match="door is shut"):
        async with aibox.open(settings=settings, policy=policy) as box:
            await box.router.models()
    file = tmp_path / "open.toml"
    file.write_text('[egress]\nmodels = ["out/m"]\npseudonymise = true\n')
    async with aibox.open(settings=settings.model_copy(update={"policy": str(file)})) as box:
        (info,) = await box.router.models(scope=scope)
        assert info.price is not None
        assert not await box.router.models()
        with pytest.raises(EgressError, match="marked internal"):
            await box.router.complete("Hi", model="out/m", scope=scope)
        await asyncio.sleep(0)
        kinds = [entry.kind async for entry in box.audit.entries("acme")]
    assert kinds == ["egress.denied"]
