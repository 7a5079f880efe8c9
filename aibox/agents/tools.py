"""Typed tools, and the one way to call them: policy, checks, approval, evidence, then the tool.

Local tools get the real values; what goes back to the model is checked again. A tool that raises is a result.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ParamSpec, Protocol, TypeVar, overload

import anyio
import msgspec
from pydantic import BaseModel, ValidationError
from pydantic_core import to_json

from aibox.agents._sdk import Signature, signature_of
from aibox.agents.events import Event, ToolCalled, ToolReturned
from aibox.agents.evidence import TurnRecord, digest
from aibox.errors import AIBoxError, ConfigError, IntegrityError
from aibox.guardrails.guardrail import Guardrail
from aibox.policy.policy import Policy
from aibox.protocols import Approver, Tool
from aibox.types import Label, Scope

P = ParamSpec("P")
R = TypeVar("R")


class FunctionTool:
    """A Python function that an agent can call: the schema comes from its signature, the words from its docstring.

    Calling the object calls the function, unchanged.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        label: Label | str | None = None,
        approve: bool = False,
        side_effects: bool = False,
        timeout_s: float = 60.0,
    ) -> None:
        self.function = function
        self.name = function.__name__
        self.label = None if label is None else Label.of(label)
        self.approve = approve
        self.side_effects = side_effects
        self.timeout_s = timeout_s
        functools.update_wrapper(self, function)

    @functools.cached_property
    def _signature(self) -> Signature:
        return signature_of(self.function)

    @property
    def description(self) -> str:
        return self._signature.description

    @property
    def schema(self) -> Mapping[str, Any]:
        return self._signature.schema

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    async def call(self, arguments: Mapping[str, Any], *, scope: Scope) -> str:  # noqa: ARG002 - Tool's face
        """Validate, then run; a synchronous function runs in a thread. Raises what the function raises."""
        args, kwargs = self._signature.bind(arguments)
        if inspect.iscoroutinefunction(self.function):
            value = await self.function(*args, **kwargs)
        else:
            value = await anyio.to_thread.run_sync(
                functools.partial(self.function, *args, **kwargs), abandon_on_cancel=True
            )
        return as_text(value)

    def __repr__(self) -> str:
        return f"<tool {self.name}{inspect.signature(self.function)}>"


def as_text(value: Any) -> str:
    """What a model is shown of a value: text as it is, models and other values as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, BaseModel):
        return value.model_dump_json()
    return to_json(value, fallback=repr).decode()


@overload
def tool(function: Callable[P, R], /) -> FunctionTool: ...
@overload
def tool(
    *, label: Label | str | None = None, approve: bool = False, side_effects: bool = False, timeout_s: float = 60.0
) -> Callable[[Callable[P, R]], FunctionTool]: ...
def tool(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Make a function a tool: `@aibox.tool`, or `@aibox.tool(label=..., approve=..., side_effects=..., timeout_s=...)`.

    `label` marks what the tool returns (`"confidential/PHI"`); `approve` asks a person before each call;
    `side_effects` makes the record of the call durable before it happens; `timeout_s` bounds it.
    """
    if function is not None:
        return FunctionTool(function)
    return lambda function: FunctionTool(function, **options)


def as_tool(value: Tool | Callable[..., Any]) -> Tool:
    """A tool as it is; a plain function becomes one. Raises ConfigError for anything else."""
    if inspect.isfunction(value) or inspect.ismethod(value):
        return FunctionTool(value)
    if all(hasattr(value, name) for name in ("name", "description", "schema", "call")):
        return value  # type: ignore[return-value]  # the shape was just looked at
    raise ConfigError(f"not a tool: {value!r}", hint="decorate a function with @aibox.tool")


