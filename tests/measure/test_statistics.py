"""Paired statistics against statsmodels, closed forms and simulation."""

import numpy as np
import pytest
from scipy.stats import binomtest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
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


def test_the_test_holds_its_level_within_a_point():
    rng = np.random.default_rng(1)
    arms_of = rng.random((4000, 2, 4000)) < 0.8
    rejected = np.mean([statistics.paired(first, second).p < 0.05 for first, second in arms_of])
    assert rejected == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("samples", [1, 4])
def test_the_interval_covers_at_its_level(samples):
    rng = np.random.default_rng(2)
    covered = 0
    for seed in range(2000):
        ease = rng.beta(4, 1, size=(400, 1))  # samples of one problem are alike
        first, second = rng.random((400, samples)) < ease, rng.random((400, samples)) < ease
        interval = statistics.difference(first, second, seed=seed)
        covered += interval.low <= 0.0 <= interval.high
    assert covered / 2000 == pytest.approx(0.95, abs=0.015)


def test_samples_of_a_problem_stay_together():
    rng = np.random.default_rng(3)
    one = rng.random(300) < 0.7
    copies = np.repeat(one[:, None], 8, axis=1)
    other = rng.random(300) < 0.6
    single, cluster = statistics.difference(one, other), statistics.difference(copies, np.repeat(other[:, None], 8, axis=1))
    assert (cluster.value, cluster.low, cluster.high) == pytest.approx((single.value, single.low, single.high))


def test_avg_and_pass_at_k():
    outcomes = np.array([[True, False, False, False], [True, True, True, True], [False] * 4])
    assert statistics.average_at(outcomes) == pytest.approx(5 / 12)
    assert statistics.pass_at(outcomes, 1) == pytest.approx(5 / 12)
    assert statistics.pass_at(outcomes, 2) == pytest.approx((1 - 3 / 6 + 1 + 0) / 3)
    assert statistics.pass_at(outcomes, 4) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="allowed: 1 to 4"):
        statistics.pass_at(outcomes, 5)


def test_holm_is_that_of_statsmodels():
    p = [0.01, 0.04, 0.03, 0.005, 0.9]
    assert statistics.holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    assert statistics.holm([]) == []
    assert statistics.holm([0.7, 0.6]) == [1.0, 1.0]


@pytest.mark.parametrize("counts", [(500, 60, 60, 380), (880, 5, 5, 10)])
def test_the_smallest_detectable_difference_is_found_as_often_as_it_says(counts):
    n = sum(counts)
    x = statistics.smallest_detectable(statistics.paired(*arms(*counts)))
    d = max((counts[1] + counts[2]) / n, x)
    rng = np.random.default_rng(4)
    drawn = rng.multinomial(n, [(d + x) / 2, (d - x) / 2, 1 - d], size=3000)
    found = sum(b + c > 0 and binomtest(int(b), int(b + c)).pvalue < 0.05 for b, c, _ in drawn) / len(drawn)
    assert found == pytest.approx(0.8, abs=0.05)


def test_a_smaller_difference_needs_more_problems():
    few, many = (statistics.smallest_detectable(statistics.paired(*arms(*(k * c for c in (50, 5, 5, 40))))) for k in (1, 100))
    assert few > 5 * many
    assert statistics.smallest_detectable(statistics.paired(*arms(2, 0, 0, 0))) is None


def test_recovery_and_its_interval():
    rng = np.random.default_rng(0)
    full = rng.random(900) < 0.9
    quantized = full & (rng.random(900) < 0.8)
    restored = np.where(full & ~quantized, rng.random(900) < 0.75, quantized)
    found = statistics.recovery(full, quantized, restored)
    assert found.value == pytest.approx((restored.sum() - quantized.sum()) / (full.sum() - quantized.sum()))
    assert found.low < found.value < found.high
    assert 0.6 < found.low < found.high < 0.9


