"""How often a gate errs, and how many runs stopping early saves: simulated agents just below and just above the bar.

Other gates decide about the same simulated runs: the point estimate, and Wilson's lower bound.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable

from report import Report, arguments

from aibox.evals.statistics import Gate, Paired, Tally, passes_needed, tail, wilson

CONFIDENCE = 0.95
SETTINGS = [(14, 0.8), (30, 0.8), (50, 0.8), (50, 0.9), (100, 0.9), (200, 0.95)]
JUST = 0.01
"""How far below and above the bar the simulated agents are."""


def simulate(report: Report, trials: int, rng: random.Random) -> None:
    """Each trial makes all runs once; every gate looks at the same ones."""
    rules: dict[str, Callable[[Gate, int], bool]] = {
        "exact bound (ours)": lambda gate, passed: passed >= gate.needed,
        "Wilson bound": lambda gate, c: wilson(c, gate.repeats, confidence=CONFIDENCE, sided=1)[0] >= gate.min_pass,
        "point estimate": lambda gate, passed: passed / gate.repeats >= gate.min_pass,
    }
    worst = dict.fromkeys(rules, 0.0)
    saved: dict[str, list[float]] = {"below": [], "bad": [], "good": []}
    bias = plain = 0.0
    for repeats, min_pass in SETTINGS:
        gate = Gate(repeats, min_pass, CONFIDENCE)
        agents = {"below": min_pass - JUST, "bad": min_pass - 0.3, "good": min_pass + 0.75 * (1 - min_pass)}
        for name, rate in agents.items():
            passes = dict.fromkeys(rules, 0)
            made, means = 0, [0.0, 0.0]
            for _ in range(trials):
                runs = [rng.random() < rate for _ in range(repeats)]
                for rule, decide in rules.items():
                    passes[rule] += decide(gate, sum(runs))
                tally = early(gate, runs)
                assert tally.stopped == ("passed" if sum(runs) >= gate.needed else "failed")
                made += tally.runs
                means[0] += tally.pass_at_1 or 0.0
                means[1] += tally.passed / tally.runs
            saved[name].append(1 - made / trials / repeats)
            bias = max(bias, abs(means[0] / trials - rate))
            plain = max(plain, abs(means[1] / trials - rate))
            if name == "below":
                for rule, count in passes.items():
                    worst[rule] = max(worst[rule], count / trials)
            shares = ", ".join(f"{rule} {count / trials:.3f}" for rule, count in passes.items())
            report.row(
                f"{repeats} runs for {min_pass}, agent at {rate:.3f}: passes",
                shares,
                f"{1 - made / trials / repeats:.0%} of runs saved",
            )
    for rule, share in worst.items():
        report.row(f"worst false pass of {rule}", f"{share:.3f}", f"agents {JUST} below the bar, 0.05 allowed")
    report.row("largest bias of pass@1 after an early stop", f"{bias:.4f}", f"passes by runs: {plain:.4f}")
    for name, shares in saved.items():
        report.row(
            f"runs saved by stopping when decided, agents {name}",
            f"{sum(shares) / len(shares):.0%}",
            "mean over the settings; no decision changes",
        )
    report.goal(
        "evals.false_pass_rate_at_threshold",
        worst["exact bound (ours)"],
        unit="",
        against=f"Wilson's bound {worst['Wilson bound']:.3f}, point estimate {worst['point estimate']:.3f}, same runs",
        note=f"worst of {len(SETTINGS)} settings, {trials} trials each, agents {JUST} below min_pass, 95% confidence",
    )


def exact(report: Report) -> None:
    """Without simulation: the worst that each bound does over all numbers of runs to 200."""
    for name, min_pass in (("0.8", 0.8), ("0.9", 0.9), ("0.95", 0.95)):
        worst = {"exact": (0.0, 0), "Wilson": (0.0, 0)}
        for runs in range(1, 201):
            needed = {
                "exact": passes_needed(runs, min_pass, CONFIDENCE),
                "Wilson": next(
                    (c for c in range(runs + 1) if wilson(c, runs, confidence=CONFIDENCE, sided=1)[0] >= min_pass), None
                ),
            }
            for bound, passed in needed.items():
                if passed is not None:
                    worst[bound] = max(worst[bound], (tail(passed, runs, min_pass), runs))
        shares = "; ".join(f"{bound} {share:.3f} (at {runs} runs)" for bound, (share, runs) in worst.items())
        report.row(f"worst chance that an agent at {name} itself passes, 1 to 200 runs", shares, "0.05 allowed")


def early(gate: Gate, runs: list[bool]) -> Tally:
    passed = 0
    for made, run in enumerate(runs, 1):
        passed += run
        if outcome := gate.decided(passed, made):
            return Tally(passed, made, outcome)
    raise AssertionError("a gate is decided when all its runs are made")


def paired(report: Report, trials: int, rng: random.Random) -> None:
    """Two versions on the same cases: the new one worse by the margin, or the same."""
    for cases, margin in ((100, 0.1), (200, 0.05)):
        for name, lost, won in (
            ("worse by the margin", margin + 0.02, 0.02),
            ("the same", 0.02, 0.02),
            ("better", 0.0, 0.05),
        ):
            shown = 0
            for _ in range(trials):
                draws = [rng.random() for _ in range(cases)]
                a, b = sum(d < lost for d in draws), sum(lost <= d < lost + won for d in draws)
                shown += Paired(cases - a - b, a, b, 0).verdict(margin=margin) == "no worse"
            report.row(f"no worse by {margin} on {cases} cases, new version {name}", f"shown in {shown / trials:.3f}")


def plugin(report: Report, rounds: int) -> None:
    """What a session pays that uses nothing of it."""
    code = "import pytest, time\ns = time.process_time()\nimport aibox.pytest_plugin\nprint(time.process_time() - s)"
    took = sorted(
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(rounds)
    )
    report.row(
        "loading the pytest plugin, CPU", f"median {took[len(took) // 2] * 1e3:.1f} ms", "what is allowed is 10 ms"
    )


def main() -> None:
    options = arguments(__doc__)
    report = Report("gates over simulated agents")
    rng = random.Random(20260101)
    started = time.perf_counter()
    simulate(report, 2000 if options.quick else 20_000, rng)
    exact(report)
    paired(report, 500 if options.quick else 5000, rng)
    plugin(report, 5)
    report.row("the bench itself", f"{time.perf_counter() - started:.0f} s")
    report.left_out.append("agents whose runs depend on each other; a gate assumes that they do not")
    report.show(as_json=options.json)


if __name__ == "__main__":
    main()
