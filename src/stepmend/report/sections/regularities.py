"""The paper's two regularities (2505.11574), tested on one run: do faults come early, and which classes of faults are raised?

Beside them, how locating ended, and what became of the judges' questions.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stepmend.arms import FULL
from stepmend.facts import Judged
from stepmend.locate import steps
from stepmend.measure import fitness, statistics
from stepmend.records import Fault
from stepmend.report import summary
from stepmend.report.summary import Found

FEW = 10
"""With fewer faults on either side nothing is concluded."""
CONCEPTUAL = frozenset({"conceptual_misunderstanding", "contextual_oversight"})
LOW_LEVEL = frozenset({"procedural", "formula_rule", "computational", "symbolic_manipulation"})
"""The paper's method and execution errors."""
PLACED = (
    "Full precision's own faults are located by samples, of which one in eight must reach the correct answer; this alone places them later."
)
"""What a reader must know of the first test: a regression is placed by one greedy continuation."""


@dataclass(frozen=True)
class Scheme:
    """One scheme: both tests, how locating its regressions ended, and whether their faults lie in the thought or in the answer."""

    scheme: str
    early: dict[str, Any]
    classes: dict[str, Any]
    located: dict[str, int]
    thoughts: dict[str, int]


@dataclass(frozen=True)
class Regularities:
    """All schemes; and what became of the judges' questions, by judge, in words."""

    schemes: list[Scheme]
    judges: dict[str, str]


def figures(found: Found) -> Regularities:
    """Every scheme that was measured."""
    return Regularities([_scheme(found, scheme) for scheme in found.measured], judges(found))


def _scheme(found: Found, scheme: str) -> Scheme:
    tests = regularities(found, scheme)
    return Scheme(scheme, tests["early"], tests["classes"], locating(found, scheme), thoughts(found, scheme))


def regularities(found: Found, arm: str) -> dict[str, Any]:
    """Both tests for one quantized arm: figures with 95 % bootstrap intervals, and a sentence each."""
    test = {problem.id for problem in found.test}
    own = [f for p, f in found.faults.get(FULL, {}).items() if p in test]
    regressions = [f for p, f in found.faults.get(arm, {}).items() if p in test]
    return {"early": early(regressions, own), "classes": raised(found, arm, regressions, own)}


def judges(found: Found) -> dict[str, str]:
    """What became of the judges' questions, by judge, in words; empty where none was asked."""
    judged = found.facts.get(Judged)
    return {name: summary.judge_text(tally) for name, tally in judged.judges.items()} if judged else {}


def locating(found: Found, arm: str) -> dict[str, int]:
    """How locating ended, by outcome; and how many of the located faults have no error class."""
    faults = found.faults.get(arm, {}).values()
    counts = Counter(fault.outcome for fault in faults)
    named = {name: counts[name] for name in ("located", "abstained", "misread", "unrescuable")}
    return named | {"unclassified": sum(fault.step is not None and fault.error_class is None for fault in faults)}


def thoughts(found: Found, arm: str) -> dict[str, int]:
    """Where an arm's located faults lie: in the thought or in the answer; empty where its solutions hold no thoughts."""
    counts = Counter[str]()
    for fault in found.faults.get(arm, {}).values():
        trace = found.trace(arm, fault.problem, fault.sample)
        if fault.span and trace and fitness.is_thought(trace):
            answer = steps.answer_start(trace.said)
            counts["thought" if answer is None or fault.span[0] + len(trace.opening) < answer else "answer"] += 1
    return dict(counts)


def located(found: Found, scheme: str) -> list[str]:
    """How locating a scheme's faults ended, in words; nothing where none was looked for."""
    if not found.faults.get(scheme):
        return []
    lines = [f"{scheme}: regressions {', '.join(f'{name} {n}' for name, n in locating(found, scheme).items())}"]
    if places := thoughts(found, scheme):
        lines.append(f"{scheme}: located faults in {', '.join(f'the {name} {n}' for name, n in sorted(places.items(), reverse=True))}")
    return lines


