"""Reliabilities from labels, and whether the vote's stated probabilities are calibrated on labels that they were not fitted to."""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from stepmend.locate.kinds import KINDS, Kind
from stepmend.locate.reliability import Reliability, Table
from stepmend.locate.vote import ENOUGH, posterior, vote
from stepmend.records import Vote

FOLDS = 10
POWERS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Candidate exponents of the locators' joint likelihood."""
SMOOTHING = 0.5
"""Cases added to every count: nothing is ever certain."""
BINS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class Observation:
    """One labelled solution: the locators' votes, and the first faulty step (None: no step is faulty).

    Attributes:
        group: Its problem, which must not be split between fitting and measuring.
        kinds: The kinds of its steps.
        votes: The locators' votes.
        truth: The labelled step.
    """

    group: str
    kinds: tuple[Kind, ...]
    votes: tuple[Vote, ...]
    truth: int | None


@dataclass(frozen=True)
class Stated:
    """The vote on one labelled solution: the step (None: it abstains), and the probability of the best one."""

    step: int | None
    confidence: float | None


def fit(observations: Sequence[Observation], powers: Sequence[float] = POWERS) -> Table:
    """The table that these observations support: each locator's rates, the prior by kinds, and the power that makes them likeliest."""
    table = Table(
        n=len(observations), locators=_rates(observations), prior=_prior(observations), none=_none(observations), power=powers[-1]
    )
    tables = [table.model_copy(update={"power": power}) for power in powers]
    return max(tables, key=lambda of: log_score(observations, of))


def log_score(observations: Iterable[Observation], table: Table) -> float:
    """Log-probability that the vote gives to the labelled steps."""
    return sum(float(np.log(max(posterior(o.votes, o.kinds, table)[-1 if o.truth is None else o.truth], 1e-9))) for o in observations)


def cross_validated(
    observations: Sequence[Observation], threshold: float = ENOUGH, fitted: Callable[[Sequence[Observation]], Table] = fit, seed: int = 0
) -> list[Stated]:
    """What the vote says of each observation with a table fitted to the others, ``FOLDS`` groups of problems at a time."""
    groups = sorted({o.group for o in observations})
    random.Random(seed).shuffle(groups)
    fold = {group: place % FOLDS for place, group in enumerate(groups)}
    tables = {number: fitted([o for o in observations if fold[o.group] != number]) for number in {fold[o.group] for o in observations}}
    return [Stated(*vote(o.votes, o.kinds, tables[fold[o.group]], threshold)) for o in observations]


def brier(stated: Sequence[Stated], right: Sequence[bool]) -> float | None:
    """Mean squared difference of stated probability and outcome, over the solutions in which the vote states one."""
    pairs = [(s.confidence, good) for s, good in zip(stated, right, strict=True) if s.confidence is not None]
    return sum((confidence - good) ** 2 for confidence, good in pairs) / len(pairs) if pairs else None


def reliability_diagram(stated: Sequence[Stated], right: Sequence[bool]) -> list[tuple[float, float, int, float, int]]:
    """(from, to, count, mean stated probability, how many are right) of each bin of stated probability that holds any."""
    found = []
    for low, high in pairwise(BINS):
        inside = [
            (s.confidence, good)
            for s, good in zip(stated, right, strict=True)
            if s.confidence is not None and (low <= s.confidence < high or s.confidence == high == 1)
        ]
        if inside:
            found.append((low, high, len(inside), sum(c for c, _ in inside) / len(inside), sum(good for _, good in inside)))
    return found


def _rates(observations: Iterable[Observation]) -> dict[str, Reliability]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for o in observations:
        for v in o.votes:
            if v.step is not None:
                counts[v.locator][_side(v.step, o.truth)] += 1
    return {name: _rate(of) for name, of in sorted(counts.items())}


def _side(step: int, truth: int | None) -> str:
    """A step named if none is faulty is early: nothing has gone wrong yet."""
    return "early" if truth is None or step < truth else "late" if step > truth else "exact"


def _rate(counts: Mapping[str, int]) -> Reliability:
    total = sum(counts.values()) + 3 * SMOOTHING
    exact, early = ((counts.get(name, 0) + SMOOTHING) / total for name in ("exact", "early"))
    return Reliability(exact=round(exact, 4), early=round(early, 4), late=round(max(0.0, 1 - exact - early), 4))


def _prior(observations: Iterable[Observation]) -> dict[Kind, float]:
    """How much likelier a step of each kind is to be faulty than a calculation is."""
    there, faulty = Counter[Kind](), Counter[Kind]()
    for o in observations:
        there.update(o.kinds)
        if o.truth is not None:
            faulty[o.kinds[o.truth]] += 1
    share = {kind: (faulty[kind] + SMOOTHING) / (there[kind] + 2 * SMOOTHING) for kind in KINDS}
    return {kind: round(share[kind] / share["calculation"], 4) for kind in KINDS if there[kind]}


def _none(observations: Sequence[Observation]) -> float:
    return round((sum(o.truth is None for o in observations) + SMOOTHING) / (len(observations) + 2 * SMOOTHING), 4)
