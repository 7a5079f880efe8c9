"""How a run stops in the middle and is found again: its questions, and where it stands, on the disk before it is said.

Also what a crash leaves behind: before the first call that must not happen twice, the run is written down as under way.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import msgspec

from aibox.agents.approvals import Approval, digest_of
from aibox.agents.budget import Budget, Share
from aibox.agents.context import Context
from aibox.agents.evidence import TurnRecord
from aibox.agents.evidence import digest as sha256
from aibox.agents.exposure import Exposure
from aibox.agents.frame import Frame
from aibox.agents.parts import Parts
from aibox.agents.runs import Run
from aibox.chat import Usage
from aibox.policy.policy import Policy
from aibox.types import Label, Scope


class Pausing(Protocol):
    """The turn, as far as its pause concerns it."""

    parts: Parts
    scope: Scope
    policy: Policy
    record: TurnRecord
    budget: Budget | Share
    context: Context
    frame: Frame
    run_id: str
    skills: tuple[str, ...]
    inside: str

    @property
    def parent(self) -> Pausing | None: ...

    @property
    def pause(self) -> Pause: ...

    @property
    def label(self) -> Label: ...

    @property
    def exposure(self) -> Exposure: ...


class Pause:
    """Of one turn. A subagent's questions are its root turn's."""

    def __init__(self, turn: Pausing) -> None:
        self._turn = turn
        self.asked = False
        self.message = ""
        self._waiting: list[tuple[Pausing, Approval]] = []
        self._on_disk = False
        self.resumed = False

    @property
    def _root(self) -> Pausing:
        turn = self._turn
        while turn.parent is not None:
            turn = turn.parent
        return turn

    def wait_for(self, approval: Approval) -> None:
        self.asked = True
        self._root.pause.hold(self._turn, approval)

    def hold(self, turn: Pausing, approval: Approval) -> None:
        self._waiting.append((turn, approval))

    def mark(self) -> None:
        """The frame says under which label, exposure and skills the turn stands now."""
        turn = self._turn
        turn.frame.label, turn.frame.exposure, turn.frame.skills = turn.label, turn.exposure, turn.skills

    async def keep(self) -> tuple[Approval, ...]:
        """Write the questions and the run; both are durable when this returns. Only for a root turn with a state."""
        turn, state = self._turn, self._turn.parts.state
        assert state is not None
        self.mark()
        made = []
        for asking, approval in self._waiting:
            label = asking.frame.label
            shown = digest_of(
                tool=approval.tool,
                arguments=approval.arguments,
                policy=approval.policy,
                label=label,
                version=approval.version,
                scope=asking.scope,
                call=approval.call,
            )
            expires_us = time.time_ns() // 1000 + round(asking.policy.tools.approval_s * 1e6)
            made.append(replace(approval, id=uuid.uuid4().hex, label=label, digest=shown, expires_us=expires_us))
        await self._write("waiting")
        for approval in made:
            await state.approvals.ask(approval, scope=turn.scope)
            detail = {
                "approval": approval.id,
                "run": approval.run,
                "tool": approval.tool,
                "digest": approval.digest,
                "people": approval.people,
                "label": str(approval.label),
                "reason": approval.reason,
            }
            turn.record.note("approval.asked", detail)
        self._on_disk = False
        return tuple(made)

    async def under_way(self) -> None:
        """Where the run stands is on the disk when this returns, down to the subagent whose call this is."""
        turn = self._turn
        self.mark()
        if turn.parent is None:
            await self._write("running")
            self._on_disk = True
        else:
            turn.parent.frame.children[turn.inside] = turn.frame
            await turn.parent.pause.under_way()

    async def ended(self, status: str) -> None:
        """The run is over, or (`failed` after a resumption) can be tried again."""
        state = self._turn.parts.state
        if state is None or not (self._on_disk or self.resumed):
            return
        if status == "failed" and self.resumed:
            status = "waiting"
        await state.runs.release(self._turn.run_id, scope=self._turn.scope, status=status)

    async def _write(self, status: str) -> None:
        turn, state = self._turn, self._turn.parts.state
        budget = turn.budget
        assert state is not None
        assert isinstance(budget, Budget)
        saved = {
            "frame": turn.frame.as_dict(),
            "asked": self.message,
            "case": turn.scope.case,
            "notes": turn.context.notes,
            "calls": budget.calls,
            "usage": msgspec.structs.asdict(budget.usage),
        }
        await state.runs.keep(
            turn.run_id,
            scope=turn.scope,
            version=turn.parts.version,
            turn=turn.record.turn,
            status=status,
            state=saved,
            lease_s=turn.policy.limits.turn_s,
        )

    def restore(self, run: Run, answers: Mapping[str, Approval]) -> tuple[Frame, dict[str, Any]]:
        """Put a run that was taken up back where it stood; its frame, and what its entry says."""
        turn, saved = self._turn, run.state
        budget = turn.budget
        assert saved is not None
        assert isinstance(budget, Budget)
        self.resumed, self.message = True, saved["asked"]
        turn.run_id = run.id
        turn.scope = replace(turn.scope, case=saved.get("case", ""))
        turn.context.notes = saved["notes"]
        budget.calls, budget.usage = saved["calls"], Usage(**saved["usage"])
        used = [
            {"approval": a.id, "digest": a.digest, "status": a.status, "by": [*a.approved_by, a.rejected_by]}
            for a in answers.values()
        ]
        return Frame.read(saved["frame"]), {
            "agent": turn.parts.name,
            "policy": turn.policy.digest,
            "label": saved["frame"]["label"],
            "resumes": run.turn,
            "run": run.id,
            "approvals": used,
            "state_sha256": sha256(msgspec.json.encode(saved, order="deterministic")),
        }
