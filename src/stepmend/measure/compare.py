"""Arms that other tools measured, paired by problem: what ``stepmend compare`` prints."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from stepmend.measure import statistics
from stepmend.measure.logs import Log, Sample
from stepmend.records import InputError


@dataclass(frozen=True)
class Compared:
    """Two arms on the problems that both have. ``first_samples`` and ``second_samples`` are in the order of ``problems``."""

    first: Log
    second: Log
    problems: list[str]
    unpaired: int

    @cached_property
    def shares(self) -> tuple[statistics.Shares, statistics.Shares]:
        """Share of right samples of each problem, both arms; an unscored sample is not right."""
        return _shares(self.first, self.problems), _shares(self.second, self.problems)

    @cached_property
    def paired(self) -> statistics.Paired:
        """Discordant counts and test; with several samples a problem, a problem is right where more than half of them are."""
        first, second = self.shares
        return statistics.paired(first > 0.5, second > 0.5)

    @cached_property
    def p(self) -> float:
        """Exact McNemar; with several samples a problem, the paired test of their shares."""
        first, second = self.shares
        several = any(len(arm.samples[p]) > 1 for arm in (self.first, self.second) for p in self.problems)
        return statistics.permutation(first, second) if several else self.paired.p

    @cached_property
    def difference(self) -> statistics.Interval:
        """Second minus first, with its interval."""
        first, second = self.shares
        return statistics.difference(second, first)

    @cached_property
    def unscored(self) -> int:
        """Problems on which one of the two arms has a sample that nothing scored."""
        arms = (self.first, self.second)
        return sum(any(s.correct is None for arm in arms for s in arm.samples[problem]) for problem in self.problems)

    def figures(self) -> dict[str, Any]:
        """What ``--json`` prints for this pair."""
        pair, change = self.paired, self.difference
        return {
            "first": self.first.name,
            "second": self.second.name,
            "pairs": len(self.problems),
            "unpaired": self.unpaired,
            "both_right": pair.both_right,
            "only_first": pair.only_first,
            "only_second": pair.only_second,
            "both_wrong": pair.both_wrong,
            "unscored": self.unscored,
            "mcnemar_p": self.p,
            "difference": {"value": change.value, "low": change.low, "high": change.high},
            "smallest_detectable": statistics.smallest_detectable(pair),
        }

    def sentence(self, p: float | None = None) -> str:
        """One sentence on what may be concluded; ``p`` is the adjusted one where several tests were made."""
        pair, change = self.paired, self.difference
        p = self.p if p is None else p
        value, low, high = (100 * v if v is not None else 0.0 for v in (change.value, change.low, change.high))
        if p < 1 - statistics.LEVEL:
            verb, sign = ("loses", -1) if value < 0 else ("gains", 1)
            ends = sorted((sign * low, sign * high))
            return f"{self.second.name} {verb} {sign * value:.1f} points ({ends[0]:.1f} to {ends[1]:.1f}) against {self.first.name}."
        least = statistics.smallest_detectable(pair)
        rest = "any would go unseen" if least is None else f"one of less than {100 * least:.1f} points may well go unseen"
        shown = f"{100 * (change.value or 0):+.1f}".replace("-", "−")
        return f"No difference between {self.second.name} and {self.first.name} is shown ({shown} points; with {pair.n} problems, {rest})."


def compare(logs: Sequence[Log]) -> list[Compared]:
    """Every two of the arms, those with the first one first.

    Raises InputError where two logs have no problem in common, or differ in format, task, its version or metric.
    """
    pairs = sorted(itertools.combinations(range(len(logs)), 2))
    return [_pair(logs[a], logs[b]) for a, b in pairs]


def named(logs: Sequence[Log], names: Sequence[str], folders: Sequence[str]) -> list[Log]:
    """The logs under these names; without any, under their files' names, with the folder's in front where two are the same."""
    files = [log.name for log in logs]
    given = list(names) or [f"{folder}/{file}" if files.count(file) > 1 else file for file, folder in zip(files, folders, strict=True)]
    if len(set(given)) < len(given):
        given = [f"{name} ({number})" for number, name in enumerate(given, 1)]
    return [replace(log, name=name) for log, name in zip(logs, given, strict=True)]


def _pair(first: Log, second: Log) -> Compared:
    for what in ("format", "task", "version", "metric"):
        a, b = getattr(first, what), getattr(second, what)
        if a is not None and b is not None and a != b:
            raise InputError(f"compare: {first.name} has {what} {a!r}, {second.name} has {b!r}; both must be of the same {what}")
    problems = [problem for problem in first.samples if problem in second.samples]
    if not problems:
        raise InputError(f"compare: {first.name} and {second.name} have no problem in common; are they of the same benchmark?")
    unpaired = len(first.samples) + len(second.samples) - 2 * len(problems)
    return Compared(first, second, problems, unpaired)


def _shares(log: Log, problems: Sequence[str]) -> statistics.Shares:
    def share(samples: Sequence[Sample]) -> float:
        return sum(sample.correct is True for sample in samples) / len(samples)

    return np.array([share(log.samples[problem]) for problem in problems])
