"""How a bench reports: a table for people, or one line of JSON, against the numbers in goals.toml."""

from __future__ import annotations

import argparse
import json
import operator
import statistics
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

# The benches' own folder goes last: a bench may be called like a package that aibox imports (`agents`).
sys.path.sort(key=lambda entry: Path(entry or ".").resolve() == Path(__file__).parent)

GOALS = Path(__file__).with_name("goals.toml")


def arguments(description: str | None, *, data: str = "", judge: str = "") -> argparse.Namespace:
    """The options that every bench has; and `--data DIR`, `--judge MODEL` for one that says what they are for."""
    parser = argparse.ArgumentParser(description=description)
    if data:
        parser.add_argument("--data", type=Path, help=data)
    if judge:
        parser.add_argument("--judge", metavar="MODEL", help=judge)
    parser.add_argument("--quick", action="store_true", help="fewer rounds; at most 150 s")
    parser.add_argument("--json", action="store_true", help="exactly one line of JSON on standard output")
    return parser.parse_args()


@dataclass
class Report:
    """Figures of one run: rows for people, and the goals that they speak to."""

    title: str
    rows: list[tuple[str, str, str]] = field(default_factory=list)
    goals: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def row(self, what: str, figure: str, note: str = "") -> None:
        self.rows.append((what, figure, note))

    def goal(self, name: str, got: float | None, *, unit: str, against: str, note: str = "") -> None:
        self.goals.append({"id": name, "got": got, "unit": unit, "against": against, "note": note})

    def show(self, *, as_json: bool) -> None:
        if as_json:
            print(json.dumps({"goals": self.goals}))
        console = Console(file=sys.stderr if as_json else sys.stdout, highlight=False)
        table = Table("what", "figure", "note", title=self.title, title_justify="left", box=None)
        for row in self.rows:
            table.add_row(*row)
        console.print(table)
        wanted = {name: goal for part in tomllib.loads(GOALS.read_text()).values() for name, goal in part.items()}
        for goal in self.goals:
            want = wanted[goal["id"]]
            met = goal["got"] is not None and {"<=": operator.le, ">=": operator.ge}[want["op"]](
                goal["got"], want["want"]
            )
            got = "not measured" if goal["got"] is None else f"{goal['got']:.3g} {goal['unit']}"
            console.print(f"{goal['id']}: got {got}, want {want['op']} {want['want']}: {'met' if met else 'NOT met'}")
        for left in self.left_out:
            console.print(f"left out: {left}")


def p(values: Sequence[float], percent: int) -> float:
    """A percentile; the value itself where there is one only."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else values[0]
