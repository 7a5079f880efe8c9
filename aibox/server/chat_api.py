"""`/v1/chat` and `/v1/agents`: a turn of an agent, whole or as events while it runs."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

from aibox.agents import events
from aibox.agents.agent import Agent
from aibox.agents.parts import Parts
from aibox.errors import AccessError, AIBoxError
from aibox.leaving import leave
from aibox.protocols import Tool
from aibox.server.principal import Principal
from aibox.server.problem import KEPT_BACK, problem
from aibox.server.route import ASKS, route
from aibox.server.shapes import talk
from aibox.server.shapes.fault import Problem
from aibox.server.shapes.shape import Id

_EXAMPLE = {"message": "What is due this week?", "agent": "default", "session": "planning"}
_TURN: dict[str, Any] = {"roles": ASKS, "records": True, "watched": True, "examples": [_EXAMPLE]}


def _failed(error: AIBoxError) -> talk.FailedEvent:
    return talk.FailedEvent(problem=Problem.model_validate(problem(error)))


class ChatAPI:
    """Turns of the agents that are offered."""

    def __init__(self, agents: Mapping[str, Agent]) -> None:
        self._agents = agents

    @route("POST", "/v1/chat", **_TURN)
    async def run(self, who: Principal, body: talk.Ask) -> talk.Told:
        """One turn, answered when it is over. A caller who leaves ends it."""
        agent = find(self._agents, body.agent)
        return told(await agent.run(body.message, scope=who.scope.narrow(session=body.session), label=body.label))

    @route("POST", "/v1/chat/stream", cut=_failed, **_TURN)
    async def stream(self, who: Principal, body: talk.Ask) -> AsyncIterator[talk.Event]:
        """One turn as it happens, as server-sent events. The last is `reply` or `failed`.

        Each event has a number as its `id` and its type as its name. While nothing happens there is a comment every
        fifteen seconds. A caller who leaves ends the turn.
        """
        agent = find(self._agents, body.agent)
        turn = agent.stream(body.message, scope=who.scope.narrow(session=body.session), label=body.label)
        return _shown(turn)

    @route("GET", "/v1/agents", roles=ASKS)
    async def agents(self, who: Principal) -> talk.AgentList:
        """The agents that can be asked."""
        del who
        return talk.AgentList(data=[_agent(agent) for agent in self._agents.values()])

    @route("GET", "/v1/agents/{name}", roles=ASKS)
    async def agent(self, who: Principal, name: Id) -> talk.AgentShown:
        """One agent: its model, its tools and skills, and the policy that it is under."""
        del who
        return _agent(find(self._agents, name))


def find(agents: Mapping[str, Agent], name: str) -> Agent:
    """Raises AccessError where no agent of that name is offered."""
    if (agent := agents.get(name)) is None:
        raise AccessError("there is no such agent", hint="GET /v1/agents lists what there is", absent=True)
    return agent


def told(reply: events.Reply, *, whole: bool = True) -> talk.Told:
    """A Reply as it is answered; without what artifacts hold where it is not the `whole` of what is said."""
    return talk.Told(
        text=reply.text,
        blocked=reply.blocked,
        stopped=reply.stopped,
        label=str(reply.label),
        label_why=list(reply.label.why),
        pending=[talk.Question.model_validate(ask) for ask in reply.pending],
        tool_calls=[talk.Call.model_validate(call) for call in reply.tool_calls],
        artifacts=[talk.Artifact.model_validate(_artifact(one, whole=whole)) for one in reply.artifacts],
        usage=talk.Tokens.model_validate(reply.usage),
        session=reply.session,
        model=reply.model,
        run=reply.run,
        turn=reply.receipt.turn if reply.receipt is not None else "",
    )


def _artifact(made: events.ArtifactMade, *, whole: bool = True) -> dict[str, Any]:
    held = {name: getattr(made, name) for name in talk.Artifact.model_fields if name not in ("data", "label")}
    data = base64.b64encode(made.data).decode() if whole and made.data is not None else None
    return {**held, "label": str(made.label), "data": data}


async def _shown(turn: AsyncIterator[events.Event]) -> AsyncGenerator[talk.Event, None]:
    """What goes wrong in the turn is raised, as what goes wrong before it begins: the route has one event for both."""
    failed: AIBoxError | None = None
    try:
        async for event in turn:
            if isinstance(event, events.Failed):
                failed = event.error
            elif (shown := _event(event)) is not None:
                yield shown
        if failed is not None:
            raise failed
    except asyncio.CancelledError as left:
        await leave(turn, left)
        raise
    finally:
        if isinstance(turn, AsyncGenerator):
            await turn.aclose()


def _event(event: events.Event) -> talk.Event | None:
    """None for what is not the caller's: the prompt, and what a model wrote before it was checked."""
    match event:
        case events.TextDelta(text):
            return talk.TextEvent(text=text)
        case events.Recalled(hits, error):
            return talk.RecalledEvent(citations=[hit.citation for hit in hits], error=KEPT_BACK if error else "")
        case events.SkillActivated(name, digest):
            return talk.SkillEvent(name=name, digest=digest)
        case events.Compacted(messages, error):
            return talk.CompactedEvent(messages=messages, error=error)
        case events.Decided(verdict):
            reasons = list(verdict.reasons())
            return talk.DecidedEvent(where=verdict.where, decision=str(verdict.decision), reasons=reasons)
        case events.Subagent(name, inner):
            shown = _event(inner)
            return None if shown is None else talk.SubagentEvent(name=name, event=shown)
        case events.Reply():
            return told(event, whole=False)
        case events.Failed(error):
            return _failed(error)
        case _:
            return _of_tools(event)


def _of_tools(event: events.Event) -> talk.Event | None:
    match event:
        case events.ToolCalled(name, arguments, call_id):
            return talk.ToolCalledEvent(name=name, arguments=arguments, call_id=call_id)
        case events.ToolReturned():
            return talk.ToolReturnedEvent(
                name=event.name, ok=event.ok, duration_s=event.duration_s, call_id=event.call_id
            )
        case events.ArtifactMade():
            return talk.ArtifactEvent.model_validate(_artifact(event))
        case events.UsageReported(model, backend, usage, total):
            taken, until = talk.Tokens.model_validate(usage), talk.Tokens.model_validate(total)
            return talk.UsageEvent(model=model, backend=backend, usage=taken, total=until)
        case events.ApprovalAsked():
            return talk.ApprovalEvent(tool=event.tool, reason=event.reason, people=event.people)
        case _:
            return None


def _agent(agent: Agent) -> talk.AgentShown:
    parts = agent.parts
    return talk.AgentShown(
        name=parts.name,
        model=parts.model,
        version=agent.version,
        policy=parts.policy.digest,
        tools=[
            talk.ToolOffered(name=tool.name, description=tool.description, approve=_waits(tool, parts))
            for tool in parts.tools
        ],
        skills=[skill.name for skill in parts.skills],
        remembers=parts.memory is not None,
    )


def _waits(tool: Tool, parts: Parts) -> bool:
    """An agent that has somebody to ask at once lets no call wait."""
    asks = getattr(tool, "approve", False) or parts.policy.tools.needs_approval(tool.name)
    return asks and parts.approver is None
