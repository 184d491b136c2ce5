"""Reliabilities from labels, and stated probabilities on labels that they were not fitted to."""

import random

import pytest

from stepmend import Vote
from stepmend.locate import calibration
from stepmend.locate.calibration import Observation, Stated

KINDS = ("introduction", *("calculation",) * 5)


def observations(count=300, exact=0.6, late=0.3, seed=0):
    """A locator with known rates, on faults that are as likely at every calculation."""
    rng, found = random.Random(seed), []
    for number in range(count):
        truth = rng.randrange(1, 6)
        lot = rng.random()
        later = [s for s in range(6) if s > truth]
        earlier = [s for s in range(1, 6) if s < truth]
        step = truth if lot < exact else rng.choice(later) if lot < exact + late and later else rng.choice(earlier or [truth])
        found.append(Observation(f"p{number // 2}", KINDS, (Vote(locator="a", step=step, evidence=""),), truth))
    return found


def test_rates_are_counted():
    votes = [("a", 2), ("a", 1), ("a", 4), ("a", None), ("b", 3)]
    table = calibration.fit([Observation(str(i), KINDS, (Vote(locator=n, step=s, evidence=""),), 2) for i, (n, s) in enumerate(votes)])
    half = (1 + calibration.SMOOTHING) / (3 + 3 * calibration.SMOOTHING)
    assert table.n == 5
    assert table.locators["a"].exact == pytest.approx(half, abs=1e-3)
    assert table.locators["a"].early == table.locators["a"].late == pytest.approx(half, abs=1e-3)
    assert table.locators["b"].late > table.locators["b"].exact
    assert table.prior["introduction"] < 0.5 < table.prior["calculation"] == 1


def test_what_is_fitted_has_four_digits():
    table = calibration.fit([Observation(str(i), KINDS, (), None if i == 0 else 1) for i in range(6)])
    assert table.none == round((1 + 0.5) / (6 + 1), 4)
    assert table.prior["introduction"] == round((0 + 0.5) / (6 + 1) / ((5 + 0.5) / (30 + 1)), 4)
    assert [*calibration.POWERS] == sorted(calibration.POWERS) and 0 < calibration.POWERS[0] < calibration.POWERS[-1] == 1
    assert [*calibration.BINS] == sorted(calibration.BINS) and (calibration.BINS[0], calibration.BINS[-1]) == (0, 1)


def test_a_step_named_where_none_is_faulty_is_early():
    table = calibration.fit([Observation("p", KINDS, (Vote(locator="a", step=3, evidence=""),), None)] * 20)
    assert table.locators["a"].early > 0.9
    assert table.none > 0.9


def test_stated_probabilities_hold_on_labels_left_out():
    of = observations()
    stated = calibration.cross_validated(of, threshold=0.0)
    right = [s.step == o.truth for s, o in zip(stated, of, strict=True)]
    mean = sum(s.confidence or 0 for s in stated) / len(stated)
    assert abs(mean - sum(right) / len(right)) < 0.06
    rows = calibration.reliability_diagram(stated, right)
    assert sum(count for _, _, count, _, _ in rows) == len(of)
    for low, high, count, mean, good in rows:
        assert low <= mean <= high
        assert abs(mean - good / count) < 3 * (0.25 / count) ** 0.5 + 0.05


def test_problems_are_not_split_between_fitting_and_measuring():
    seen = []

    def fitted(of):
        seen.append({o.group for o in of})
        return calibration.fit(of)

    of = observations(60)
    calibration.cross_validated(of, fitted=fitted)
    assert len(seen) == calibration.FOLDS
    groups = {o.group for o in of}
    left_out = [groups - part for part in seen]
    assert sum(map(len, left_out)) == len(groups)
    assert all(left_out)


def test_two_voices_that_are_one_lose_their_power():
    """The same locator under two names: their product would be too sure, and the fitted power makes up for it."""
    of = observations()
    twice = [Observation(o.group, o.kinds, (*o.votes, o.votes[0].model_copy(update={"locator": "b"})), o.truth) for o in of]
    assert calibration.fit(twice).power < calibration.fit(of).power


def test_the_brier_score_by_hand():
    stated = [Stated(1, 0.8), Stated(None, 0.4), Stated(None, None)]
    assert calibration.brier(stated, [True, False, False]) == pytest.approx((0.04 + 0.16) / 2)
    assert calibration.brier([Stated(None, None)], [False]) is None
