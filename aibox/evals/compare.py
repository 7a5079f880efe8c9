"""Two agents, or two reports, side by side on the same cases: what changed, and whether it is for the worse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aibox.errors import ConfigError
from aibox.evals.case import Case, Dataset
from aibox.evals.evaluate import Maker, evaluate
from aibox.evals.report import CaseResult, Report
from aibox.evals.scorers import Scorer
from aibox.evals.statistics import Paired

MARGIN = 0.05
"""Of the cases, that the new version may lose and still count as no worse."""


@dataclass(frozen=True, slots=True)
class Change:
    """One case under both versions."""

    case: str
    old: CaseResult
    new: CaseResult

    @property
    def kind(self) -> str:
        """lost, won, flakier, steadier, tools changed, answer changed, or same."""
        if self.old.solved != self.new.solved:
            return "won" if self.new.solved else "lost"
        flaky = (self.old.tally.stability == "flaky", self.new.tally.stability == "flaky")
        if flaky in ((True, False), (False, True)):
            return "flakier" if flaky[1] else "steadier"
        if [run.tools for run in self.old.runs] != [run.tools for run in self.new.runs]:
            return "tools changed"
        answers = ([run.answer_sha256 for run in version.runs] for version in (self.old, self.new))
        return "answer changed" if next(answers) != next(answers) else "same"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two reports on the same cases. `margin` is the share of cases that may be lost; see `Paired.verdict`."""

    old: Report
    new: Report
    margin: float = MARGIN
    confidence: float = 0.95

    def __post_init__(self) -> None:
        known, asked = ({(r.case, r.digest) for r in report.results} for report in (self.old, self.new))
        if known != asked:
            different = sorted({case for case, _ in known ^ asked})
            raise ConfigError(
                f"these reports are not about the same cases: {', '.join(different[:5])}",
                hint="run both versions on one data set",
            )

    @property
    def changes(self) -> tuple[Change, ...]:
        """Every case, in order, also those that are the same."""
        return tuple(Change(result.case, self.old[result.case], result) for result in self.new.results)

    @property
    def paired(self) -> Paired:
        return Paired.of([(change.old.solved, change.new.solved) for change in self.changes])

    @property
    def verdict(self) -> str:
        return self.paired.verdict(margin=self.margin, confidence=self.confidence)

    @property
    def subject_changes(self) -> tuple[str, ...]:
        """What of the agent differs: prompt, model, policy, tools, ..."""
        return self.old.subject.changes(self.new.subject)

    def require_no_worse(self) -> None:
        """Raises AssertionError unless it is shown that the new version is no worse."""
        if self.verdict != "no worse":
            raise AssertionError(str(self))

    def __str__(self) -> str:
        paired = self.paired
        low = paired.lower_bound(self.confidence)
        return (
            f"{self.new.name} against {self.old.name}: {self.verdict} (won {paired.won}, lost {paired.lost} of "
            f"{paired.cases}; difference {paired.difference:+.3f}, at least {low:+.3f} with {self.confidence:.0%} "
            f"confidence, margin {self.margin}; McNemar p {paired.p_worse:.3f}); "
            f"changed: {', '.join(self.subject_changes) or 'nothing of the agent'}"
        )

    def _repr_markdown_(self) -> str:
        rows = "\n".join(
            f"| {change.case} | {_of(change.old)} | {_of(change.new)} | {change.kind} |" for change in self.changes
        )
        return f"**{self}**\n\n| case | old | new | |\n|---|---|---|---|\n{rows}"


async def compare(
    a: Maker,
    b: Maker,
    cases: Dataset | Sequence[Case],
    *,
    scorers: Sequence[Scorer],
    margin: float = MARGIN,
    **options: Any,
) -> Comparison:
    """Evaluate `a` (the old one) and `b` (the new one) on the same cases. Options are those of `evaluate`."""
    old = await evaluate(a, cases, scorers=scorers, **{"name": "a", **options})
    new = await evaluate(b, cases, scorers=scorers, **{"name": "b", **options})
    return Comparison(old, new, margin)


def _of(result: CaseResult) -> str:
    return f"{result.tally.passed}/{result.tally.runs}"
