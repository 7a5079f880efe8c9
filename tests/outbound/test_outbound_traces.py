"""Traces: one tree a request, in OTLP's protobuf, by the conventions' names; texts and hosts only as policies allow."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Sent
from receiver import Answer, Got, Receiver
from waiting import until

import aibox
from aibox.agents import http as agents_http
from aibox.agents.subagents import SubagentSpec
from aibox.box import Box
from aibox.chat import ChatRequest, Completion
from aibox.outbound import traces as traces_module
from aibox.outbound.span import Place, Span, kept, new_trace, read_parent
from aibox.server.app import create_app
from aibox.server.auth import Callers, LocalKey
from aibox.settings import Settings
from aibox.settings_outbound import TraceSettings
from aibox.testing import ScriptedBackend, call
from aibox.types import Scope

pytestmark = [pytest.mark.anyio, pytest.mark.loopback]
WHO = Scope(tenant="acme", user="eva")
CANARY = "the merger with Initech"
LANGFUSE = "/api/public/otel/v1/traces"


@pytest.fixture
def collector(receiver: Receiver) -> Receiver:
    return receiver


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a batch holds is no matter of time: it is sent when a test says so, and at the end."""
    monkeypatch.setattr(traces_module, "LINGER_S", 600.0)
    monkeypatch.setattr(traces_module, "BACKOFF_S", 0.01)


def spans(collector: Receiver) -> list[Sent]:
    found = []
    for got in collector.got:
        for group in ExportTraceServiceRequest.FromString(got.body).resource_spans:
            found += [span for scope in group.scope_spans for span in scope.spans]
    return found


def told(span: Sent) -> dict[str, Any]:
    """The attributes of a span."""
    found: dict[str, Any] = {}
    for pair in span.attributes:
        kind = pair.value.WhichOneof("value")
        value = getattr(pair.value, kind)
        found[pair.key] = [one.string_value for one in value.values] if kind == "array_value" else value
    return found


class World:
    """A served box whose traces go to a collector."""

    def __init__(self, box: Box, http: httpx2.AsyncClient, model: ScriptedBackend) -> None:
        self.box, self.http, self.model = box, http, model
        assert box.traces is not None
        self.traces = box.traces

    def send(self) -> None:
        self.traces._wake.set()

    async def ask(self, text: str = CANARY, *, model: str = "m", **headers: str) -> httpx2.Response:
        asked = {"model": model, "messages": [{"role": "user", "content": text}]}
        return await self.http.post("/v1/chat/completions", json=asked, headers=headers)


LOOKS = 'version = 1\n[checks.pii]\ninput = "flag"\noutput = "flag"\n'


@asynccontextmanager
async def world(
    home: Path,
    collector: Receiver,
    *answers: Any,
    policy: str = "version = 1",
    tenant: str = "",
    memory: bool = False,
    **settings: Any,
) -> AsyncIterator[World]:
    home.mkdir(exist_ok=True)
    model = ScriptedBackend(*(answers or ["Yes."] * 50), name="m")
    (home / "box.toml").write_text(policy)
    (home / "acme.toml").write_text(tenant)
    values: dict[str, Any] = {
        "policy": str(home / "box.toml"),
        "traces": TraceSettings(**{"url": collector.url + LANGFUSE, **settings}),
        "tenants": {"acme": {"policy": str(home / "acme.toml")}} if tenant else {},
        "memory": {"enabled": memory},
    }
    key = LocalKey(home / "key", scope=WHO)
    async with Box(Settings(home=home / "home", **values)) as box:
        box.__dict__["router"] = aibox.Router(
            model, policy=box.policy, tenant_policies=box.tenant_policies, audit=box.audit, on_call=box._called
        )

        @aibox.tool(side_effects=False)
        def weather(city: str) -> str:
            """What it is like."""
            return f"rain in {city}"

        app = create_app(box, callers=Callers(key), agents={"default": box.agent(tools=[weather])})
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://aibox") as http:
            http.headers["authorization"] = f"Bearer {key.prepare()}"
            yield World(box, http, model)


