"""Arms measured by other tools, paired by problem: the results of ``stepmend compare``."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from stepmend.grading import verify
from stepmend.logs import Log, Sample
from stepmend.measure import endings, statistics
from stepmend.measure.broken import broken
from stepmend.records import InputError

Reading = Literal["wrong", "left_out"]
"""How an unscored sample is counted: as wrong, or not at all."""


@dataclass(frozen=True)
class Compared:
    """Two arms on the problems that both have. ``shares`` are in the order of ``problems``.

    ``unscored_as`` says how unscored samples are counted: as wrong, or left out, together with problems that then lack a sample in one arm.
    ``margin`` is the non-inferiority margin, in points.
    """

    first: Log
    second: Log
    problems: list[str]
    unpaired: int
    unscored_as: Reading = "wrong"
    margin: float = statistics.MARGIN

    @cached_property
    def shares(self) -> tuple[statistics.Shares, statistics.Shares]:
        """Share of right samples of each problem, both arms."""
        return _shares(self.first, self.problems, self.unscored_as), _shares(self.second, self.problems, self.unscored_as)

    @cached_property
    def paired(self) -> statistics.Paired:
        """Discordant counts and test; with several samples per problem, a problem is right where more than half of them are."""
        first, second = self.shares
        return statistics.paired(first > 0.5, second > 0.5)

    @cached_property
    def of_shares(self) -> bool:
        """Whether the arms are paired as shares: several samples per problem, or shares in the log itself."""
        return any(
            len(arm.samples[p]) > 1 or any(s.share is not None for s in arm.samples[p])
            for arm in (self.first, self.second)
            for p in self.problems
        )

    @cached_property
    def p(self) -> float:
        """Exact McNemar; for shares, sign flips of the shares' differences."""
        first, second = self.shares
        return statistics.permutation(first, second) if self.of_shares else self.paired.p

    @cached_property
    def difference(self) -> statistics.Interval:
        """Second minus first, with its interval; with one sample per problem it excludes 0 exactly where ``p`` is below 0.05."""
        first, second = self.shares
        return statistics.difference(second, first)

    @cached_property
    def unscored(self) -> int:
        """Problems on which one of the two arms has an unscored sample."""
        return sum(any(s.value is None for arm in (self.first, self.second) for s in arm.samples[problem]) for problem in self.problems)

    @cached_property
    def left_out(self) -> "Compared | None":
        """The other reading, where unscored samples are left out; None if it is the same, or leaves nothing."""
        if not self.unscored or self.unscored_as == "left_out":
            return None
        kept = [p for p in self.problems if all(any(s.value is not None for s in arm.samples[p]) for arm in (self.first, self.second))]
        return replace(self, problems=kept, unscored_as="left_out") if kept else None

    @cached_property
    def differs_in_unscored(self) -> bool:
        """Whether the arms have different numbers of unscored samples, so that the two readings may disagree."""
        return len({sum(s.value is None for p in self.problems for s in arm.samples[p]) for arm in (self.first, self.second)}) > 1

    @cached_property
    def differences(self) -> list[str]:
        """What differs in how the two arms were measured, each as a sentence's end."""
        first, second = self.first, self.second
        found = []
        if first.metric and second.metric and first.metric != second.metric:
            found.append(f"the metric: {first.metric} against {second.metric}")
        for name in sorted(set(first.about) & set(second.about)):
            if first.about[name] != second.about[name]:
                found.append(f"{name}: {first.about[name]} against {second.about[name]}")
        pairs = [(first.samples[p][0].prompt, second.samples[p][0].prompt) for p in self.problems]
        known = [(a, b) for a, b in pairs if a is not None and b is not None]
        if other := sum(a != b for a, b in known):
            found.append(f"the prompt, in {other} of {len(known)} pairs")
        return found

    @cached_property
    def endings(self) -> list[endings.Ending]:
        """Loops, cuts by the limit and unclosed thoughts, paired; unscored samples are among them."""
        return endings.compare(self.first, self.second, self.problems)

    def figures(self) -> dict[str, Any]:
        """What ``--json`` prints for this pair."""
        other = self.left_out
        return {
            "first": self.first.name,
            "second": self.second.name,
            "pairs": len(self.problems),
            "unpaired": self.unpaired,
            **self._figures(),
            "unscored": self.unscored,
            "unscored_as": self.unscored_as,
            "left_out": {"pairs": len(other.problems), **other._figures()} if other else None,
            "metrics": {"first": self.first.metric, "second": self.second.metric},
            "other_metrics": {"first": list(self.first.others), "second": list(self.second.others)},
            "differences": self.differences,
            "notes": {"first": list(self.first.notes), "second": list(self.second.notes)},
            "endings": {ending.name: ending.figures() for ending in self.endings},
            "broken": {"first": is_broken(self.first), "second": is_broken(self.second)},
        }

    def _figures(self) -> dict[str, Any]:
        pair, change = self.paired, self.difference
        return {
            "both_right": pair.both_right,
            "only_first": pair.only_first,
            "only_second": pair.only_second,
            "both_wrong": pair.both_wrong,
            "mcnemar_p": self.p,
            "difference": {"value": change.value, "low": change.low, "high": change.high},
            "verdict": statistics.verdict(change, self.margin),
            "margin": self.margin,
            "smallest_detectable": statistics.smallest_detectable(pair),
        }

    def sentence(self, p: float | None = None) -> str:
        """The conclusion in one sentence; ``p`` is the adjusted one if several tests were made."""
        other = self.left_out if self.differs_in_unscored else None
        if other is None:
            return self._sentence(p)
        change = other.difference
        low, high = (_points(value) for value in (change.low, change.high))
        return (
            f"{self._sentence(p).removesuffix('.')}, with unscored ones counted as wrong. Left out instead: {_points(change.value)} points "
            f"({low} to {high}; {len(other.problems)} pairs, p = {other.p:.2g})."
        )

    def _sentence(self, p: float | None) -> str:
        pair, change = self.paired, self.difference
        p = self.p if p is None else p
        value, low, high = (100 * v if v is not None else 0.0 for v in (change.value, change.low, change.high))
        if p < 1 - statistics.LEVEL:
            verb, sign = ("loses", -1) if value < 0 else ("gains", 1)
            ends = sorted((sign * low, sign * high))
            return f"{self.second.name} {verb} {sign * value:.1f} points ({ends[0]:.1f} to {ends[1]:.1f}) against {self.first.name}."
        least = statistics.smallest_detectable(pair)
        rest = "any would go unseen" if least is None else f"one of less than {100 * least:.1f} points may well go unseen"
        shown = _points(change.value or 0)
        said = f"No difference between {self.second.name} and {self.first.name} is shown ({shown} points; with {pair.n} problems, {rest})."
        if statistics.verdict(change, self.margin) == "not worse":
            words = statistics.verdict_text("not worse", self.margin).removesuffix(" (95 %)")
            said += f" {self.second.name} is {words} ({_points(change.low)} to {_points(change.high)}, 95 %)."
        return said


