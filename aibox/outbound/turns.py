"""A turn as spans: the agent, its model calls, tools, checks and retrievals, as its record hears of them.

The names are those of OpenTelemetry's GenAI conventions; what those have no name for begins with `aibox.`.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from aibox.chat import ChatRequest, Completion
from aibox.errors import AIBoxError
from aibox.outbound import messages
from aibox.outbound.harmless import harmless
from aibox.outbound.span import Place, Span, Value, new_span
from aibox.types import Label, Scope, Verdict

if TYPE_CHECKING:
    from aibox.outbound.traces import Traces

PROVIDER = "aibox"
"""Where it is not known yet, or not a model server, who does a step."""
_OPERATIONS = {"completions": "text_completion", "responses": "chat"}
"""Of OpenAI's APIs, where it is not called as they are."""
_FIELDS = {
    "temperature": float, "top_p": float, "frequency_penalty": float, "presence_penalty": float, "seed": int,
    "stream": bool,
}  # fmt: skip
"""Fields of a request that are told as `gen_ai.request.NAME`, and what they must be."""


class TurnTrace:
    """Hears of one turn. `scope` is the turn's, and stands inside its span; times are those of `time.perf_counter`."""

    def __init__(self, traces: Traces, place: Place, *, scope: Scope, turn: str, agent: str) -> None:
        self.dropped = traces.dropped
        self._traces = traces
        self.scope = replace(scope, trace=place.within)
        self._place = place
        self._turn = turn
        self._agent = agent
        self._content = traces.rules(scope.tenant).traces.content
        self._began = time.perf_counter()
        # So that steps of one turn stand in order, whatever is done to the clock meanwhile.
        self._epoch_ns = time.time_ns() - round(self._began * 1e9)
        self._open: dict[float, Span] = {}
        self._asked: dict[float, str] = {}
        self._calls: dict[str, tuple[str, float]] = {}
        """Of tool calls in which subagents work, by the call's id: the span's id, and when it began."""

    @harmless
    def inside(self, agent: str, *, call: str) -> TurnTrace:
        """Hears of a subagent, whose spans stand below that of the tool call which it works for."""
        within, _ = self._calls.setdefault(call, (new_span(), time.perf_counter()))
        place = Place(self._place.trace, new_span(), within)
        return TurnTrace(self._traces, place, scope=self.scope, turn=self._turn, agent=agent)

    @harmless
    def called(self, began: float, request: ChatRequest, *, scope: Scope, api: str) -> Scope:
        """A model is about to be asked; the scope to ask it with."""
        body, operation = request.body, _OPERATIONS.get(api, api)
        # Which model was asked for is told when one has answered by that name: until then it is a caller's word.
        span = self._span(operation, began, kind="client")
        told: dict[str, Value] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": PROVIDER,
            "aibox.label": str(request.label),
            "aibox.turn": self._turn,
        }
        for name, kind in _FIELDS.items():
            value = body.get(name)
            if isinstance(value, int | float) and (kind is not bool or value is True):
                told[f"gen_ai.request.{name}"] = kind(value)
        if isinstance(most := body.get("max_completion_tokens", body.get("max_tokens")), int):
            told["gen_ai.request.max_tokens"] = most
        span.attributes |= told
        if self._tells(request.label):
            span.texts["gen_ai.input.messages"] = messages.asked(body)
        self._open[began], self._asked[began] = span, request.model
        self._traces.calls[span.place.span] = span
        return replace(scope, trace=span.place.within)

    @harmless
    def answered(self, began: float, completion: Completion, *, said: Any, label: Label) -> None:
        """The answer to the call that began then."""
        span = self._open.pop(began, None)
        if span is None:
            return
        usage, asked = completion.usage, self._asked.pop(began, "")
        span.name = f"{span.name} {asked}"
        span.attributes |= {
            "gen_ai.request.model": asked,
            "gen_ai.response.model": completion.model,
            "gen_ai.response.id": str(completion.body.get("id", "")),
            "gen_ai.response.finish_reasons": [completion.finish_reason],
            "gen_ai.usage.input_tokens": usage.input_tokens,
            "gen_ai.usage.output_tokens": usage.output_tokens,
            "aibox.weights": completion.weights.known,
        }
        if completion.backend:
            span.attributes["gen_ai.provider.name"] = completion.backend
        if usage.cached_tokens:
            span.attributes["gen_ai.usage.cache_read.input_tokens"] = usage.cached_tokens
        if usage.reasoning_tokens:
            span.attributes["gen_ai.usage.reasoning.output_tokens"] = usage.reasoning_tokens
        if self._tells(label):
            span.texts["gen_ai.output.messages"] = messages.answered(said, completion.finish_reason)
        self._close(span)

    @harmless
    def decided(self, began: float, verdict: Verdict) -> None:
        """A text was checked. Which check found what is told, and never the text."""
        span = self._span(f"guardrail {verdict.where}", began)
        span.attributes |= {
            "gen_ai.operation.name": "guardrail",
            "aibox.guardrail.where": verdict.where,
            "aibox.guardrail.decision": str(verdict.decision),
            "aibox.guardrail.findings": len(verdict.findings),
            "aibox.guardrail.checks": sorted({finding.check for finding in verdict.findings}),
            "aibox.policy": verdict.policy_digest,
        }
        self._close(span)

    @harmless
    def used(
        self, began: float, tool: str, *, call: str, outcome: str, label: Label, arguments: str = "", result: str = ""
    ) -> None:
        """A tool was called, or was not: `outcome` says which."""
        span = self._span(f"execute_tool {tool}", began)
        if (helped := self._calls.pop(call, None)) is not None:
            span.place = Place(span.place.trace, helped[0], span.place.parent)
        span.attributes |= {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": tool,
            "gen_ai.tool.type": "function",
            "aibox.outcome": outcome,
            "aibox.label": str(label),
        }
        if self._tells(label):
            span.texts["gen_ai.tool.call.id"] = messages.short(call)
            span.texts["gen_ai.tool.call.arguments"] = messages.short(arguments)
            span.texts["gen_ai.tool.call.result"] = messages.short(result)
        span.error = "" if outcome == "returned" else outcome
        self._close(span)

    @harmless
    def retrieved(self, began: float, *, query: str, found: int, label: Label, error: str = "") -> None:
        """Memory and documents were searched."""
        span = self._span("retrieval memory", began)
        span.attributes |= {
            "gen_ai.operation.name": "retrieval",
            "gen_ai.provider.name": PROVIDER,
            "gen_ai.data_source.id": "memory",
            "aibox.retrieval.found": found,
        }
        if self._tells(label):
            span.texts["gen_ai.retrieval.query.text"] = messages.short(query)
        span.error = error
        self._close(span)

    @harmless
    def ended(self, outcome: str, *, label: Label, error: AIBoxError | None = None) -> None:
        """The turn is over, and with it every call that nobody has answered."""
        code = "" if error is None else error.code
        for span in self._open.values():
            span.error = code or outcome
            self._close(span)
        # A call that waits for a person, or was cut off, is no more told of; what stands below it must not hang loose.
        for call in list(self._calls):
            self.used(self._calls[call][1], "delegate", call=call, outcome=outcome, label=label)
        self._open.clear()
        self._asked.clear()
        if not self._agent:
            return
        span = self._span(f"invoke_agent {self._agent}", self._began)
        span.place = self._place
        span.attributes |= {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.provider.name": PROVIDER,
            "gen_ai.agent.name": self._agent,
            "aibox.turn": self._turn,
            "aibox.outcome": outcome,
            "aibox.label": str(label),
        }
        if self._tells(label):
            span.texts["user.id"] = self.scope.user
            if self.scope.session:
                span.texts["gen_ai.conversation.id"] = self.scope.session
        span.error = code
        self._close(span)

    def _span(self, name: str, began: float, **more: Any) -> Span:
        place = Place(self._place.trace, new_span(), self._place.span)
        return Span(place, name, self.scope.tenant, start_ns=self._epoch_ns + round(began * 1e9), **more)

    def _close(self, span: Span) -> None:
        self._traces.calls.pop(span.place.span, None)
        span.end_ns = self._epoch_ns + round(time.perf_counter() * 1e9)
        if span.error:
            span.attributes["error.type"] = span.error
        self._traces.add(span)

    def _tells(self, label: Label) -> bool:
        return self._content and self._traces.may_tell(self.scope.tenant, label)
