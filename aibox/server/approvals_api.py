"""`/v1/approvals` and `/v1/runs`: questions to people, answered from outside, and going on with a run that waited.

A user sees and answers the questions of their own runs, a tenant's administrator those of the tenant; a program may
look at its own and never answers: a person was asked. What is another tenant's answers as what is not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aibox.agents.agent import Agent
from aibox.agents.approvals import Approval, Approvals, unknown
from aibox.agents.state import AgentState
from aibox.errors import AccessError, ConfigError
from aibox.server.inference_api import AGENT, completion
from aibox.server.principal import Principal, Role

_LOOK = (Role.USER, Role.SERVICE, Role.TENANT_ADMIN)
_ANSWER = (Role.USER, Role.TENANT_ADMIN)


class ApprovalsAPI:
    """What the routes do, without HTTP. Raises AIBoxError."""

    def __init__(self, state: AgentState, *, agents: Mapping[str, Agent]) -> None:
        self._agents = agents
        # An agent that was put together by hand may keep its questions in a state of its own.
        own = [agent.parts.state for agent in agents.values() if agent.parts.state is not None]
        self._states = list({id(found): found for found in (state, *own)}.values())

    async def list(self, *, who: Principal) -> dict[str, Any]:
        """What waits and may be seen, the most urgent first."""
        who.require(*_LOOK)
        found = [ask for state in self._states for ask in await state.approvals.pending(scope=who.scope)]
        seen = sorted((ask for ask in found if _visible(ask, who)), key=lambda ask: ask.expires_us)
        return {"object": "list", "data": [as_dict(ask) for ask in seen]}

    async def show(self, approval: str, *, who: Principal) -> dict[str, Any]:
        """One question, also one that is closed."""
        who.require(*_LOOK)
        return as_dict((await self._find(approval, who=who))[1])

    async def approve(self, approval: str, body: Mapping[str, Any], *, who: Principal) -> dict[str, Any]:
        """A yes to exactly what `digest` stands for."""
        who.require(*_ANSWER)
        digest = body.get("digest")
        if not isinstance(digest, str):
            raise ConfigError("say what is approved: `digest`, as the question shows it")
        approvals, _ = await self._find(approval, who=who)
        return as_dict(await approvals.approve(approval, digest=digest, scope=who.scope))

    async def reject(self, approval: str, body: Mapping[str, Any], *, who: Principal) -> dict[str, Any]:
        """A no; the model is told `reason`."""
        who.require(*_ANSWER)
        reason = body.get("reason", "")
        if not isinstance(reason, str):
            raise ConfigError("`reason` is text")
        approvals, _ = await self._find(approval, who=who)
        return as_dict(await approvals.reject(approval, reason, scope=who.scope))

    async def resume(self, run: str, *, who: Principal) -> dict[str, Any]:
        """Go on with a run whose questions are answered, as the one who began it; the answer is a chat completion."""
        who.require(*_LOOK)
        missing: AccessError | None = None
        for state in self._states:
            try:
                name = await state.runs.agent_of(run, scope=who.scope)
            except AccessError as error:
                missing = error
                continue
            agent = self._agents.get(name)
            if agent is None or agent.parts.state is not state:
                raise ConfigError(f"the agent {name}, whose run this is, is not served here")
            return completion(AGENT + name, await agent.resume(run, scope=who.scope))
        assert missing is not None
        raise missing

    async def _find(self, approval: str, *, who: Principal) -> tuple[Approvals, Approval]:
        missing: AccessError | None = None
        for state in self._states:
            try:
                found = await state.approvals.get(approval, scope=who.scope)
            except AccessError as error:
                missing = error
                continue
            if _visible(found, who):
                return state.approvals, found
            missing = unknown()
        assert missing is not None
        raise missing


def _visible(approval: Approval, who: Principal) -> bool:
    return Role.TENANT_ADMIN in who.roles or approval.asked_by == who.scope.user


def as_dict(approval: Approval) -> dict[str, Any]:
    """A question in JSON, with all that an answer is bound to."""
    return {
        "object": "approval",
        "id": approval.id,
        "run": approval.run,
        "status": approval.status,
        "tool": approval.tool,
        "arguments": dict(approval.arguments),
        "reason": approval.reason,
        "label": str(approval.label),
        "label_why": list(approval.label.why),
        "agent": approval.agent,
        "agent_version": approval.version,
        "policy": approval.policy,
        "asked_by": approval.asked_by,
        "people": approval.people,
        "expires": approval.expires_us // 1_000_000,
        "digest": approval.digest,
        "approved_by": list(approval.approved_by),
        "rejected_by": approval.rejected_by,
        "rejected_because": approval.said,
    }
