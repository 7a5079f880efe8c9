"""The one way to call a tool: policy, checks, the lethal three, approval, evidence, then the tool.

Local tools get the real values; what goes back to the model is checked again. A tool that raises is a result. A call
with side effects is written down before it begins, and what it gave before anybody is told: it runs at most once.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import anyio
import msgspec
from pydantic import ValidationError

from aibox.agents import exposure, spotlight
from aibox.agents.approvals import digest_of
from aibox.agents.events import ApprovalAsked, ToolCalled, ToolReturned
from aibox.agents.evidence import digest
from aibox.agents.question import question
from aibox.agents.turn_state import TurnState
from aibox.errors import AIBoxError, IntegrityError
from aibox.protocols import Tool
from aibox.types import Decision

WAITING = "(this call waits for a person)"
"""Stands for a result that is not there yet; no model ever reads it."""


class Refused(Exception):  # noqa: N818 - a way out of a call, not an error
    """Why a call does not happen, in words that a model can act on."""

    def __init__(self, text: str, outcome: str) -> None:
        super().__init__(text)
        self.text = text
        self.outcome = outcome


class Waits(Exception):  # noqa: N818 - a way out of a call, not an error
    """The call cannot be decided now: people were asked, or a subagent's call waits."""


@dataclass(slots=True)
class _Call:
    """One call on its way."""

    id: str
    tool: Tool
    arguments: dict[str, Any]
    detail: dict[str, Any]
    approved: bool = False


async def dispatch(tool: Tool, arguments_json: str, *, call_id: str, turn: TurnState) -> str:
    """Call a tool for a model and return what the model is told. Every call leaves two entries in the chain.

    Raises only what must stop the turn: evidence that cannot be written, and checks that cannot answer.
    """
    started = time.perf_counter()
    try:
        call = await _prepare(tool, arguments_json, call_id=call_id, turn=turn)
        turn.emit(ToolCalled(tool.name, dict(call.arguments), call_id))
        text, ok = await _once(call, turn=turn)
        outcome = "returned" if ok else "failed"
    except Refused as refused:
        text, ok, outcome = refused.text, False, refused.outcome
    except Waits:
        return WAITING
    marked = getattr(tool, "label", None)
    if outcome in ("returned", "failed"):
        if marked is not None:
            turn.touch(marked.because(f"tool {tool.name}"))
        turn.expose(exposure.of_tool(tool))
    verdict = await turn.check(text, where="retrieved" if getattr(tool, "keeps", False) else "tool_result")
    if verdict.blocked:
        text, ok, outcome = f"The result of {tool.name} was withheld by a safety check.", False, "withheld"
    else:
        text = verdict.text
    duration_s = time.perf_counter() - started
    detail = {
        "tool": tool.name,
        "outcome": outcome,
        "result_sha256": digest(text.encode()),
        "duration_us": round(duration_s * 1e6),
        "label": str(turn.label),
        "exposure": str(turn.exposure),
    }
    turn.record.note("tool.returned", detail)
    if (trace := turn.record.trace) is not None:
        told = {"arguments": arguments_json, "result": text}
        trace.used(started, tool.name, call=call_id, outcome=outcome, label=turn.label, **told)
    turn.returned(ToolReturned(tool.name, text, ok, duration_s, call_id))
    if ok:
        turn.sources.others.append(text)
    if outcome in ("returned", "failed") and getattr(tool, "untrusted", False):
        text = spotlight.quote(text, source=tool.name, mode=turn.policy.spotlight)
    turn.frame.results[call_id] = text
    return text


