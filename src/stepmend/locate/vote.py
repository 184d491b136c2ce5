"""The reliability-weighted vote of the locators: Bayes' rule over "the first faulty step is k"."""

from collections.abc import Sequence

import numpy as np

from stepmend.locate.kinds import Kind
from stepmend.locate.reliability import UNMEASURED, Reliability, Table
from stepmend.records import Vote

ENOUGH = 0.5
"""Below this probability the vote abstains, if the recipe says nothing else."""
JUDGES = "judges"
LOCATORS = frozenset({"equations", "rescue", "margins", "reference", "solution", JUDGES})
"""The locators that are not judges."""
RIGHT = frozenset({"reference", "solution"})
"""The same method with two correct solutions: together they have one vote."""
FLOOR = 1e-9


def posterior(votes: Sequence[Vote], kinds: Sequence[Kind], table: Table) -> np.ndarray:
    """Probability of each step to be the first faulty one, and in the last place that none is; it sums to one.

    The prior goes by the steps' kinds, and the locators are taken as independent given the first faulty step (as in Dawid and Skene, 1979),
    up to the table's power. If a locator names step v, the likelihood of v is its rate of being exact, and that of the later (earlier)
    steps is its rate of being early (late), divided evenly among them. A false equation proves a fault at or before its step, so that
    locator's ``early`` rate is almost zero. If a vote has a likelihood for every step (rescue's), that is used. A locator that abstains has
    no influence, nor has the quorum of judges if single judges have been measured. ``reference`` and ``solution`` are one method: if both
    vote, each counts half.
    """
    steps = len(kinds)
    weights = np.array([table.prior.get(kind, 1.0) for kind in kinds] or [1.0], dtype=float)
    prior = np.append(weights / max(weights.sum(), FLOOR) * (1 - table.none), table.none)[-steps - 1 :]
    counted, total = _counted(votes, table), np.zeros(steps + 1)
    beside = sum(v.locator in RIGHT for v in counted)
    for one in counted:
        rates = table.locators.get(one.locator, UNMEASURED)
        likelihood = np.array(one.likelihood) if one.likelihood else _likelihood(one, steps, rates)
        total += np.log(np.maximum(likelihood, FLOOR)) / (beside if one.locator in RIGHT else 1)
    logs = np.log(np.maximum(prior, FLOOR)) + table.power * total
    found = np.exp(logs - logs.max())
    return found / found.sum()


def vote(votes: Sequence[Vote], kinds: Sequence[Kind], table: Table, threshold: float = ENOUGH) -> tuple[int | None, float | None]:
    """The first faulty step and its probability; (None, probability of the best) where that is below ``threshold``, or no step is.

    (None, None) if no locator votes.
    """
    if not kinds or not _counted(votes, table):
        return None, None
    found = posterior(votes, kinds, table)
    best = int(found[:-1].argmax())
    confidence = float(found[best])
    return (best if confidence >= threshold and confidence > found[-1] else None), round(confidence, 4)


def _counted(votes: Sequence[Vote], table: Table) -> list[Vote]:
    """The votes that count, each source once.

    A measured judge votes by itself, the others through their quorum. Greedy rescue and margins depend on the same model and err together:
    if both vote, only rescue counts.
    """
    said = [v for v in votes if v.step is not None or v.likelihood]
    single = [v for v in said if v.locator in table.locators and v.locator != JUDGES]
    judged = any(_is_judge(v.locator) for v in single)
    named = single + [v for v in said if v.locator == JUDGES and not judged]
    greedy = any(v.locator == "rescue" and not v.likelihood for v in named)
    return [v for v in named if not (greedy and v.locator == "margins")]


def _is_judge(locator: str) -> bool:
    return locator not in LOCATORS


def _likelihood(vote: Vote, steps: int, reliability: Reliability) -> np.ndarray:
    """Probability that a locator names the vote's step where each step is the first faulty one, and if none is."""
    named = vote.step
    assert named is not None
    after, before = steps - 1 - np.arange(steps), np.arange(steps)
    found = np.where(before < named, reliability.late / np.maximum(after, 1), reliability.early / np.maximum(before, 1))
    found[named] = reliability.exact
    return np.append(found, (reliability.early + reliability.late) / steps)
