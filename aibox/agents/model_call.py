"""The Router as one turn sees it: under the turn's present label, counted, recorded, and heard as it speaks."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Any, Protocol

from aibox.agents._sdk import Stop
from aibox.agents.agreements import Agreements
from aibox.agents.budget import Budget, Share
from aibox.agents.events import Event, ModelAnswered, ModelCalled, TextDelta, UsageReported
from aibox.agents.evidence import TurnRecord
from aibox.agents.frame import Frame
from aibox.chat import ChatRequest, Completion, assemble
from aibox.errors import ApprovalError
from aibox.guardrails.guardrail import Guardrail
from aibox.guardrails.stream import OutputFilter
from aibox.protocols import Backend
from aibox.types import Label, Scope, Verdict

CUT = "the answer was cut off: one model call may write no more (max_tokens, limits.output_tokens, or the model's own)"
"""Why a turn stopped whose model was not done."""


class Blocked(Stop):
    """A check refused; the turn ends with a reply that says so."""


class Paused(Stop):
    """The run waits for people."""


class Caller(Protocol):
    """The turn, as far as a model call concerns it."""

    frame: Frame
    record: TurnRecord
    budget: Budget | Share
    guardrail: Guardrail | None
    filter: OutputFilter | None
    streaming: bool
    reached: str
    cut: bool
    model: str
    call_ids: set[str]
    agreed: Agreements

    @property
    def label(self) -> Label: ...

    @property
    def outgoing(self) -> Label: ...

    @property
    def paused(self) -> bool: ...

    def emit(self, event: Event) -> None: ...

    def decided(self, verdict: Verdict) -> None: ...


class TurnModel:
    """Whom the loop asks. It knows every message that was exchanged, and so where the run stands."""

    def __init__(self, turn: Caller, *, router: Backend, scope: Scope) -> None:
        self._turn = turn
        self._router = router
        self._scope = scope

    async def ask(self, body: dict[str, Any]) -> Completion:
        turn = self._turn
        if turn.paused:
            raise Paused
        turn.budget.before_call()
        request = ChatRequest(body, turn.outgoing, agreed=turn.agreed.all())
        turn.emit(ModelCalled(tuple(request.messages)))
        began, scope = turn.record.called(request, scope=self._scope)
        try:
            completion = await self._sent(request, scope)
        except ApprovalError as needed:
            turn.budget.not_made()
            # Where the run stands is at this call: whoever goes on makes it.
            turn.frame.messages, turn.frame.results, turn.frame.children = _kept(request), {}, {}
            yes = await turn.agreed.ask(needed, request)
            if yes is None:
                raise Paused from None
            turn.budget.before_call()
            completion = await self._sent(replace(request, agreed=(*request.agreed, yes)), scope)
        turn.record.answered(completion, began=began, label=request.label)
        completion = _unique(completion, turn.call_ids)
        turn.emit(ModelAnswered(completion.message))
        turn.budget.after_call(completion)
        turn.emit(UsageReported(completion.model, completion.backend, completion.usage, turn.budget.usage))
        turn.model = completion.model
        turn.reached = completion.text or turn.reached
        turn.cut = completion.finish_reason == "length"
        whole = [*_kept(request), dict(completion.message)]
        turn.frame.messages, turn.frame.results, turn.frame.children = whole, {}, {}
        return completion

    async def _sent(self, request: ChatRequest, scope: Scope) -> Completion:
        if self._turn.streaming:
            return await self._heard(request, scope=scope)
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
                raise Blocked
        return assemble(chunks)


def _kept(request: ChatRequest) -> list[dict[str, Any]]:
    return [message for message in request.messages if message.get("role") != "system"]


def _unique(completion: Completion, known: set[str]) -> Completion:
    """Ids of calls are ours to rely on; a small model repeats them, or leaves them out."""
    calls = completion.message.get("tool_calls")
    if not calls:
        return completion
    made, changed = [], False
    for call in calls:
        if not call.get("id") or call["id"] in known:
            call = {**call, "id": f"call_{uuid.uuid4().hex}"}  # noqa: PLW2901 - the same call under another id
            changed = True
        known.add(call["id"])
        made.append(call)
    if not changed:
        return completion
    body: dict[str, Any] = completion.body
    choice = {**body["choices"][0], "message": {**completion.message, "tool_calls": made}}
    return replace(completion, body={**body, "choices": [choice, *body["choices"][1:]]})