def lines(of: Regularities) -> list[str]:
    """Both tests in words, for every scheme; those without enough faults to say anything are left out."""
    tests = [(one.scheme, test["sentence"]) for one in of.schemes for test in (one.early, one.classes)]
    return [f"{scheme}: {sentence}" for scheme, sentence in tests if "Too few" not in sentence]


def place(fault: Fault) -> float | None:
    """How far into its solution a fault comes: 0 at the first step, 1 at the last; None where it is not located, or is the only step."""
    return fault.step / (fault.steps - 1) if fault.step is not None and fault.steps > 1 else None


def early(regressions: Sequence[Fault], own: Sequence[Fault]) -> dict[str, Any]:
    """Whether the arm's faults come earlier than full precision's own: difference of mean places, and Mann and Whitney's test."""
    theirs, mine = ([p for f in of if (p := place(f)) is not None] for of in (regressions, own))
    figures: dict[str, Any] = {"n": len(theirs), "n_full": len(mine)}
    if min(len(theirs), len(mine)) < FEW:
        few = f"Too few located faults to say whether they come early ({len(theirs)}, and {len(mine)} of full precision's own)."
        return figures | {"difference": None, "p": None, "sentence": few}
    from scipy.stats import mannwhitneyu

    rng = np.random.default_rng(0)
    draws = [rng.choice(np.array(of), (statistics.RESAMPLES, len(of))).mean(axis=1) for of in (theirs, mine)]
    low, high = np.quantile(draws[0] - draws[1], [0.025, 0.975])
    value = float(np.mean(theirs) - np.mean(mine))
    p = float(mannwhitneyu(theirs, mine).pvalue)
    means = f"on average at {np.mean(theirs):.2f} of the way, full precision's own at {np.mean(mine):.2f}"
    said = f"difference {value:+.2f}, {low:+.2f} to {high:+.2f}".replace("-", "−")
    verdict = "Faults come earlier" if high < 0 else "Faults come later" if low > 0 else "That faults come early is not significant"
    return figures | {
        "difference": {"value": value, "low": float(low), "high": float(high)},
        "p": p,
        "sentence": f"{verdict}: {means} ({said}; Mann–Whitney p = {p:.2g}). {PLACED}",
    }


def raised(found: Found, arm: str, regressions: Sequence[Fault], own: Sequence[Fault]) -> dict[str, Any]:
    """Whether method and execution faults are raised more than conceptual ones.

    A class is raised by the regressions that have it, less full precision's own faults of that class on problems that the arm solves,
    a hundred problems; resampled over problems.
    """
    places = {problem.id: number for number, problem in enumerate(found.test)}
    solved = {p.id for p in found.test if found.solves(arm, p.id)}
    change_N2 = np.zeros((len(places), 2))
    for sign, faults in ((1, regressions), (-1, [f for f in own if f.problem in solved])):
        for fault in faults:
            change_N2[places[fault.problem]] += sign * np.array([fault.error_class in LOW_LEVEL, fault.error_class in CONCEPTUAL])
    sides = [statistics.mean(change_N2[:, 0]), statistics.mean(change_N2[:, 1])]
    gap = statistics.mean(change_N2[:, 0] - change_N2[:, 1])
    few = int(np.abs(change_N2).sum()) < FEW
    low, high = gap.low or 0.0, gap.high or 0.0
    verdict = "Method and execution faults are raised more than conceptual ones" if low > 0 else (
        "Conceptual faults are raised more than those of method and execution" if high < 0 else
        "That method and execution faults are raised more than conceptual ones is not significant"
    )  # fmt: skip
    said = [f"{100 * (i.value or 0):+.1f} ({100 * (i.low or 0):+.1f} to {100 * (i.high or 0):+.1f})".replace("-", "−") for i in sides]
    return {
        "low_level": vars(sides[0]),
        "conceptual": vars(sides[1]),
        "gap": vars(gap),
        "sentence": "Too few classified faults to say which classes are raised."
        if few
        else f"{verdict}: {said[0]} against {said[1]} per hundred problems.",
    }
