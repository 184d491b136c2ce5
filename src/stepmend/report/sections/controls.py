"""Whether located steps mattered: located bullets against every control, paired by problem, seeds pooled.

Seeds are replicates of training: each problem's outcome is averaged over them. Intervals and p are over problems, for these seeds.
"""

from dataclasses import dataclass

import numpy as np

from stepmend.facts import Control
from stepmend.measure import statistics
from stepmend.measure.statistics import Interval
from stepmend.report.summary import Found, points

LOCATED = "located"
SEEDS = "Seeds are replicates of training, averaged within each problem; intervals and p are over problems, for these seeds."
ENOUGH = 3
"""Seeds below which a sentence says that they are few."""
ELSEWHERE = ("random-step", "shuffled-step")
"""The controls that differ from located bullets in nothing but the step."""


@dataclass(frozen=True)
class Located:
    """Located bullets: means over seeds."""

    accuracy: float
    seeds: int
    bullets: int
    tokens: float


@dataclass(frozen=True)
class Row:
    """A control at a budget: means over seeds, and located minus control with the sign-flip test; ``p`` has Holm's adjustment."""

    name: str
    control: str
    budget: str
    seeds: int
    accuracy: float
    raw_p: float
    p: float
    difference: Interval
    tokens: float
    seconds: float
    bullets: float


@dataclass(frozen=True)
class Controls:
    """Every control of a scheme beside located bullets; ``sentence`` says what follows."""

    scheme: str
    located: Located
    rows: list[Row]
    sentence: str


def figures(found: Found) -> list[Controls]:
    """Every scheme of which controls were measured."""
    return [of for scheme in found.measured if (of := controls(found, scheme))]


def lines(of: list[Controls]) -> list[str]:
    """Whether located steps mattered, and every control's figures, a line each."""
    lines = []
    for one in of:
        lines.append(f"{one.scheme}: {one.sentence} {SEEDS}")
        lines += [f"  located minus {row.name}: {_said(row)}; {row.tokens:,.0f} tokens" for row in one.rows]
    return lines


def controls(found: Found, scheme: str) -> Controls | None:
    """A scheme's controls; None where none was measured. Problems are resampled, seeds kept together; Holm's is over the rows."""
    groups = _groups(found, scheme)
    located = groups.pop((LOCATED, "steps"), None)
    if located is None or not groups:
        return None
    ours, theirs = _outcomes(found, located), {group: _outcomes(found, of) for group, of in groups.items()}
    raw = [statistics.permutation(ours, of) for of in theirs.values()]
    tests = zip(raw, statistics.holm(raw), strict=True)
    rows = [_row(*group, groups[group], ours, of, *test) for (group, of), test in zip(theirs.items(), tests, strict=True)]
    first = Located(statistics.average_at(ours), len(located), located[0].bullets, float(np.mean([one.tokens for one in located])))
    return Controls(scheme, first, rows, _sentence(rows))


def _row(control: str, budget: str, of: list[Control], ours: statistics.Shares, theirs: statistics.Shares, raw_p: float, p: float) -> Row:
    tokens, seconds, bullets = (float(np.mean([getattr(one, key) for one in of])) for key in ("tokens", "seconds", "bullets"))
    name, accuracy, change = f"{control}, equal {budget}", statistics.average_at(theirs), statistics.difference(ours, theirs)
    return Row(name, control, budget, len(of), accuracy, raw_p, p, change, tokens, seconds, bullets)


def _groups(found: Found, scheme: str) -> dict[tuple[str, str], list[Control]]:
    groups: dict[tuple[str, str], list[Control]] = {}
    for arm, of in found.facts.all(Control).items():
        if of.scheme == scheme and {p.id for p in found.test} <= found.solved(arm):
            groups.setdefault((of.control, of.budget), []).append(of)
    return groups


def _outcomes(found: Found, of: list[Control]) -> statistics.Shares:
    """Right or not, [problems, seeds]; of several solutions a problem, the share of right ones."""
    each = [found.outcomes(one.arm) for one in of]
    if found.samples == 1:
        return np.stack(each, axis=1)
    return np.stack([statistics.per_problem(one) for one in each], axis=1)


def _sentence(rows: list[Row]) -> str:
    chosen = [row for row in rows if row.control in ELSEWHERE]
    if not chosen:
        return f"Whether located steps mattered was not tested: neither {' nor '.join(ELSEWHERE)} is among these controls."
    row = max(chosen, key=lambda row: row.p)  # what is claimed must hold against each of them, under every budget
    said, signs = f"{_said(row)} against {row.control}, at equal {row.budget}", {(row.difference.value or 0) > 0 for row in chosen}
    if row.seeds < ENOUGH:
        said += f" (seeds: {row.seeds}; take at least {ENOUGH})"
    if row.p >= 0.05 or len(signs) > 1:
        return f"Located steps were not shown to matter here: {said}."
    verb = "mattered" if (row.difference.value or 0) > 0 else "did harm"
    return f"Located steps {verb} here: {said}."


def _said(row: Row) -> str:
    change = row.difference
    return f"{points(change.value)} points ({points(change.low)} to {points(change.high)}, p = {row.p:.2g})"
