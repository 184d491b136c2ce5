"""Paired statistics of correct and wrong outcomes. Every function takes outcomes of the same problems in the same order; True is right.

One sample per problem: the exact McNemar test, and a score interval that excludes 0 exactly where the test rejects. Several samples or
training seeds per problem: sign flips, and a bootstrap over problems, which are the clusters (Miller, 2411.00640). Seeds are replicates
of training, averaged within each problem. An interval therefore holds for new problems and these seeds, not for new seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import comb, sqrt
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import bdtr
from scipy.stats import binom, binomtest, norm

Outcomes = NDArray[np.bool_]
Shares = NDArray[np.bool_] | NDArray[np.float64]
"""Right or not, [problems]; or with several samples per problem, [problems, samples]."""
Samples = NDArray[np.bool_]
"""Right or not, [problems] or [problems, samples]."""
RESAMPLES = 10_000
LEVEL = 0.95
Z = float(norm.ppf((1 + LEVEL) / 2))
MARGIN = 1.0
"""Default non-inferiority margin, in points of accuracy."""
Verdict = Literal["not worse", "worse", "not shown"]


@dataclass(frozen=True)
class Interval:
    """A value with a confidence interval; ``value`` is None, and ``reason`` says why, if it is undefined."""

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
    test: str = "McNemar"

    @property
    def n(self) -> int:
        return self.both_right + self.only_first + self.only_second + self.both_wrong

    @property
    def swapped(self) -> "Paired":
        """The same with the second arm first."""
        return Paired(self.both_right, self.only_second, self.only_first, self.both_wrong, self.p, self.test)


def paired(first: Samples, second: Samples) -> Paired:
    """Discordant counts and the exact McNemar test (a two-sided binomial test of the discordant pairs; McNemar, 1947).

    With several samples per problem, the counts are of problems of which most samples are right, and p is that of sign flips of the
    problems' shares (``permutation``).
    """
    _same_length(first, second)
    if first.ndim > 1 or second.ndim > 1:
        p, (one, other) = permutation(first, second), (majority(of) for of in (first, second))
        right, lost, gained, wrong = (int((a & b).sum()) for a, b in ((one, other), (one, ~other), (~one, other), (~one, ~other)))
        return Paired(right, lost, gained, wrong, p, "sign flips")
    b, c = int((first & ~second).sum()), int((~first & second).sum())
    return Paired(int((first & second).sum()), b, c, int((~first & ~second).sum()), mcnemar(b, c))


def mcnemar(only_first: int, only_second: int) -> float:
    """The p value of the exact McNemar test: twice the smaller tail of a binomial distribution with probability 1/2, at most 1."""
    return min(1.0, 2 * float(bdtr(min(only_first, only_second), only_first + only_second, 0.5)))


def majority(outcomes: Shares) -> Outcomes:
    """Whether more than half of each problem's samples are right, [problems]."""
    return per_problem(outcomes) > 0.5


def accuracy(outcomes: Samples) -> Interval:
    """Share of right outcomes, with Wilson's score interval; of several samples per problem, avg@k with problems resampled as clusters."""
    if not len(outcomes):
        return Interval(None, None, None, "no problems")
    if outcomes.ndim > 1:
        return mean(per_problem(outcomes))
    return proportion(int(outcomes.sum()), len(outcomes))


def proportion(count: int, total: int) -> Interval:
    """``count`` of ``total``, at least one, with Wilson's score interval."""
    found = binomtest(count, total).proportion_ci(LEVEL, method="wilson")
    return Interval(count / total, float(found.low), float(found.high))


def difference(first: Shares, second: Shares, *, seed: int = 0) -> Interval:
    """Accuracy of the first minus the second, with its 95 % interval.

    ``first`` and ``second`` are [problems] or [problems, samples]. Where every problem is right or wrong as a whole, as with one sample,
    this is ``paired_interval``; else a paired bootstrap (percentiles; problems are resampled, samples of one problem stay together).
    """
    _same_length(first, second)
    if not len(first):
        return Interval(None, None, None, "no problems")
    one, other = per_problem(first), per_problem(second)
    if np.isin(one, (0, 1)).all() and np.isin(other, (0, 1)).all():
        return paired_interval(paired(one == 1, other == 1))
    delta = one - other
    if np.ptp(delta) < 1e-12:  # a bootstrap of equal values has no width, however few they are
        value, around = float(delta[0]), paired_interval(Paired(len(delta), 0, 0, 0, 1.0))
        return Interval(value, max(-1.0, value + (around.low or 0)), min(1.0, value + (around.high or 0)))
    return Interval(float(delta.mean()), *_percentiles(_resampled(delta[:, None], seed)[:, 0]))