def test_recovery_of_several_seeds_is_that_of_their_mean():
    rng = np.random.default_rng(0)
    full, quantized = rng.random(900) < 0.9, rng.random(900) < 0.8
    seeds = rng.random((900, 3)) < 0.85
    found = statistics.recovery(full, quantized, seeds)
    each = [(seeds[:, k].sum() - quantized.sum()) / (full.sum() - quantized.sum()) for k in range(3)]
    assert found.value == pytest.approx(np.mean(each))
    twice = statistics.recovery(full, quantized, np.stack([seeds[:, 0]] * 2, axis=1))
    assert twice == statistics.recovery(full, quantized, seeds[:, 0])  # the same seed twice is no more evidence than once


def test_recovery_is_undefined_within_noise_and_says_so():
    full, quantized = arms(90, 4, 2, 4)
    found = statistics.recovery(full, quantized, full)
    assert found.value is None
    assert "within noise" in found.reason


def test_a_model_that_solves_nothing_is_not_said_to_have_lost_nothing():
    none = np.zeros(20, bool)
    assert statistics.recovery(none, none, none).reason == "full precision solves none of the problems: there is nothing to lose"
    assert "nothing was lost" in (statistics.recovery(~none, ~none, ~none).reason or "")


def test_arms_of_different_problems_are_refused():
    with pytest.raises(ValueError, match="3 against 4"):
        statistics.paired(np.ones(3, bool), np.ones(4, bool))


def test_a_loss_within_noise_is_said_in_points():
    full = np.ones(400, bool)
    assert statistics.recovery(full, np.arange(400) >= 2, full).reason == "the loss of 0.5 points is within noise (McNemar p = 0.5)"
    assert (
        statistics.recovery(full[:10], np.arange(10) >= 3, full[:10]).reason == "the loss of 30.0 points is within noise (McNemar p = 0.25)"
    )


def test_sign_flips_never_say_that_chance_is_out_of_the_question():
    first = np.ones((60, 4), bool)
    second = np.repeat(np.array([[False, True, True, True], [False, False, True, True]]), 30, axis=0)
    assert statistics.permutation(first, second) == 1 / (statistics.RESAMPLES + 1)


def test_a_draw_as_extreme_as_what_was_found_counts():
    first, second = np.ones((3, 4), bool), np.array([[False, True, True, True], [False, False, True, True], [False, True, True, True]])
    assert statistics.permutation(first, second) == pytest.approx(2 / 8, abs=0.02)


def test_a_margin_that_is_just_reached_is_not_kept():
    assert statistics.verdict(statistics.Interval(0.0, -0.5, 0.5), margin=50) == "not shown"
    assert statistics.verdict(statistics.Interval(-0.3, -0.5, 0.0), margin=50) == "not shown"
    assert statistics.verdict(statistics.Interval(None, None, None, "no problems")) == "not shown"
    assert statistics.verdict(statistics.Interval(0.0, None, None)) == "not shown"


def test_a_tie_of_a_problems_samples_is_no_majority():
    assert statistics.majority(np.array([[True, False], [True, True], [False, False]])).tolist() == [False, True, False]


@pytest.mark.parametrize(("counts", "power"), [((500, 60, 60, 380), 0.8), ((880, 5, 5, 10), 0.8), ((50, 20, 10, 20), 0.9)])
def test_the_smallest_detectable_difference_by_connors_formula(counts, power):
    n, x = sum(counts), statistics.smallest_detectable(statistics.paired(*arms(*counts)), power=power)
    share = max((counts[1] + counts[2]) / n, x)
    z = {0.8: 0.841621, 0.9: 1.281552}[power]
    assert n == pytest.approx((1.959964 * share**0.5 + z * (share - x * x) ** 0.5) ** 2 / x**2, rel=1e-4)


def test_a_difference_that_is_the_same_in_every_problem_still_has_a_width():
    found = statistics.difference(np.ones((20, 2), bool), np.array([[True, False]] * 20))
    around = statistics.difference(np.ones(20, bool), np.ones(20, bool))
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5 + around.low, 0.5 + around.high))
    assert around.low < 0 < around.high
