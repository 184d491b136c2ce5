"""How locators vote: each as far as it was measured to be right."""

from collections.abc import Sequence
from dataclasses import dataclass

from stepmend.records import Vote

ENOUGH = 0.5
"""Below this probability the vote abstains."""


@dataclass(frozen=True)
class Reliability:
    """Of the traces that a locator speaks on: how often it names the first faulty step, an earlier one, or a later one."""

    exact: float
    early: float
    late: float


# benchmarks/locate.py measures these on 338 regressions (docs/results/locate.md), half a case added to each count: none is ever certain.
RELIABILITY: dict[str, Reliability] = {
    "equations": Reliability(0.937, 0.003, 0.06),
    "rescue": Reliability(0.982, 0.004, 0.014),
    # Measured 0.99 where there is one way to write a solution; in free text the first other word is no fault yet.
    "margins": Reliability(0.90, 0.09, 0.01),
    # A judge that nobody has measured; 'stepmend bench locate' measures one.
    "judges": Reliability(0.6, 0.2, 0.2),
}


def vote(votes: Sequence[Vote], steps: int) -> tuple[int | None, float | None]:
    """The first faulty step of ``steps``, and its probability; (None, probability of the best) where that is too small to say.

    Bayes' rule with every step as likely before, and the locators taken as independent (as in Dawid and Skene, 1979): a locator that
    names step v speaks for v as often as it is exact, and for each later (earlier) step as often as it is early (late). A locator that
    abstains, or is not in the table, says nothing. Rescue and margins ask the same model and err together: where both speak, rescue does.
    """
    named = {v.locator: v.step for v in votes if v.step is not None and v.locator in RELIABILITY}
    if "rescue" in named:
        named.pop("margins", None)
    if not named or not steps:
        return None, None
    weights = [1.0] * steps
    for locator, step in named.items():
        for true in range(steps):
            weights[true] *= _likelihood(step, true, steps, RELIABILITY[locator])
    best = max(range(steps), key=lambda true: weights[true])
    confidence = weights[best] / sum(weights)
    return (best if confidence >= ENOUGH else None), round(confidence, 4)


def _likelihood(step: int, true: int, steps: int, reliability: Reliability) -> float:
    """Probability that a locator names ``step`` where ``true`` is the first faulty one; errors are spread over the steps there are."""
    if step == true:
        return reliability.exact
    return reliability.early / true if step < true else reliability.late / (steps - 1 - true)
