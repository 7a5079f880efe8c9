"""Going on with a run: after people answered, or after the process that worked on it was gone."""

from __future__ import annotations

from collections.abc import Callable

from aibox.agents.events import Failed, Reply
from aibox.agents.parts import Parts
from aibox.agents.runs import Run
from aibox.agents.state import AgentState
from aibox.agents.turn import Turn
from aibox.errors import AccessError, AIBoxError, ConfigError, IntegrityError
from aibox.types import Scope


async def resume(turn: Turn, run: str) -> Reply:
    """Take the run up in this turn. Raises AccessError where that is not allowed, and then nothing has changed."""
    state, scope = _state(turn.parts), turn.scope
    answers = {approval.call: approval for approval in await state.approvals.of_run(run, scope=scope)}
    waiting = [approval.tool for approval in answers.values() if approval.status == "waiting"]
    if waiting:
        raise AccessError(f"the run still waits for a person: {', '.join(waiting)}", hint="approve or reject it first")
    taken = await state.runs.take(run, scope=scope, turn=turn.record.turn, lease_s=turn.policy.limits.turn_s)
    if (taken.agent, taken.version) != (scope.agent, turn.parts.version):
        await state.runs.release(run, scope=scope, status="waiting")
        raise AccessError(
            "the run was begun by another agent, or by another version of this one",
            hint="instructions, tools, skills and policy must be those that were shown to whoever agreed",
        )
    turn.scope = scope.narrow(session=taken.session)
    return await turn.resume(taken, answers)


async def recover(
    parts: Parts, make: Callable[[Scope], Turn], *, scope: Scope | None, now: bool
) -> list[Reply | Failed]:
    """Every interrupted run of the tenant, ended: by going on, or on record as failed."""
    state = _state(parts)
    ended: list[Reply | Failed] = []
    scope = (scope or Scope.local()).narrow(agent=parts.name)
    parts = parts.under(scope.tenant)
    for run in await state.runs.interrupted(scope=scope, agent=parts.name, now=now):
        owner = Scope(tenant=scope.tenant, user=run.user, agent=run.agent, session=run.session)
        turn = make(owner)
        lease_s = turn.policy.limits.turn_s
        try:
            taken = await state.runs.take(run.id, scope=owner, turn=turn.record.turn, lease_s=lease_s, left=run.turn)
        except AccessError:
            continue  # another process takes care of it, or it has ended after all
        await _record(parts, run, owner=owner, again=turn.record.turn)
        if run.version != parts.version:
            await state.runs.release(run.id, scope=owner, status="failed")
            ended.append(Failed(AccessError(f"a run of {parts.name} was interrupted, and the agent is another by now")))
            continue
        answers = {approval.call: approval for approval in await state.approvals.of_run(run.id, scope=owner)}
        try:
            ended.append(await turn.resume(taken, answers))
        except IntegrityError:
            raise
        except AIBoxError as error:
            ended.append(Failed(error))  # the turn that went on has it on record, and the others have their turn
    return ended


async def _record(parts: Parts, run: Run, *, owner: Scope, again: str) -> None:
    """The turn that broke off gets the terminal entry that its process could not write."""
    if parts.audit is None:
        return
    detail = {"outcome": "interrupted", "code": "interrupted", "run": run.id}
    if run.version == parts.version:
        detail["resumed_as"] = again
    try:
        await parts.audit.seal(run.turn, scope=owner, kind="turn.failed", detail=detail)
    except ConfigError:
        # It was sealed: the process went on, or went, between its last entry and letting go of the run.
        parts.audit.note("run.interrupted", scope=owner, detail=detail)


def _state(parts: Parts) -> AgentState:
    if parts.state is None:
        raise ConfigError("there is nothing to go on from", hint="Agent(..., state=AgentState(path, key=...))")
    return parts.state
