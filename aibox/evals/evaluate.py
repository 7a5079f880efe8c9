"""Runs an agent over cases, scores each run, and reports. The cases run side by side, each in a session of its own."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import anyio

from aibox.agents.agent import Agent
from aibox.audit.chain import AuditChain
from aibox.audit.receipt import ReceiptEntry
from aibox.audit.record import leaf_hash
from aibox.errors import ConfigError
from aibox.evals.case import Case, Dataset
from aibox.evals.report import CaseResult, Observed, Report
from aibox.evals.run import Run, run
from aibox.evals.scorers import Score, Scorer, score_all
from aibox.evals.scrub import Names
from aibox.evals.statistics import Gate
from aibox.evals.subject import Subject, subject_of
from aibox.types import Scope

World = tuple[Agent, Callable[[], Any]]
"""An agent, and a function that reads the state of the world it acts in."""
Made = Agent | World
Maker = Agent | Callable[[Case], Made]
"""An agent, or what makes a fresh one for a case, with its world where a final state is scored."""

MAX_REASON_CHARS = 500


async def evaluate(
    agent: Maker,
    cases: Dataset | Sequence[Case],
    *,
    scorers: Sequence[Scorer],
    repeats: int = 1,
    min_pass: float | None = None,
    confidence: float = 0.95,
    name: str = "evaluation",
    scope: Scope | None = None,
    audit: AuditChain | None = None,
    concurrency: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Each case `repeats` times; a run passes when every scorer says so. `min_pass` sets a gate over all runs.

    `audit` None takes the agent's own chain. `progress` hears how many runs of how many are done. The gate speaks about
    these cases: a rate over cases of different difficulty has a smaller variance than the binomial's, so that its bound
    stays on the safe side (Hoeffding, Ann. Math. Stat. 27, 1956). Raises ConfigError for a gate that could never pass.
    """
    dataset = cases if isinstance(cases, Dataset) else Dataset(tuple(cases))
    if repeats < 1 or not len(dataset) or not scorers:
        raise ConfigError("nothing would be evaluated", hint="give cases, scorers and at least one repeat")
    gate = None if min_pass is None else Gate(repeats * len(dataset), min_pass, confidence)
    scope = scope or Scope.local()
    found: dict[str, list[Observed]] = {case.id: [] for case in dataset}
    subjects: list[Subject] = []
    evidence: list[ReceiptEntry] = []
    failed: list[Exception] = []
    limit, done, total = anyio.CapacityLimiter(concurrency), 0, repeats * len(dataset)

    async def one(case: Case, number: int) -> None:
        nonlocal done
        async with limit:
            if failed:
                return
            try:
                made, state = _made(agent, case)
                own = scope.narrow(session=f"{case.id}.{number}")
                observed, entries = await observe(made, case, scorers=scorers, scope=own, audit=audit, state=state)
            except Exception as error:  # noqa: BLE001 - the first is raised below, when what is under way has ended
                failed.append(error)
                return
            subjects.append(subject_of(made))
            evidence.extend(entry for entry in entries if entry.kind == "model.answered")
            found[case.id].append(observed)
            done += 1
            if progress is not None:
                progress(done, total)

    async with anyio.create_task_group() as group:
        for number in range(repeats):
            for case in dataset:
                group.start_soon(one, case, number)
    if failed:
        raise failed[0]
    if len({subject.digest for subject in subjects}) != 1:
        raise ConfigError(
            "the cases were not run by one agent", hint="what makes the agent must make the same each time"
        )
    made, _ = _made(agent, dataset[0])
    return Report(
        name=name,
        subject=subject_of(made, evidence),
        dataset=dataset.digest,
        results=tuple(CaseResult(case.id, case.digest, tuple(found[case.id]), tenant=scope.tenant) for case in dataset),
        gate=gate,
    )


async def observe(
    agent: Agent,
    case: Case,
    *,
    scorers: Sequence[Scorer],
    scope: Scope,
    audit: AuditChain | None = None,
    state: Callable[[], Any] | None = None,
) -> tuple[Observed, tuple[ReceiptEntry, ...]]:
    """One run of one case, scored, and its evidence."""
    audit = audit if audit is not None else agent.parts.audit
    history = [dict(message) for message in case.history] or None
    ran = await run(agent, case.input, scope=scope, audit=audit, label=case.label, history=history)
    if state is not None:
        value = state()
        ran = replace(ran, state=await value if inspect.isawaitable(value) else value)
    return observed_of(ran, await score_all(ran, case, scorers)), ran.entries


def observed_of(ran: Run, scores: Sequence[Score]) -> Observed:
    """A run in numbers."""
    reply = ran.reply if ran.error is None else None
    receipt = None if reply is None else reply.receipt
    usage = None if reply is None else reply.usage
    last = receipt.entries[-1] if receipt else None
    return Observed(
        passed=all(score.passed for score in scores),
        # Reports go to git and to people: a reason may quote an answer, and what it quotes is scrubbed.
        reasons=tuple(Names().hide(f"{s.scorer}: {s.reason}"[:MAX_REASON_CHARS]) for s in scores if not s.passed),
        scores=tuple((score.scorer, round(score.value * 1000)) for score in scores),
        duration_us=round(ran.duration_s * 1e6),
        tokens=usage.input_tokens + usage.output_tokens if usage else 0,
        tools=tuple(call.name for call in ran.calls if call.began),
        answer_sha256=hashlib.sha256(reply.text.encode("utf-8", "surrogatepass")).hexdigest() if reply else "",
        error=ran.error.code if ran.error is not None else "",
        turn=receipt.turn if receipt else "",
        seq=last.seq if last else -1,
        leaf=leaf_hash(last.header).hex() if last else "",
    )


def _made(agent: Maker, case: Case) -> tuple[Agent, Callable[[], Any] | None]:
    made = agent if isinstance(agent, Agent) else agent(case)
    return made if isinstance(made, tuple) else (made, None)
