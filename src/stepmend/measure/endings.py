"""Abnormal endings of solutions, paired like correct and wrong: loops, cut-offs by the token limit, unclosed thoughts.

An ending that a log does not record is unknown, and never counted as absent.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from stepmend.grading.visible import visible
from stepmend.logs import Log, Sample
from stepmend.measure import statistics
from stepmend.measure.broken import is_degenerate


@lru_cache(maxsize=1 << 16)
def _loops(text: str) -> bool:
    return is_degenerate(text)


@lru_cache(maxsize=1 << 16)
def _unclosed(text: str) -> bool:
    return not visible(text).whole


ENDINGS: dict[str, tuple[str, str, Callable[[Sample], bool | None]]] = {
    "loops": ("in a loop", "no texts", lambda sample: None if sample.text is None else _loops(sample.text)),
    "cut_off": ("cut off", "no field that says how a text finished", lambda sample: sample.cut),
    "unclosed": ("in an unclosed thought", "no texts", lambda sample: None if sample.text is None else _unclosed(sample.text)),
}
"""By name: the ending in words, what a log needs to record it, and whether a sample ends so (None: unknown)."""


@dataclass(frozen=True)
class Tested:
    """Two arms' shares of one abnormal ending on the same problems: discordant counts, the change (second minus first), p, and Holm's p."""

    pair: statistics.Paired
    change: statistics.Interval
    p: float
    holm: float


@dataclass(frozen=True)
class Ending:
    """One abnormal ending of two arms, on the problems for which it is known in both.

    Attributes:
        name: A key of ``ENDINGS``.
        problems: Problems of which it is known in both arms.
        first: Share of the first arm's solutions that end so, in [0, 1]; where the other arm is not known, of those known; else None.
        second: The same of the second arm.
        tested: What the pairs show; None without any.
    """

    name: str
    problems: int
    first: float | None
    second: float | None
    tested: Tested | None

    @property
    def words(self) -> str:
        return ENDINGS[self.name][0]

    def figures(self) -> dict[str, Any]:
        """What ``--json`` prints; null is not known."""
        of = self.tested
        return {
            "pairs": self.problems,
            "first": self.first,
            "second": self.second,
            "only_first": of.pair.only_first if of else None,
            "only_second": of.pair.only_second if of else None,
            "difference": {"value": of.change.value, "low": of.change.low, "high": of.change.high} if of else None,
            "p": of.p if of else None,
            "holm": of.holm if of else None,
        }


def tested(arms: Sequence[tuple[statistics.Shares, statistics.Shares]]) -> list[Tested]:
    """Each pair of shares with its own test, exact McNemar and its score interval, and Holm's p over all of them.

    Several samples per problem are paired as shares: sign flips and a bootstrap, as for right and wrong.
    """
    p_values = [statistics.permutation(first, second) for first, second in arms]
    return [
        Tested(statistics.paired(*map(statistics.majority, (first, second))), statistics.difference(second, first), p, holm)
        for (first, second), p, holm in zip(arms, p_values, statistics.holm(p_values), strict=True)
    ]


def compare(first: Log, second: Log, problems: Sequence[str]) -> list[Ending]:
    """Every abnormal ending of two arms on these problems, with Holm's p over the known ones."""
    found: dict[str, tuple[int, float | None, float | None]] = {}
    arms: dict[str, tuple[statistics.Shares, statistics.Shares]] = {}
    for name in ENDINGS:
        one, two = known(first, name, problems), known(second, name, problems)
        both = [problem for problem in problems if problem in one and problem in two]
        if both:
            arms[name] = np.array([one[p] for p in both]), np.array([two[p] for p in both])
            found[name] = len(both), float(arms[name][0].mean()), float(arms[name][1].mean())
        else:
            found[name] = 0, _mean(one), _mean(two)
    shown = dict(zip(arms, tested(list(arms.values())), strict=True))
    return [Ending(name, *values, shown.get(name)) for name, values in found.items()]


def known(log: Log, name: str, problems: Sequence[str]) -> dict[str, float]:
    """By problem the share of a log's samples that end so, of those of which it is known; a problem without any is left out."""
    ends = ENDINGS[name][2]
    found = {}
    for problem in problems:
        told = [odd for sample in log.samples[problem] if (odd := ends(sample)) is not None]
        if told:
            found[problem] = sum(told) / len(told)
    return found


def share(log: Log, name: str) -> float | None:
    """The share of a log's solutions that end so, of the problems of which it is known; None if it is of none."""
    return _mean(known(log, name, list(log.samples)))


def _mean(shares: Mapping[str, float]) -> float | None:
    return sum(shares.values()) / len(shares) if shares else None
