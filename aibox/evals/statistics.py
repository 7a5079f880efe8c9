"""How sure a number of runs makes us: estimates without bias, intervals, and gates whose error rate is known.

A gate passes on a lower bound and never on a point estimate. Its bound is Clopper and Pearson's (Biometrika 26, 1934),
which is exact for every number of runs; Wilson's interval (JASA 22, 1927) is what a report shows, because it is the
better description and, near 0 and 1, the worse guarantee: see `docs/evals.md` for both, measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from statistics import NormalDist
from typing import Literal

from aibox.errors import ConfigError

MAX_REPEATS = 10_000

Outcome = Literal["passed", "failed"]
Stability = Literal["always", "never", "flaky"]
"""Of the runs of one case: all passed, none did, or both happened."""


def z_of(confidence: float, *, sided: Literal[1, 2] = 2) -> float:
    """The normal quantile of an interval (two sides) or of a bound (one side)."""
    return NormalDist().inv_cdf(1 - (1 - confidence) / sided)


def wilson(passed: int, runs: int, *, confidence: float = 0.95, sided: Literal[1, 2] = 2) -> tuple[float, float]:
    """Wilson's score interval of a rate. (0, 1) where nothing was run."""
    if not runs:
        return 0.0, 1.0
    z = z_of(confidence, sided=sided)
    rate, spread = passed / runs, z * z / runs
    middle = (rate + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(rate * (1 - rate) / runs + spread / (4 * runs))
    # At the ends the formula gives 0 and 1 exactly; floating point gives them nearly.
    return (0.0 if not passed else max(0.0, middle - half)), (1.0 if passed == runs else min(1.0, middle + half))


def tail(passed: int, runs: int, rate: float) -> float:
    """P(at least `passed` of `runs`) when each passes with `rate`: the binomial's upper tail."""
    if passed <= 0:
        return 1.0
    if rate <= 0 or passed > runs:
        return 0.0
    if rate >= 1:
        return 1.0
    up, down = math.log(rate), math.log1p(-rate)
    return min(
        1.0, math.fsum(math.exp(_log_choose(runs, k) + k * up + (runs - k) * down) for k in range(passed, runs + 1))
    )


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def lower_bound(passed: int, runs: int, *, confidence: float = 0.95) -> float:
    """The rate that the runs prove: Clopper and Pearson's one-sided lower bound, rounded down to 1e-9."""
    if passed <= 0:
        return 0.0
    low, high = 0.0, 1.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if tail(passed, runs, middle) <= 1 - confidence else (low, middle)
    return low


def upper_bound(passed: int, runs: int, *, confidence: float = 0.95) -> float:
    """As `lower_bound`, from above."""
    return 1.0 - lower_bound(runs - passed, runs, confidence=confidence)


@lru_cache(maxsize=256)
def passes_needed(runs: int, min_pass: float, confidence: float) -> int | None:
    """The fewest passes of `runs` that prove `min_pass`; None where even all of them would not."""
    low, high = 0, runs + 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if tail(middle, runs, min_pass) <= 1 - confidence else (middle + 1, high)
    return low if low <= runs else None


def runs_needed(min_pass: float, confidence: float) -> int:
    """The fewest runs that can prove `min_pass`, if all of them pass."""
    return math.ceil(math.log(1 - confidence) / math.log(min_pass) - 1e-9)


@dataclass(frozen=True, slots=True)
class Tally:
    """`passed` of `runs`. `stopped` names the outcome that ended them; None says that their number was fixed.

    A sample that stops when it is decided is not a sample of fixed size: the plain rate would be biased. What is given
    here is the estimate without bias for either (Girshick, Mosteller and Savage, Ann. Math. Stat. 17, 1946).
    """

    passed: int
    runs: int
    stopped: Outcome | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.passed <= self.runs:
            raise ConfigError(f"{self.passed} of {self.runs} runs cannot have passed")

    @property
    def failed(self) -> int:
        return self.runs - self.passed

    @property
    def pass_at_1(self) -> float | None:
        """The chance that one run passes. None where nothing was run."""
        return self.pass_hat(1)

    def pass_hat(self, k: int) -> float | None:
        """pass^k, the chance that all of k runs pass: C(c,k)/C(n,k) for n runs of which c passed.

        None where fewer runs than k were made and nothing has failed: the sample cannot say.
        """
        c, n = self.passed, self.runs
        if k < 1:
            raise ConfigError("pass^k wants a k of 1 or more")
        if k > n:
            return 0.0 if self.stopped == "failed" else None
        if self.stopped is None:
            return math.comb(c, k) / math.comb(n, k)
        # The last run is known: it was the one that decided. The others may have come in any order.
        ways, last = n - 1, 1 if self.stopped == "passed" else 0
        if k > ways:
            return 1.0 if c == n else 0.0
        if k > c - last:
            return 0.0
        return math.comb(ways - k, c - last - k) / math.comb(ways, c - last)

    def pass_at(self, k: int) -> float | None:
        """pass@k, the chance that at least one of k runs passes: 1 - C(n-c,k)/C(n,k) (Chen et al. 2021, sec. 2.1)."""
        flipped: Outcome | None = {"passed": "failed", "failed": "passed", None: None}[self.stopped]
        none = Tally(self.failed, self.runs, flipped).pass_hat(k)
        return None if none is None else 1.0 - none

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Wilson's, two-sided."""
        return wilson(self.passed, self.runs, confidence=confidence)

    @property
    def stability(self) -> Stability:
        return "always" if self.passed == self.runs else "never" if not self.passed else "flaky"

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.passed + other.passed, self.runs + other.runs)

    def __str__(self) -> str:
        low, high = self.interval()
        return f"{self.passed}/{self.runs}, 95% interval {low:.2f} to {high:.2f}"


