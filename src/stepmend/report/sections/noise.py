"""Loss and noise floor: what full precision loses and gains when it solves the same problems again."""

from dataclasses import dataclass

from stepmend.arms import AGAIN, FULL
from stepmend.measure import statistics
from stepmend.measure.statistics import Interval
from stepmend.report.summary import Found, points


@dataclass(frozen=True)
class Row:
    """One line of the chart: points of accuracy against full precision."""

    name: str
    difference: Interval


@dataclass(frozen=True)
class Noise:
    """The noise floor: of ``n`` problems, those that only the first or only the second pass of full precision solves."""

    lost: int
    gained: int
    n: int
    change: Interval
    drawn: bool
    samples: int
    rows: list[Row]


def figures(found: Found) -> Noise | None:
    """The noise floor, and every arm beside it; None where it was not measured."""
    if not found.test or not {p.id for p in found.test} <= found.solved(AGAIN):
        return None
    first, second = found.outcomes(FULL), found.outcomes(AGAIN)
    pair, change, drawn = statistics.paired(first, second), statistics.difference(second, first), bool(found.recipe.measure.temperature)
    rows = [Row("full, drawn again" if drawn else "full, another batch size", change)]
    rows += [Row(arm, statistics.difference(found.outcomes(arm), first)) for arm in found.arms if arm != FULL]
    return Noise(pair.only_first, pair.only_second, pair.n, change, drawn, found.samples, rows)


def lines(of: Noise | None) -> list[str]:
    """The noise floor in words."""
    if of is None:
        return []
    again = f"full precision {'drawn again' if of.drawn else 'in other batches'} changes"
    what = "outcomes" if of.samples == 1 else "problems' majorities"
    return [f"Noise floor: {again} {of.lost + of.gained} of {of.n} {what} ({points(of.change.value)} points)."]
