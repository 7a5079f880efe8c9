"""`aibox evals` and `aibox replay`: agents over cases, reports side by side, and turns of yesterday as cases.

Exit code 0: as good as was asked; 1: it is not, or a report does not hold; 2: it could not be done.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from aibox.audit.chain import AuditChain
from aibox.audit.receipt import Receipt
from aibox.box import Box
from aibox.cli import interrupt, target
from aibox.cli.opened import in_box
from aibox.cli.options import ConfigOption, PolicyOption, load_settings
from aibox.cli.say import plain
from aibox.errors import ConfigError, IntegrityError
from aibox.evals import receipts, render, scorers
from aibox.evals.case import Dataset
from aibox.evals.compare import MARGIN, Comparison
from aibox.evals.evaluate import evaluate
from aibox.evals.held import read_held
from aibox.evals.report import Report
from aibox.types import Scope

app = typer.Typer(
    add_completion=False,
    help="Agents under test: run cases, compare reports, check them, make cases of receipts.",
    no_args_is_help=True,
)
SCORERS: dict[str, Callable[[], scorers.Scorer]] = {
    "exact": scorers.Exact,
    "includes": scorers.Includes,
    "regex": scorers.Regex,
    "numeric": scorers.Numeric,
    "json_schema": scorers.JsonSchema,
    "tools": scorers.Tools,
}
AgentOption = Annotated[str, typer.Option("--agent", help="module:attr of an Agent, or of what makes one of the box.")]
HeldOption = Annotated[Path, typer.Option("--held", help="What HeldTurns kept.")]
KeyOption = Annotated[Path | None, typer.Option("--key", help="The log's public key, from someone you trust.")]


@app.command("run")
def run(
    cases: Annotated[Path, typer.Argument(help="Cases: .yaml, .jsonl or .csv.")],
    agent: AgentOption,
    scorer: Annotated[
        list[str], typer.Option("--scorer", help=f"{', '.join(SCORERS)}, or module:attr. All must pass.")
    ],
    repeats: Annotated[int, typer.Option(help="Runs of each case.")] = 1,
    min_pass: Annotated[float | None, typer.Option(help="The gate: this rate must be proven.")] = None,
    confidence: Annotated[float, typer.Option(help="Of the gate.")] = 0.95,
    report: Annotated[Path | None, typer.Option(help="Folder for the report: JSON, Markdown, HTML, JUnit.")] = None,
    against: Annotated[Path | None, typer.Option(help="An earlier report: say what changed, fail when worse.")] = None,
    config: ConfigOption = None,
    policy: PolicyOption = None,
) -> None:
    """Run an agent over cases in the box. The report is sealed in the box's chain."""
    dataset, chosen = Dataset.load(cases), [_scorer(name) for name in scorer]
    earlier = None if against is None else Report.load(against)

    async def work(box: Box) -> Report:
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("runs", total=repeats * len(dataset))
            measured = await evaluate(
                target.agent(agent, box),
                dataset,
                scorers=chosen,
                repeats=repeats,
                min_pass=min_pass,
                confidence=confidence,
                name=cases.stem,
                progress=lambda done, _: progress.update(task, completed=done),
            )
        return await measured.seal(box.audit, scope=Scope.local())

    found = in_box(work, config=config, policy=policy)
    console = Console(highlight=False)
    for result in found.results:
        if not result.solved:
            console.print(f"{result.case}: {result.reason}", markup=False, soft_wrap=True)
    console.print(str(found), markup=False, soft_wrap=True)
    if report is not None:
        report.mkdir(parents=True, exist_ok=True)
        found.save(report / "report.json")
        (report / "report.md").write_text(render.markdown([found]), "utf-8")
        (report / "report.html").write_text(render.html_page([found]), "utf-8")
        (report / "junit.xml").write_bytes(render.junit([found]))
    worse = earlier is not None and _compared(Comparison(earlier, found), console) == "worse"
    if worse or found.outcome == "failed":
        raise typer.Exit(1)


@app.command("compare")
def compare(
    old: Annotated[Path, typer.Argument(help="A report.json.")],
    new: Annotated[Path, typer.Argument(help="A report.json on the same cases.")],
    margin: Annotated[float, typer.Option(help="Share of the cases that may be lost.")] = MARGIN,
    require: Annotated[bool, typer.Option("--no-worse", help="Fail unless it is shown to be no worse.")] = False,
) -> None:
    """Say what changed between two reports, case by case. Exit code 1 when the new one is worse."""
    verdict = _compared(Comparison(Report.load(old), Report.load(new), margin), Console(highlight=False))
    if verdict == "worse" or (require and verdict != "no worse"):
        raise typer.Exit(1)


