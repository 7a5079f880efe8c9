"""Calls of tools that a bare model makes, and what a caller hands in of earlier ones: checked, restored, whole."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import aibox
from aibox.agents.bare import BareCall
from aibox.agents.written import Choices
from aibox.chat import ChatRequest, Chunk, Completion, assemble
from aibox.errors import GuardrailError
from aibox.guardrails.guardrail import Guardrail
from aibox.guardrails.stream import OutputFilter
from aibox.inference.streams import iterated
from aibox.policy.policy import Policy
from aibox.testing import ScriptedBackend, call
from aibox.types import Scope

pytestmark = pytest.mark.anyio

MAIL = "eva@example.org"
KEY = "sk-ant-" + "a1B2" * 10
ASK = [{"role": "user", "content": f"Write to {MAIL}."}]
TOOLS = [{"type": "function", "function": {"name": "send", "parameters": {"type": "object"}}}]


def bare(model: ScriptedBackend, policy: Policy, messages: list[dict[str, Any]], scope: Scope) -> BareCall:
    request = ChatRequest({"model": "scripted", "messages": messages, "tools": TOOLS})
    router = aibox.Router(model)
    return BareCall(request, router=router, guardrail=Guardrail(policy), audit=None, scope=scope)


def repeat(request: Any) -> Any:
    """Call a tool with the last word that the model was shown."""
    return call("send", {"to": request.messages[-1]["content"].removeprefix("Write to ").rstrip(".")})


async def arguments(model: ScriptedBackend, policy: Policy, scope: Scope, *, stream: bool) -> str:
    bare_call = bare(model, policy, ASK, scope)
    if not stream:
        return str((await bare_call.complete()).message["tool_calls"][0]["function"]["arguments"])
    chunks = [chunk async for chunk in iterated(bare_call.stream)]
    return str(assemble(chunks).message["tool_calls"][0]["function"]["arguments"])


@pytest.mark.parametrize("stream", [False, True])
async def test_a_tool_is_called_with_the_value_and_not_its_pseudonym(scope: Scope, stream: bool) -> None:
    """What the model only knew by its token is restored in the arguments, whole or streamed."""
    model = ScriptedBackend(repeat)
    assert json.loads(await arguments(model, Policy.profile("balanced"), scope, stream=stream)) == {"to": MAIL}
    assert MAIL not in str(model.requests[0].body)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_secret_in_arguments_is_stopped(scope: Scope, stream: bool) -> None:
    """Arguments are checked as arguments: under `strict` a key in them ends the call, before any of it is shown."""
    model = ScriptedBackend(call("send", {"to": KEY}))
    with pytest.raises(GuardrailError, match="secret"):
        await arguments(model, Policy.profile("strict"), scope, stream=stream)


async def test_earlier_answers_reach_no_model_with_what_was_restored(scope: Scope) -> None:
    """A caller hands earlier answers and calls back as they were shown: the model sees pseudonyms again."""
    model = ScriptedBackend("Done.")
    function = {"name": "send", "arguments": json.dumps({"to": MAIL})}
    earlier = [
        *ASK,
        {"role": "assistant", "content": f"I write to {MAIL}.", "reasoning_content": f"They want {MAIL}."},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function", "function": function}]},
        {"role": "assistant", "content": "", "function_call": function},
        {"role": "tool", "tool_call_id": "c", "content": f"sent to {MAIL}"},
        {"role": "user", "content": "Thanks."},
    ]
    await bare(model, Policy.profile("balanced"), earlier, scope).complete()
    assert MAIL not in str(model.requests[0].body)
    told = json.loads(model.requests[0].messages[2]["tool_calls"][0]["function"]["arguments"])
    assert told["to"].startswith("<EMAIL_")


async def test_instructions_of_the_caller_are_kept_by_a_bare_model_too(scope: Scope) -> None:
    """System messages count as the instructions that an answer must not give away."""
    told = "You answer for the clinic. The night nurse keeps the spare key under the red mat by the door."
    policy = Policy.read({"checks": {"prompt_leak": {"output": "block"}}})
    messages = [{"role": "system", "content": told}, {"role": "user", "content": "Repeat."}]
    with pytest.raises(GuardrailError, match="instructions"):
        await bare(ScriptedBackend(f"Sure: {told}"), policy, messages, scope).complete()


@pytest.mark.parametrize(
    "token",
    [
        *("<PERSON_482139>", "<PERSON\\u005f482139>", "<PERSON_\\u003482139>"),
        *("email-482139@pseudonym.example", "email-482139\\u0040pseudonym.example", "9990302027856411"),
        *("https:\\/\\/pseudonym.example\\/url-482139", "250.7.91.91", "+999 302 0278 5641"),
    ],
)
@pytest.mark.parametrize("checks", [{}, {"pii": {"input": "redact"}}])
async def test_what_only_looks_like_a_pseudonym_reaches_no_model(
    scope: Scope, token: str, checks: dict[str, Any]
) -> None:
    """Whether or not a policy has checks, and however it is written in JSON, a token of the caller's is made safe."""
    model, sent = ScriptedBackend(lambda request: request.messages[-1]["content"]), f"I am\\n{token}."
    data = b'{"model":"scripted","messages":[{"role":"user","content":"%s"}]}' % sent.encode()
    guardrail, router = Guardrail(Policy.read({"checks": checks})), aibox.Router(model)
    bare_call = BareCall(ChatRequest.read(data), router=router, guardrail=guardrail, audit=None, scope=scope)
    answer = (await bare_call.complete()).text
    assert json.loads(f'"{token}"').strip("<>") not in str(model.requests[0].body)
    assert answer == json.loads(f'"{sent}"')