async def _prepare(tool: Tool, arguments_json: str, *, call_id: str, turn: TurnState) -> _Call:
    """Everything that may stop a call, in order; the entry is durable before a tool with side effects runs."""
    detail = {
        "tool": tool.name,
        "arguments_sha256": digest(arguments_json.encode("utf-8", "surrogatepass")),
        "label": str(turn.label),
    }
    call = _Call(call_id, tool, {}, detail)
    refused: Refused | None = None
    try:
        if not turn.rules.allows(tool.name):
            raise Refused(f"The tool {tool.name} is not allowed here. Do without it.", "denied")  # noqa: TRY301
        call.arguments = await _read(tool, arguments_json, turn=turn)
        _door(tool, turn=turn)
        # A subagent that was begun and waits inside has been agreed to.
        if call_id not in turn.frame.children and (reason := _question(tool, turn=turn)):
            detail |= await _approval(call, reason, turn=turn)
            call.approved = True
    except Refused as no:
        refused = no
    detail["decision"] = refused.outcome if refused else "allowed"
    if refused or not (call.approved or getattr(tool, "side_effects", True)):
        turn.record.note("tool.called", detail)
    else:
        await turn.record.append("tool.called", detail)
    if refused:
        raise refused
    return call


async def _read(tool: Tool, arguments_json: str, *, turn: TurnState) -> dict[str, Any]:
    verdict = await turn.check(arguments_json, where="tool_arguments")
    if verdict.blocked:
        raise Refused(f"The arguments for {tool.name} were stopped by a safety check.", "blocked")
    text = verdict.text
    # What the turn keeps, it keeps as the model sees it: a tool over memory gets and gives pseudonyms.
    if turn.guardrail is not None and not getattr(tool, "keeps", False):
        text = await turn.guardrail.restore_arguments(text, scope=turn.scope, unknown=_forged)
    try:
        arguments = msgspec.json.decode(text or "{}")
    except msgspec.DecodeError as error:
        raise Refused(f"The arguments for {tool.name} are not valid JSON: {error}. Try again.", "invalid") from None
    if not isinstance(arguments, dict):
        raise Refused(f"The arguments for {tool.name} must be a JSON object. Try again.", "invalid")
    return arguments


def _forged(token: str) -> str:
    raise Refused(f"{token} stands for nothing here. Copy each token exactly and try again.", "invalid")


def _door(tool: Tool, *, turn: TurnState) -> None:
    """Text that a tool sends away is marked as everything that this turn has touched."""
    ceiling = turn.policy.egress.ceiling
    if not getattr(tool, "sends", False):
        return
    if not turn.policy.egress.serves(turn.scope.tenant):
        raise Refused(f"{tool.name} would send text away, and the door is shut for this tenant.", "egress")
    if not turn.label <= ceiling:
        why = f" because of {', '.join(turn.label.why)}" if turn.label.why else ""
        raise Refused(
            f"{tool.name} would send text marked {turn.label}{why}, and the policy lets out {ceiling} at most. "
            "Do without it.",
            "egress",
        )


def _question(tool: Tool, *, turn: TurnState) -> str:
    """Why a person must agree, or nothing. Raises Refused where the policy does not even ask."""
    call = exposure.of_tool(tool)
    if exposure.completes(turn.exposure, call):
        decision = turn.policy.tools.lethal_three
        if decision >= Decision.BLOCK:
            raise Refused(
                f"{tool.name} would bring private data, untrusted content and a way out together. Do without it.",
                "lethal_three",
            )
        if decision >= Decision.REQUIRE_APPROVAL:
            return f"the turn has touched {turn.exposure}, and this call adds {call}"
    effects = getattr(tool, "side_effects", True) or getattr(tool, "sends", False)
    if effects and turn.policy.tools.asks_under(turn.label):
        why = f", because of {', '.join(turn.label.why)}" if turn.label.why else ""
        return f"the turn is marked {turn.label}{why}, and this call has effects"
    if getattr(tool, "approve", False):
        return "the tool asks for it"
    return "the policy asks for it" if turn.policy.tools.needs_approval(tool.name) else ""