@app.command("verify")
def verify(
    report: Annotated[Path, typer.Argument(help="A report.json.")],
    key: KeyOption = None,
    log: Annotated[Path | None, typer.Option(help="An audit.db beside its keys: hold every run against it.")] = None,
) -> None:
    """Check that a report is the one that was sealed, and that its runs are in the log."""
    console, found = Console(highlight=False), Report.load(report)

    async def held() -> int:
        assert log is not None
        if not log.exists():
            raise ConfigError(f"there is no log {log}")
        async with AuditChain(log) as chain:
            await chain.verify()
            return await found.check(chain)

    try:
        found.verify(key.read_text("utf-8") if key else None)
        runs = None if log is None else interrupt.run(held())
    except IntegrityError as error:
        console.print(f"[red]does not hold:[/] {plain(error.message)}", soft_wrap=True)
        raise typer.Exit(1) from None
    more = "" if runs is None else f", {runs} runs found in the log"
    console.print(f"[green]holds:[/] {found.digest}{more}", soft_wrap=True)


@app.command("from-receipts")
def from_receipts(
    paths: Annotated[list[Path], typer.Argument(help="Receipts (.json), or folders of them.")],
    held: HeldOption,
    out: Annotated[Path, typer.Option(help="Cases to write (.jsonl).")],
    since: Annotated[datetime | None, typer.Option(help="From this moment on.")] = None,
    until: Annotated[datetime | None, typer.Option(help="Before this moment.")] = None,
    key: KeyOption = None,
    config: ConfigOption = None,
    policy: PolicyOption = None,
) -> None:
    """Make cases of the turns of a period, where the policy consents ([reuse] evals) and their words are held."""
    settings, _ = load_settings(config=config)
    consent = Box(settings, policy=policy).policy
    files = [file for path in paths for file in (sorted(path.glob("*.json")) if path.is_dir() else [path])]
    dataset, left_out = receipts.cases_from(
        map(Receipt.load, files),
        read_held(held),
        policy=consent,
        since_us=_us(since, 0),
        until_us=_us(until, 2**62),
        key=key.read_text("utf-8") if key else None,
    )
    dataset.save(out)
    console = Console(highlight=False)
    for line in left_out:
        console.print(f"left out: {line}", markup=False, soft_wrap=True)
    console.print(f"{len(dataset)} cases in {out}, {dataset.digest}", markup=False, soft_wrap=True)


def replay(
    receipt: Annotated[Path, typer.Argument(help="A receipt (.json).")],
    agent: AgentOption,
    held: HeldOption,
    key: KeyOption = None,
    config: ConfigOption = None,
    policy: PolicyOption = None,
) -> None:
    """Run a turn again, where its words are still held, and show the difference. Exit code 1 when there is one."""
    proof, kept = Receipt.load(receipt), read_held(held)
    pinned = key.read_text("utf-8") if key else None

    async def work(box: Box) -> receipts.Replayed:
        return await receipts.replay(proof, kept, target.agent(agent, box), policy=box.policy, key=pinned)

    again = in_box(work, config=config, policy=policy)
    Console(highlight=False).print(str(again), markup=False, soft_wrap=True)
    if not again.same:
        raise typer.Exit(1)


def _compared(comparison: Comparison, console: Console) -> str:
    for change in comparison.changes:
        if change.kind != "same":
            console.print(f"{change.kind}: {change.case}  {change.new.reason}".rstrip(), markup=False, soft_wrap=True)
    console.print(str(comparison), markup=False, soft_wrap=True)
    return comparison.verdict


def _scorer(name: str) -> scorers.Scorer:
    if name in SCORERS:
        return SCORERS[name]()
    if ":" not in name:
        raise ConfigError(f"no scorer is called {name!r}", hint=f"one of {', '.join(SCORERS)}, or module:attr")
    found = target.attribute(name)
    made: scorers.Scorer = found() if isinstance(found, type) else found
    return made


def _us(moment: datetime | None, default: int) -> int:
    return default if moment is None else round(moment.astimezone().timestamp() * 1e6)