def paired_interval(pair: Paired) -> Interval:
    """Accuracy of the first arm minus the second, with a 95 % score interval; there is at least one problem.

    The limits are the differences x at which Tango's score statistic, with a continuity correction k, reaches the normal quantile z:
    |b - c - n x| - k = z sqrt(n (2 q + x (1 - x))), where b and c are the discordant counts and q is the maximum-likelihood share of c
    under x (Tango, Statistics in Medicine 17, 1998, 891-908). At x = 0 this is McNemar's test with Edwards' correction, k = 1, which
    nearly always rejects where the exact test does. Where it would miss the exact test's critical count by a hair, k is slightly
    smaller (``_correction``). So the interval excludes 0 exactly where the exact McNemar p is below 5 %.
    """
    b, c, n = pair.only_first, pair.only_second, pair.n
    value, k = (b - c) / n, _correction(b + c)

    def beyond(x: float) -> float:
        """Positive where the statistic is beyond z at x."""
        linear, constant = (2 * n - b + c) * x - b - c, -c * x * (1 - x)
        q = (sqrt(max(0.0, linear**2 - 8 * n * constant)) - linear) / (4 * n)
        return abs(b - c - n * x) - k - Z * sqrt(max(0.0, n * (2 * q + x * (1 - x))))

    low, high = (float(brentq(beyond, value, end)) if beyond(end) > 0 else end for end in (-1.0, 1.0))  # pyright: ignore[reportArgumentType]
    return Interval(value, low, high)


@cache
def _correction(discordant: int) -> float:
    """Edwards' continuity correction, 1, or what makes the score test at 0 reject from the same imbalance on as the exact test."""
    critical = 2 * (int(binom.isf((1 - LEVEL) / 2, discordant, 0.5)) + 1) - discordant  # least |b - c| that the exact test rejects
    return min(1.0, 0.99 * (critical - Z * sqrt(discordant)))


def permutation(first: Shares, second: Shares, *, seed: int = 0) -> float:
    """Two-sided paired test of a difference: the signs of the problems' differences are redrawn (Fisher's sign flips, 10,000 draws).

    Where all differences that are not 0 are of one size, as with one sample per problem, this is the exact McNemar test, without any draw.
    """
    delta = per_problem(first) - per_problem(second)
    delta = delta[delta != 0]
    if not len(delta) or np.ptp(np.abs(delta)) < 1e-9:
        return mcnemar(int((delta > 0).sum()), int((delta < 0).sum()))
    signs = np.random.default_rng(seed).integers(0, 2, size=(RESAMPLES, len(delta)), dtype=np.int8) * 2 - 1
    extreme = np.abs(signs @ delta) >= abs(delta.sum()) - 1e-9
    return float((extreme.sum() + 1) / (RESAMPLES + 1))


def verdict(change: Interval, margin: float = MARGIN, *, p: float | None = None) -> Verdict:
    """What a change of accuracy, new minus old, shows at 95 % of whether the new arm is worse.

    ``not worse``: the interval's low end is above minus ``margin`` points (non-inferiority). Else ``worse``: the interval is below 0,
    or, where ``p`` is given, which is adjusted for several tests, the change is negative and p below 5 %. Else ``not shown``.
    """
    if change.value is None or change.low is None or change.high is None:
        return "not shown"
    if 100 * change.low > -margin:
        return "not worse"
    below = change.high < 0 if p is None else change.value < 0 and p < 1 - LEVEL
    return "worse" if below else "not shown"


def verdict_text(found: Verdict, margin: float = MARGIN) -> str:
    """A verdict in words, with its margin in points."""
    words = {
        "not worse": f"not worse by more than {margin:.1f} points (95 %)",
        "worse": "worse (95 %)",
        "not shown": f"not shown to be within {margin:.1f} points",
    }
    return words[found]


def per_problem(outcomes: Shares) -> NDArray[np.float64]:
    """Share of right samples of each problem, [problems]."""
    return outcomes.astype(float) if outcomes.ndim == 1 else outcomes.mean(axis=1, dtype=float)


def average_at(outcomes: Shares) -> float:
    """avg@k: the mean over problems of the share of right samples, ``outcomes`` being [problems, k]."""
    return float(per_problem(outcomes).mean())


