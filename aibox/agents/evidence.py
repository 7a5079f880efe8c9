"""What a turn leaves in the chain: digests and small facts, never a text of somebody's.

Everything here is noted in order and becomes durable with the terminal entry, of which a turn has exactly one.
"""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from aibox.audit.chain import AuditChain
from aibox.audit.receipt import Receipt
from aibox.audit.record import uuid7
from aibox.chat import ChatRequest, Completion
from aibox.errors import AIBoxError, IntegrityError
from aibox.inference.capabilities import Api
from aibox.types import Decision, Label, Scope, Verdict

MAX_FINDINGS = 32
"""Of one verdict in its entry: an entry has a bounded size, and a text may be full of them."""


MAX_CHARS = 256
"""Of a name that a caller or a model server chose: an entry has room for so much, and none of it can be erased."""


class TurnRecord:
    """The evidence of one turn. Without a chain every call does nothing and `seal` returns None.

    Whoever watches the chain hears of the turn too (`trace`); `agent` is whose turn it is, empty for a bare model's.
    `scope` is what the work of the turn is done under.
    """

    def __init__(self, chain: AuditChain | None, *, scope: Scope, agent: str = "") -> None:
        self.chain = chain
        self.turn = uuid7()
        watcher = None if chain is None else chain.watcher
        self.trace = None if watcher is None else watcher.turn(self.turn, scope=scope, agent=agent)
        self.scope = scope if self.trace is None else self.trace.scope

    def inside(self, agent: str, *, call: str) -> TurnRecord:
        """The same record, for the steps of a subagent that works for this call: a trace tells them apart."""
        made = copy.copy(self)
        made.trace = None if self.trace is None else self.trace.inside(agent, call=call)
        made.scope = self.scope if made.trace is None else made.trace.scope
        return made

    def left(self, outcome: str, *, label: Label) -> None:
        """A subagent's work is over. The turn's is not, and so nothing is recorded."""
        if self.trace is not None:
            self.trace.ended(outcome, label=label)

    def note(self, kind: str, detail: Mapping[str, Any]) -> None:
        if self.chain is not None:
            self.chain.note(kind, scope=self.scope, turn=self.turn, detail=detail)

    async def append(self, kind: str, detail: Mapping[str, Any]) -> None:
        """Durable when it returns: for what must be on record before it happens."""
        if self.chain is not None:
            await self.chain.append(kind, scope=self.scope, turn=self.turn, detail=detail)

    def decided(self, verdict: Verdict, *, began: float = 0.0) -> None:
        """Nothing found is nothing noted; a policy in shadow is noted where it would have decided otherwise.

        `began` is when the check did, on the clock of `time.perf_counter`, for a trace.
        """
        if self.trace is not None and began:
            self.trace.decided(began, verdict)
        shadow = verdict.shadow
        differs = shadow is not None and shadow.decision != verdict.decision
        if verdict.decision == Decision.ALLOW and not verdict.findings and not differs:
            return
        detail = {"where": verdict.where, **_decided(verdict)}
        if shadow is not None and differs:
            detail["shadow"] = _decided(shadow)
        self.note("guardrail.decided", detail)

    def called(
        self, request: ChatRequest, body: bytes | None = None, *, scope: Scope, api: Api = "chat"
    ) -> tuple[float, Scope]:
        """A model call is about to be made, with a body of this digest; `body` is its encoding, where it is known.

        When it began, which its answer is told by, and the scope to make it under.
        """
        body = request.encoded() if body is None else body
        detail = {
            "model": request.model[:MAX_CHARS],
            "sha256": digest(body),
            "bytes": len(body),
            "label": str(request.label),
        }
        self.note("model.called", detail)
        began = time.perf_counter()
        if self.trace is not None:
            scope = self.trace.called(began, request, scope=scope, api=api) or scope
        return began, scope

    def answered(self, completion: Completion, *, began: float, label: Label, said: Any = None) -> None:
        said = completion.message if said is None else said
        self.note("model.answered", self.answer(completion, began=began, label=label, said=said))

    def answer(self, completion: Completion, *, began: float, label: Label, said: Any) -> dict[str, Any]:
        """What is recorded of the answer to the call that began then; `said` is what its digest is of."""
        if self.trace is not None:
            self.trace.answered(began, completion, said=said, label=label)
        weights, usage = completion.weights, completion.usage
        return {
            "model": completion.model[:MAX_CHARS],
            "backend": completion.backend,
            "weights": weights.known,
            "weights_sha256": weights.sha256,
            "template_sha256": weights.template_sha256,
            "finish_reason": completion.finish_reason[:MAX_CHARS],
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "answer_sha256": digest(msgspec.json.encode(said)),
            "duration_us": round((time.perf_counter() - began) * 1e6),
        }

    async def seal(self, *, outcome: str, label: Label, detail: Mapping[str, Any] | None = None) -> Receipt | None:
        """The terminal entry of a turn that came to its end; durable when it returns."""
        if self.trace is not None:
            self.trace.ended(outcome, label=label)
        if self.chain is None:
            return None
        detail = {"outcome": outcome, "label": str(label), "label_why": list(label.why), **(detail or {})}
        return await self.chain.seal(self.turn, scope=self.scope, detail=detail)

    async def end(self, *, outcome: str, label: Label, detail: Mapping[str, Any]) -> None:
        """As `seal`, for a turn whose receipt nobody waits for."""
        if self.trace is not None:
            self.trace.ended(outcome, label=label)
        if self.chain is not None:
            detail = {"outcome": outcome, "label": str(label), "label_why": list(label.why), **detail}
            await self.chain.end(self.turn, scope=self.scope, detail=detail)

    async def fail(self, error: AIBoxError, *, label: Label) -> None:
        """The terminal entry of a turn that did not. When even that fails, the first error is what counts."""
        if self.trace is not None:
            self.trace.ended("failed", label=label, error=error)
        if self.chain is None or isinstance(error, IntegrityError):
            return
        detail = {"outcome": "failed", "code": error.code, "label": str(label)}
        try:
            await self.chain.end(self.turn, scope=self.scope, kind="turn.failed", detail=detail)
        except AIBoxError as second:
            error.add_note(f"and the failure could not be recorded: {second}")


def _decided(verdict: Verdict) -> dict[str, Any]:
    findings = [
        {"check": f.check, "rule": f.rule, "score_permille": round(f.score * 1000)}
        for f in verdict.findings[:MAX_FINDINGS]
    ]
    return {
        "decision": str(verdict.decision),
        "policy": verdict.policy_digest,
        "findings": findings,
        "findings_total": len(verdict.findings),
    }


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
