"""One turn of an agent under test: what it did in which order, what was recorded, and assertions about both.

The agent is the one that is served; the turn is watched through its own events and its own evidence. What fails says
what the turn really did.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aibox.agents.agent import Agent
from aibox.agents.events import (
    ArtifactMade,
    Decided,
    Event,
    Failed,
    ModelAnswered,
    ModelCalled,
    Reply,
    Subagent,
    TextDelta,
    ToolCalled,
    ToolReturned,
)
from aibox.audit.chain import AuditChain
from aibox.audit.receipt import ReceiptEntry
from aibox.chat import Usage
from aibox.errors import AIBoxError, ConfigError
from aibox.evals.trajectory import Called, Trajectory, hold
from aibox.types import Decision, Label, Scope, Verdict


async def run(
    agent: Agent,
    input: str,  # noqa: A002 - the name that Agent.run gives it
    *,
    scope: Scope | None = None,
    audit: AuditChain | None = None,
    **options: Any,
) -> Run:
    """Run one turn and keep what can be asserted about it. Options are those of `Agent.stream`.

    A turn that ends in an error gives a Run whose `error` is set: refusals are results too. `audit` is the chain that
    the agent records in; without it nothing can be asserted about the door.
    """
    scope = scope or Scope.local()
    started = time.perf_counter()
    first_s: float | None = None
    events: list[Event] = []
    async for event in agent.stream(input, scope=scope, **options):
        if first_s is None and isinstance(event, TextDelta) and event.text:
            first_s = time.perf_counter() - started
        events.append(event)
    duration_s = time.perf_counter() - started
    return Run(
        input=input,
        events=tuple(events),
        duration_s=duration_s,
        first_text_s=first_s,
        entries=() if audit is None else await _entries(audit, scope, events[-1]),
        recorded=audit is not None,
    )


async def _entries(audit: AuditChain, scope: Scope, last: Event) -> tuple[ReceiptEntry, ...]:
    """What was recorded for this user and session since the turn began; the door records outside of the turn's list."""
    receipt = last.receipt if isinstance(last, Reply) else None
    found: list[ReceiptEntry] = []
    async for entry in audit.entries(scope.tenant, start=receipt.entries[0].seq if receipt else 0):
        actor = entry.actor  # None: an act on the log itself, or of somebody who was erased
        # A subagent works in a session without a name: what it sent out is this turn's too.
        if actor is not None and (actor["user"] != scope.user or actor["session"] not in (scope.session, "")):
            continue
        if receipt is None and entry.kind == "turn.started":
            found.clear()  # a turn that failed has no receipt: it is the last that began
        found.append(entry)
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What came of one turn. Assertions raise AssertionError, with the trajectory in their message."""

    input: str
    events: tuple[Event, ...]
    duration_s: float = 0.0
    first_text_s: float | None = None
    entries: tuple[ReceiptEntry, ...] = ()
    recorded: bool = False
    state: Any = None
    """What the world looks like afterwards, where the test says so; `FinalState` reads it."""

    @property
    def reply(self) -> Reply:
        """The reply. Raises AssertionError for a turn that ended in an error, from that error."""
        last = self.events[-1]
        if isinstance(last, Reply):
            return last
        raise AssertionError(f"the turn failed: {self.error}{self}") from self.error

    @property
    def error(self) -> AIBoxError | None:
        last = self.events[-1]
        return last.error if isinstance(last, Failed) else None

    @property
    def text(self) -> str:
        return self.reply.text

    @property
    def output(self) -> Any:
        return self.reply.output

    @property
    def label(self) -> Label:
        return self.reply.label

    @property
    def usage(self) -> Usage:
        return self.reply.usage

    @property
    def flat(self) -> tuple[Event, ...]:
        """The events, with those of subagents among them as if they were the agent's own."""
        return tuple(event.event if isinstance(event, Subagent) else event for event in self.events)

    @property
    def model_calls(self) -> int:
        """Calls of models, those of subagents included."""
        return sum(isinstance(event, ModelCalled) for event in self.flat)

    @property
    def calls(self) -> tuple[Called, ...]:
        """The tool calls in the order in which they began, those of subagents included, each with what came of it."""
        begun: list[tuple[str, dict[str, Any] | None, ToolReturned | None]] = []
        for event in self.flat:
            if isinstance(event, ToolCalled):
                begun.append((event.name, event.arguments, None))
            elif isinstance(event, ToolReturned):
                waiting = next((i for i, (n, _, r) in enumerate(begun) if n == event.name and r is None), None)
                if waiting is None:
                    begun.append((event.name, None, event))  # it was refused before it could begin
                else:
                    begun[waiting] = (*begun[waiting][:2], event)
        return tuple(
            Called(n, a or {}, began=a is not None, ok=r.ok if r else False, result=r.text if r else "")
            for n, a, r in begun
        )

    @property
    def trajectory(self) -> Trajectory:
        return Trajectory(self.calls, str(self))

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        return tuple(event.verdict for event in self.flat if isinstance(event, Decided))

    # Assertions.

    def called(self, name: str, **arguments: Any) -> Trajectory:
        """The tool ran, with these arguments where given: values, or matchers such as `Contains("x")`."""
        return self.trajectory.called(name, **arguments)

    def never_called(self, *names: str) -> None:
        """None of these tools ran. A call that the policy refused did not run."""
        self.trajectory.never_called(*names)

    def guardrail(self, check: str) -> Guarded:
        """What this check found in the turn: `run.guardrail("pii").decided("redact", where="input")`."""
        return Guarded(check, self.verdicts, str(self))

    def label_at_most(self, ceiling: Label | str) -> None:
        """The label of all that the turn touched is no higher."""
        ceiling = Label.of(ceiling)
        why = f", because of {', '.join(self.label.why)}" if self.label.why else ""
        hold(self.label <= ceiling, f"the turn is {self.label}{why}, above {ceiling}{self}")

    def no_egress(self) -> None:
        """The evidence holds no passage through the door. Raises ConfigError where there is no evidence to read."""
        let_out = [entry.detail for entry in self._evidence() if entry.kind == "egress.allowed"]
        hold(not let_out, f"text left for {', '.join(str(detail['model']) for detail in let_out)}{self}")

    def blocked(self, check: str | None = None) -> None:
        """A check refused the turn: this one, where named."""
        hold(self.reply.blocked, f"the turn was not blocked{self}")
        if check is not None:
            found = {finding.check for verdict in self.verdicts if verdict.blocked for finding in verdict.findings}
            hold(
                check in found, f"the turn was blocked by {', '.join(sorted(found)) or 'nobody'}, not by {check}{self}"
            )

    def within(
        self,
        *,
        tokens: int | None = None,
        model_calls: int | None = None,
        tool_calls: int | None = None,
        duration_s: float | None = None,
        first_text_s: float | None = None,
        cost_usd: float | None = None,
    ) -> None:
        """The turn took no more than this. A cost that is not known is no pass: it raises AssertionError."""
        usage = self.usage
        bounds: list[tuple[str, float | None, float | None]] = [
            ("tokens", usage.input_tokens + usage.output_tokens, tokens),
            ("model_calls", self.model_calls, model_calls),
            ("tool_calls", len(self.calls), tool_calls),
            ("duration_s", self.duration_s, duration_s),
            ("first_text_s", self.first_text_s, first_text_s),
            ("cost_usd", self.reply.cost_usd, cost_usd),
        ]
        for name, got, most in bounds:
            if most is None:
                continue
            if got is None:
                raise AssertionError(f"{name} of the turn is not known{self}")
            hold(got <= most, f"{name} was {got:g}, more than {most:g}{self}")

    @property
    def audit(self) -> Evidence:
        """What the turn left in the chain: `run.audit.verifies()`."""
        self._evidence()
        return Evidence(self)

    def _evidence(self) -> tuple[ReceiptEntry, ...]:
        if not self.recorded:
            raise ConfigError("this turn was not recorded", hint="give the agent and the run the same audit chain")
        return self.entries

    def __str__(self) -> str:
        lines = ["", f"the turn, {self.duration_s:.3f} s:", f"  user: {_short(self.input)}"]
        lines += [f"  {line}" for event in self.flat if (line := _line(event))]
        return "\n".join(lines)

    def _repr_markdown_(self) -> str:
        return f"```text{self}\n```"


