"""Paired statistics against statsmodels, closed forms and simulation."""

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from stepmend.measure import statistics


def arms(both: int, first: int, second: int, neither: int):
    """Outcomes of two arms with these counts."""
    a = [True] * (both + first) + [False] * (second + neither)
    b = [True] * both + [False] * first + [True] * second + [False] * neither
    return np.array(a), np.array(b)


@pytest.mark.parametrize("counts", [(50, 12, 3, 20), (0, 5, 5, 0), (10, 0, 9, 1), (400, 40, 12, 100)])
def test_exact_mcnemar_is_that_of_statsmodels(counts):
    pair = statistics.paired(*arms(*counts))
    assert (pair.both_right, pair.only_first, pair.only_second, pair.both_wrong) == counts
    both, first, second, neither = counts
    assert pair.p == pytest.approx(mcnemar([[both, first], [second, neither]], exact=True).pvalue)


def test_equal_arms_have_no_difference():
    a, _ = arms(5, 5, 0, 0)
    assert statistics.paired(a, a).p == 1.0
    assert statistics.difference(a, a).value == 0.0


def test_wilson_interval_is_that_of_statsmodels():
    a, _ = arms(70, 20, 0, 10)
    found = statistics.accuracy(a)
    assert (found.low, found.high) == pytest.approx(proportion_confint(90, 100, method="wilson"))


def test_bootstrap_interval_is_near_the_normal_one():
    a, b = arms(500, 120, 60, 220)
    found = statistics.difference(a, b)
    delta = a.astype(float) - b.astype(float)
    half = 1.96 * delta.std() / np.sqrt(len(delta))
    assert found.value == pytest.approx(60 / 900)
    assert (found.low, found.high) == pytest.approx((60 / 900 - half, 60 / 900 + half), abs=0.004)


def test_the_bootstrap_interval_covers_and_the_test_holds_its_level():
    rng = np.random.default_rng(1)
    covered = rejected = 0
    for seed in range(300):
        first, second = rng.random(400) < 0.8, rng.random(400) < 0.8
        interval = statistics.difference(first, second, seed=seed)
        covered += interval.low <= 0.0 <= interval.high
        rejected += statistics.paired(first, second).p < 0.05
    assert 0.91 <= covered / 300 <= 0.98
    assert rejected / 300 <= 0.08


def test_recovery_and_its_interval():
    rng = np.random.default_rng(0)
    full = rng.random(900) < 0.9
    quantized = full & (rng.random(900) < 0.8)
    restored = np.where(full & ~quantized, rng.random(900) < 0.75, quantized)
    found = statistics.recovery(full, quantized, restored)
    assert found.value == pytest.approx((restored.sum() - quantized.sum()) / (full.sum() - quantized.sum()))
    assert found.low < found.value < found.high
    assert 0.6 < found.low < found.high < 0.9


def test_recovery_is_undefined_within_noise_and_says_so():
    full, quantized = arms(90, 4, 2, 4)
    found = statistics.recovery(full, quantized, full)
    assert found.value is None
    assert "within noise" in found.reason


def test_arms_of_different_problems_are_refused():
    with pytest.raises(ValueError, match="3 against 4"):
        statistics.paired(np.ones(3, bool), np.ones(4, bool))
