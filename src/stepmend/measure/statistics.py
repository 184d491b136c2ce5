"""Paired statistics of right and wrong. Every function takes outcomes of the same problems in the same order; True is right."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

Outcomes = NDArray[np.bool_]
RESAMPLES = 10_000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A value with a confidence interval; ``value`` is None, and ``reason`` says why, where it is undefined."""

    value: float | None
    low: float | None
    high: float | None
    reason: str | None = None


@dataclass(frozen=True)
class Paired:
    """Two arms on the same problems."""

    both_right: int
    only_first: int
    only_second: int
    both_wrong: int
    p: float

    @property
    def n(self) -> int:
        return self.both_right + self.only_first + self.only_second + self.both_wrong


def paired(first: Outcomes, second: Outcomes) -> Paired:
    """Discordant counts and the exact McNemar test (a two-sided binomial test of the discordant pairs; McNemar, 1947)."""
    _same_length(first, second)
    b, c = int((first & ~second).sum()), int((~first & second).sum())
    p = float(binomtest(b, b + c, 0.5).pvalue) if b + c else 1.0
    return Paired(int((first & second).sum()), b, c, int((~first & ~second).sum()), p)


def accuracy(outcomes: Outcomes) -> Interval:
    """Share of right outcomes, with Wilson's score interval."""
    if not len(outcomes):
        return Interval(None, None, None, "no problems")
    found = binomtest(int(outcomes.sum()), len(outcomes)).proportion_ci(LEVEL, method="wilson")
    return Interval(float(outcomes.mean()), float(found.low), float(found.high))


def difference(first: Outcomes, second: Outcomes, *, seed: int = 0) -> Interval:
    """Accuracy of the first minus the second, with a paired bootstrap interval (percentiles; problems are resampled)."""
    _same_length(first, second)
    if not len(first):
        return Interval(None, None, None, "no problems")
    delta = first.astype(float) - second.astype(float)
    return Interval(float(delta.mean()), *_percentiles(_resampled(delta[:, None], seed)[:, 0]))


def recovery(full: Outcomes, quantized: Outcomes, restored: Outcomes, *, seed: int = 0) -> Interval:
    """(restored - quantized) / (full - quantized) accuracy, problems resampled; undefined where the loss is within noise.

    The loss is within noise where the exact McNemar test does not reject at 5 % or full precision is not the better arm.
    """
    _same_length(full, quantized)
    _same_length(full, restored)
    pair = paired(full, quantized)
    if pair.p >= 0.05 or pair.only_first <= pair.only_second:
        loss = (pair.only_first - pair.only_second) / pair.n if pair.n else 0.0
        return Interval(None, None, None, f"the loss of {100 * loss:.1f} points is within noise (McNemar p = {pair.p:.2g})")
    arms = np.stack([full, quantized, restored], axis=1).astype(float)
    value = float((arms[:, 2] - arms[:, 1]).sum() / (arms[:, 0] - arms[:, 1]).sum())
    means = _resampled(arms, seed)
    loss = means[:, 0] - means[:, 1]
    ratios = np.divide(means[:, 2] - means[:, 1], loss, out=np.full(len(loss), np.nan), where=loss > 0)
    return Interval(value, *_percentiles(ratios[~np.isnan(ratios)]))


def _resampled(columns: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Means of each column over resampled rows, [RESAMPLES, columns].

    Rows take few distinct values, so it is enough to draw how often each of those occurs: a multinomial count.
    """
    rng = np.random.default_rng(seed)
    rows, counts = np.unique(columns, axis=0, return_counts=True)
    return rng.multinomial(len(columns), counts / len(columns), size=RESAMPLES) @ rows / len(columns)


def _percentiles(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(values, [50 * (1 - LEVEL), 100 - 50 * (1 - LEVEL)])
    return float(low), float(high)


def _same_length(first: Outcomes, second: Outcomes) -> None:
    if len(first) != len(second):
        raise ValueError(f"outcomes: {len(first)} against {len(second)}; both arms must have the same problems")
