"""Nothing else breaks, or it is said: what restoring did beside the accuracy, each against noise."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from stepmend.facts import Change, Effects
from stepmend.grading.visible import visible
from stepmend.measure import behaviour, endings, statistics
from stepmend.measure.fitness import is_thought
from stepmend.records import Grade, Trace
from stepmend.report.summary import Found, final, points, span, tuning

MEASURES = {
    "question": "loss on the questions' text (nats per token)",
    "kl": "KL from full precision where both models were right (nats per token)",
}
ENDINGS: dict[str, tuple[str, Callable[[Trace, Grade], bool]]] = {
    "truncated": ("cut off", lambda trace, grade: trace.finish == "length"),
    "loops": ("in a loop", lambda trace, grade: behaviour.loops(trace.text)),
    "unclosed": ("in an unclosed thought", lambda trace, grade: not visible(trace.said).whole),
    "unboxed": ("without a boxed answer", lambda trace, grade: grade.form != "boxed"),
}
"""Odd endings of solutions, in words and as a question."""


@dataclass(frozen=True)
class Row:
    """What two paired arms show, the second minus the first; ``p`` is the adjusted one where several are tested, ``name`` what of."""

    name: str
    n: int
    lost: int
    gained: int
    mcnemar_p: float
    p: float
    value: float
    low: float
    high: float
    verdict: statistics.Verdict


@dataclass(frozen=True)
class Ending(Row):
    """How many solutions end oddly before and after; the row is of those that do not."""

    before: int
    after: int


@dataclass(frozen=True)
class Measure:
    """A mean over problems, before and after."""

    text: str
    change: Change


@dataclass(frozen=True)
class Restored:
    """What the restored model ``arm`` does otherwise than the low-bit one, by level and beyond accuracy.

    ``accuracy``: the change over all problems. ``levels``: paired counts a level. ``endings``: odd ones before and after. Each with its
    change in accuracy or share, the 95 % interval, p (adjusted by Holm's method over the levels, or the endings) and the verdict by
    ``margin``. ``measures``: means before and after, and the change with its 95 % interval over problems. ``worse``: one sentence for
    everything that is shown to be worse, by more than the margin where that applies. ``undecided``: what is shown neither to be worse nor
    to be within the margin. ``missing``: what should have been measured and was not.
    """

    scheme: str
    arm: str
    margin: float
    accuracy: Row
    levels: list[Row]
    endings: list[Ending]
    measures: list[Measure]
    worse: list[str]
    missing: list[str]

    @property
    def undecided(self) -> list[str]:
        rows = [row.name for row in (*self.levels, *self.endings) if row.verdict == "not shown"]
        return rows + [m.text for m in self.measures if m.change.low <= 0 < m.change.high]

    @property
    def shown(self) -> str:
        """What is shown of its accuracy, in words."""
        rest = f"; not shown either way: {', '.join(self.undecided)}" if self.undecided else ""
        total = self.accuracy
        return f"accuracy {span(vars(total))} points, n = {total.n}: {statistics.verdict_text(total.verdict, self.margin)}{rest}"

    @property
    def text(self) -> str:
        """What is shown of it against the quantized model it started from."""
        worse = f"worse beyond noise: {'; '.join(self.worse)}" if self.worse else "no measure is shown to be worse"
        return f"{self.shown}; {worse}"


def figures(found: Found) -> list[Restored]:
    """Every scheme that was restored."""
    return [of for scheme in found.measured if (of := effects(found, scheme))]


def lines(of: list[Restored]) -> list[str]:
    """One line a restored scheme: what turned wrong, whether it is worse than the quantized model, and what else is."""
    return [f"{one.arm}: {one.accuracy.gained} turned right, {one.accuracy.lost} turned wrong; {one.text}" for one in of]


def effects(found: Found, scheme: str) -> Restored | None:
    """What restoring a scheme did; None where nothing was restored."""
    restored = final(found, scheme)
    if restored is None:
        return None
    names, margin = list(dict.fromkeys(p.level for p in found.test)), found.recipe.measure.margin
    pairs = [(found.outcomes(scheme, level), found.outcomes(restored, level)) for level in names]
    adjusted = statistics.holm([statistics.paired(*pair).p for pair in pairs])
    levels = [Row(**_row(name, *pair, margin, p)) for name, pair, p in zip(names, pairs, adjusted, strict=True)]
    kept = found.facts.get(Effects, restored)
    changes = {"question": kept.question, "kl": kept.kl} if kept else {}
    measures = [Measure(text, of) for name, text in MEASURES.items() if (of := changes.get(name))]
    total = Row(**_row("accuracy", found.outcomes(scheme), found.outcomes(restored), margin))
    endings = _endings(found, scheme, restored)
    worse = _worse(levels, total, measures, endings)
    if (change := tuning(found, scheme).chosen_change or 0.0) < 0:
        worse.append(f"the bullets' own chosen texts: {-change:.3f} nats per token less likely (raise restore.keep_chosen)")
    return Restored(scheme, restored, margin, total, levels, endings, measures, worse, [] if kept else list(MEASURES.values()))


def _worse(levels: list[Row], total: Row, measures: list[Measure], endings: list[Ending]) -> list[str]:
    """A sentence for everything that is shown to be worse."""
    worse = [
        f"{row.name}: {row.lost} right answers turned wrong and {row.gained} wrong ones right (p = {row.p:.2g})"
        for row in levels
        if row.verdict == "worse"
    ]
    if total.verdict == "worse":
        worse.append(f"accuracy: {points(total.value)} points (p = {total.p:.2g})")
    worse += [f"{m.text}: {m.change.before:.4f} before, {m.change.after:.4f} after" for m in measures if m.change.low > 0]
    return worse + [
        f"solutions {row.name}: {row.before} before, {row.after} after (p = {row.p:.2g})" for row in endings if row.verdict == "worse"
    ]


def _row(name: str, first: statistics.Samples, second: statistics.Samples, margin: float, p: float | None = None) -> dict[str, Any]:
    pair, change = statistics.paired(first, second), statistics.difference(second, first)
    shown = statistics.verdict(change, margin, p=p)
    counts = {"n": pair.n, "lost": pair.only_first, "gained": pair.only_second, "mcnemar_p": pair.p, "p": pair.p if p is None else p}
    return {"name": name, **counts, "value": change.value, "low": change.low, "high": change.high, "verdict": shown}


def _endings(found: Found, scheme: str, restored: str) -> list[Ending]:
    """How many solutions have each odd ending, before and after, and the change of the share of those that have not."""

    def odd(arm: str, of: Callable[[Trace, Grade], bool]) -> statistics.Samples:
        columns = [[of(trace, grade) for _, trace, grade in found.solutions(arm, number=n)] for n in range(found.samples)]
        return np.array(columns[0] if len(columns) == 1 else columns, dtype=bool).T

    kinds = endings_of(found)
    arms = [(odd(scheme, of), odd(restored, of)) for _, of in kinds.values()]
    tested = endings.tested([(~before, ~after) for before, after in arms])
    margin = found.recipe.measure.margin
    return [
        Ending(before=int(before.sum()), after=int(after.sum()), **_row(text, ~before, ~after, margin, of.holm))
        for (text, _), (before, after), of in zip(kinds.values(), arms, tested, strict=True)
    ]


def endings_of(found: Found) -> dict[str, tuple[str, Callable[[Trace, Grade], bool]]]:
    """The abnormal endings that solutions of a run may have: unclosed thoughts only where a model thinks."""
    thinks = any(is_thought(trace) for arm in found.arms for _, trace, _ in found.solutions(arm))
    return {name: of for name, of in ENDINGS.items() if name != "unclosed" or thinks}
