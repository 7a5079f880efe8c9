"""What a tool call may know of, and do to, the turn that makes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from aibox.agents.approvals import Approval
from aibox.agents.budget import Budget, Share
from aibox.agents.events import ArtifactMade, Event, ToolReturned
from aibox.agents.evidence import TurnRecord
from aibox.agents.exposure import Exposure
from aibox.agents.frame import Frame
from aibox.agents.parts import Parts
from aibox.guardrails.grounding import Sources
from aibox.guardrails.guardrail import Guardrail
from aibox.memory.record import Passage
from aibox.policy.policy import Policy
from aibox.policy.tools import ToolRules
from aibox.protocols import Approver
from aibox.types import Label, Scope, Verdict, Where


class TurnState(Protocol):
    """A turn, as tools and subagents see it."""

    parts: Parts
    scope: Scope
    policy: Policy
    guardrail: Guardrail | None
    approver: Approver | None
    record: TurnRecord
    budget: Budget | Share
    frame: Frame
    sources: Sources
    passages: list[Passage]
    """What may be cited in the turn, as [1], [2] and so on. A tool that shows passages adds them."""
    run_id: str
    skills: tuple[str, ...]
    call_ids: set[str]
    answers: Mapping[str, Approval]

    @property
    def label(self) -> Label: ...

    @property
    def exposure(self) -> Exposure: ...

    @property
    def rules(self) -> ToolRules:
        """The policy's, narrowed by the skills that are active."""
        ...

    def touch(self, label: Label) -> None: ...

    def expose(self, exposure: Exposure) -> None: ...

    def narrow(self, rules: ToolRules, *, skill: str) -> None: ...

    def emit(self, event: Event) -> None: ...

    def returned(self, result: ToolReturned) -> None: ...

    @property
    def artifacts(self) -> Sequence[ArtifactMade]:
        """What was made in the whole turn, by subagents too."""
        ...

    def made(self, artifact: ArtifactMade) -> None: ...

    def wait_for(self, approval: Approval) -> None:
        """A person is to be asked; the run pauses before its next model call."""
        ...

    def waits_inside(self, call_id: str, child: Frame) -> None:
        """A subagent that this call began waits; so does the run."""
        ...

    async def under_way(self) -> None:
        """Where the run stands is on the disk when this returns; for what must not happen twice."""
        ...

    async def check(self, text: str, *, where: Where) -> Verdict: ...
