"""The way of a turn: check, recall, answer with tools, check, remember, seal.

An input check, the door or the chain that cannot answer stops the turn. Memory that cannot is said, and it goes on. A
limit ends it with what was reached; a call that needs a person pauses it, and another process may go on.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from aibox.agents._sdk import run_loop
from aibox.agents.agreements import Agreements
from aibox.agents.approvals import Approval
from aibox.agents.budget import Budget, Exhausted, Share
from aibox.agents.citations import cited, unsupported
from aibox.agents.context import Context
from aibox.agents.dispatch import WAITING, dispatch
from aibox.agents.events import ArtifactMade, Decided, Event, Reply, TextDelta, ToolReturned
from aibox.agents.evidence import TurnRecord
from aibox.agents.exposure import Exposure, of_label
from aibox.agents.frame import Frame
from aibox.agents.model_call import CUT, Blocked, Paused, TurnModel
from aibox.agents.parts import Parts
from aibox.agents.pause import Pause
from aibox.agents.runs import Run
from aibox.agents.skills import catalogue, narrowing
from aibox.agents.spotlight import note
from aibox.errors import AIBoxError, BackendError, LimitError
from aibox.guardrails.grounding import Sources
from aibox.guardrails.stream import OutputFilter
from aibox.leaving import reason
from aibox.memory.record import Passage
from aibox.policy.tools import ToolRules
from aibox.protocols import Tool
from aibox.types import Decision, Label, Level, Scope, Verdict, Where

WITHHELD = "This message was not answered"
"""How a blocked turn begins to speak; the reasons follow."""
WAITS = "This waits for a person"
"""How a paused one does."""


TOGETHER = Label(Level.PUBLIC, frozenset({"LETHAL-THREE"}), ("private data and untrusted content in one turn",))


class Turn:
    """One message and what comes of it. Used once, by `run`; events go to `emit` as they happen."""

    def __init__(
        self,
        parts: Parts,
        *,
        scope: Scope,
        label: Label,
        emit: Callable[[Event], None],
        streaming: bool = False,
        history: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | None = None,
        output_type: type[Any] | None = None,
        max_tokens: int | None = None,
        parent: Turn | None = None,
        inside: str = "",
        share: int = 0,
    ) -> None:
        parts = parts.under(scope.tenant, like=None if parent is None else parent.parts)
        self.parts: Parts = parts
        self.emit = emit
        self.streaming = streaming
        self.tool_choice = tool_choice
        self.output_type = output_type
        self.max_tokens: int | None = parent.max_tokens if parent else max_tokens
        self.settings: Mapping[str, Any] = parts.bounded(self.max_tokens)
        self.policy = parts.policy
        self.rules: ToolRules = parts.policy.tools
        # What an answer may rest on; it grows as the turn reads. A subagent's answer rests on what it has read itself.
        self.sources = Sources()
        self.passages: list[Passage] = []
        self.guardrail = None if parts.guarded is None else parts.guarded.about(sources=self.sources)
        self.approver = parts.approver
        # A subagent's work is part of its parent's turn: one record, one budget, one run.
        self.parent = parent
        self.inside = inside
        self.record: TurnRecord = (
            parent.record.inside(parts.name, call=inside)
            if parent
            else TurnRecord(parts.audit, scope=scope, agent=parts.name)
        )
        self.scope = replace(scope, trace=self.record.scope.trace)
        self.budget: Budget | Share = Share(parent.budget, calls=share) if parent else Budget(parts.policy.limits)
        self.run_id: str = parent.run_id if parent else uuid.uuid4().hex
        self.answers: Mapping[str, Approval] = parent.answers if parent else {}
        self.call_ids: set[str] = parent.call_ids if parent else set()
        self.artifacts: list[ArtifactMade] = parent.artifacts if parent else []
        self.agreed = Agreements(self)
        self.context = Context(self, history=history)
        self.pause = Pause(self)
        self.label = label
        self.exposure: Exposure = of_label(label) | parts.exposure | (parent.exposure if parent else Exposure())
        self.frame = Frame()
        self.skills: tuple[str, ...] = ()
        self.model = ""
        self.reached = ""
        self.cut = False
        self.verdicts: list[Verdict] = []
        self.answer: Verdict | None = None
        self.tool_results: list[ToolReturned] = []
        self.filter: OutputFilter | None = None

    async def run(self, message: str) -> Reply:
        """The reply; the terminal entry is durable before the last of its text is emitted. Raises AIBoxError."""
        self._measure(message)
        self.pause.message = message
        detail = {"agent": self.parts.name, "policy": self.policy.digest, "label": str(self.label)}
        return await self._ended(self._whole(message, None, detail))

    async def resume(self, run: Run, answers: Mapping[str, Approval]) -> Reply:
        """Go on with a run that waited. What it found out before is not asked again."""
        frame, detail = self.pause.restore(run, answers)
        self.answers = answers
        return await self._ended(self._whole(self.pause.message, frame, detail))

    async def work(self, prompt: str, frame: Frame | None) -> str:
        """As a subagent: the text for the parent, from a prompt or from where it waited. Raises Paused, Exhausted."""
        try:
            if frame is not None:
                return await self._go_on(frame)
            return await self._loop([{"role": "user", "content": prompt}])
        except Paused:
            self.pause.mark()
            raise

    async def _ended(self, whole: Any) -> Reply:
        try:
            reply: Reply = await whole
        except AIBoxError as error:
            await self.record.fail(error, label=self.label)
            await self.pause.ended("failed")
            raise
        except asyncio.CancelledError as left:
            # The caller has gone; the evidence that this turn ended is written all the same.
            await asyncio.shield(self._left(reason(left, "the turn was cancelled")))
            raise
        except Exception:
            # A bug, of ours or of a tool's author, ends the turn too.
            await self.record.fail(AIBoxError("this went wrong"), label=self.label)
            await self.pause.ended("failed")
            raise
        return reply

    async def _left(self, why: AIBoxError) -> None:
        await self.record.fail(why, label=self.label)
        await self.pause.ended("failed")

    async def _whole(self, message: str, frame: Frame | None, detail: Mapping[str, Any]) -> Reply:
        self.record.note("turn.started", detail)
        blocked, tail, stopped, output = False, "", "", None
        try:
            asked = await self._input(message) if frame is None else message
            try:
                async with asyncio.timeout(self.policy.limits.turn_s):
                    answered = await (self._answer(asked) if frame is None else self._go_on(frame))
            except Exhausted as limit:
                answered, stopped = self.reached, limit.reason
            except TimeoutError:
                stopped = f"the turn took longer than {self.policy.limits.turn_s:g} s (limits.turn_s)"
                answered = self.reached
            text, tail = await self._output(answered)
            output = text if self.output_type is None or stopped else self._parse(text, self.output_type)
            stopped = stopped or (CUT if self.cut else "")
            await self.context.remember(asked, answered)
            text = text or (f"Stopped before an answer: {stopped}." if stopped else text)
        except Blocked:
            blocked = True
            output = text = f"{WITHHELD}: {self.verdicts[-1].why()}."
        except Paused:
            return await self._paused()
        outcome = "blocked" if blocked else "stopped" if stopped else "answered"
        more = {"reason": stopped} if stopped else {}
        receipt = await self.record.seal(outcome=outcome, label=self.label, detail=more)
        await self.pause.ended("done")
        if tail:
            self.emit(TextDelta(tail))
        if not blocked:
            sentences = [await self._restored(sentence) for sentence in unsupported(answered, self.answer)]
            found = {"citations": cited(answered, self.passages), "unsupported": tuple(sentences)}
        else:
            found = {}
        return self._reply(text=text, output=output, blocked=blocked, stopped=stopped, receipt=receipt, **found)

    async def _paused(self) -> Reply:
        """Keep where the run stands, then say so: a question that is not on the disk has not been asked."""
        pending = await self.pause.keep()
        detail = {"run": self.run_id, "approvals": [approval.id for approval in pending]}
        receipt = await self.record.seal(outcome="paused", label=self.label, detail=detail)
        tools = ", ".join(dict.fromkeys(approval.tool for approval in pending))
        return self._reply(text=f"{WAITS}: {tools}.", output=None, receipt=receipt, pending=pending)

    def _reply(self, **found: Any) -> Reply:
        budget = self.budget
        assert isinstance(budget, Budget)
        return Reply(
            label=self.label,
            verdicts=tuple(self.verdicts),
            tool_calls=tuple(self.tool_results),
            artifacts=tuple(self.artifacts),
            usage=budget.usage,
            cost_usd=budget.usage.cost_usd,
            session=self.scope.session,
            model=self.model,
            run=self.run_id,
            **found,
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
            raise Blocked
        return verdict.text

    async def _answer(self, asked: str) -> str:
        await self.context.recall(asked)
        messages: list[Mapping[str, Any]] = [*await self.context.earlier(), {"role": "user", "content": asked}]
        if self.guardrail is not None:
            said = [str(m.get("content") or "") for m in messages if m.get("role") == "user"]
            self.sources.said += said
            verdict = await self.guardrail.together(said, scope=self.scope, label=self.label)
            if verdict.blocked:
                self.decided(verdict)
                raise Blocked
        return await self._loop(messages)

    async def _go_on(self, frame: Frame) -> str:
        """The calls that waited, then the loop as if nothing had been between."""
        self.frame, self.label, self.exposure = frame, frame.label, frame.exposure
        by_name = {skill.name: skill for skill in self.parts.skills}
        for name in frame.skills:
            if name not in self.skills:
                self.narrow(narrowing(by_name[name]), skill=name)
        # One after the other: a call that waits again must not be told by what a later one found.
        for call in frame.calls():
            name, arguments = call["function"]["name"], call["function"].get("arguments") or ""
            self.call_ids.add(call["id"])
            tool = self.parts.by_name.get(name)
            if tool is None:
                frame.results[call["id"]] = f"There is no tool {name}."
            else:
                await dispatch(tool, arguments, call_id=call["id"], turn=self)
        if self.paused:
            raise Paused
        return await self._loop(frame.whole())

    async def _loop(self, messages: Sequence[Mapping[str, Any]]) -> str:
        parts = self.parts
        instructions = parts.told
        if listed := catalogue(parts.skills):
            instructions += f"\n\n{listed}"
        if (said := note(self.policy.spotlight)) and any(getattr(tool, "untrusted", False) for tool in parts.tools):
            instructions += f"\n\n{said}"
        if self.context.notes:
            instructions += f"\n\n{self.context.notes}"

        async def invoke(tool: Tool, arguments: str, call_id: str) -> str:
            return await dispatch(tool, arguments, call_id=call_id, turn=self)

        return await run_loop(
            name=parts.name,
            instructions=instructions,
            messages=messages,
            ask=TurnModel(self, router=parts.router, scope=self.scope).ask,
            model=parts.model,
            tools=parts.tools,
            invoke=invoke,
            tool_choice=self.tool_choice,
            output_type=self.output_type,
            settings=self.settings,
        )

    async def _output(self, text: str) -> tuple[str, str]:
        """The answer, checked and restored, and what of it has not been emitted yet."""
        if self.filter is not None:
            looks = self.guardrail is not None and self.guardrail.looks("output")
            began = time.perf_counter() if looks else 0.0
            tail = await self.filter.finish()
            self.decided(self.filter.verdict, began)
            verdict, shown = self.filter.verdict, self.filter.text
        else:
            verdict, tail = await self.check(text, where="output"), ""
            shown = verdict.text if verdict.blocked else await self._restored(verdict.text)
        self.answer = verdict
        if verdict.blocked:
            raise Blocked
        return shown, tail

    async def _restored(self, text: str) -> str:
        """With the originals in place of pseudonyms: for the person who asked."""
        return text if self.guardrail is None else await self.guardrail.restore(text, scope=self.scope)

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

    # What the steps, the tools and the model calls share.

    @property
    def outgoing(self) -> Label:
        """Under which label a model call goes out: a turn with two of the lethal three leaves the third shut.

        No door's ceiling holds the compartment: an external model is refused, also as a fallback, a local one is not.
        """
        touched = self.exposure.private and self.exposure.untrusted
        if touched and self.parts.router.external and self.policy.tools.lethal_three >= Decision.REQUIRE_APPROVAL:
            return self.label | TOGETHER
        return self.label

    @property
    def paused(self) -> bool:
        return self.pause.asked

    def touch(self, label: Label) -> None:
        """The turn has met a text with this label; its own label rises to the join, and so does its parent's."""
        self.label = self.label | label
        self.exposure |= of_label(label)
        if self.parent is not None:
            self.parent.touch(label)

    def expose(self, exposure: Exposure) -> None:
        self.exposure |= exposure
        if self.parent is not None:
            self.parent.expose(exposure)

    def narrow(self, rules: ToolRules, *, skill: str) -> None:
        self.rules = self.rules & rules
        self.skills = (*self.skills, skill)

    def wait_for(self, approval: Approval) -> None:
        self.pause.wait_for(approval)

    def waits_inside(self, call_id: str, child: Frame) -> None:
        self.frame.children[call_id] = child
        self.pause.asked = True

    async def under_way(self) -> None:
        await self.pause.under_way()

    def returned(self, result: ToolReturned) -> None:
        if result.text != WAITING:
            self.tool_results.append(result)
            self.emit(result)

    def made(self, artifact: ArtifactMade) -> None:
        self.artifacts.append(artifact)
        self.emit(artifact)

    async def check(self, text: str, *, where: Where) -> Verdict:
        """Ask the guardrail, keep and record what it found. Without one, everything is allowed."""
        if self.guardrail is None:
            return Verdict(Decision.ALLOW, text, where=where)
        began = time.perf_counter() if self.guardrail.looks(where) else 0.0
        verdict = await self.guardrail.check(text, where=where, scope=self.scope, label=self.label)
        self.decided(verdict, began)
        return verdict

    def decided(self, verdict: Verdict, began: float = 0.0) -> None:
        self.record.decided(verdict, began=began)
        if verdict.decision == Decision.ALLOW and not verdict.findings:
            return
        self.verdicts.append(verdict)
        self.emit(Decided(verdict))