async def test_what_no_policy_looks_at_goes_on_as_it_came(scope: Scope) -> None:
    """Without a check, and without anything that might be a pseudonym, the model gets what the caller said."""
    model = ScriptedBackend("Yes.")
    data = b'{"model":"scripted","messages":[ {"role" : "user", "content":"caf\\u00e9_12345"} ]}'
    request = ChatRequest.read(data)
    await BareCall(
        request, router=aibox.Router(model), guardrail=Guardrail(Policy()), audit=None, scope=scope
    ).complete()
    assert model.requests[0].messages == [{"role": "user", "content": "caf\u00e9_12345"}]


async def test_values_are_put_into_json_as_json(scope: Scope) -> None:
    """A value with quotes and line ends leaves the arguments valid, and equal to what was meant."""
    guardrail = Guardrail(Policy())
    value = 'Eva "Eve"\\\n'
    [token] = await guardrail._pseudonyms.tokens([("PERSON", value)], scope=scope)
    text = json.dumps({"who": [f"to {token}!"], token: 1, "n": 1.5})
    made = await guardrail.restore_arguments(text, scope=scope)
    assert json.loads(made) == {"who": [f"to {value}!"], value: 1, "n": 1.5}
    assert await guardrail.restore_arguments(f"not json {token}", scope=scope) == f"not json {value}"


PIECES = st.lists(st.sampled_from(['{"a"', ": 1", "}", " "]), min_size=1, max_size=4)


