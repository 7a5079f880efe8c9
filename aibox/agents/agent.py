"""An agent: instructions, a model, tools, and the parts that guard, remember and record its turns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from functools import reduce
from operator import and_
from typing import Any

from aibox.agents.code import code_tools
from aibox.agents.events import Event, Failed, Reply, TextDelta
from aibox.agents.tools import as_tool
from aibox.agents.turn import Parts, Turn
from aibox.audit.chain import AuditChain
from aibox.errors import AIBoxError, ConfigError
from aibox.guardrails.guardrail import Guardrail
from aibox.memory.memory import Memory
from aibox.policy.egress import EgressRules
from aibox.policy.limits import TurnLimits
from aibox.policy.policy import Policy
from aibox.protocols import Approver, Backend, Tool
from aibox.sandbox.sandbox import Sandbox
from aibox.sync import run_sync
from aibox.types import Label, Level, Scope

DEFAULT_INSTRUCTIONS = "You are a helpful assistant. Answer briefly and truthfully; say so when you do not know."

# A join only narrows the door, so that a policy which is about limits must leave it as it is.
_OPEN = EgressRules(models=frozenset({"*"}), ceiling=Label(Level.RESTRICTED))


class Agent:
    """Runs turns: check, recall, answer with tools, check, remember, seal.

    `router` is any Backend. Without a `guardrail` nothing is checked, without `memory` nothing is kept, without `audit`
    nothing is recorded; a `sandbox` gives the agent the tools `python`, `bash`, `read_file` and `write_file`. The
    policies of the guardrail and of `policy`, and `limits`, are joined. `settings` are Chat Completions
    fields of every call, such as `temperature`.
    """

    def __init__(
        self,
        instructions: str | None = None,
        *,
        router: Backend,
        name: str = "default",
        model: str = "default",
        tools: Sequence[Tool | Callable[..., Any]] = (),
        guardrail: Guardrail | None = None,
        memory: Memory | None = None,
        sandbox: Sandbox | None = None,
        audit: AuditChain | None = None,
        policy: Policy | None = None,
        limits: TurnLimits | None = None,
        approver: Approver | None = None,
        settings: dict[str, Any] | None = None,
    ) -> None:
        made = tuple(as_tool(tool) for tool in tools)
        if sandbox is not None:
            made += code_tools(sandbox)
        names = [tool.name for tool in made]
        if twice := sorted({tool for tool in names if names.count(tool) > 1}):
            raise ConfigError(f"two tools are called {', '.join(twice)}", hint="rename one of the functions")
        restrictions = [
            *([guardrail.policy] if guardrail is not None else []),
            *([policy] if policy is not None else []),
            *([Policy(limits=limits, egress=_OPEN)] if limits is not None else []),
        ]
        self._parts = Parts(
            name=name,
            instructions=instructions or DEFAULT_INSTRUCTIONS,
            router=router,
            model=model,
            tools=made,
            # All that restrict are joined, never chosen between: giving one more cannot relax another.
            policy=reduce(and_, restrictions) if restrictions else Policy(),
            guardrail=guardrail,
            memory=memory,
            audit=audit,
            approver=approver,
            settings=settings or {},
        )

    @property
    def name(self) -> str:
        return self._parts.name

    async def run(
        self,
        input: str,  # noqa: A002 - the face of the library
        *,
        scope: Scope | None = None,
        label: Label | str | None = None,
        output_type: type[Any] | None = None,
        tool_choice: str | None = None,
        history: Sequence[Mapping[str, Any]] | None = None,
    ) -> Reply:
        """One turn. `scope` None is `Scope.local()`; a scope with a session continues that conversation.

        `output_type` asks for an object of a pydantic type; `tool_choice` is `"auto"`, `"required"`, `"none"` or the
        name of a tool, for the first model call; `history` are earlier messages (`role`, `content`) that the caller
        keeps, in place of the session's. A refusal by a check is a Reply with `blocked`; raises LimitError,
        EgressError, BackendError, StoreError.
        """
        asked = {"tool_choice": tool_choice, "output_type": output_type, "history": history}
        turn = self._turn(scope, label, lambda _: None, streaming=False, **asked)
        return await turn.run(input)

    async def stream(
        self,
        input: str,  # noqa: A002 - the face of the library
        *,
        scope: Scope | None = None,
        label: Label | str | None = None,
        output_type: type[Any] | None = None,
        tool_choice: str | None = None,
        history: Sequence[Mapping[str, Any]] | None = None,
    ) -> AsyncIterator[Event]:
        """The events of one turn as they happen; the last is a Reply or a Failed. Leaving early cancels the turn."""
        events: asyncio.Queue[Event] = asyncio.Queue()
        asked = {"tool_choice": tool_choice, "output_type": output_type, "history": history}
        turn = self._turn(scope, label, events.put_nowait, streaming=True, **asked)

        async def work() -> None:
            try:
                events.put_nowait(await turn.run(input))
            except AIBoxError as error:
                events.put_nowait(Failed(error))

        task = asyncio.create_task(work(), name=f"turn {turn.record.turn}")
        # A bug of ours, or a cancellation from outside, must wake whoever waits for the next event.
        task.add_done_callback(lambda _: events.put_nowait(_END))
        try:
            while (event := await events.get()) is not _END:
                yield event
            await task
        finally:
            task.cancel()
            await asyncio.wait([task])

    def run_sync(self, input: str, **options: Any) -> Reply:  # noqa: A002 - the face of the library
        """`run` for synchronous code and for notebooks; see `aibox.run_sync`."""
        coro: Coroutine[Any, Any, Reply] = self.run(input, **options)
        return run_sync(coro)

    def _turn(
        self, scope: Scope | None, label: Label | str | None, emit: Callable[[Event], None], **options: Any
    ) -> Turn:
        scope = (scope or Scope.local()).narrow(agent=self.name)
        return Turn(self._parts, scope=scope, label=Label.of(label), emit=emit, **options)

    def __repr__(self) -> str:
        parts = self._parts
        tools = ", ".join(tool.name for tool in parts.tools) or "none"
        record = "recorded" if parts.audit is not None else "unrecorded"
        return f"<Agent {parts.name} model={parts.model} tools={tools} {record}>"


_END: Any = TextDelta("")
"""Marks the end of the queue of events; compared by identity."""
