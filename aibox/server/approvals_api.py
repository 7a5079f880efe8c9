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
from aibox.server.route import route
from aibox.server.shapes.approval import ApprovalList, ApprovalShown, No, Yes
from aibox.server.shapes.inference import ChatCompletion
from aibox.server.shapes.shape import Id

_LOOK = (Role.USER, Role.SERVICE, Role.TENANT_ADMIN)
_ANSWER = (Role.USER, Role.TENANT_ADMIN)
_SMALL: dict[str, Any] = {"records": True, "max_body_bytes": 64 << 10}


class ApprovalsAPI:
    """What the routes do, without HTTP. Raises AIBoxError."""

    def __init__(self, state: AgentState, *, agents: Mapping[str, Agent]) -> None:
        self._agents = agents
        # An agent that was put together by hand may keep its questions in a state of its own.
        own = [agent.parts.state for agent in agents.values() if agent.parts.state is not None]
        self._states = list({id(found): found for found in (state, *own)}.values())

    @route("GET", "/v1/approvals", roles=_LOOK)
    async def list_(self, who: Principal) -> ApprovalList:
        """What waits and may be seen, the most urgent first."""
        found = [ask for state in self._states for ask in await state.approvals.pending(scope=who.scope)]
        seen = sorted((ask for ask in found if _visible(ask, who)), key=lambda ask: ask.expires_us)
        return ApprovalList(object="list", data=[shown(ask) for ask in seen])

    @route("GET", "/v1/approvals/{id}", roles=_LOOK)
    async def show(self, who: Principal, id: Id) -> ApprovalShown:  # noqa: A002 - as the path has it
        """One question, also one that is closed."""
        return shown((await self._find(id, who=who))[1])

    @route("POST", "/v1/approvals/{id}/approve", roles=_ANSWER, examples=[{"digest": "sha256:" + "0" * 64}], **_SMALL)
    async def approve(self, who: Principal, id: Id, body: Yes) -> ApprovalShown:  # noqa: A002 - as the path has it
        """A yes to exactly what `digest` stands for."""
        approvals, _ = await self._find(id, who=who)
        return shown(await approvals.approve(id, digest=body.digest, scope=who.scope))

    @route("POST", "/v1/approvals/{id}/reject", roles=_ANSWER, examples=[{"reason": "wrong account"}], **_SMALL)
    async def reject(self, who: Principal, id: Id, body: No) -> ApprovalShown:  # noqa: A002 - as the path has it
        """A no; the model is told `reason`."""
        approvals, _ = await self._find(id, who=who)
        return shown(await approvals.reject(id, body.reason, scope=who.scope))

    @route("POST", "/v1/runs/{id}/resume", roles=_LOOK, records=True)
    async def resume(self, who: Principal, id: Id) -> ChatCompletion:  # noqa: A002 - as the path has it
        """Go on with a run whose questions are answered, as the one who began it; the answer is a chat completion."""
        missing: AccessError | None = None
        for state in self._states:
            try:
                name = await state.runs.agent_of(id, scope=who.scope)
            except AccessError as error:
                missing = error
                continue
            agent = self._agents.get(name)
            if agent is None or agent.parts.state is not state:
                raise ConfigError(f"the agent {name}, whose run this is, is not served here")
            return ChatCompletion.model_validate(completion(AGENT + name, await agent.resume(id, scope=who.scope)))
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


def shown(approval: Approval) -> ApprovalShown:
    """A question, with all that an answer is bound to."""
    told = {
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
    return ApprovalShown.model_validate(told)