async def test_a_request_is_one_tree_with_a_span_for_each_step(tmp_path: Path, collector: Receiver) -> None:
    """Request, agent, retrieval, checks, model calls and the tool: one trace, whose id is the correlation id."""
    answers = [call("weather", {"city": "Oslo"}), "Rain."]
    async with world(tmp_path, collector, *answers, policy=LOOKS, memory=True) as w:
        answer = await w.ask("What is it like in Oslo?", model="agent:default")
    found = {span.name: span for span in spans(collector)}
    assert found.keys() == {
        "POST /v1/chat/completions", "invoke_agent default", "retrieval memory", "chat default",
        "execute_tool weather", "guardrail input", "guardrail output",
    }  # fmt: skip
    assert {span.trace_id.hex() for span in found.values()} == {answer.headers["x-correlation-id"]}
    request, agent = found["POST /v1/chat/completions"], found["invoke_agent default"]
    assert (request.parent_span_id, agent.parent_span_id) == (b"", request.span_id)
    steps = [span for span in spans(collector) if span not in (request, agent)]
    assert {span.parent_span_id for span in steps} == {agent.span_id}
    assert [span.name for span in steps].count("chat default") == 2
    assert len({span.span_id for span in spans(collector)}) == len(spans(collector))
    for step in steps:
        assert request.start_time_unix_nano <= agent.start_time_unix_nano <= step.start_time_unix_nano
        assert step.start_time_unix_nano <= step.end_time_unix_nano <= agent.end_time_unix_nano
    chat, tool, http = told(found["chat default"]), told(found["execute_tool weather"]), told(request)
    assert found["chat default"].kind == Sent.SPAN_KIND_CLIENT
    assert chat["gen_ai.operation.name"] == "chat"
    assert (chat["gen_ai.request.model"], chat["gen_ai.response.model"]) == ("default", "m")
    assert (chat["gen_ai.provider.name"], chat["gen_ai.response.finish_reasons"]) == ("m", ["stop"])
    assert chat["gen_ai.usage.output_tokens"] == 1
    assert (tool["gen_ai.tool.name"], tool["aibox.outcome"]) == ("weather", "returned")
    assert (http["http.route"], http["http.response.status_code"]) == ("/v1/chat/completions", 200)
    assert "Oslo" not in str(spans(collector))


async def test_what_a_model_server_calls_things_is_cut_to_a_length(tmp_path: Path, collector: Receiver) -> None:
    """Its ids, models and reasons to stop wait in memory until they are sent; a long one goes to no collector."""
    long = "x" * 20_000

    class Wordy(ScriptedBackend):
        async def complete(self, request: ChatRequest, *, scope: Scope) -> Completion:
            found = await super().complete(request, scope=scope)
            choice = {**found.body["choices"][0], "finish_reason": long}
            return replace(found, body={**found.body, "id": long * 50, "model": long, "choices": [choice]})

    async with world(tmp_path, collector) as w:
        wordy = Wordy("Done.", name="m")
        w.box.__dict__["router"] = aibox.Router(wordy, audit=w.box.audit, on_call=w.box._called)
        await aibox.Agent("x", router=w.box.router, audit=w.box.audit, name="wordy").run("Hi", scope=WHO)
    (chat,) = [told(span) for span in spans(collector) if span.name == "chat default"]
    assert chat["gen_ai.response.id"] == chat["gen_ai.response.model"] == "x" * 256
    assert chat["gen_ai.response.finish_reasons"] == ["x" * 256]
    assert sum(len(got.body) for got in collector.got) < 8 << 10


async def test_what_a_subagent_does_stands_below_the_call_that_it_works_for(
    tmp_path: Path, collector: Receiver
) -> None:
    """Two that work at once: each one's model calls and tools are its own span's, and that is its tool call's."""
    told_: dict[str, Any] = {"description": "look it up", "prompt": "What is it like in Oslo?"}
    both = [{**told_, "subagent_type": kind} for kind in ("north", "south")]
    async with world(tmp_path, collector) as w:

        @aibox.tool(side_effects=False)
        def weather(city: str) -> str:
            """What it is like."""
            return f"rain in {city}"

        def model(request: Any) -> Any:
            last = request.messages[-1]
            main = "delegate" in str(request.body.get("tools"))
            if last["role"] == "tool":
                return "Rain."
            return [call("delegate", one) for one in both] if main else call("weather", {"city": "Oslo"})

        specs = [
            SubagentSpec(name=kind, description=kind, instructions=kind, tools=("weather",))
            for kind in ("north", "south")
        ]
        scripted = ScriptedBackend(*[model] * 20, name="m")
        agent = aibox.Agent(
            router=scripted, guardrail=w.box.guardrail, audit=w.box.audit, tools=[weather], subagents=specs
        )
        reply = await agent.run("What is it like?", scope=WHO)
    assert reply.text == "Rain."
    found = {span.span_id: span for span in spans(collector)}
    assert len(found) == len(spans(collector))
    paths = []
    for span in found.values():
        path, at = [span.name], span
        while at.parent_span_id:
            at = found[at.parent_span_id]
            path.append(at.name)
        paths.append(" < ".join(path[:4]))
    main = "invoke_agent default"
    below = [
        f"{step} < invoke_agent {kind} < execute_tool delegate < {main}"
        for kind in ("north", "south")
        for step in ("chat default", "chat default", "execute_tool weather")
    ]
    assert sorted(path for path in paths if path.count(" < ") == 3) == sorted(below)
    assert paths.count(f"execute_tool delegate < {main}") == 2
    assert paths.count(f"chat default < {main}") == 2


