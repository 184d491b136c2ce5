"""The paired interval: it agrees with the test, has a width, and covers. Coverage is summed over all outcomes that can occur, not drawn."""

from functools import cache

import numpy as np
import pytest
from scipy.stats import binom

from stepmend.measure import statistics
from stepmend.measure.statistics import Paired, mcnemar, paired_interval


def pair(first: int, second: int, n: int) -> Paired:
    return Paired(n - first - second, first, second, 0, mcnemar(first, second))


@cache
def limits(first: int, second: int, n: int) -> tuple[float, float]:
    found = paired_interval(pair(first, second, n))
    assert found.low is not None
    assert found.high is not None
    return found.low, found.high


def coverage(n: int, discordance: float, imbalance: float) -> float:
    """The probability that the interval holds the true difference; outcomes of probability below 1e-7 count as not covered."""
    truth, covered = discordance * (2 * imbalance - 1), 0.0
    for m in range(int(binom.ppf(1e-6, n, discordance)), int(binom.isf(1e-6, n, discordance)) + 1):
        chances = binom.pmf(m, n, discordance) * binom.pmf(np.arange(m + 1), m, imbalance)
        for first in np.flatnonzero(chances > 1e-7):
            low, high = limits(int(first), m - int(first), n)
            covered += chances[first] * (low <= truth <= high)
    return covered


def assert_agrees(discordant: int) -> None:
    """The interval and the test agree about 0, on either side of the count from which the test rejects, and at the ends."""
    critical = int(binom.isf(0.025, discordant, 0.5)) + 1
    for count in {min(discordant, critical), critical - 1, discordant // 2, discordant}:
        for first, second in ((count, discordant - count), (discordant - count, count)):
            for n in (discordant, max(discordant, 1319)):
                low, high = limits(first, second, n)
                assert (low > 0 or high < 0) == (mcnemar(first, second) < 0.05), (first, second, n)


HAIR = (17, 44, 67, 94, 138, 190, 267, 301, 396, 438)
"""Discordant counts at which Edwards' correction alone would contradict the exact test."""


@pytest.mark.parametrize("discordant", [*range(1, 16), *HAIR, 100, 260, 1319])
def test_it_excludes_zero_exactly_where_the_test_rejects(discordant):
    assert_agrees(discordant)


@pytest.mark.slow
def test_it_agrees_with_the_test_at_every_discordant_count():
    for discordant in range(1, 1320):
        assert_agrees(discordant)


def test_it_excludes_zero_exactly_where_the_test_rejects_for_all_small_counts():
    for n in (5, 12, 30, 48):
        for first in range(n + 1):
            for second in range(n + 1 - first):
                low, high = limits(first, second, n)
                assert (low > 0 or high < 0) == (mcnemar(first, second) < 0.05), (first, second, n)
                assert -1 <= low < high <= 1
                assert low <= (first - second) / n <= high
                assert limits(second, first, n) == pytest.approx((-high, -low))


SMALL = [(n, d, i) for n in (5, 10, 30, 100) for d in (0.01, 0.05, 0.1, 0.2, 0.3) for i in (0.5, 0.7, 0.9, 1.0)]
SMALL += [(n, d, i) for n in (300, 900, 1319) for d in (0.005, 0.02, 0.05) for i in (0.5, 0.8, 1.0)]
GRID = [
    (n, d, i)
    for n in (6, 8, 15, 20, 50, 72, 150, 300, 450, 660, 900, 1319)
    for d in (0.001, 0.01, 0.03, 0.075, 0.15, 0.25, 0.3)
    for i in (0.5, 0.6, 0.75, 0.9, 0.95, 1.0)
]


def test_it_covers_at_every_point():
    assert min(coverage(*point) for point in SMALL) >= 0.945
    assert coverage(10, 0.0, 0.5) == 1.0


@pytest.mark.slow
def test_it_covers_at_every_point_of_a_finer_grid():
    found = {point: coverage(*point) for point in GRID}
    assert min(found.values()) >= 0.945, min(found, key=found.__getitem__)


def test_it_is_tangos_where_the_correction_is_small(monkeypatch):
    monkeypatch.setattr(statistics, "_correction", lambda discordant: 0.0)
    found = paired_interval(Paired(1, 1, 7, 12, mcnemar(1, 7)))  # Bentur et al., 2009, as in Fagerland, Lydersen and Laake, 2014
    assert (found.low, found.high) == pytest.approx((-0.517, -0.026), abs=5e-4)
    monkeypatch.undo()
    found, half = paired_interval(pair(169, 91, 1319)), 1.96 * np.sqrt(260 - 78**2 / 1319) / 1319
    assert (found.low, found.high) == pytest.approx((78 / 1319 - half, 78 / 1319 + half), abs=1.5 / 1319)


def test_findings_of_the_bootstrap_interval_are_gone():
    low, high = limits(0, 4, 50)  # it said +2.0 to +16.0 beside p = 0.125
    assert low < 0
    assert (low, high) == pytest.approx((-0.214, 0.031), abs=5e-4)
    assert limits(5, 0, 5)[1] == 1.0
    assert limits(5, 0, 5)[0] < 0  # p = 0.0625
    assert limits(0, 0, 5)[0] < -0.3


@pytest.mark.parametrize(
    ("first", "second", "n", "margin", "found"),
    [
        (5, 45, 900, 1.0, "worse"),  # new minus old: -4.4 points
        (45, 5, 900, 1.0, "not worse"),
        (20, 20, 900, 1.0, "not shown"),
        (20, 20, 900, 2.0, "not worse"),
        (20, 20, 9000, 1.0, "not worse"),
        (300, 400, 90_000, 1.0, "not worse"),  # worse beyond noise, by 0.11 points: within what was allowed
        (0, 0, 5, 1.0, "not shown"),
    ],
)
def test_not_worse_is_shown_and_not_the_absence_of_evidence(first, second, n, margin, found):
    assert statistics.verdict(paired_interval(pair(first, second, n)), margin) == found


def test_an_adjusted_p_decides_where_several_tests_are_made():
    change = paired_interval(pair(1, 9, 100))
    assert statistics.verdict(change) == "worse"
    assert statistics.verdict(change, p=0.06) == "not shown"
    assert statistics.verdict(statistics.difference(np.ones(0, bool), np.ones(0, bool))) == "not shown"
