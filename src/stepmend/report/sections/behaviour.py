"""Other changes: length, abnormal endings and the step format of each arm, and accuracy by subject and by number of steps."""

from dataclasses import dataclass

from stepmend.arms import FULL
from stepmend.locate import steps
from stepmend.measure import fitness, statistics
from stepmend.measure.statistics import Interval
from stepmend.report import summary
from stepmend.report.sections import effects
from stepmend.report.summary import Found, percent

STEPS = 20
"""Longer solutions are counted with those of this many steps."""


@dataclass(frozen=True)
class Behaviour:
    """Length in tokens over full precision's, and shares of solutions; ``endings`` by name."""

    length_ratio: float
    unscored: float
    step_format: float
    endings: dict[str, float]


@dataclass(frozen=True)
class Length:
    """The problems that full precision solves in so many steps, and the share of them that an arm solves."""

    steps: int
    n: int
    accuracy: float


@dataclass(frozen=True)
class Arm:
    """One arm, over all held-out problems and by level; accuracy by subject, and by the steps that full precision takes."""

    name: str
    all: Behaviour
    levels: dict[str, Behaviour]
    subjects: dict[str, Interval]
    by_steps: list[Length]


@dataclass(frozen=True)
class Changed:
    """All arms. ``thinks``: solutions hold thoughts. ``in_format``: full precision's share in the step format."""

    thinks: bool
    in_format: float
    arms: list[Arm]


def figures(found: Found) -> Changed:
    """Every arm that was measured."""
    thinks = "unclosed" in effects.endings_of(found)
    return Changed(thinks, summary.fit(found).in_format, [_arm(found, arm) for arm in found.arms])


def lines(of: Changed) -> list[str]:
    """How far full precision follows the step format."""
    return [f"Step format: followed by {percent(of.in_format)} of full precision's solutions."]


def _arm(found: Found, arm: str) -> Arm:
    subjects = sorted({p.subject for p in found.test if p.subject})
    return Arm(
        arm,
        all=_behaviour(found, arm),
        levels={level: _behaviour(found, arm, level) for level in found.levels},
        subjects={subject: statistics.accuracy(found.outcomes(arm, subject=subject)) for subject in subjects},
        by_steps=_by_steps(found, arm),
    )


def _behaviour(found: Found, arm: str, level: str | None = None) -> Behaviour:
    chosen = [p for p in found.test if level in (None, p.level)]
    solutions, full = found.solutions(arm, chosen), found.solutions(FULL, chosen)
    traces, grades = [trace for _, trace, _ in solutions], [grade for _, _, grade in solutions]
    return Behaviour(
        length_ratio=sum(len(t.tokens) for t in traces) / max(1, sum(len(t.tokens) for _, t, _ in full)),
        unscored=sum(grade.outcome == "unscored" for grade in grades) / len(traces),
        step_format=fitness.share_in_format(traces),
        endings={name: sum(map(odd, traces, grades)) / len(traces) for name, (_, odd) in effects.ENDINGS.items()},
    )


def _by_steps(found: Found, arm: str) -> list[Length]:
    """Accuracy by the number of steps of full precision's solution, where it is right."""
    right: dict[int, list[bool]] = {}
    for problem in found.test:
        if found.solves(FULL, problem.id):
            length = len(steps.split(found.first(FULL, problem.id, right=True)[0].text))
            right.setdefault(min(length, STEPS), []).append(found.solves(arm, problem.id))
    return [Length(length, len(of), sum(of) / len(of)) for length, of in sorted(right.items())]