async def test_it_is_sent_as_langfuse_and_any_collector_take_it(tmp_path: Path, collector: Receiver) -> None:
    """OTLP's protobuf by POST to the address that was named, with HTTP Basic or a bearer token from a file."""
    (tmp_path / "key.txt").write_text("sk-lf-1234567890\n")
    for user in ("pk-lf-1", None):
        collector.got.clear()
        async with world(tmp_path / str(user), collector, user=user, api_key_file=tmp_path / "key.txt") as w:
            await w.ask()
        (got,) = collector.got
        basic = base64.b64encode(b"pk-lf-1:sk-lf-1234567890").decode()
        wanted = f"Basic {basic}" if user else "Bearer sk-lf-1234567890"
        assert (got.path, got.headers["authorization"]) == (LANGFUSE, wanted)
        assert got.headers["content-type"] == "application/x-protobuf"
        (group,) = ExportTraceServiceRequest.FromString(got.body).resource_spans
        told = {one.key: one.value.string_value for one in group.resource.attributes}
        assert (told["service.name"], told["service.version"]) == ("aibox", aibox.__version__)
        assert [span.name for span in spans(collector)] == ["chat m", "POST /v1/chat/completions"]


async def test_a_callers_trace_is_taken_up_and_sent_on(tmp_path: Path, collector: Receiver) -> None:
    """The request is a child of the caller's span; what is not sampled is not traced; the model is told its span."""
    trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    async with world(tmp_path, collector) as w:
        await w.ask(traceparent=f"00-{trace}-{span}-01")
        await w.ask(traceparent=f"00-{trace}-{span}-00")
        await w.ask(traceparent="00-not-one")
    request, other = [found for found in spans(collector) if found.kind == Sent.SPAN_KIND_SERVER]
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (trace, span)
    assert (other.trace_id.hex() != trace, other.parent_span_id) == (True, b"")
    calls = [found for found in spans(collector) if found.name == "chat m"]
    asked = [scope.trace for scope in w.model.scopes]
    assert asked == [f"{trace}-{calls[0].span_id.hex()}", "-", f"{other.trace_id.hex()}-{calls[1].span_id.hex()}"]


CONTENT = "version = 1\n[traces]\ncontent = true\n"


@pytest.mark.parametrize(
    ("policy", "tenant", "told_"),
    [(CONTENT, "", True), (CONTENT, CONTENT, True), (CONTENT, "version = 1", False), ("version = 1", CONTENT, False)],
)
async def test_texts_are_told_where_every_level_says_so(
    tmp_path: Path, collector: Receiver, policy: str, tenant: str, told_: bool
) -> None:
    """Prompt, answer, arguments, result and user; a tenant can refuse it, and cannot allow itself what nobody did."""
    answers = [call("weather", {"city": CANARY}), f"About {CANARY}."]
    async with world(tmp_path, collector, *answers, policy=policy, tenant=tenant) as w:
        await w.ask(CANARY, model="agent:default")
    assert (CANARY in str(spans(collector))) is told_
    if told_:
        first, tool, second, agent, _ = spans(collector)
        said = json.loads(told(first)["gen_ai.input.messages"])
        assert said[-1] == {"role": "user", "parts": [{"type": "text", "content": CANARY}]}
        (answered,) = json.loads(told(first)["gen_ai.output.messages"])
        assert answered["parts"][0] | {"id": 1} == {
            "type": "tool_call", "id": 1, "name": "weather", "arguments": json.dumps({"city": CANARY}),
        }  # fmt: skip
        assert json.loads(told(second)["gen_ai.input.messages"])[-1]["parts"][0]["response"] == f"rain in {CANARY}"
        assert told(tool)["gen_ai.tool.call.result"] == f"rain in {CANARY}"
        assert told(agent)["user.id"] == "eva"


