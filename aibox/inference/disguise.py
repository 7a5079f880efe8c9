"""Personal data on its way through the door: pseudonyms go out, and what comes back is restored.

What cannot be read cannot be disguised: images, sound, files and token ids are refused, and so is an unknown shape.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

import msgspec

from aibox.chat import Calls, ChatRequest, Chunk, Completion
from aibox.errors import EgressError
from aibox.fields import each_text, names
from aibox.policy.policy import Policy
from aibox.types import Scope

_HINT = "send text only, ask for a local model, or set egress.pseudonymise = false in the policy"
# Of what a body holds beside text, these say how to answer, and are words of the program and not of a person.
_PARTS = {"text", "input_text", "output_text", "refusal"}
_PROGRAM = {"model", "tools", "tool_choice", "functions", "function_call", "response_format", "text"}
_NAMES = {"user", "metadata", "safety_identifier", "prompt_cache_key"}
"""Names of people and of their conversations, which the provider does not need."""


class Restores(Protocol):
    """Restores a text that arrives in pieces."""

    async def push(self, text: str) -> str: ...

    async def finish(self) -> str: ...


class Concealer(Protocol):
    """Swaps personal data for pseudonyms and back, for one scope's tenant and user."""

    async def conceal(self, text: str, *, scope: Scope, policy: Policy) -> str: ...

    async def restore(self, text: str, *, scope: Scope) -> str: ...

    def restorer(self, *, scope: Scope) -> Restores: ...


class Disguise:
    """One request and its answer, under the policy of the call."""

    def __init__(self, concealer: Concealer, *, scope: Scope, policy: Policy) -> None:
        self._concealer = concealer
        self._policy = policy
        self._scope = scope

    async def outward(self, request: ChatRequest) -> ChatRequest:
        """The request as it may leave. Raises EgressError for what cannot be read."""
        body: dict[str, Any] = {}
        for key, value in request.body.items():
            if key in _NAMES:
                continue
            if key in ("messages", "prompt", "input", "instructions"):
                value = await self._outward(value)  # noqa: PLW2901 - the same field, as it leaves
            elif key not in _PROGRAM:
                value = await self._every(value)  # noqa: PLW2901 - likewise
            body[key] = value
        return ChatRequest(body, request.label)

    async def inward(self, completion: Completion) -> Completion:
        """The whole answer, restored."""
        body = await self._walk(completion.body, self._restore)
        return Completion(body, completion.backend, completion.weights)

    async def inward_stream(self, chunks: AsyncIterator[Chunk]) -> AsyncIterator[Chunk]:
        """The chunks with their text restored. Arguments of tool calls come when they are whole."""
        text = self._concealer.restorer(scope=self._scope)
        calls = Calls()
        last: Chunk | None = None
        ended = False
        async for chunk in chunks:
            last = chunk
            delta = dict(chunk.delta)
            for part in delta.pop("tool_calls", None) or ():
                calls.add(part)
            piece = await text.push(chunk.text) if chunk.text else ""
            if chunk.finish_reason:
                ended = True
                piece += await text.finish()
                delta |= await self._whole_calls(calls.whole())
            if "content" in delta or piece:
                delta["content"] = piece
            if not chunk.body.get("choices"):
                yield chunk
            elif chunk.finish_reason or piece or delta.keys() - {"content"}:
                yield _with_delta(chunk, delta)
        if last is not None and not ended and (piece := await text.finish()):
            yield _with_delta(last, {"content": piece})

    async def _whole_calls(self, calls: dict[int, dict[str, Any]]) -> dict[str, Any]:
        for call in calls.values():
            call["function"]["arguments"] = await self._restore(call["function"]["arguments"])
        return {"tool_calls": [{"index": index, **call} for index, call in calls.items()]} if calls else {}

    async def _conceal(self, text: str) -> str:
        return await self._concealer.conceal(text, scope=self._scope, policy=self._policy)

    async def _restore(self, text: str) -> str:
        """Inside JSON a restored value must stay a string of it, whatever characters it holds."""
        if text[:1] in ("{", "["):
            try:
                value = msgspec.json.decode(text.encode())
            except (msgspec.DecodeError, UnicodeError):
                pass
            else:
                return msgspec.json.encode(await self._walk(value, self._restore)).decode()
        return await self._concealer.restore(text, scope=self._scope)

    async def _outward(self, value: Any) -> Any:
        if isinstance(value, str):
            return await self._conceal(value)
        if isinstance(value, list):
            return [await self._outward(item) for item in value]
        if not isinstance(value, dict):
            raise _unread("token ids")
        kind = value.get("type")
        if "role" not in value and kind not in _PARTS | {"function_call", "function_call_output"}:
            raise _unread(str(kind or "something")[:40])
        made: dict[str, Any] = {}
        for key, said in value.items():
            if key in ("content", "output"):
                made[key] = said if said is None else await self._outward(said)
            elif not (key == "name" and "role" in value):
                made[key] = said if names(key, said) else await self._every(said)
        return made

    async def _every(self, value: Any) -> Any:
        """A field that is not known: what is said there may be anybody's."""
        return await each_text(value, self._conceal, _unread)

    async def _walk(self, value: Any, change: Callable[[str], Awaitable[str]]) -> Any:
        if isinstance(value, str):
            return await change(value)
        if isinstance(value, list):
            return [await self._walk(item, change) for item in value]
        if isinstance(value, dict):
            return {key: await self._walk(item, change) for key, item in value.items()}
        return value


def _unread(what: str) -> EgressError:
    return EgressError(f"the request holds {what}, in which personal data cannot be found", hint=_HINT)


def _with_delta(chunk: Chunk, delta: dict[str, Any]) -> Chunk:
    first, *others = chunk.body["choices"]
    return Chunk({**chunk.body, "choices": [{**first, "delta": delta}, *others]}, chunk.backend, chunk.weights)
