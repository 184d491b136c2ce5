"""What quantizing cost, and what came back: accuracy of every arm, by level and in all, and each against full precision."""

from collections import Counter
from dataclasses import dataclass

from rich.table import Table

from stepmend.arms import FULL, parse
from stepmend.measure import statistics
from stepmend.measure.statistics import Interval
from stepmend.report import summary
from stepmend.report.summary import Found, percent


@dataclass(frozen=True)
class Arm:
    """One arm. ``difference`` is its accuracy minus full precision's; ``recovered`` is None for arms that were not restored."""

    name: str
    pass_at: dict[str, float]
    accuracy: Interval
    levels: dict[str, Interval]
    difference: Interval
    p: float
    holm: float
    kept: float | None
    recovered: Interval | None
    unscored: int


@dataclass(frozen=True)
class Accuracy:
    """All arms on ``n`` held-out problems, with ``samples`` solutions of each; ``several``: the recipe names several schemes."""

    n: int
    samples: int
    temperature: float
    top_p: float
    levels: list[str]
    margin: float
    several: bool
    arms: list[Arm]


def figures(found: Found) -> Accuracy:
    """Every arm that was measured."""
    measure, arms = found.recipe.measure, [_arm(found, arm) for arm in found.arms]
    several = len(found.recipe.low_bit) > 1
    return Accuracy(len(found.test), found.samples, measure.temperature, measure.top_p, found.levels, measure.margin, several, arms)


def _arm(found: Found, arm: str) -> Arm:
    outcomes, against = found.outcomes(arm), summary.against_full(found)
    return Arm(
        arm,
        pass_at=summary.pass_at(found, arm),
        accuracy=statistics.accuracy(outcomes),
        levels={level: statistics.accuracy(found.outcomes(arm, level)) for level in found.levels},
        difference=statistics.difference(outcomes, found.outcomes(FULL)),
        p=against[arm]["mcnemar_p"] if arm in against else 1.0,
        holm=against[arm]["holm"] if arm in against else 1.0,
        kept=summary.accuracy_kept(found, arm),
        recovered=summary.recovery(found, parse(arm).scheme, arm) if parse(arm).round else None,
        unscored=Counter(grade.outcome for _, _, grade in found.solutions(arm))["unscored"],
    )


def table(of: Accuracy) -> Table:
    """The closing table of the terminal: accuracy a level, the paired loss, and what of it was recovered; fits 100 columns."""
    columns = ("against full (95 %)", "p (Holm)" if of.several else "p", "loss recovered (95 %)")
    k = of.samples
    passed, title = ([f"pass@{k}"], f", avg@{k}") if k > 1 else ([], "")
    shown = Table("arm", *of.levels, "all", *passed, *columns, title=f"{of.n} held-out problems{title}")
    for column in shown.columns[: len(of.levels) + len(passed) + 2]:
        column.no_wrap = True
    for arm in of.arms:
        accuracies = [percent(one.value) for one in (*arm.levels.values(), arm.accuracy)]
        passes = [percent(arm.pass_at[str(k)])] if k > 1 else []
        cells = ["", ""] if arm.name == FULL else [summary.span(vars(arm.difference)), summary.p_text(arm.p, arm.holm, of.several)]
        shown.add_row(arm.name, *accuracies, *passes, *cells, summary.recovery_text(arm.recovered) if arm.recovered else "")
    return shown