@dataclass(frozen=True, slots=True)
class Guarded:
    """What one check found in one turn."""

    check: str
    verdicts: tuple[Verdict, ...]
    shown: str

    def decided(self, decision: Decision | str, *, where: str | None = None, rule: str | None = None) -> None:
        """A verdict of this decision rests on a finding of the check: at that place, of that rule, where given."""
        wanted = Decision.parse(decision) if isinstance(decision, str) else decision
        for verdict in self.verdicts:
            if verdict.decision == wanted and where in (None, verdict.where):
                rules = {finding.rule for finding in verdict.findings if finding.check == self.check}
                if rules and (rule is None or rule in rules):
                    return
        place = f" at {where}" if where else ""
        raise AssertionError(f"{self.check} did not decide {wanted}{place}{f' for {rule}' if rule else ''}{self.shown}")

    def silent(self) -> None:
        """The check found nothing."""
        found = [f.rule for verdict in self.verdicts for f in verdict.findings if f.check == self.check]
        hold(not found, f"{self.check} found {', '.join(found)}{self.shown}")


@dataclass(frozen=True, slots=True)
class Evidence:
    """The evidence of one run."""

    run: Run

    def verifies(self) -> None:
        """The turn has a receipt, it holds, and it ends with the turn's one terminal entry. Raises IntegrityError."""
        receipt = self.run.reply.receipt
        if receipt is None:
            raise AssertionError(f"the turn has no receipt: was the agent given the chain?{self.run}")
        receipt.verify()
        known = {entry.header for entry in self.run.entries}
        hold(all(entry.header in known for entry in receipt.entries), f"the receipt is of another log{self.run}")

    def recorded(self, kind: str, **detail: Any) -> ReceiptEntry:
        """The first entry of this kind whose detail has these values."""
        for entry in self.run.entries:
            if entry.kind == kind and all(entry.detail.get(key) == value for key, value in detail.items()):
                return entry
        kinds = ", ".join(entry.kind for entry in self.run.entries)
        raise AssertionError(f"no entry {kind} with {detail or 'any detail'}; there are {kinds}{self.run}")

    def holds_none_of(self, texts: Sequence[str]) -> None:
        """No entry of the turn contains any of these texts."""
        for text in texts:
            for entry in self.run.entries:
                held = entry.open.decode() + (json.dumps(entry.private, ensure_ascii=False) if entry.key else "")
                hold(text not in held, f"{text!r} lies in entry {entry.seq}, {entry.kind}{self.run}")


def _line(event: Event) -> str:
    match event:
        case ToolCalled(name, arguments):
            return f"call {name}({', '.join(f'{k}={_short(repr(v))}' for k, v in arguments.items())})"
        case ToolReturned(name, text, ok, duration_s):
            return f"{name} {'returned' if ok else 'FAILED'}: {_short(text)} ({duration_s:.3f} s)"
        case Decided(verdict):
            return f"guardrail at {verdict.where}: {verdict.decision} ({'; '.join(verdict.reasons())})"
        case ArtifactMade():
            return f"made {event}"
        case ModelAnswered(message):
            return f"model: {_short(_said(message))}"
        case Reply(text=text, label=label, blocked=blocked):
            return f"{'blocked' if blocked else 'reply'}, {label}: {_short(text)}"
        case Failed(error):
            return f"failed: {error}"
        case _:
            return ""


def _said(message: Mapping[str, Any]) -> str:
    calls = [call["function"]["name"] for call in message.get("tool_calls") or ()]
    return f"calls {', '.join(calls)}" if calls else str(message.get("content") or "")


def _short(text: str, chars: int = 200) -> str:
    text = " ".join(text.split())
    return text if len(text) <= chars else f"{text[:chars]}..."