async def _approval(call: _Call, reason: str, *, turn: TurnState) -> dict[str, Any]:
    """What is recorded of a yes. Raises Refused for a no, Waits when people were asked."""
    name, people = call.tool.name, turn.policy.tools.people(call.tool.name)
    asked = turn.answers.get(call.id)
    if asked is not None:
        shown = _digest(call, turn=turn)
        if asked.digest != shown:
            raise Refused(f"{name} was approved for something else than this; it was not run.", "changed")
        if asked.status == "approved":
            return {"approval": asked.id, "approved_by": list(asked.approved_by)}
        if asked.status == "rejected":
            said = f": {asked.said}" if asked.said else "."
            raise Refused(f"A person was asked and said no to {name}{said}", "rejected")
        raise Refused(f"Nobody agreed to {name} in time.", asked.status)
    turn.emit(ApprovalAsked(name, reason, people))
    if turn.approver is not None and people == 1:
        if not await turn.approver.approve(name, call.arguments, scope=turn.scope, label=turn.label):
            raise Refused(f"A person was asked and said no to {name}.", "rejected")
        return {"approval": "given"}
    if turn.parts.state is None or not turn.parts.state.store.encrypted:
        raise Refused(f"{name} needs a person's approval, and nobody can be asked here.", "unapproved")
    about = question(
        turn, call=call.id, tool=name, arguments=call.arguments, reason=reason, label=turn.label, people=people
    )
    turn.wait_for(about)
    raise Waits


def _digest(call: _Call, *, turn: TurnState) -> str:
    """Of what is about to happen, under the label that the turn had when it paused."""
    return digest_of(
        tool=call.tool.name,
        arguments=call.arguments,
        policy=turn.policy.digest,
        label=turn.frame.label,
        version=turn.parts.version,
        scope=turn.scope,
        call=call.id,
    )


async def _once(call: _Call, *, turn: TurnState) -> tuple[str, bool]:
    """Run the tool; where a second time would matter, only if there is no trace of a first."""
    state = turn.parts.state
    named = getattr(call.tool, "idempotency_key", None)
    # What can be taken up where it waits needs no such care: its own calls have it.
    if getattr(call.tool, "resumable", False):
        return await _run(call, turn=turn)
    if state is None or not (call.approved or named or getattr(call.tool, "side_effects", True)):
        return await _run(call, turn=turn)
    key = _key(call, named, turn=turn)
    await turn.under_way()
    before = await state.runs.begin(key, call.tool.name, scope=turn.scope)
    if before is None:
        text, ok = await _run(call, turn=turn)
        await state.runs.ended(key, text, ok=ok, scope=turn.scope)
        return text, ok
    if before.result is not None:
        return before.result, before.ok
    raise Refused(
        f"{call.tool.name} was begun before an interruption, and whether it took effect is not known. "
        "It was not run again.",
        "unknown",
    )


def _key(call: _Call, named: str | None, *, turn: TurnState) -> str:
    if named is None:
        return f"{turn.run_id}/{call.id}"
    value = msgspec.json.encode(call.arguments.get(named), order="deterministic")
    return f"key/{call.tool.name}/{hashlib.sha256(value).hexdigest()}"


async def _run(call: _Call, *, turn: TurnState) -> tuple[str, bool]:
    tool, arguments = call.tool, call.arguments
    timeout_s = getattr(tool, "timeout_s", None)
    inside = getattr(tool, "call_in", None)
    try:
        with anyio.fail_after(timeout_s):
            if inside is not None:
                return await inside(arguments, call_id=call.id, turn=turn), True
            return await tool.call(arguments, scope=turn.scope), True
    except TimeoutError:
        return f"{tool.name} took longer than {timeout_s:g} s and was stopped.", False
    except ValidationError as error:
        return f"Wrong arguments for {tool.name}: {short(error)}. Correct them and try again.", False
    except (IntegrityError, Waits, Refused):
        raise
    except AIBoxError as error:
        return f"{tool.name} failed: {error.message}", False
    except Exception as error:  # noqa: BLE001 - whatever a tool raises is a result for the model, and is recorded
        return f"{tool.name} failed: {type(error).__name__}: {str(error)[:500]}", False


def short(error: ValidationError) -> str:
    """Field and fault, without the value: a small model repairs itself from this."""
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'arguments'}: {e['msg']}" for e in error.errors()[:5])


def validated(tool: Tool, arguments: Mapping[str, Any], name: str) -> str:
    """A text argument that must be there. Raises Refused with what to correct."""
    value = arguments.get(name)
    if not isinstance(value, str) or not value.strip():
        raise Refused(
            f"Wrong arguments for {tool.name}: {name} must be text, and not empty. Correct it and try again.", "invalid"
        )
    return value