def compare(logs: Sequence[Log], margin: float = statistics.MARGIN) -> list[Compared]:
    """Every two of the arms, those with the first one first; ``margin`` as in ``Compared``.

    Raises InputError if nobody scored an arm, where two have no problem in common or differ in format, task or its version, or where
    the question or the gold answer differs within a pair.
    """
    for log in logs:
        if all(sample.value is None for samples in log.samples.values() for sample in samples):
            raise InputError(f"compare: {log.name} is not scored: none of its {len(log.samples)} problems is right or wrong")
    pairs = sorted(itertools.combinations(range(len(logs)), 2))
    return [replace(_pair(logs[a], logs[b]), margin=margin) for a, b in pairs]


def is_broken(log: Log) -> str | None:
    """What is wrong with an arm's texts, if it is a broken run."""
    return broken(samples[0].text for samples in log.samples.values())


def named(logs: Sequence[Log], names: Sequence[str], folders: Sequence[str]) -> list[Log]:
    """The logs under these names; without any, under their files' names, with the folder's in front where two are the same."""
    files = [log.name for log in logs]
    given = list(names) or [f"{folder}/{file}" if files.count(file) > 1 else file for file, folder in zip(files, folders, strict=True)]
    if len(set(given)) < len(given):
        given = [f"{name} ({number})" for number, name in enumerate(given, 1)]
    return [replace(log, name=name) for log, name in zip(logs, given, strict=True)]


def _pair(first: Log, second: Log) -> Compared:
    for what in ("format", "task", "version"):
        a, b = getattr(first, what), getattr(second, what)
        if a is not None and b is not None and a != b:
            raise InputError(f"compare: {first.name} has {what} {a!r}, {second.name} has {b!r}; both must be of the same {what}")
    problems = [problem for problem in first.samples if problem in second.samples]
    if not problems:
        raise InputError(f"compare: {first.name} and {second.name} have no problem in common; are they of the same benchmark?")
    for problem in problems:
        _check_same(problem, first, second)
    unpaired = len(first.samples) + len(second.samples) - 2 * len(problems)
    return Compared(first, second, problems, unpaired)


def _check_same(problem: str, first: Log, second: Log) -> None:
    """Raises InputError if the two problems of a pair have different questions or different gold answers."""
    one, two = first.samples[problem][0], second.samples[problem][0]
    same = "the same id must be the same problem"
    if one.question and two.question and one.question != two.question:
        raise InputError(f"compare: problem {problem[:40]!r} has one question in {first.name} and another in {second.name}; {same}")
    if one.gold and two.gold and one.gold.split() != two.gold.split() and verify.quick(one.gold, two.gold, "math") != "equal":
        answers = f"{one.gold[:40]!r} in {first.name} and {two.gold[:40]!r} in {second.name}"
        raise InputError(f"compare: problem {problem[:40]!r} has the right answer {answers}; {same}")


def _shares(log: Log, problems: Sequence[str], unscored_as: Reading) -> statistics.Shares:
    def share(samples: Sequence[Sample]) -> float:
        values = [sample.value for sample in samples]
        if unscored_as == "left_out":
            values = [value for value in values if value is not None]
        return sum(value or 0.0 for value in values) / len(values)

    return np.array([share(log.samples[problem]) for problem in problems])


def _points(value: float | None) -> str:
    return f"{100 * (value or 0):+.1f}".replace("-", "−")
