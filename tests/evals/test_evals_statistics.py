"""How sure a number of runs makes us: exact enumeration and published values, never a simulation."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibox.errors import ConfigError
from aibox.evals.statistics import (
    Gate,
    Paired,
    Tally,
    lower_bound,
    passes_needed,
    runs_needed,
    tail,
    upper_bound,
    wilson,
)


@pytest.mark.parametrize(
    ("passed", "runs", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_intervals(passed: int, runs: int, low: float, high: float) -> None:
    """The four examples of Newcombe, Statistics in Medicine 17 (1998), table I, method 3."""
    assert wilson(passed, runs) == pytest.approx((low, high), abs=5e-5)


@given(
    st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.8, 0.95, 0.99])
)
def test_the_lower_bound_is_where_the_tail_meets_the_error(counts: tuple[int, int], confidence: float) -> None:
    """Clopper and Pearson's definition: at the bound, so many passes have just the chance that was allowed."""
    passed, runs = counts
    bound = lower_bound(passed, runs, confidence=confidence)
    if passed:
        assert tail(passed, runs, bound) == pytest.approx(1 - confidence, abs=1e-6)
    assert bound <= passed / runs <= upper_bound(passed, runs, confidence=confidence)


@given(st.integers(1, 40), st.floats(0.01, 0.99))
def test_the_tail_is_the_sum_of_its_terms(runs: int, rate: float) -> None:
    """Logarithms change nothing."""
    for passed in range(runs + 2):
        terms = [math.comb(runs, k) * rate**k * (1 - rate) ** (runs - k) for k in range(passed, runs + 1)]
        assert tail(passed, runs, rate) == pytest.approx(math.fsum(terms), abs=1e-9)


gates = st.builds(
    lambda p, c, more: Gate(runs_needed(p, c) + more, p, c),
    st.sampled_from([0.3, 0.5, 0.7, 0.8, 0.9]),
    st.sampled_from([0.6, 0.8, 0.9, 0.95]),
    st.integers(0, 25),
)


@given(gates, st.floats(0.0, 1.0))
def test_no_agent_below_the_bar_passes_more_often_than_was_allowed(gate: Gate, share: float) -> None:
    """The guarantee of a gate, exact for every number of runs."""
    assert gate.chance(gate.min_pass * share) <= 1 - gate.confidence + 1e-9


@given(gates)
def test_one_pass_fewer_would_break_the_guarantee(gate: Gate) -> None:
    """The gate asks for no more than it needs."""
    assert tail(gate.needed - 1, gate.repeats, gate.min_pass) > 1 - gate.confidence


@given(gates, st.data())
def test_stopping_early_changes_no_decision(gate: Gate, data: st.DataObject) -> None:
    """Whatever follows, the outcome is the one of all runs; and before it is decided both are possible."""
    runs = data.draw(st.lists(st.booleans(), min_size=gate.repeats, max_size=gate.repeats))
    whole = "passed" if sum(runs) >= gate.needed else "failed"
    for made in range(gate.repeats + 1):
        decided = gate.decided(sum(runs[:made]), made)
        if decided is not None:
            assert decided == whole
        else:
            best, worst = sum(runs[:made]) + gate.repeats - made, sum(runs[:made])
            assert worst < gate.needed <= best
    assert gate.decided(sum(runs), gate.repeats) == whole


def stopped(gate: Gate, runs: tuple[bool, ...]) -> Tally:
    for made in range(1, gate.repeats + 1):
        if outcome := gate.decided(sum(runs[:made]), made):
            return Tally(sum(runs[:made]), made, outcome)
    raise AssertionError("a gate is decided when all its runs are made")


@pytest.mark.parametrize(("repeats", "min_pass", "confidence"), [(6, 0.5, 0.6), (8, 0.5, 0.8), (9, 0.7, 0.8)])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_estimates_have_no_bias_also_after_an_early_stop(
    repeats: int, min_pass: float, confidence: float, k: int
) -> None:
    """Over all sequences of runs the mean of the estimate is p^k exactly, as a rational number."""
    gate = Gate(repeats, min_pass, confidence)
    assert k <= gate.needed
    for rate in (Fraction(1, 5), Fraction(1, 2), Fraction(9, 10)):
        early = fixed = at = Fraction(0)
        for runs in itertools.product((True, False), repeat=repeats):
            chance = rate ** sum(runs) * (1 - rate) ** (repeats - sum(runs))
            estimate = stopped(gate, runs).pass_hat(k)
            assert estimate is not None
            early += chance * Fraction(estimate).limit_denominator(10**6)
            fixed += chance * Fraction(Tally(sum(runs), repeats).pass_hat(k) or 0).limit_denominator(10**6)
            at += chance * Fraction(Tally(sum(runs), repeats).pass_at(k) or 0).limit_denominator(10**6)
        assert early == rate**k
        assert fixed == rate**k
        assert at == 1 - (1 - rate) ** k


