"""Paired statistics of right and wrong. Every function takes outcomes of the same problems in the same order; True is right.

Where there are several samples a problem, the problems are what is resampled: they are the clusters (Miller, 2411.00640).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import binomtest, norm

Outcomes = NDArray[np.bool_]
Shares = NDArray[np.bool_] | NDArray[np.float64]
"""Right or not, [problems]; or with several samples a problem, [problems, samples]."""
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
    return proportion(int(outcomes.sum()), len(outcomes))


def proportion(count: int, total: int) -> Interval:
    """``count`` of ``total``, at least one, with Wilson's score interval."""
    found = binomtest(count, total).proportion_ci(LEVEL, method="wilson")
    return Interval(count / total, float(found.low), float(found.high))


def difference(first: Shares, second: Shares, *, seed: int = 0) -> Interval:
    """Accuracy of the first minus the second, with a paired bootstrap interval (percentiles; problems are resampled).

    ``first`` and ``second`` are [problems] or [problems, samples]; samples of one problem stay together.
    """
    _same_length(first, second)
    if not len(first):
        return Interval(None, None, None, "no problems")
    delta = per_problem(first) - per_problem(second)
    return Interval(float(delta.mean()), *_percentiles(_resampled(delta[:, None], seed)[:, 0]))


def permutation(first: Shares, second: Shares, *, seed: int = 0) -> float:
    """Two-sided paired test of a difference: the signs of the problems' differences are drawn anew (Fisher's sign flips, 10,000 draws)."""
    delta = per_problem(first) - per_problem(second)
    delta = delta[delta != 0]
    if not len(delta):
        return 1.0
    signs = np.random.default_rng(seed).integers(0, 2, size=(RESAMPLES, len(delta)), dtype=np.int8) * 2 - 1
    extreme = np.abs(signs @ delta) >= abs(delta.sum()) - 1e-9
    return float((extreme.sum() + 1) / (RESAMPLES + 1))


def per_problem(outcomes: Shares) -> NDArray[np.float64]:
    """Share of right samples of each problem, [problems]."""
    return outcomes.astype(float) if outcomes.ndim == 1 else outcomes.mean(axis=1, dtype=float)


def average_at(outcomes: Shares) -> float:
    """avg@k: the mean over problems of the share of right samples, ``outcomes`` being [problems, k]."""
    return float(per_problem(outcomes).mean())


def pass_at(outcomes: Outcomes, k: int) -> float:
    """pass@k: the probability that one of k samples is right, estimated without bias from n >= k samples a problem.

    1 - C(n - c, k) / C(n, k) for c right ones (Chen et al., 2107.03374, equation 1). Raises ValueError where k is not in 1..n.
    """
    n = outcomes.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"k: {k} of {n} samples; allowed: 1 to {n}")
    return float(np.mean([1 - comb(n - int(c), k) / comb(n, k) for c in outcomes.sum(axis=1)]))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (Holm, 1979), in the order given: what to compare with the level when several tests are made."""
    order = np.argsort(p_values)
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = least
    return adjusted


def smallest_detectable(pair: Paired, *, power: float = 0.8, level: float = 1 - LEVEL) -> float | None:
    """The smallest true difference that McNemar's test would find with this power, for this n and this share of discordant problems.

    Solves n = (z_(1-level/2) sqrt(d) + z_power sqrt(d - x^2))^2 / x^2 for x, where d is the discordant share, or x where that is larger
    (Connor, 1987). None where even a difference of 1 would be missed.
    """
    if not pair.n:
        return None
    share = (pair.only_first + pair.only_second) / pair.n
    z_level, z_power = norm.ppf(1 - level / 2), norm.ppf(power)

    def lacking(x: float) -> float:
        d = max(share, x)
        return (z_level * d**0.5 + z_power * (d - x * x) ** 0.5) ** 2 / x**2 - pair.n

    return float(brentq(lacking, 1e-9, 1.0)) if lacking(1.0) < 0 else None  # pyright: ignore[reportArgumentType]


def recovery(full: Outcomes, quantized: Outcomes, restored: Shares, *, seed: int = 0) -> Interval:
    """(restored - quantized) / (full - quantized) accuracy, problems resampled; undefined where the loss is within noise.

    ``restored`` is [problems], or [problems, seeds], which stay together.
    The loss is within noise where the exact McNemar test does not reject at 5 % or full precision is not the better arm.
    """
    _same_length(full, quantized)
    _same_length(full, restored)
    pair = paired(full, quantized)
    if pair.p >= 0.05 or pair.only_first <= pair.only_second:
        loss = 100 * (pair.only_first - pair.only_second) / pair.n if pair.n else 0.0
        said = f"the loss of {loss:.1f} points is within noise (" if loss > 0 else f"nothing was lost ({abs(loss):+.1f} points, "
        return Interval(None, None, None, f"{said}McNemar p = {pair.p:.2g})")
    arms = np.stack([per_problem(one) for one in (full, quantized, restored)], axis=1)
    value = float((arms[:, 2] - arms[:, 1]).sum() / (arms[:, 0] - arms[:, 1]).sum())
    means = _resampled(arms, seed)
    loss = means[:, 0] - means[:, 1]
    ratios = np.divide(means[:, 2] - means[:, 1], loss, out=np.full(len(loss), np.nan), where=loss > 0)
    return Interval(value, *_percentiles(ratios[~np.isnan(ratios)]))


def mean(values: NDArray[np.float64], *, seed: int = 0) -> Interval:
    """The mean of one value a problem, problems resampled; undefined without any."""
    if not len(values):
        return Interval(None, None, None, "no problems")
    return Interval(float(values.mean()), *_percentiles(_resampled(values[:, None].astype(float), seed)[:, 0]))


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


def _same_length(first: Shares, second: Shares) -> None:
    if len(first) != len(second):
        raise ValueError(f"outcomes: {len(first)} against {len(second)}; both arms must have the same problems")