class TurnState(Protocol):
    """What dispatch needs to know of the turn that calls."""

    scope: Scope
    policy: Policy
    guardrail: Guardrail | None
    approver: Approver | None
    record: TurnRecord

    @property
    def label(self) -> Label: ...

    def touch(self, label: Label) -> None: ...

    def emit(self, event: Event) -> None: ...

    def returned(self, result: ToolReturned) -> None: ...

    async def check(self, text: str, *, where: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class _Refused(Exception):  # noqa: N818 - a way out of a call, not an error
    """Why a call does not happen, in words that a model can act on."""

    text: str
    outcome: str


async def dispatch(tool: Tool, arguments_json: str, *, turn: TurnState) -> str:
    """Call a tool for a model and return what the model is told. Every call leaves two entries in the chain.

    Raises only what must stop the turn: evidence that cannot be written, and checks that cannot answer.
    """
    started = time.perf_counter()
    try:
        arguments = await _prepare(tool, arguments_json, turn=turn)
        turn.emit(ToolCalled(tool.name, dict(arguments)))
        text, ok, outcome = *(await _run(tool, arguments, turn=turn)), "returned"
        outcome = outcome if ok else "failed"
    except _Refused as refused:
        text, ok, outcome = refused.text, False, refused.outcome
    if (label := getattr(tool, "label", None)) is not None:
        turn.touch(label.because(f"tool {tool.name}"))
    verdict = await turn.check(text, where="tool_result")
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
    }
    turn.record.note("tool.returned", detail)
    turn.returned(ToolReturned(tool.name, text, ok, duration_s))
    return text


async def _prepare(tool: Tool, arguments_json: str, *, turn: TurnState) -> dict[str, Any]:
    """Everything that may stop a call, in order; the entry is durable before a tool with side effects runs."""
    rules = turn.policy.tools
    detail = {
        "tool": tool.name,
        "arguments_sha256": digest(arguments_json.encode("utf-8", "surrogatepass")),
        "label": str(turn.label),
    }
    refused: _Refused | None = None
    arguments: dict[str, Any] = {}
    if not rules.allows(tool.name):
        refused = _Refused(f"The tool {tool.name} is not allowed here. Do without it.", "denied")
    else:
        try:
            arguments = await _read(tool, arguments_json, turn=turn)
            if getattr(tool, "approve", False) or rules.needs_approval(tool.name):
                detail["approval"] = await _approval(tool, arguments, turn=turn)
        except _Refused as reason:
            refused = reason
    detail["decision"] = refused.outcome if refused else "allowed"
    if refused or not getattr(tool, "side_effects", True):
        turn.record.note("tool.called", detail)
    else:
        await turn.record.append("tool.called", detail)
    if refused:
        raise refused
    return arguments


async def _read(tool: Tool, arguments_json: str, *, turn: TurnState) -> dict[str, Any]:
    verdict = await turn.check(arguments_json, where="tool_arguments")
    if verdict.blocked:
        raise _Refused(f"The arguments for {tool.name} were stopped by a safety check.", "blocked")
    text = verdict.text
    if turn.guardrail is not None:
        text = await turn.guardrail.restore(text, scope=turn.scope, unknown=_forged)
    try:
        arguments = msgspec.json.decode(text or "{}")
    except msgspec.DecodeError as error:
        raise _Refused(f"The arguments for {tool.name} are not valid JSON: {error}. Try again.", "invalid") from None
    if not isinstance(arguments, dict):
        raise _Refused(f"The arguments for {tool.name} must be a JSON object. Try again.", "invalid")
    return arguments


def _forged(token: str) -> str:
    raise _Refused(f"{token} stands for nothing here. Copy each token exactly and try again.", "invalid")


async def _approval(tool: Tool, arguments: dict[str, Any], *, turn: TurnState) -> str:
    if turn.approver is None:
        raise _Refused(f"{tool.name} needs a person's approval, and nobody can be asked here.", "unapproved")
    if not await turn.approver.approve(tool.name, arguments, scope=turn.scope, label=turn.label):
        raise _Refused(f"A person was asked and said no to {tool.name}.", "rejected")
    return "given"


async def _run(tool: Tool, arguments: dict[str, Any], *, turn: TurnState) -> tuple[str, bool]:
    timeout_s = getattr(tool, "timeout_s", None)
    try:
        with anyio.fail_after(timeout_s):
            return await tool.call(arguments, scope=turn.scope), True
    except TimeoutError:
        return f"{tool.name} took longer than {timeout_s:g} s and was stopped.", False
    except ValidationError as error:
        return f"Wrong arguments for {tool.name}: {_short(error)}. Correct them and try again.", False
    except IntegrityError:
        raise
    except AIBoxError as error:
        return f"{tool.name} failed: {error.message}", False
    except Exception as error:  # noqa: BLE001 - whatever a tool raises is a result for the model, and is recorded
        return f"{tool.name} failed: {type(error).__name__}: {str(error)[:500]}", False


def _short(error: ValidationError) -> str:
    """Field and fault, without the value: a small model repairs itself from this."""
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'arguments'}: {e['msg']}" for e in error.errors()[:5])
