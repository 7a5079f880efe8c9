"""A model that says what a test wrote down, and complains when it was asked more or less than that.

Only the model is scripted: everything around it is the real thing.
"""

from __future__ import annotations

import inspect
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aibox.chat import ChatRequest, Chunk, Completion, Health, ModelInfo, Weights
from aibox.inference.chunks import chunks_of, wants_usage
from aibox.types import Scope

CHUNK_CHARS = 8


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call that the script makes; see `call`."""

    name: str
    arguments: str


def call(name: str, arguments: Mapping[str, Any] | str) -> Call:
    """An answer that calls a tool. A string is sent as it is, also when it is not JSON."""
    return Call(name, arguments if isinstance(arguments, str) else json.dumps(arguments))


Said = str | Call | list[Call] | BaseException
Answer = Said | Callable[[ChatRequest], Said | Awaitable[Said]]
"""A text, one or several tool calls, an exception to raise, or a function of the request that returns one of these."""


class ScriptedBackend:
    """A Backend that gives its `answers` in order and keeps what it was asked in `requests`.

    Asked once too often it raises AssertionError; `assert_done()` raises it while answers are left. A stream comes in
    chunks of 8 characters. Token counts are counts of words. The model's id is the backend's name.
    """

    def __init__(self, *answers: Answer, name: str = "scripted", external: bool = False, tools: bool = True) -> None:
        self.name = name
        self.external = external
        self.requests: list[ChatRequest] = []
        self.scopes: list[Scope] = []
        self.closed = False
        self._answers = list(answers)
        self._given = 0
        self._tools = tools

    def assert_done(self) -> None:
        """Raises AssertionError unless every answer was asked for."""
        left = len(self._answers) - self._given
        if left:
            raise AssertionError(f"{left} of {len(self._answers)} scripted answers were never asked for")

    async def models(self) -> tuple[ModelInfo, ...]:
        return (ModelInfo(id=self.name, backend=self.name, external=self.external, tools=self._tools),)

    async def complete(self, request: ChatRequest, *, scope: Scope) -> Completion:
        self.requests.append(request)
        self.scopes.append(scope)
        if self._given == len(self._answers):
            raise AssertionError(f"the script has {self._given} answers, and one more was asked for")
        answer = self._answers[self._given]
        self._given += 1
        if not isinstance(answer, str | Call | list | BaseException):
            made = answer(request)
            answer = await made if inspect.isawaitable(made) else made
        if isinstance(answer, BaseException):
            raise answer
        return self._completion(request, answer)

    async def stream(self, request: ChatRequest, *, scope: Scope) -> AsyncIterator[Chunk]:
        completion = await self.complete(request, scope=scope)
        for chunk in chunks_of(completion, size=CHUNK_CHARS, usage=wants_usage(request)):
            yield chunk

    async def health(self) -> Health:
        return Health(ok=not self.closed, detail="closed" if self.closed else "scripted")

    async def close(self) -> None:
        self.closed = True

    def _completion(self, request: ChatRequest, answer: str | Call | list[Call]) -> Completion:
        message: dict[str, Any] = {"role": "assistant", "content": answer if isinstance(answer, str) else None}
        if not isinstance(answer, str):
            message["tool_calls"] = [
                {
                    "id": f"call_{uuid.uuid4().hex}",
                    "type": "function",
                    "function": {"name": one.name, "arguments": one.arguments},
                }
                for one in (answer if isinstance(answer, list) else [answer])
            ]
        asked = sum(len(str(m.get("content") or "").split()) for m in request.messages)
        said = len(str(answer).split())
        body = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": self.name,
            "choices": [
                {"index": 0, "message": message, "finish_reason": "stop" if isinstance(answer, str) else "tool_calls"}
            ],
            "usage": {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said},
        }
        return Completion(body, self.name, Weights())

    def __repr__(self) -> str:
        return f"ScriptedBackend({self._given} of {len(self._answers)} answers given)"