@dataclass(frozen=True)
class Gate:
    """At most `repeats` runs must prove, with `confidence`, that a run passes with at least `min_pass`.

    The runs may stop as soon as what is left cannot change the outcome, so that stopping early changes no decision. An
    agent below the bar passes with a chance of at most 1 - confidence. Raises ConfigError where even a run without a
    failure could not pass: such a gate would be a wish.
    """

    repeats: int
    min_pass: float
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if not 1 <= self.repeats <= MAX_REPEATS:
            raise ConfigError(f"repeats is {self.repeats}", hint=f"from 1 to {MAX_REPEATS}")
        if not 0 < self.min_pass < 1 or not 0.5 <= self.confidence < 1:
            raise ConfigError(
                f"min_pass is {self.min_pass} and confidence {self.confidence}",
                hint="min_pass lies between 0 and 1, confidence from 0.5 to below 1",
            )
        if passes_needed(self.repeats, self.min_pass, self.confidence) is None:
            proves = lower_bound(self.repeats, self.repeats, confidence=self.confidence)
            raise ConfigError(
                f"{self.repeats} passes of {self.repeats} prove {proves:.3f} at {self.confidence:.0%} confidence, "
                f"not {self.min_pass}: this gate could never pass",
                hint=f"repeats={runs_needed(self.min_pass, self.confidence)} is the fewest that can",
            )

    @cached_property
    def needed(self) -> int:
        """How many of `repeats` must pass."""
        needed = passes_needed(self.repeats, self.min_pass, self.confidence)
        assert needed is not None  # __post_init__ has seen to it
        return needed

    def decided(self, passed: int, runs: int) -> Outcome | None:
        """The outcome, as soon as no further run can change it."""
        if passed >= self.needed:
            return "passed"
        return "failed" if runs - passed > self.repeats - self.needed else None

    def chance(self, rate: float) -> float:
        """The chance that an agent passes the gate whose runs pass with `rate`."""
        return tail(self.needed, self.repeats, rate)

    def __str__(self) -> str:
        return (
            f"{self.needed} of {self.repeats} must pass: {self.min_pass} at least, at {self.confidence:.0%} confidence"
        )


@dataclass(frozen=True)
class Paired:
    """Two versions on the same cases: how many only the old one solved (`lost`), only the new one (`won`)."""

    both: int
    lost: int
    won: int
    neither: int

    @classmethod
    def of(cls, pairs: Sequence[tuple[bool, bool]]) -> Paired:
        """From (old, new) of each case."""
        counts = [
            sum(pair == kind for pair in pairs) for kind in ((True, True), (True, False), (False, True), (False, False))
        ]
        return cls(*counts)

    @property
    def cases(self) -> int:
        return self.both + self.lost + self.won + self.neither

    @property
    def difference(self) -> float:
        """New rate less old rate."""
        return (self.won - self.lost) / self.cases if self.cases else 0.0

    @property
    def p_worse(self) -> float:
        """McNemar's exact test, one-sided: how likely so many losses are when neither version is better."""
        return tail(self.lost, self.lost + self.won, 0.5)

    def lower_bound(self, confidence: float = 0.95) -> float:
        """A lower bound of the difference that holds for any number of cases.

        What was won at the least less what was lost at the most, each exact at half of the error: wider than an
        approximation, and never wrong more often than it says.
        """
        if not self.cases:
            return -1.0
        half = 1 - (1 - confidence) / 2
        return lower_bound(self.won, self.cases, confidence=half) - upper_bound(self.lost, self.cases, confidence=half)

    def verdict(self, *, margin: float, confidence: float = 0.95) -> Literal["no worse", "worse", "not shown"]:
        """`no worse`: by at most `margin` of the cases, shown. `worse`: shown. Else the cases are too few to tell."""
        if self.lower_bound(confidence) >= -margin:
            return "no worse"
        return "worse" if self.p_worse <= 1 - confidence else "not shown"
