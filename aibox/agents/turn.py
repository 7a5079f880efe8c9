"""The way of a turn: check, recall, answer with tools, check, remember, seal.

An input check, the door or the chain that cannot answer stops the turn. Memory that cannot is said, and it goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from aibox.agents._sdk import Stop, run_loop
from aibox.agents.events import Decided, Event, ModelAnswered, ModelCalled, Recalled, Reply, TextDelta, ToolReturned
from aibox.agents.evidence import TurnRecord
from aibox.agents.tools import dispatch
from aibox.audit.chain import AuditChain
from aibox.chat import ChatRequest, Completion, Usage, assemble
from aibox.errors import AIBoxError, BackendError, LimitError, UpstreamError
from aibox.guardrails.guardrail import Guardrail
from aibox.guardrails.stream import OutputFilter
from aibox.inference.client import openai_client
from aibox.memory.memory import Memory
from aibox.policy.policy import Policy
from aibox.protocols import Approver, Backend, Tool
from aibox.types import Decision, Label, Scope, Verdict, Where

WITHHELD = "This message was not answered"
"""How a blocked turn begins to speak; the reasons follow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What an agent is made of, as a turn uses it."""

    name: str
    instructions: str
    router: Backend
    model: str
    tools: tuple[Tool, ...]
    policy: Policy
    guardrail: Guardrail | None
    memory: Memory | None
    audit: AuditChain | None
    approver: Approver | None
    settings: Mapping[str, Any] = field(default_factory=dict)


class _Blocked(Stop):
    """A check refused; the turn ends with a reply that says so."""


class Turn:
    """One message and what comes of it. Used once, by `run`; events go to `emit` as they happen."""

    def __init__(
        self,
        parts: Parts,
        *,
        scope: Scope,
        label: Label,
        emit: Callable[[Event], None],
        streaming: bool,
        history: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | None = None,
        output_type: type[Any] | None = None,
    ) -> None:
        self.history = history
        self.parts = parts
        self.scope = scope
        self.emit = emit
        self.streaming = streaming
        self.tool_choice = tool_choice
        self.output_type = output_type
        self.policy = parts.policy
        self.guardrail = parts.guardrail
        self.approver = parts.approver
        self.record = TurnRecord(parts.audit, scope=scope)
        self.label = label
        self.usage = Usage()
        self.model = ""
        self.verdicts: list[Verdict] = []
        self.tool_results: list[ToolReturned] = []
        self.filter: OutputFilter | None = None

    async def run(self, message: str) -> Reply:
        """The reply; the terminal entry is durable before the last of its text is emitted. Raises AIBoxError."""
        try:
            async with asyncio.timeout(self.policy.limits.turn_s):
                return await self._run(message)
        except TimeoutError:
            error: AIBoxError = LimitError(f"the turn took longer than {self.policy.limits.turn_s:g} s and was stopped")
            await self.record.fail(error, label=self.label)
            raise error from None
        except AIBoxError as error:
            await self.record.fail(error, label=self.label)
            raise
        except asyncio.CancelledError:
            # The caller has gone; the evidence that this turn ended is written all the same.
            await asyncio.shield(self.record.fail(BackendError("the turn was cancelled"), label=self.label))
            raise

    async def _run(self, message: str) -> Reply:
        self._measure(message)
        self.record.note(
            "turn.started", {"agent": self.parts.name, "policy": self.policy.digest, "label": str(self.label)}
        )
        blocked, tail = False, ""
        try:
            asked = await self._input(message)
            answered = await self._answer(asked, await self._recall(asked))
            text, tail = await self._output(answered)
            output = text if self.output_type is None else self._parse(text, self.output_type)
            await self._remember(asked, answered)
        except _Blocked:
            blocked = True
            output = text = f"{WITHHELD}: {'; '.join(self.verdicts[-1].reasons()) or 'a safety check refused it'}."
        receipt = await self.record.seal(outcome="blocked" if blocked else "answered", label=self.label)
        if tail:
            self.emit(TextDelta(tail))
        return Reply(
            text=text,
            output=output,
            label=self.label,
            blocked=blocked,
            verdicts=tuple(self.verdicts),
            tool_calls=tuple(self.tool_results),
            usage=self.usage,
            receipt=receipt,
            session=self.scope.session,
            model=self.model,
        )

    # Steps of the turn, in order.

    def _measure(self, message: str) -> None:
        if not message.strip():
            raise LimitError("the message is empty", hint="say something")
        try:
            size_kib = len(message.encode()) / 1024
        except UnicodeEncodeError:
            raise LimitError("the message is not valid Unicode", hint="send UTF-8 text") from None
        if size_kib > self.policy.limits.input_kib:
            raise LimitError(
                f"the message has {size_kib:.0f} KiB and the policy allows {self.policy.limits.input_kib}",
                hint="send less, or raise limits.input_kib in the policy",
            )

    async def _input(self, message: str) -> str:
        verdict = await self.check(message, where="input")
        if verdict.blocked:
            raise _Blocked
        return verdict.text

    async def _recall(self, asked: str) -> str:
        memory = self.parts.memory
        if memory is None:
            return ""
        try:
            hits = tuple(await memory.recall(asked, scope=self.scope))
        except UpstreamError as error:
            self.emit(Recalled(error=error.message))
            self.record.note("memory.read", {"outcome": "failed", "code": error.code})
            return ""
        kept = []
        for hit in hits:
            verdict = await self.check(hit.record.text, where="retrieved")
            if not verdict.blocked:
                kept.append(replace(hit, record=replace(hit.record, text=verdict.text)))
                self.touch(hit.record.label.because(hit.citation))
        self.emit(Recalled(hits=tuple(kept)))
        self.record.note("memory.read", {"outcome": "read", "records": [hit.record.id for hit in kept]})
        return "\n".join(f"- {hit.record.text}" for hit in kept)

    async def _answer(self, asked: str, notes: str) -> str:
        parts = self.parts
        instructions = parts.instructions
        if notes:
            instructions += f"\n\nNotes from earlier conversations with this user:\n{notes}"

        async def invoke(tool: Tool, arguments: str) -> str:
            return await dispatch(tool, arguments, turn=self)

        return await run_loop(
            name=parts.name,
            instructions=instructions,
            messages=[*await self._earlier(), {"role": "user", "content": asked}],
            client=openai_client(_TurnBackend(self), scope=self.scope, label=self.label),
            model=parts.model,
            tools=parts.tools,
            invoke=invoke,
            tool_choice=self.tool_choice,
            output_type=self.output_type,
            model_calls=self.policy.limits.model_calls,
            settings=parts.settings,
        )

    async def _earlier(self) -> list[Mapping[str, Any]]:
        """What was said before: given by the caller, and then checked anew; else kept, as the model saw it."""
        if self.history is None:
            memory = self.parts.memory
            return list(memory.buffer.window(scope=self.scope)) if memory is not None and self.scope.session else []
        earlier: list[Mapping[str, Any]] = []
        for message in self.history:
            verdict = await self.check(message["content"], where="input")
            if verdict.blocked:
                raise _Blocked
            earlier.append({"role": message["role"], "content": verdict.text})
        return earlier

    async def _output(self, text: str) -> tuple[str, str]:
        """The answer, checked and restored, and what of it has not been emitted yet."""
        if self.filter is not None:
            tail = await self.filter.finish()
            verdict, shown = self.filter.verdict, self.filter.text
        else:
            verdict, tail = await self.check(text, where="output"), ""
            shown = verdict.text
            if self.guardrail is not None and not verdict.blocked:
                shown = await self.guardrail.restore(shown, scope=self.scope)
        if self.filter is not None:
            self.decided(verdict)
        if verdict.blocked:
            raise _Blocked
        return shown, tail

    def _parse(self, text: str, wanted: type[Any]) -> Any:
        try:
            return TypeAdapter(wanted).validate_json(text)
        except ValidationError as error:
            name = getattr(wanted, "__name__", "type")
            raise BackendError(
                f"the answer is not the {name} that was asked for: {error.errors()[0]['msg']}",
                hint="try again, or use a larger model",
                retryable=True,
            ) from None

    async def _remember(self, asked: str, answered: str) -> None:
        """Keep what the model saw and wrote: pseudonyms, not the originals."""
        memory = self.parts.memory
        if memory is None:
            return
        try:
            if self.scope.session and self.history is None:
                memory.buffer.add({"role": "user", "content": asked}, scope=self.scope)
                memory.buffer.add({"role": "assistant", "content": answered}, scope=self.scope)
            records = await memory.learn(asked, scope=self.scope, label=self.label, source=self.record.turn)
        except UpstreamError as error:
            self.emit(Recalled(error=error.message))
            self.record.note("memory.written", {"outcome": "failed", "code": error.code})
            return
        if records:
            self.record.note("memory.written", {"outcome": "written", "records": [record.id for record in records]})

    # What the steps, the tools and the model calls share.

    def touch(self, label: Label) -> None:
        """The turn has met a text with this label; its own label rises to the join."""
        self.label = self.label | label

    def returned(self, result: ToolReturned) -> None:
        self.tool_results.append(result)
        self.emit(result)

    async def check(self, text: str, *, where: Where) -> Verdict:
        """Ask the guardrail, keep and record what it found. Without one, everything is allowed."""
        if self.guardrail is None:
            return Verdict(Decision.ALLOW, text, where=where)
        verdict = await self.guardrail.check(text, where=where, scope=self.scope, label=self.label)
        self.decided(verdict)
        return verdict

    def decided(self, verdict: Verdict) -> None:
        if verdict.decision == Decision.ALLOW and not verdict.findings:
            return
        self.verdicts.append(verdict)
        self.emit(Decided(verdict))
        self.record.decided(verdict)


class _TurnBackend:
    """The Router as one turn sees it: under the turn's present label, counted, recorded, and heard as it speaks."""

    name = "turn"
    external = False

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._router = turn.parts.router

    async def complete(self, request: ChatRequest, *, scope: Scope) -> Completion:
        turn = self._turn
        request = replace(request, label=turn.label)
        turn.emit(ModelCalled(tuple(request.messages)))
        turn.record.called(request)
        completion = await (self._heard(request, scope=scope) if turn.streaming else self._ask(request, scope=scope))
        turn.record.answered(completion)
        turn.emit(ModelAnswered(completion.message))
        turn.usage += completion.usage
        turn.model = completion.model
        return completion

    async def _ask(self, request: ChatRequest, *, scope: Scope) -> Completion:
        return await self._router.complete(request, scope=scope)

    async def _heard(self, request: ChatRequest, *, scope: Scope) -> Completion:
        """Stream, emitting text as the output filter lets it go; what it holds back waits for the end of the turn."""
        turn, chunks = self._turn, []
        turn.filter = OutputFilter(turn.guardrail, scope=scope, label=turn.label)
        request = request.with_fields(stream_options={"include_usage": True})
        async for chunk in self._router.stream(request, scope=scope):
            chunks.append(chunk)
            if chunk.text and (piece := await turn.filter.push(chunk.text)):
                turn.emit(TextDelta(piece))
            if turn.filter.verdict.blocked:
                turn.decided(turn.filter.verdict)
                raise _Blocked
        return assemble(chunks)
