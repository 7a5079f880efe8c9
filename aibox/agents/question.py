"""A question to people as a turn puts it. Its id, digest and expiry come when the run is written down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from aibox.agents.approvals import Approval
from aibox.agents.parts import Parts
from aibox.policy.policy import Policy
from aibox.types import Label, Scope


class Asker(Protocol):
    """The turn, as far as its questions concern it."""

    parts: Parts
    scope: Scope
    policy: Policy
    run_id: str


def question(
    turn: Asker, *, call: str, tool: str, arguments: Mapping[str, Any], reason: str, label: Label, people: int
) -> Approval:
    """About one call: bound to the run, the policy, the version of the agent and who asked."""
    return Approval(
        id="",
        run=turn.run_id,
        call=call,
        tool=tool,
        arguments=arguments,
        reason=reason,
        label=label,
        policy=turn.policy.digest,
        version=turn.parts.version,
        agent=turn.scope.agent,
        asked_by=turn.scope.user,
        people=people,
        status="waiting",
        expires_us=0,
    )