def pass_at(outcomes: Outcomes, k: int) -> float:
    """pass@k: the probability that one of k samples is right, estimated without bias from n >= k samples per problem.

    1 - C(n - c, k) / C(n, k) for c right ones (Chen et al., 2107.03374, equation 1). Raises ValueError if k is not in 1..n.
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

    Solves n = (z_(1-level/2) sqrt(d) + z_power sqrt(d - x^2))^2 / x^2 for x, where d is the discordant share, or x if that is larger
    (Connor, 1987). None if even a difference of 1 would be missed.
    """
    if not pair.n:
        return None
    share = (pair.only_first + pair.only_second) / pair.n
    z_level, z_power = norm.ppf(1 - level / 2), norm.ppf(power)

    def lacking(x: float) -> float:
        d = max(share, x)
        return (z_level * d**0.5 + z_power * (d - x * x) ** 0.5) ** 2 / x**2 - pair.n

    return float(brentq(lacking, 1e-9, 1.0)) if lacking(1.0) < 0 else None  # pyright: ignore[reportArgumentType]


def loses(full: Shares, other: Shares) -> bool:
    """Whether an arm is less accurate than full precision beyond noise: the paired test at 5 %, two-sided."""
    return per_problem(full).sum() > per_problem(other).sum() and permutation(full, other) < 1 - LEVEL


def recovery(full: Samples, quantized: Samples, restored: Shares, *, seed: int = 0) -> Interval:
    """(restored - quantized) / (full - quantized) accuracy, problems resampled; undefined if the loss is within noise.

    Each is [problems], or [problems, samples or seeds], which stay together.

    The rule for when it is defined treats quantized and restored alike, so that it favours neither. It is defined where either of them
    loses against full precision beyond noise, and what is divided by is the larger of their two losses. A restoration that recovers is
    thereby measured against quantization's loss, as the formula says; where the restored model is the worse one, the value is minus the
    share of the restored model's loss that restoring added. Were the loss of the quantized model alone asked for, it would be reported
    above all where chance made it large, and chance would seem to be recovered. Exchanging two models that are equally good changes the
    value's sign and nothing else: a useless restoration recovers 0 on average, at any loss and any number of problems.
    """
    _same_length(full, quantized)
    _same_length(full, restored)
    if not (loses(full, quantized) or loses(full, restored)):
        return Interval(None, None, None, _within_noise(full, quantized))
    arms = np.stack([per_problem(one) for one in (full, quantized, restored)], axis=1)
    means = _resampled(arms, seed)
    shares, defined = _recovered(means)
    # A resample without a loss counts as beyond both ends: leaving it out would make the interval too short.
    low, high = (_percentiles(np.where(defined, shares, end))[side] for side, end in enumerate((shares.min(), shares.max())))
    return Interval(float(_recovered(arms.mean(axis=0, keepdims=True))[0][0]), low, high)


def _recovered(means: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The share of the larger loss that was recovered, and whether there is a loss, of rows of accuracies: full, quantized, restored."""
    loss = means[:, 0] - means[:, 1:].min(axis=1)
    defined = loss > 1e-12
    return np.divide(means[:, 2] - means[:, 1], loss, out=np.zeros(len(loss)), where=defined), defined


def _within_noise(full: Samples, quantized: Samples) -> str:
    pair, delta = paired(full, quantized), per_problem(full) - per_problem(quantized)
    loss = 100 * float(delta.mean()) if pair.n else 0.0
    if pair.n and not full.any():
        return "full precision solves none of the problems: there is nothing to lose"
    said = f"the loss of {loss:.1f} points is within noise (" if loss > 0 else f"nothing was lost ({abs(loss):+.1f} points, "
    return f"{said}{pair.test} p = {pair.p:.2g})"


def mean(values: NDArray[np.float64], *, seed: int = 0) -> Interval:
    """The mean of one value per problem, problems resampled; undefined without any."""
    if not len(values):
        return Interval(None, None, None, "no problems")
    return Interval(float(values.mean()), *_percentiles(_resampled(values[:, None].astype(float), seed)[:, 0]))


def _resampled(columns: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Means of each column over resampled rows, [RESAMPLES, columns].

    Rows take few distinct values, so it is enough to draw how often each of those occurs: a multinomial count.
    """
    rng = np.random.default_rng(seed)
    each = [np.unique(column, return_inverse=True)[1] for column in columns.T]  # far faster than np.unique of the rows themselves
    codes = np.ravel_multi_index(each, [int(one.max()) + 1 for one in each])
    _, first, counts = np.unique(codes, return_index=True, return_counts=True)
    return rng.multinomial(len(columns), counts / len(columns), size=RESAMPLES) @ columns[first] / len(columns)


def _percentiles(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(values, [50 * (1 - LEVEL), 100 - 50 * (1 - LEVEL)])
    return float(low), float(high)


def _same_length(first: Shares, second: Shares) -> None:
    if len(first) != len(second):
        raise ValueError(f"outcomes: {len(first)} against {len(second)}; both arms must have the same problems")
