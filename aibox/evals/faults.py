"""Faults on request, at the seams where the world fails: model calls, tools, and what tools bring back.

Faults are chosen by number or by seed, never by chance: a test that failed fails again.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from typing import Any

import anyio

from aibox.agents.tools import as_tool
from aibox.chat import ChatRequest, Chunk, Completion, Health, ModelInfo
from aibox.errors import BackendError, ConfigError
from aibox.protocols import Backend, Tool
from aibox.types import Scope

Which = Collection[int] | float
"""Which calls meet the fault: their numbers, counted from 1, or a share of them from 0 to 1, drawn with the seed."""

MALFORMED = '{"this is": "not finished'


class Faults:
    """Decides which calls meet a fault; shared by a wrapper's calls. `met` counts those that did."""

    def __init__(self, which: Which, *, seed: int = 0) -> None:
        if isinstance(which, int | float) and not 0 <= which <= 1:
            raise ConfigError(f"a share of calls lies from 0 to 1, not at {which}", hint="{2} is the second call")
        self._which = which
        self._random = random.Random(seed)  # noqa: S311 - repeatable on purpose, and guards nothing
        self.calls = 0
        self.met = 0

    def __call__(self) -> bool:
        self.calls += 1
        which = self._which
        hit = self._random.random() < which if isinstance(which, int | float) else self.calls in which
        self.met += hit
        return hit


def rate_limited() -> BackendError:
    """As a server that answers 429."""
    return BackendError("the model server answered 429: too many requests", retryable=True)


def unavailable() -> BackendError:
    """As a server that answers 503."""
    return BackendError("the model server answered 503: overloaded", retryable=True)


def timed_out() -> BackendError:
    """As a server that does not answer in time."""
    return BackendError("the model server did not answer in time", retryable=True, timeout=True)


class FaultyBackend:
    """A Backend that raises `error()` in place of some calls, or after `after_chunks` chunks of a stream."""

    def __init__(
        self,
        backend: Backend,
        *,
        which: Which,
        error: Callable[[], BackendError] = rate_limited,
        after_chunks: int = 0,
        malformed_calls: bool = False,
        seed: int = 0,
    ) -> None:
        self._backend = backend
        self._error = error
        self._after = after_chunks
        self._malformed = malformed_calls
        self.faults = Faults(which, seed=seed)
        self.name = backend.name
        self.external = backend.external

    async def models(self) -> Sequence[ModelInfo]:
        return await self._backend.models()

    async def complete(self, request: ChatRequest, *, scope: Scope) -> Completion:
        if not self.faults():
            return await self._backend.complete(request, scope=scope)
        if self._malformed:
            return _malformed(await self._backend.complete(request, scope=scope))
        raise self._error()

    async def stream(self, request: ChatRequest, *, scope: Scope) -> AsyncIterator[Chunk]:
        hit, sent = self.faults(), 0
        if hit and not self._after and not self._malformed:
            raise self._error()
        async for chunk in self._backend.stream(request, scope=scope):
            if hit and not self._malformed and sent == self._after:
                raise self._error()
            sent += 1
            yield _malformed_chunk(chunk) if hit and self._malformed else chunk

    async def health(self) -> Health:
        return await self._backend.health()

    async def close(self) -> None:
        await self._backend.close()


class FaultyTool:
    """A Tool of which some calls fail: `error` is raised, `delay_s` waited first, or `poison` given as the result.

    Poison takes the place of what the tool would have brought back; the tool itself is not called then.
    """

    def __init__(
        self,
        tool: Tool | Callable[..., Any],
        *,
        which: Which,
        error: Exception | None = None,
        delay_s: float = 0.0,
        poison: str | None = None,
        seed: int = 0,
    ) -> None:
        if error is None and not delay_s and poison is None:
            raise ConfigError("no fault was asked for", hint="give error, delay_s or poison")
        self._tool = as_tool(tool)
        self._error = error
        self._delay_s = delay_s
        self._poison = poison
        self.faults = Faults(which, seed=seed)

    @property
    def name(self) -> str:
        return self._tool.name

    @property
    def description(self) -> str:
        return self._tool.description

    @property
    def schema(self) -> Mapping[str, Any]:
        return self._tool.schema

    async def call(self, arguments: Mapping[str, Any], *, scope: Scope) -> str:
        if not self.faults():
            return await self._tool.call(arguments, scope=scope)
        if self._delay_s:
            await anyio.sleep(self._delay_s)
        if self._error is not None:
            raise self._error
        return await self._tool.call(arguments, scope=scope) if self._poison is None else self._poison

    def __getattr__(self, name: str) -> Any:
        # Label, approval, side effects and time limit are the tool's own: a fault changes none of them.
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._tool, name)


def _malformed(completion: Completion) -> Completion:
    """The same answer with tool calls whose arguments break off. An answer without one stays."""
    calls = [
        {**call, "function": {**call["function"], "arguments": MALFORMED}}
        for call in completion.message.get("tool_calls") or ()
    ]
    if not calls:
        return completion
    choice = {**completion.body["choices"][0], "message": {**completion.message, "tool_calls": calls}}
    return Completion({**completion.body, "choices": [choice]}, completion.backend, completion.weights)


def _malformed_chunk(chunk: Chunk) -> Chunk:
    calls = [
        {**call, "function": {**call["function"], "arguments": MALFORMED}}
        if call.get("id")
        else {**call, "function": {**call.get("function", {}), "arguments": ""}}
        for call in chunk.delta.get("tool_calls") or ()
    ]
    if not calls:
        return chunk
    choice = {**chunk.body["choices"][0], "delta": {**chunk.delta, "tool_calls": calls}}
    return Chunk({**chunk.body, "choices": [choice]}, chunk.backend, chunk.weights)