@pytest.fixture
def _anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The collector of these tests, on loopback, stands for one on the internet."""
    monkeypatch.setattr(agents_http, "is_public", lambda _: True)


OUT = 'version = 1\n[egress]\nhosts = ["127.0.0.1"]\n'


@pytest.mark.usefixtures("_anywhere")
@pytest.mark.parametrize("shut", ["version = 1", OUT + 'tenants = ["rival"]\n'])
async def test_a_collector_outside_gets_nothing_while_the_door_is_shut(
    tmp_path: Path, collector: Receiver, shut: str
) -> None:
    """Neither while no level names its host, nor where one does not serve the tenant; it is on record, once."""
    async with world(tmp_path, collector, policy=OUT, tenant=shut, external=True) as w:
        for _ in range(3):
            assert (await w.ask()).status_code == 200
        assert w.traces.counts() == {"sent": 0, "door": 6}
    assert not collector.got
    audit = aibox.AuditChain(tmp_path / "home" / "audit.db", keys=tmp_path / "home" / "keys")
    kinds = [entry.kind async for entry in audit.entries("acme")]
    await audit.close()
    assert kinds.count("egress.denied") == 1
    assert "egress.allowed" not in kinds


@pytest.mark.usefixtures("_anywhere")
async def test_what_leaves_is_on_record_before_it_does_and_holds_nothing_that_a_caller_chose(
    tmp_path: Path, collector: Receiver
) -> None:
    """Each batch has its entry first; the correlation id stays, and a trace id that was brought along is a digest."""
    recorded: list[list[str]] = []
    trace = "61" * 16
    async with world(tmp_path, collector, policy=OUT, external=True) as w:
        log = w.box.settings.home / "audit.db"

        def seen(_: Got) -> Answer:
            import sqlite3

            with sqlite3.connect(log) as db:
                recorded.append([bytes(row[0]).decode() for row in db.execute("SELECT open FROM entries")])
            return Answer()

        collector.answers = seen
        await w.ask(traceparent=f"00-{trace}-{'62' * 8}-01", **{"x-correlation-id": "a-secret-word"})
    (before,) = recorded
    assert sum('"purpose":"traces"' in entry for entry in before) == 1
    assert trace not in str([span.trace_id.hex() for span in spans(collector)])
    assert "62" * 8 not in str([span.parent_span_id.hex() for span in spans(collector)])
    assert "a-secret-word" not in str(spans(collector))
    assert len({span.trace_id for span in spans(collector)}) == 1


@pytest.mark.usefixtures("_anywhere")
async def test_a_text_above_the_ceiling_stays_where_the_collector_is_outside(
    tmp_path: Path, collector: Receiver
) -> None:
    """Unlabelled text is internal: a door that lets out public text lets none of it out in a trace."""
    for ceiling, told_ in (("public", False), ("internal", True)):
        collector.got.clear()
        policy = f'{OUT}ceiling = "{ceiling}"\n[traces]\ncontent = true\n'
        async with world(tmp_path / ceiling, collector, policy=policy, external=True) as w:
            await w.ask()
        assert spans(collector)
        assert (CANARY in str(spans(collector))) is told_


async def test_an_inside_name_that_leads_outside_is_not_followed(
    tmp_path: Path, collector: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was meant for the operator's own network goes nowhere else, whatever a name comes to mean."""
    monkeypatch.setattr(agents_http, "is_public", lambda _: True)
    async with world(tmp_path, collector) as w:
        await w.ask()
    assert w.traces.dropped["door"] == 2
    assert not collector.got