def test_the_plain_rate_would_be_biased_after_an_early_stop() -> None:
    """Why the estimate is not passes by runs: that flatters the agent that passed."""
    gate = Gate(8, 0.5, 0.8)
    rate = Fraction(1, 2)
    mean = sum(
        Fraction(t.passed, t.runs) * rate**8
        for runs in itertools.product((True, False), repeat=8)
        for t in [stopped(gate, runs)]
    )
    assert mean != rate


def test_a_gate_that_could_never_pass_is_refused_with_the_number_that_can() -> None:
    """Ten passes of ten do not prove 0.8 with 95% confidence; fourteen of fourteen do."""
    with pytest.raises(ConfigError, match=r"prove 0\.741 .*repeats=14"):
        Gate(10, 0.8, 0.95)
    assert Gate(14, 0.8, 0.95).needed == 14
    assert passes_needed(13, 0.8, 0.95) is None


@pytest.mark.parametrize(
    "values", [(0, 0.8, 0.95), (20_000, 0.8, 0.95), (20, 1.0, 0.95), (20, 0.0, 0.95), (20, 0.8, 1.0)]
)
def test_a_gate_without_a_meaning_is_refused(values: tuple[int, float, float]) -> None:
    """Numbers that no proof can have are an error of whoever wrote them."""
    with pytest.raises(ConfigError):
        Gate(*values)


def test_wilsons_bound_would_let_too_many_through() -> None:
    """Why gates do not use it: at 11 runs it would take 11 passes for 0.8, which an agent of 0.79 makes too often."""
    assert wilson(11, 11, confidence=0.95, sided=1)[0] > 0.8
    assert tail(11, 11, 0.79) > 0.05


@pytest.mark.parametrize(("tally", "stability"), [((5, 5), "always"), ((0, 5), "never"), ((3, 5), "flaky")])
def test_flakiness_has_a_name(tally: tuple[int, int], stability: str) -> None:
    """What both passes and fails is flaky."""
    assert Tally(*tally).stability == stability


def test_mcnemars_test_is_the_published_one() -> None:
    """Ten changes for the worse and two for the better: the one-sided exact p is 79/4096."""
    assert Paired(both=50, lost=10, won=2, neither=3).p_worse == pytest.approx(79 / 4096)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_pairs_are_counted_once_and_bounds_hold_the_difference(pairs: list[tuple[bool, bool]]) -> None:
    """The lower bound lies below what was seen, and nothing is both shown no worse and shown worse."""
    paired = Paired.of(pairs)
    assert paired.cases == len(pairs)
    assert paired.lower_bound() <= paired.difference
    assert paired.verdict(margin=0.05) in ("no worse", "worse", "not shown")


def test_few_cases_show_nothing_and_many_do() -> None:
    """Ten cases without a loss are too few for a margin of 0.05; a hundred are enough; a real loss is seen."""
    assert Paired(10, 0, 0, 0).verdict(margin=0.05) == "not shown"
    assert Paired(100, 0, 0, 0).verdict(margin=0.05) == "no worse"
    assert Paired(80, 15, 1, 4).verdict(margin=0.05) == "worse"
    assert Paired(0, 0, 0, 0).verdict(margin=0.05) == "not shown"


def test_the_bound_of_the_difference_holds_as_often_as_it_says() -> None:
    """Exact, over all tables of 12 cases: a version that is worse by the margin passes 5 times in 100 at most."""
    cases, margin = 12, 0.4
    for lost, won in ((0.4, 0.0), (0.5, 0.1), (0.7, 0.3)):
        wrong = 0.0
        for a in range(cases + 1):
            for b in range(cases + 1 - a):
                rest = cases - a - b
                ways = math.factorial(cases) / math.factorial(a) / math.factorial(b) / math.factorial(rest)
                if Paired(rest, a, b, 0).verdict(margin=margin - 1e-9) == "no worse":
                    wrong += ways * lost**a * won**b * (1 - lost - won) ** rest
        assert wrong <= 0.05
