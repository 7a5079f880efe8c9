"""An agent: instructions, a model, tools, and the parts that guard, remember and record its turns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from functools import partial, reduce
from operator import and_
from pathlib import Path
from typing import Any

from aibox.agents.code import code_tools
from aibox.agents.delegate import Delegate
from aibox.agents.events import Event, Failed, Reply, TextDelta
from aibox.agents.parts import Parts
from aibox.agents.resume import recover, resume
from aibox.agents.skill_tools import skill_tools
from aibox.agents.skills import Skill, load
from aibox.agents.state import AgentState
from aibox.agents.subagents import SubagentSpec, specs
from aibox.agents.tools import as_tool
from aibox.agents.turn import Turn
from aibox.audit.chain import AuditChain
from aibox.errors import AIBoxError, ConfigError
from aibox.guardrails.guardrail import Guardrail
from aibox.inference.router import Router
from aibox.memory.memory import Memory
from aibox.policy.egress import EgressRules
from aibox.policy.limits import TurnLimits
from aibox.policy.policy import Policy
from aibox.policy.tools import ToolRules
from aibox.protocols import Approver, Backend, Tool
from aibox.sandbox.sandbox import Sandbox
from aibox.sync import run_sync
from aibox.types import Decision, Label, Level, Scope

DEFAULT_INSTRUCTIONS = "You are a helpful assistant. Answer briefly and truthfully; say so when you do not know."

# A join only narrows, so that a policy which is about limits must leave everything else as it is.
_OPEN = EgressRules(models=frozenset({"*"}), hosts=frozenset({"*"}), ceiling=Label(Level.RESTRICTED))
_FREE = ToolRules(lethal_three=Decision.ALLOW)


class Agent:
    """Runs turns: check, recall, answer with tools, check, remember, seal.

    `router` is any Backend. Without a `guardrail` texts are checked as `policy` says, without `memory` nothing is kept,
    without `audit` nothing is recorded; a `sandbox` gives the agent the tools `python`, `bash`, `read_file` and
    `write_file`. `skills` are skills or their folders, `subagents` are names of shipped ones, files, or folders of
    them. The policies of the guardrail and of `policy`, and `limits`, are joined. A `state` keeps conversations,
    and runs that wait for people, over a restart; an `approver` answers at once instead. A conversation longer than
    `history_chars` characters is summed up. `settings` are Chat Completions fields of every call, such as
    `temperature`.
    """

    def __init__(
        self,
        instructions: str | None = None,
        *,
        router: Backend,
        name: str = "default",
        model: str = "default",
        tools: Sequence[Tool | Callable[..., Any]] = (),
        skills: Sequence[Skill | str | Path] = (),
        subagents: Sequence[SubagentSpec | str | Path] = (),
        guardrail: Guardrail | None = None,
        memory: Memory | None = None,
        sandbox: Sandbox | None = None,
        audit: AuditChain | None = None,
        policy: Policy | None = None,
        limits: TurnLimits | None = None,
        approver: Approver | None = None,
        state: AgentState | None = None,
        history_chars: int = 48_000,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self._policy = policy
        self._made = partial(
            Agent,
            instructions,
            router=router,
            name=name,
            model=model,
            tools=tools,
            skills=skills,
            subagents=subagents,
            guardrail=guardrail,
            memory=memory,
            sandbox=sandbox,
            audit=audit,
            limits=limits,
            approver=approver,
            state=state,
            history_chars=history_chars,
            settings=settings,
        )
        restrictions = [
            *([guardrail.policy] if guardrail is not None else []),
            *([policy] if policy is not None else []),
            *([Policy(limits=limits, egress=_OPEN, tools=_FREE)] if limits is not None else []),
        ]
        # All that restrict are joined, never chosen between: giving one more cannot relax another.
        joined = reduce(and_, restrictions) if restrictions else Policy()
        if policy is not None and (guardrail is not None or policy.checks or policy.judge.places):
            guardrail = Guardrail(policy) if guardrail is None else guardrail.under(policy)
        if audit is not None and policy is not None:
            _refuse_shorter_evidence(name, policy, audit)
        every = [skill if isinstance(skill, Skill) else load(skill) for skill in skills]
        # What the policy hides is not listed, not offered and not there.
        known = tuple(skill for skill in every if f"skill:{skill.name}" not in joined.tools.deny)
        made = tuple(as_tool(tool) for tool in tools)
        if sandbox is not None:
            made += code_tools(sandbox)
        if restrictions and isinstance(router, Router):
            router = router.under(joined)
        parts = Parts(
            name=name,
            instructions=instructions or DEFAULT_INSTRUCTIONS,
            router=router,
            model=model,
            tools=(*made, *skill_tools(known, sandbox=sandbox)),
            policy=joined,
            guardrail=guardrail,
            memory=memory,
            audit=audit,
            approver=approver,
            state=state,
            skills=known,
            history_chars=history_chars,
            settings=settings or {},
        )
        allowed = [s for s in specs(subagents) if f"subagent:{s.name}" not in joined.tools.deny]
        if allowed:
            delegate = Delegate(allowed, parts=parts, skills=known, sandbox=sandbox)
            parts = replace(parts, tools=(*parts.tools, delegate))
        names = [tool.name for tool in parts.tools]
        if twice := sorted({tool for tool in names if names.count(tool) > 1}):
            raise ConfigError(f"two tools are called {', '.join(twice)}", hint="rename one of the functions")
        self._parts = parts

    @property
    def name(self) -> str:
        return self._parts.name

    @property
    def version(self) -> str:
        """A digest over all that decides what the model is told and may do; a run goes on under the same only."""
        return self._parts.version

    @property
    def parts(self) -> Parts:
        """What the agent is made of, for whoever has to say which agent it was."""
        return self._parts

    def under(self, policy: Policy) -> Agent:
        """The same agent under the join with another policy, such as a request's: never weaker than itself.

        A run that waits there goes on under the same policy only.
        """
        return self._made(policy=policy if self._policy is None else self._policy & policy)

    async def run(
        self,
        input: str,  # noqa: A002 - the face of the library
        *,
        scope: Scope | None = None,
        label: Label | str | None = None,
        output_type: type[Any] | None = None,
        tool_choice: str | None = None,
        history: Sequence[Mapping[str, Any]] | None = None,
        max_tokens: int | None = None,
    ) -> Reply:
        """One turn. `scope` None is `Scope.local()`; a scope with a session continues that conversation.

        `output_type` asks for an object of a pydantic type; `tool_choice` is `"auto"`, `"required"`, `"none"` or the
        name of a tool, for the first model call; `history` are earlier messages (`role`, `content`) that the caller
        keeps, in place of the session's; `max_tokens` is what each model call of it may write, above 0, and never more
        than `limits.output_tokens` of the policy. A refusal by a check is a Reply with `blocked`, a limit that ended
        the turn one with `stopped`, a call that waits for a person one with `pending`. Raises LimitError for a message
        that is too large, EgressError, BackendError, StoreError.
        """
        asked = {"tool_choice": tool_choice, "output_type": output_type, "history": history, "max_tokens": max_tokens}
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
        max_tokens: int | None = None,
    ) -> AsyncIterator[Event]:
        """The events of one turn as they happen; the last is a Reply or a Failed. Leaving early cancels the turn."""
        events: asyncio.Queue[Event] = asyncio.Queue()
        asked = {"tool_choice": tool_choice, "output_type": output_type, "history": history, "max_tokens": max_tokens}
        turn = self._turn(scope, label, events.put_nowait, streaming=True, **asked)

        async def work() -> None:
            try:
                events.put_nowait(await turn.run(input))
            except AIBoxError as error:
                events.put_nowait(Failed(error))

        task = asyncio.create_task(work(), name=f"turn {turn.record.turn}")
        # A bug of ours, or a cancellation from outside, must wake whoever waits for the next event.
        task.add_done_callback(lambda _: events.put_nowait(_END))
        why: tuple[Any, ...] = ()
        try:
            while (event := await events.get()) is not _END:
                yield event
            await task
        except asyncio.CancelledError as left:
            why = left.args
            raise
        finally:
            task.cancel(*why)
            await asyncio.wait([task])

    async def resume(self, run: str, *, scope: Scope | None = None, output_type: type[Any] | None = None) -> Reply:
        """Go on with a run (`reply.run`) whose questions are answered, in this process or another.

        Each call that was approved runs at most once. When going on fails, it can be tried again, and what had run is
        not run again. Raises AccessError for a run of somebody else, one that still waits or is over, and for an agent
        that is not the one that asked; ConfigError without a `state`.
        """
        turn = self._turn(scope, None, lambda _: None, streaming=False, output_type=output_type)
        return await resume(turn, run)

    async def recover(self, *, scope: Scope | None = None, now: bool = False) -> list[Reply | Failed]:
        """After a crash: end every run of the tenant that was interrupted, each once, by going on where it stood.

        One that cannot go on, because the agent is another by now, is recorded as failed. A run counts as interrupted
        when its process is gone, as far as this machine knows, or its time is over; `now` says that the operator knows
        of no process that still works on one.
        """
        return await recover(self._parts, lambda owner: self._turn(owner, None, lambda _: None), scope=scope, now=now)

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


def _refuse_shorter_evidence(name: str, policy: Policy, audit: AuditChain) -> None:
    """What an agent did is evidence against whoever wrote it too: how long it is kept they do not say."""
    kept = audit.retentions.everybody
    if any((most := kept.days(kind)) is None or days < most for kind, days in policy.retention.bodies_days.items()):
        raise ConfigError(
            f"the policy of the agent {name} says how long evidence is kept, which an agent does not decide",
            hint="set retention in the policy of the box or of the tenant; by hand: AuditChain(..., retention=...)",
        )


_END: Any = TextDelta("")
"""Marks the end of the queue of events; compared by identity."""
