"""A test that is run until its gate is decided. Each run has fresh fixtures; only the decision is reported.

A failed assertion, or any other exception of the test, is a run that failed. A test that is wired wrongly, evidence
that does not hold and a spent budget are no outcome of a run: they end the test at once, as what they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from _pytest.runner import call_and_report

from aibox.errors import ConfigError, IntegrityError
from aibox.evals.budget import BudgetError
from aibox.evals.evaluate import observed_of
from aibox.evals.fixtures import NUMBER
from aibox.evals.report import CaseResult, Observed
from aibox.evals.statistics import Gate, Outcome
from aibox.evals.subject import digest_of, subject_of

FATAL = (ConfigError, IntegrityError, BudgetError)
DEFAULTS: dict[str, Any] = {"repeats": 14, "min_pass": 0.8, "confidence": 0.95, "stop_early": True}
SHOWN_CHARS = 8000
"""Of the first failure, from its end: what was raised stands there."""


@dataclass(frozen=True, slots=True)
class Keys:
    """Where the plugin keeps, on a test, the turns of its present run and what that run raised."""

    runs: pytest.StashKey[list[Any]]
    raised: pytest.StashKey[BaseException | None]


def repeat(item: pytest.Item, nextitem: pytest.Item | None, marker: pytest.Mark, keys: Keys) -> None:
    """Run and report a marked test: pytest's own protocol, the middle of it several times."""
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in _Repeated(item, nextitem, marker, keys).run():
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)


def once(item: pytest.Item, report: pytest.TestReport, runs: list[Any]) -> None:
    """A test without the marker that ran an agent: one run, which passed or not."""
    if report.outcome == "skipped":
        return
    result = CaseResult(report.nodeid, digest_of(report.nodeid), (_observed(report, runs),))
    _attach(report, result, runs, None)
    # JUnit takes a test's properties from its last report, which is made from these.
    item.user_properties.extend(report.user_properties)


class _Repeated:
    def __init__(self, item: pytest.Item, nextitem: pytest.Item | None, marker: pytest.Mark, keys: Keys) -> None:
        self._item = item
        self._keys = keys
        self._next = nextitem
        self._marker = marker
        self._observed: list[Observed] = []
        self._calls: list[pytest.TestReport] = []
        self._agents: list[Any] = []

    def run(self) -> list[pytest.TestReport]:
        try:
            gate, stop_early = _gate(self._marker)
        except ConfigError as error:
            return self._refused(str(error))
        outcome: Outcome | None = None
        for number in range(gate.repeats):
            setup, call, fatal = self._once(number)
            if call is None or fatal:
                return self._ended([setup] if call is None else [setup, call])
            outcome = gate.decided(sum(o.passed for o in self._observed), len(self._observed))
            last = number + 1 == gate.repeats or (stop_early and outcome is not None)
            # The parent as what comes next: the test's own fixtures end, those of its module live on.
            teardown = self._phase("teardown", self._next if last else self._item.parent)
            if not teardown.passed:
                return [setup, call, teardown]
            if last:
                break
        early = outcome if len(self._observed) < gate.repeats else None
        call = self._decided(gate, outcome or "failed", early)
        teardown.user_properties = call.user_properties
        return [setup, call, teardown]

    def _once(self, number: int) -> tuple[pytest.TestReport, pytest.TestReport | None, bool]:
        """Set-up and call of one run; no call where the set-up failed or skipped."""
        item: Any = self._item
        if number:
            # As pytest's own runtestprotocol does for an item that is run again.
            item._request = False  # noqa: SLF001
            item.funcargs = None
            item._initrequest()  # noqa: SLF001
        item.stash[NUMBER] = number
        item.stash[self._keys.runs] = []
        item.stash[self._keys.raised] = None
        setup = self._phase("setup")
        if not setup.passed:
            return setup, None, True
        call = self._phase("call")
        if call.skipped or isinstance(item.stash[self._keys.raised], FATAL):
            return setup, call, True
        self._calls.append(call)
        self._agents += item.stash[self._keys.runs]
        self._observed.append(_observed(call, item.stash[self._keys.runs]))
        return setup, call, False

    def _phase(self, when: Any, nextitem: Any = None) -> pytest.TestReport:
        options = {"nextitem": nextitem} if when == "teardown" else {}
        return call_and_report(self._item, when, log=False, **options)

    def _ended(self, reports: list[pytest.TestReport]) -> list[pytest.TestReport]:
        """A run that decides nothing, such as one that was skipped, ends the test as it ended itself."""
        return [*reports, self._phase("teardown", self._next)]

    def _refused(self, why: str) -> list[pytest.TestReport]:
        call = pytest.CallInfo.from_call(lambda: pytest.fail(why, pytrace=False), "setup")
        report: pytest.TestReport = self._item.ihook.pytest_runtest_makereport(item=self._item, call=call)
        return [report]

    def _decided(self, gate: Gate, outcome: Outcome, early: Outcome | None) -> pytest.TestReport:
        """One report for all runs: the first failure is shown when the gate failed."""
        result = CaseResult(
            self._item.nodeid, digest_of(self._item.nodeid), tuple(self._observed), early, outcome=outcome
        )
        failures = [(n, call) for n, call in enumerate(self._calls, 1) if not call.passed]
        report = failures[0][1] if outcome == "failed" and failures else self._calls[-1]
        report.outcome = outcome
        report.duration = sum(call.duration for call in self._calls)
        first = f"\n\nrun {failures[0][0]}:\n{failures[0][1].longreprtext[-SHOWN_CHARS:]}" if failures else ""
        report.longrepr = f"{sentence(result, gate)}{first}" if outcome == "failed" else None
        _attach(report, result, self._agents, gate)
        return report


