"""The results of a whole pytest session: reports by agent, sealed; the baseline; what is said at the end.

Each test is a case and each of its runs a run. Workers of xdist send their results to the one process that writes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aibox.audit.chain import AuditChain
from aibox.errors import AIBoxError, ConfigError
from aibox.evals import render
from aibox.evals.fixtures import audit_path
from aibox.evals.report import CaseResult, Report
from aibox.evals.statistics import Gate, Paired
from aibox.evals.subject import Subject, digest_of
from aibox.sync import run_sync
from aibox.types import Scope

BASELINE = "aibox/baseline/v1"
SCOPE = Scope(tenant="evaluations", user="pytest")


def finish(results: Sequence[Mapping[str, Any]], config: pytest.Config) -> tuple[bool, list[str]]:
    """Write what was asked for. Whether the session may pass, and the lines that tell a person."""
    cases = [
        (CaseResult.read(found["result"]), found) for found in sorted(results, key=lambda f: str(f["result"]["case"]))
    ]
    lines = [_line(result, found) for result, found in cases]
    good = True
    try:
        if folder := config.getoption("--aibox-report"):
            lines += run_sync(_write(Path(folder), reports_of(cases), audit_path(config) or Path(folder) / "audit.db"))
        if path := config.getoption("--aibox-baseline"):
            good, said = against_baseline(
                Path(path),
                [result for result, _ in cases],
                margin=config.getoption("--aibox-margin"),
                update=config.getoption("--aibox-update-baseline"),
            )
            lines += said
    except AIBoxError as error:
        # What was asked for and cannot be had fails the session: a report nobody wrote is no report.
        return False, [*lines, f"aibox: {error}"]
    return good, lines


def reports_of(cases: Sequence[tuple[CaseResult, Mapping[str, Any]]]) -> list[Report]:
    """One report for each agent, with all the weights that answered for it."""
    groups: dict[str, list[tuple[CaseResult, Mapping[str, Any]]]] = {}
    for result, found in cases:
        if found["subject"] is not None:
            groups.setdefault(digest_of({**found["subject"], "weights": None}), []).append((result, found))
    reports = []
    for group in groups.values():
        weights = sorted({tuple(item) for _, found in group for item in found["subject"]["weights"]})
        subject = Subject.read({**group[0][1]["subject"], "weights": weights})
        digests = sorted(result.digest for result, _ in group)
        reports.append(
            Report(
                name=subject.agent,
                subject=subject,
                dataset=digest_of(digests),
                results=tuple(replace(result, tenant=str(found["tenant"])) for result, found in group),
            )
        )
    return reports


async def _write(folder: Path, reports: Sequence[Report], audit: Path) -> list[str]:
    if not reports:
        return ["no agent was run: no report"]
    folder.mkdir(parents=True, exist_ok=True)
    sealed = []
    async with AuditChain(audit) as chain:
        for report in reports:
            await report.check(chain)
            sealed.append(await report.seal(chain, scope=SCOPE))
    for number, report in enumerate(sealed, 1):
        report.save(folder / f"report-{number}.json")
    (folder / "report.md").write_text(render.markdown(sealed), "utf-8")
    (folder / "report.html").write_text(render.html_page(sealed), "utf-8")
    (folder / "junit.xml").write_bytes(render.junit(sealed))
    return [f"reports of {len(sealed)} agents in {folder}, sealed in {audit}"]


def against_baseline(
    path: Path, results: Sequence[CaseResult], *, margin: float | None, update: bool
) -> tuple[bool, list[str]]:
    """Hold the session against the baseline, test by test. Worse fails; with a margin, so does what is not shown.

    A test that the baseline does not know is not compared; one that is missing here is named. Raises ConfigError.
    """
    if update or not path.exists():
        if not update:
            raise ConfigError(f"there is no baseline {path}", hint="--aibox-update-baseline writes it")
        save_baseline(path, results)
        return True, [f"baseline written: {path}, {len(results)} tests"]
    known = load_baseline(path)
    here = {result.case: result for result in results}
    pairs = [(known[case], here[case].solved) for case in here if case in known]
    paired = Paired.of(pairs)
    verdict = paired.verdict(margin=0.0 if margin is None else margin)
    lost = [case for case in here if case in known and known[case] and not here[case].solved]
    told = verdict if margin is not None or verdict == "worse" else "not shown to be worse"
    low, p = paired.lower_bound(), paired.p_worse
    lines = [f"against the baseline: {told} (won {paired.won}, lost {paired.lost} of {paired.cases})"]
    lines += [f"  McNemar p {p:.3f}; difference at least {low:+.3f} with 95% confidence"]
    lines += [f"  lost: {case}" for case in lost]
    lines += [f"  not in the baseline: {case}" for case in here if case not in known]
    lines += [f"  in the baseline and not run: {case}" for case in known if case not in here]
    return verdict == "no worse" if margin is not None else verdict != "worse", lines


def save_baseline(path: Path, results: Sequence[CaseResult]) -> None:
    """One line a test, sorted: what changed is what a diff in git shows."""
    rows = [
        json.dumps({"case": r.case, "solved": r.solved, "passed": r.tally.passed, "runs": r.tally.runs})
        for r in sorted(results, key=lambda r: r.case)
    ]
    path.write_text("\n".join([json.dumps({"format": BASELINE}), *rows, ""]), "utf-8")


def load_baseline(path: Path) -> dict[str, bool]:
    """Whether each test was solved. Raises ConfigError for what is no baseline."""
    try:
        head, *rows = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line.strip()]
        if head != {"format": BASELINE}:
            raise ValueError("unknown format")  # noqa: TRY301 - told with the others
        return {str(row["case"]): bool(row["solved"]) for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is not a baseline: {error}") from None


def _line(result: CaseResult, found: Mapping[str, Any]) -> str:
    tally, gate = result.tally, found["gate"]
    needed = f", {Gate(*gate).needed} of {gate[0]} needed" if gate else ""
    hat = tally.pass_hat(3) if tally.runs >= 3 else None
    more = f", pass^3 {hat:.2f}" if hat is not None else ""
    flaky = ", flaky" if tally.stability == "flaky" else ""
    return f"{found['outcome']}  {result.case}  {tally}{more}{needed}{flaky}"
