"""The loss recovered, over many simulated runs: a useless restoration recovers nothing, and a real one what it recovers."""

import numpy as np
import pytest

from stepmend.measure import statistics

N, FULL = 900, 16 / 17


def draw(rng, loss, recovered=None):
    """Full precision, a model that is ``loss`` worse, and a restored one: without ``recovered`` an independent redraw of the second."""
    ease = 1 - rng.random(N) ** 16  # problems differ, so that the arms' outcomes are alike; its mean is 0.94
    full, quantized = rng.random(N) < ease, rng.random(N) < ease * (1 - loss / FULL)
    if recovered is None:
        return full, quantized, rng.random(N) < ease * (1 - loss / FULL)
    return full, quantized, np.where(rng.random(N) < recovered, full, quantized)


@pytest.mark.parametrize("loss", [*(pytest.param(loss, marks=pytest.mark.slow) for loss in (0.009, 0.019)), 0.014, 0.038])
def test_a_useless_restoration_recovers_nothing_on_average(loss, monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 2)  # values are asked for, not their intervals
    rng, values = np.random.default_rng(0), []
    while len(values) < 2000:
        found = statistics.recovery(*draw(rng, loss))
        values += [found.value] if found.value is not None else []
    assert np.mean(values) == pytest.approx(0.0, abs=0.02)


def test_two_equally_good_models_that_change_places_change_the_sign():
    rng = np.random.default_rng(1)
    full, one, other = draw(rng, 0.04)
    there, back = statistics.recovery(full, one, other), statistics.recovery(full, other, one)
    assert there.value == -back.value
    assert there.low < there.value < there.high


@pytest.mark.parametrize("recovered", [0.0, 0.5, 0.9])
def test_what_is_recovered_is_found_and_covered(recovered, monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 200)
    rng, found = np.random.default_rng(2), []
    while len(found) < 300:
        one = statistics.recovery(*draw(rng, 0.05, recovered))
        found += [one] if one.value is not None else []
    assert np.mean([one.value for one in found]) == pytest.approx(recovered, abs=0.03)
    assert np.mean([one.low <= recovered <= one.high for one in found]) >= 0.92


def test_a_restored_model_that_is_worse_is_measured_against_its_own_loss():
    full, quantized, restored = np.ones(200, bool), np.arange(200) >= 10, np.arange(200) >= 40
    found = statistics.recovery(full, quantized, restored)
    assert found.value == pytest.approx(-30 / 40)
    assert statistics.recovery(full, restored, quantized).value == pytest.approx(30 / 40)
    assert statistics.recovery(full, restored, full).value == 1.0


def test_of_small_losses_none_is_divided_by():
    full = np.ones(200, bool)
    found = statistics.recovery(full, np.arange(200) >= 4, np.arange(200) >= 2)
    assert (found.value, found.low) == (None, None)
    assert "the loss of 2.0 points is within noise" in found.reason