def sentence(result: CaseResult, gate: Gate) -> str:
    """What the runs came to, for people."""
    tally = result.tally
    said = f"{tally.passed} of {tally.runs} runs passed; {gate}"
    left = gate.repeats - tally.runs
    said += f"; stopped early, {left} runs saved" if left else ""
    said += "; flaky: the same test passes and fails" if tally.stability == "flaky" else ""
    reasons = list(dict.fromkeys("; ".join(run.reasons) for run in result.runs if run.reasons))
    return "\n  ".join([said, *reasons[:5]])


def _gate(marker: pytest.Mark) -> tuple[Gate, bool]:
    if marker.args or set(marker.kwargs) - set(DEFAULTS):
        raise ConfigError(
            f"agent_eval takes {', '.join(DEFAULTS)}, by name",
            hint=f"@pytest.mark.agent_eval(repeats={DEFAULTS['repeats']})",
        )
    options = {**DEFAULTS, **marker.kwargs}
    return Gate(options["repeats"], options["min_pass"], options["confidence"]), bool(options["stop_early"])


def _observed(call: pytest.TestReport, runs: list[Any]) -> Observed:
    """One run of a test, with what its turns took together and the evidence of the last."""
    turns = [observed_of(ran, ()) for _, ran in runs]
    observed = turns[-1] if turns else Observed(passed=True)
    return replace(
        observed,
        passed=call.passed,
        reasons=() if call.passed else (_reason(call),),
        duration_us=round(call.duration * 1e6),
        tokens=sum(turn.tokens for turn in turns),
        tools=tuple(tool for turn in turns for tool in turn.tools),
    )


def _reason(call: pytest.TestReport) -> str:
    """The first line of what the run raised."""
    crash = getattr(call.longrepr, "reprcrash", None)
    return str(crash.message if crash else call.longreprtext).strip().split("\n")[0][:300]


def _attach(report: pytest.TestReport, result: CaseResult, runs: list[Any], gate: Gate | None) -> None:
    """The result travels with the report, from a worker of xdist too; what a person reads in JUnit goes with it."""
    entries = [entry for _, ran in runs for entry in ran.entries]
    subject = subject_of(runs[-1][0], entries).as_dict() if runs else None
    tenant = next((agent_run.reply.receipt.tenant for _, agent_run in runs if _has_receipt(agent_run)), "")
    report.aibox = {  # type: ignore[attr-defined]  # a report carries what it is given
        "result": result.as_dict(),
        "subject": subject,
        "tenant": tenant,
        "gate": None if gate is None else [gate.repeats, gate.min_pass, gate.confidence],
        "outcome": report.outcome,
    }
    tally = result.tally
    low, high = tally.interval()
    report.user_properties += [
        ("aibox.passed", f"{tally.passed}/{tally.runs}"),
        ("aibox.interval_95", f"{low:.3f}..{high:.3f}"),
        ("aibox.stability", tally.stability),
    ]


def _has_receipt(ran: Any) -> bool:
    return ran.error is None and ran.reply.receipt is not None
