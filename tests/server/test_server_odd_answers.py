"""Whatever a model server answers: it is an answer or that server's failure, and the call has one end on record."""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import aibox
from aibox.agents.bare import BareCall
from aibox.audit.chain import AuditChain
from aibox.chat import ChatRequest
from aibox.errors import BackendError
from aibox.guardrails.guardrail import Guardrail
from aibox.inference.capabilities import Api
from aibox.inference.openai_compatible import OpenAICompatible
from aibox.inference.streams import iterated
from aibox.policy.policy import Policy
from aibox.types import Scope

pytestmark = [pytest.mark.anyio, pytest.mark.loopback]

CASES = 80
ODD: tuple[Any, ...] = (
    None, 5, -1, 1.5, True, "", "x", "é" * 40_000, [], [1], [None], [[]], {}, {"a": 1}, {"text": "hi"}, 10**30, 1e308,
    "\u0000", "<PERSON_482139>", ["<PERSON_482139>"],
)  # fmt: skip
EVENTS = (
    "response.created", "response.output_text.delta", "response.output_item.added", "response.output_item.done",
    "response.function_call_arguments.done", "response.content_part.added", "response.completed", 5,
)  # fmt: skip
ASKED: dict[Api, dict[str, Any]] = {
    "chat": {"messages": [{"role": "user", "content": "I am eva@example.org."}]},
    "completions": {"prompt": "I am eva@example.org."},
    "responses": {"input": "I am eva@example.org."},
}


class Odd:
    """A server on loopback that answers with `bodies`: the first of them, or all as events."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        odd = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
                written = [json.dumps(body).encode() for body in odd.bodies]
                events = b"".join(b"data: %s\n\n" % body for body in written) + b"data: [DONE]\n\n"
                data = events if asked.get("stream") else written[0]
                self.send_response(200)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                """Nobody wants to read it."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()


@pytest.fixture
def odd() -> Iterator[Odd]:
    made = Odd()
    yield made
    made.server.shutdown()
    made.thread.join()
    made.server.server_close()


def some(draw: random.Random, value: dict[str, Any], *, share: float) -> dict[str, Any]:
    """With some of its values replaced by odd ones, and one more."""
    return {key: draw.choice(ODD) if draw.random() < share else old for key, old in {**value, "x": None}.items()}


def answer(draw: random.Random, api: Api, *, stream: bool) -> dict[str, Any]:
    if api == "responses":
        part = some(draw, {"type": "output_text", "text": "hi"}, share=0.1)
        item = {"type": draw.choice(("message", "function_call", "reasoning")), "content": [part], "arguments": "{}"}
        item = some(draw, {**item, "summary": None}, share=0.1)
        whole = some(draw, {"id": "r", "output": [item], "usage": {"input_tokens": 3}}, share=0.1)
        event = {"type": draw.choice(EVENTS), "delta": "hi", "text": "hi", "output_index": 0}
        also = {"item": item, "part": part, "response": whole, "choices": 5}
        kept = {key: value for key, value in also.items() if draw.random() < 0.2}
        return {**some(draw, event, share=0.1), **kept} if stream else whole
    call = {"id": "c", "index": 0, "function": some(draw, {"name": "f", "arguments": "{}"}, share=0.2)}
    said = {"role": "assistant", "content": "Hi <PERSON_482139>.", "tool_calls": [some(draw, call, share=0.1)]}
    said = some(draw, {**said, "reasoning": "so", "refusal": None, "function_call": None}, share=0.15)
    choice = {"index": 0, "delta" if stream else "message": said, "text": "hi", "finish_reason": "stop"}
    choices = [some(draw, {**choice, "logprobs": None}, share=0.1)]
    return some(draw, {"id": "x", "model": "m", "choices": choices, "usage": {"prompt_tokens": 3}}, share=0.1)


@pytest.mark.parametrize("api", ASKED)
async def test_each_call_ends_once_however_odd_the_answer_is(api: Api, tmp_path: Path, scope: Scope, odd: Odd) -> None:
    """No shape is taken for a bug of ours, none keeps a call open in the evidence, or gives it a second end."""
    draw = random.Random(f"odd {api}")
    policies = Policy(), Policy.profile("balanced")
    ends, failed = Counter[str](), 0
    async with AuditChain(tmp_path / "audit.db") as chain:
        router = aibox.Router(OpenAICompatible(odd.url, models=["m"], name="odd"))
        for number in range(CASES):
            stream = bool(number % 2)
            odd.bodies = [answer(draw, api, stream=stream) for _ in range(draw.randint(1, 3))]
            request = ChatRequest({"model": "m", **ASKED[api], **({"stream": True} if stream else {})})
            call = BareCall(
                request, api=api, router=router, guardrail=Guardrail(policies[number // 2 % 2]), audit=chain,
                scope=scope.under(f"call-{number:04d}"),
            )  # fmt: skip
            try:
                _ = [chunk async for chunk in iterated(call.stream)] if stream else (await call.complete()).encoded()
            except BackendError:
                failed += 1
        async for entry in chain.entries(scope.tenant):
            if entry.kind in ("turn.sealed", "turn.failed"):
                ends[entry.detail["correlation"]] += 1
        await router.close()
    assert ends == {f"call-{number:04d}": 1 for number in range(CASES)}
    assert CASES // 10 < failed < CASES