async def test_a_collector_that_does_not_answer_holds_nobody_up(
    tmp_path: Path, collector: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue is bounded, what does not fit is counted, and every request is answered meanwhile."""
    monkeypatch.setattr(traces_module, "QUEUE", 4)
    monkeypatch.setattr(traces_module, "CLOSE_S", 0.1)
    collector.open.clear()
    async with world(tmp_path, collector) as w:
        assert (await w.ask()).status_code == 200
        w.send()
        await until(lambda: collector.got)
        for _ in range(10):
            assert (await w.ask()).status_code == 200
        assert w.traces.waiting <= 4
        assert w.traces.dropped["full"] >= 16
    assert w.traces.sent + w.traces.dropped.total() == 22


async def test_what_a_collector_puts_off_is_sent_again_and_what_it_refuses_is_not(
    tmp_path: Path, collector: Receiver
) -> None:
    """503 is asked again; 400 is dropped and counted; what it takes in part is counted so."""
    wanted = [503, 503, 200, 400]
    partial = ExportTraceServiceResponse(partial_success=ExportTracePartialSuccess(rejected_spans=1))
    collector.answers = lambda _: Answer(wanted[len(collector.got) - 1], body=partial.SerializeToString())
    async with world(tmp_path, collector) as w:
        await w.ask()
        w.send()
        await until(lambda: w.traces.sent == 1)
        assert w.traces.counts() == {"sent": 1, "rejected": 1}
        await w.ask()
        w.send()
        await until(lambda: w.traces.dropped["failed"] == 2)
        assert len(collector.got) == 4
        text = (await w.http.get("/metrics")).text
    assert 'aibox_trace_spans_total{outcome="rejected"} 1' in text
    assert 'aibox_trace_spans_total{outcome="failed"} 2' in text


async def test_a_bug_in_a_trace_harms_no_turn(
    tmp_path: Path, collector: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong while a span is made is counted, and the answer is the same."""

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("CANARY")

    async with world(tmp_path, collector) as w:
        monkeypatch.setattr(Span, "__init__", broken)
        monkeypatch.setattr(traces_module, "new_trace", broken)
        assert (await w.ask(model="agent:default")).status_code == 200
        assert w.traces.dropped["bug"] >= 1


async def test_nothing_is_traced_where_nothing_asks_for_it(tmp_path: Path) -> None:
    """Without a collector nobody watches, and no record of a turn has anything to tell."""
    async with Box(Settings(home=tmp_path / "home", memory={"enabled": False})) as box:  # type: ignore[arg-type]
        assert box.traces is None
        assert box.audit.watcher is None


async def test_a_failed_call_says_so_in_its_span(tmp_path: Path, collector: Receiver) -> None:
    """Every span that was begun ends, and the one at fault has the code of the error."""
    async with world(tmp_path, collector, aibox.BackendError("gone")) as w:
        assert (await w.ask()).status_code == 502
    model, request = spans(collector)
    assert (model.status.code, told(model)["error.type"]) == (2, "upstream.backend")
    assert (request.status.code, told(request)["http.response.status_code"]) == (2, 502)


async def test_no_word_of_a_caller_is_told_in_a_name(tmp_path: Path, collector: Receiver) -> None:
    """A model that is not there, a made-up method, a number that fits nowhere: no span has them, and none is lost."""
    async with world(tmp_path, collector) as w:
        asked = {"model": CANARY, "messages": [{"role": "user", "content": "hi"}]}
        assert (await w.http.post("/v1/chat/completions", json=asked)).status_code == 404
        assert (await w.http.request("CANARY", "/v1/models")).status_code == 405
        asked = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "seed": 10**30}
        assert (await w.http.post("/v1/chat/completions", json=asked)).status_code == 200
    assert len(spans(collector)) == 5
    assert CANARY not in str(spans(collector))
    assert "CANARY" not in str(spans(collector))
    assert w.traces.counts() == {"sent": 5}


@given(st.binary(max_size=70))
def test_no_header_makes_a_parent_of_nothing(data: bytes) -> None:
    """Whatever is sent as traceparent is a place in a trace or is passed by."""
    assert read_parent(data) is None


def test_what_w3c_calls_valid_is_taken_and_what_it_calls_invalid_is_not() -> None:
    """The examples of W3C Trace Context sec. 3.2: flags, later versions, ids of zeros, the version that is none."""
    trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"

    def read(text: str) -> Any:
        return read_parent(text.encode())

    assert read(f"00-{trace}-{span}-01") == (trace, span, True)
    assert read(f"00-{trace}-{span}-00") == (trace, span, False)
    assert read(f"cc-{trace}-{span}-01-what-the-future-holds") == (trace, span, True)
    for bad in (
        f"00-{trace}-{span}-01-more", f"ff-{trace}-{span}-01", f"00-{'0' * 32}-{span}-01", f"00-{trace}-{'0' * 16}-01",
        f"00-{trace.upper()}-{span}-01", f"00-{trace}-{span}", "",
    ):  # fmt: skip
        assert read(bad) is None, bad


def test_the_share_that_is_kept_is_one_answer_for_a_trace() -> None:
    """Every process keeps or leaves the same traces, and about as many as were asked for."""
    traces = [new_trace() for _ in range(4000)]
    assert all(kept(trace, 1.0) and not kept(trace, 0.0) for trace in traces)
    assert 0.2 < sum(kept(trace, 0.25) for trace in traces) / len(traces) < 0.3
    assert Place("a" * 32, "b" * 16).within == f"{'a' * 32}-{'b' * 16}"
