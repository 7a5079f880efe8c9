"""A model without an agent, under the same policy: messages checked, the answer restored, the call recorded.

Each message is checked as what it is (a user's as input, a tool's as a tool result); the answer as output.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

from aibox.agents.evidence import TurnRecord
from aibox.audit.chain import AuditChain
from aibox.chat import ChatRequest, Chunk, assemble
from aibox.errors import AIBoxError, BackendError, GuardrailError
from aibox.guardrails.guardrail import Guardrail
from aibox.guardrails.stream import OutputFilter
from aibox.protocols import Backend
from aibox.types import Decision, Label, Scope, Verdict, Where

_PLACES: dict[str, Where] = {"user": "input", "tool": "tool_result", "function": "tool_result"}


class BareCall:
    """One Chat Completions request, used once: `complete()` or `stream()`. Raises GuardrailError for a block."""

    def __init__(
        self,
        body: dict[str, Any],
        *,
        router: Backend,
        guardrail: Guardrail,
        audit: AuditChain | None,
        scope: Scope,
        label: Label | None = None,
    ) -> None:
        self._body = body
        self._router = router
        self._guardrail = guardrail
        self._scope = scope
        self._label = label or Label()
        self._record = TurnRecord(audit, scope=scope)

    async def complete(self) -> dict[str, Any]:
        """The whole answer; the entry that ends the call is durable when it returns."""
        try:
            completion = await self._router.complete(await self._prepare(), scope=self._scope)
            self._record.answered(completion)
            body = completion.body
            if completion.text:
                text = await self._check(completion.text, where="output")
                text = await self._guardrail.restore(text, scope=self._scope)
                choice = {**body["choices"][0], "message": {**completion.message, "content": text}}
                body = {**body, "choices": [choice, *body["choices"][1:]]}
            await self._record.seal(outcome="answered", label=self._label)
        except AIBoxError as error:
            await self._record.fail(error, label=self._label)
            raise
        except asyncio.CancelledError:
            await asyncio.shield(self._record.fail(BackendError("the caller has gone"), label=self._label))
            raise
        return body

    async def stream(self) -> AsyncIterator[dict[str, Any]]:
        """Chunks as they come, text held back only as far as the output check needs. Leaving early is recorded."""
        try:
            async for body in self._stream():
                yield body
        except AIBoxError as error:
            await self._record.fail(error, label=self._label)
            raise
        except (asyncio.CancelledError, GeneratorExit):
            await asyncio.shield(self._record.fail(BackendError("the caller has gone"), label=self._label))
            raise

    async def _stream(self) -> AsyncIterator[dict[str, Any]]:
        held = OutputFilter(self._guardrail, scope=self._scope, label=self._label)
        chunks: list[Chunk] = []
        async for chunk in self._router.stream(await self._prepare(), scope=self._scope):
            chunks.append(chunk)
            text = await held.push(chunk.text) if chunk.text else ""
            if chunk.finish_reason:
                text += await held.finish()
            self._enforce(held.verdict)
            if chunk.finish_reason:
                # What ends the call is durable before the last byte of the answer is sent.
                self._record.answered(assemble(chunks))
                await self._record.seal(outcome="answered", label=self._label)
            if text or not chunk.text or chunk.finish_reason:
                yield _with_text(chunk, text)

    async def _prepare(self) -> ChatRequest:
        messages = [await self._check_message(message) for message in self._body["messages"]]
        request = ChatRequest({**self._body, "messages": messages}, self._label)
        self._record.called(request)
        return request

    async def _check_message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        where = _PLACES.get(message["role"])
        content = message.get("content")
        if where is None or not content:
            return dict(message)
        if isinstance(content, str):
            return {**message, "content": await self._check(content, where=where)}
        parts = [
            {**part, "text": await self._check(part["text"], where=where)}
            if isinstance(part.get("text"), str)
            else part
            for part in content
        ]
        return {**message, "content": parts}

    async def _check(self, text: str, *, where: Where) -> str:
        verdict = await self._guardrail.check(text, where=where, scope=self._scope, label=self._label)
        self._enforce(verdict)
        return verdict.text

    def _enforce(self, verdict: Verdict) -> None:
        if verdict.decision > Decision.ALLOW:
            self._record.decided(verdict)
        if verdict.blocked:
            raise GuardrailError(
                f"a safety check refused this: {'; '.join(verdict.reasons())}",
                hint="the policy decides what is refused",
            )


def _with_text(chunk: Chunk, text: str) -> dict[str, Any]:
    """The chunk as it came, but for the text that may be shown by now."""
    choices = chunk.body.get("choices") or []
    if not choices or (not text and not chunk.text):
        return chunk.body
    return {**chunk.body, "choices": [{**choices[0], "delta": {**chunk.delta, "content": text}}, *choices[1:]]}