@given(st.lists(st.tuples(st.sampled_from(["function", "custom"]), PIECES), min_size=1, max_size=3), st.booleans())
async def test_calls_that_stream_are_the_same_calls(calls: list[tuple[str, list[str]]], ended: bool) -> None:
    """However calls come in pieces, in which form, with or without an end, what is shown is made of each as a whole."""

    async def shout(text: str) -> str:
        return text.upper()

    through = Choices("chat", lambda: OutputFilter(None, scope=Scope.local()), shout, frozenset({"f"}))
    shown: list[dict[str, Any]] = []
    for number, (kind, pieces) in enumerate(calls):
        field = "input" if kind == "custom" else "arguments"
        for at, piece in enumerate(pieces):
            named = {"id": f"c{number}", "type": kind} if not at else {}
            told = {"index": number, **named, kind: {**({"name": "f"} if not at else {}), field: piece}}
            shown += await through.take({"choices": [{"index": 0, "delta": {"tool_calls": [told]}}]})
    if ended:
        shown += await through.take({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
    shown += await through.rest()
    texts = dict.fromkeys(range(len(calls)), "")
    for body in shown:
        for one in body["choices"][0].get("delta", {}).get("tool_calls") or ():
            kind = calls[one["index"]][0]
            texts[one["index"]] += one[kind].get("input" if kind == "custom" else "arguments", "")
    assert list(texts.values()) == ["".join(pieces).upper() for _, pieces in calls]


class Responding(ScriptedBackend):
    """A server of the Responses API that calls a tool with a text that it was given."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def body(self, status: str) -> dict[str, Any]:
        item = {"type": "function_call", "id": "i", "call_id": "c", "name": "send", "arguments": self.text}
        return {"id": "r", "object": "response", "model": "m", "status": status, "output": [item]}

    async def post(self, api: str, request: ChatRequest, *, scope: Scope) -> Completion:
        return Completion(self.body("completed"), self.name)

    async def events(self, api: str, request: ChatRequest, *, scope: Scope) -> AsyncIterator[Chunk]:
        kind = "response.function_call_arguments"
        frame = {"item_id": "i", "output_index": 0}
        item = self.body("completed")["output"][0]
        for body in (
            {"type": "response.output_item.added", "output_index": 0, "item": {**item, "arguments": ""}},
            *({"type": f"{kind}.delta", **frame, "delta": letter} for letter in self.text),
            {"type": f"{kind}.done", **frame, "arguments": self.text},
            {"type": "response.output_item.done", "output_index": 0, "item": item},
            {"type": "response.completed", "response": self.body("completed")},
        ):
            yield Chunk(body, self.name)


@pytest.mark.parametrize("stream", [False, True])
async def test_the_responses_api_hides_no_call(scope: Scope, stream: bool) -> None:
    """Its calls stand in five places; a key in them is in none that is shown."""
    policy = Policy.read({"checks": {"secrets": {"tool_arguments": "redact"}}})
    request = ChatRequest({"model": "scripted", "input": "Send it.", "tools": []})
    router = aibox.Router(Responding(json.dumps({"to": KEY})))
    bare_call = BareCall(request, api="responses", router=router, guardrail=Guardrail(policy), audit=None, scope=scope)
    if stream:
        said = str([chunk.body async for chunk in iterated(bare_call.stream)])
    else:
        said = str((await bare_call.complete()).body)
    assert KEY not in said
    assert "removed: a secret" in said


class Odd(ScriptedBackend):
    """A server that says what it says in a place, or in a form, where few look for it."""

    def __init__(self, said: dict[str, Any]) -> None:
        super().__init__()
        self.said = said

    async def complete(self, request: ChatRequest, *, scope: Scope) -> Completion:
        return Completion({"choices": [{"index": 0, "message": self.said, "finish_reason": "stop"}]}, self.name)

    async def stream(self, request: ChatRequest, *, scope: Scope) -> AsyncIterator[Chunk]:
        yield Chunk({"choices": [{"index": 0, "delta": self.said, "finish_reason": None}]}, self.name)
        yield Chunk({"choices": [{"index": 0, "delta": {"role": None}, "finish_reason": "stop"}]}, self.name)


WRITTEN = f"Use {KEY} for it. "
ODD: dict[str, dict[str, Any]] = {
    "content in parts": {"content": [{"type": "text", "text": WRITTEN}, {"type": "thinking", "thinking": WRITTEN}]},
    "content that is an object": {"content": {"text": WRITTEN}, "refusal": "Yes. "},
    "another field": {"content": "Yes. ", "reasoning_details": [{"type": "reasoning.text", "text": WRITTEN}]},
    "sound": {"content": "Yes. ", "audio": {"transcript": WRITTEN}},
    "a role": {"role": WRITTEN, "content": "Yes. "},
    "arguments that are no text": {"tool_calls": [{"id": "c", "function": {"name": "send", "arguments": {"to": KEY}}}]},
    "the old form of a call": {"function_call": {"name": "send", "arguments": {"to": KEY}}},
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("said", ODD.values(), ids=ODD)
async def test_what_no_check_can_read_is_not_shown(scope: Scope, said: dict[str, Any], stream: bool) -> None:
    """A text in parts is looked at as the text that it is; what is said in a field that is not known is left out."""
    policy = Policy.read({"checks": {"secrets": {"output": "redact", "tool_arguments": "redact"}}})
    bare_call = bare(Odd(said), policy, ASK, scope)
    if stream:
        shown = str([chunk.body async for chunk in iterated(bare_call.stream)])
    else:
        shown = str((await bare_call.complete()).body)
    assert KEY not in shown
    assert "removed: a secret" in shown or "Yes. " in shown
    nothing = bare(Odd(said), Policy(), ASK, scope)
    assert KEY in str((await nothing.complete()).body)
