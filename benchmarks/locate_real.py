"""Locating on labelled failures of a real model: the sections of docs/results/locate.md that ``locate.py --only real`` writes.

The vote's rates are cross-validated by problem. The rules behind the locators and the error classes were written with these labels in
sight, so their own figures are in-sample, and the page says so.
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from stepmend.locate import bench, calibration, labelled, labelling
from stepmend.locate.calibration import Observation, Stated
from stepmend.locate.labelled import Labelled, share
from stepmend.progress import Stages
from stepmend.recipe import Recipe
from stepmend.records import Fault

NEEDS = {"rescue": ("model",), "solution": ("model",), "margins": ("model", "quantized")}
NAMES = ("equations", "rescue", "margins", "reference", "solution")
SETS: dict[str, frozenset[str]] = {
    "all locators": frozenset(),
    "without the benchmark's worked solutions": frozenset({"reference"}),
    "without any right solution": frozenset({"reference", "solution"}),
}
"""What is left out of the vote."""
SAMPLES = 8
JUDGE_TIMEOUT = 600.0
"""Seconds that a judge has for an answer: some run on a CPU."""


def parts(labels: Path, data: Path, models: dict[str, str | None], max_new_tokens: int, out: Path) -> list[str]:
    """The sections, on a file of labelled failures of GSM8K problems."""
    solutions = bench.read(labels, problems=data / "gsm8k")
    asked = tuple(name for name in NAMES if all(models[need] for need in NEEDS.get(name, ())))
    settings = Recipe.make({"locate": {"locators": asked, "samples": SAMPLES, "completer": models["completer"]}}).locate
    setup = labelling.Setup(settings, models["model"], models["quantized"], max_new_tokens=max_new_tokens)
    ready, found = labelling.run(solutions, setup, out, Stages())
    who = f"{len(solutions)} failures of a real model, labelled by two readers; locators: {', '.join(asked)}"
    left_out = [name for name in NAMES if name not in asked]
    who += f" (not {', '.join(left_out)}: no models were given)" if left_out else ""
    who += f"; rescue by {models['completer'] or 'full precision'}, {SAMPLES} samples a cut" if "rescue" in asked else ""
    return [vote_section(who, ready, found), calibrated(ready, found), alone(ready, found, asked), classes(ready, found)]


def judge_section(labels: Path, data: Path, specs: Sequence[str], answers: Path) -> str:
    """LLM judges by ProcessBench's rules, on the labelled steps, told the right answer as in a run."""
    solutions = bench.read(labels, problems=data / "gsm8k")
    with bench.asking(specs, answers, None, Console(), timeout=JUDGE_TIMEOUT) as locate:
        found, notes = locate(solutions)
    named = [(one, step) for one, step in zip(solutions, found, strict=True) if step not in (None, bench.ABSTAINED)]
    exact = sum(step == one.label for one, step in named)
    also = sum(step == one.label or step in one.also for one, step in named)
    faulty = sum(one.label is not None for one in solutions)
    who = ", ".join(spec.partition("=")[0] for spec in specs)
    shares = share(len(named), len(solutions)), share(exact, len(named)), share(also, len(named)), share(exact, faulty)
    lines = [
        "## A judge", "",
        f"The same {len(solutions)} failures, asked of {who} behind an OpenAI-compatible server. Judges choose among the labelled steps, "
        "and are told the right answer, as in a run.", "",
        "| judge | names a step | of those exact | of those defensible | exact of all faulty |", "|---|---|---|---|---|",
        f"| {who} | {' | '.join(shares)} |", "",
    ]  # fmt: skip
    asked = {spec.partition("=")[0] for spec in specs}
    tokens = [one.tokens or 0 for one in bench.kept(answers) if one.judge in asked]
    notes = [re.sub("; [0-9,]+ tokens", "", note) for note in notes]  # those of the last call alone
    notes.append(f"{sum(tokens):,} tokens were read and written for {len(tokens)} answers")
    return "\n".join([*lines, *(f"- {note}" for note in notes), ""])


def left(ready: Sequence[Labelled], found: Sequence[Fault], out: frozenset[str]) -> list[Observation]:
    """What the locators said, but for some of them."""
    observed = [one.observation(fault) for one, fault in zip(ready, found, strict=True)]
    return [Observation(o.group, o.kinds, tuple(v for v in o.votes if v.locator not in out), o.truth) for o in observed]


def row(name: str, ready: Sequence[Labelled], stated: Sequence[Stated]) -> str:
    named = [(one, s.step) for one, s in zip(ready, stated, strict=True) if s.step is not None]
    faulty = sum(one.truth is not None for one in ready)
    exact = sum(one.exact(step) for one, step in named)
    also = sum(one.exact(step) or step in one.also for one, step in named)
    return f"| {name} | {share(len(named), len(ready))} | {share(exact, len(named))} | {share(also, len(named))} | {share(exact, faulty)} |"


def vote_section(who: str, ready: Sequence[Labelled], found: Sequence[Fault]) -> str:
    """The vote with rates that are cross-validated by problem."""
    lines = [
        "## A real model", "",
        f"{who}. Rates cross-validated by problem ({calibration.FOLDS} folds); the rules of equations, steps and the locators by right "
        "solutions were written with these labels in sight: in-sample to that extent.", "",
        "| vote | names a step | of those exact | of those defensible | exact of all faulty |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for name, out in SETS.items():
        lines.append(row(name, ready, calibration.cross_validated(left(ready, found, out))))
        lines.append(row(f"{name}, at 0.7", ready, calibration.cross_validated(left(ready, found, out), 0.7)))
    completions, tokens = (sum(fault.spent[i] for fault in found) for i in (0, 1))
    cost = ["", f"Rescue took {completions:,} completions of {tokens:,} tokens."] if completions else []
    return "\n".join([*lines, *cost, ""])


def calibrated(ready: Sequence[Labelled], found: Sequence[Fault]) -> str:
    """Stated probability against what comes out, on labels that the rates were not fitted to."""
    lines = [
        "## Its stated probabilities", "",
        "The vote's probability of its best step, cross-validated, beside the share that is the labelled one.", "",
        "| vote | stated | n | mean stated | exact |", "|---|---|---|---|---|",
    ]  # fmt: skip
    scores = []
    for name, out in SETS.items():
        observed = left(ready, found, out)
        stated = calibration.cross_validated(observed, threshold=0.0)
        right = [s.step is not None and s.step == o.truth for s, o in zip(stated, observed, strict=True)]
        for low, high, count, mean, good in calibration.reliability_diagram(stated, right):
            lines.append(f"| {name} | {low:g} to {high:g} | {count} | {mean:.2f} | {share(good, count)} |")
        score = calibration.brier(stated, right)
        scores.append(f"{name} {'–' if score is None else f'{score:.3f}'}")
    return "\n".join([*lines, "", f"Brier score: {', '.join(scores)} (0.25 is a coin's).", ""])


def alone(ready: Sequence[Labelled], found: Sequence[Fault], asked: Sequence[str]) -> str:
    """Each locator by itself."""
    lines = [
        "## Its locators, each alone", "", "In-sample where a rule was written with these labels in sight.", "",
        "| locator | names a step | of those exact | of those defensible | exact of all faulty |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for name in asked:
        own = [labelled.alone(fault, name) for fault in found]
        lines.append(row(name, ready, [Stated(fault.step, fault.confidence) for fault in own]))
    return "\n".join([*lines, ""])


def classes(ready: Sequence[Labelled], found: Sequence[Fault]) -> str:
    """Error classes at the labelled step, and end to end where the named step is exact."""
    at_label = [(one.solution.error_class, labelled.at_label(one)) for one in ready if one.solution.error_class and one.truth is not None]
    stated = calibration.cross_validated(left(ready, found, frozenset()))
    named = [(one, fault) for one, fault, s in zip(ready, found, stated, strict=True) if s.step is not None and s.step == fault.step]
    ends = [(one.solution.error_class, fault.error_class) for one, fault in named if one.solution.error_class]
    table = Counter((label, mine or "unclassified") for label, mine in at_label)
    rows, columns = sorted({label for label, _ in table}), sorted({mine for _, mine in table})
    return "\n".join([
        "## Its error classes", "", "The rules were written on the first half of these labels and looked at on both: in-sample.", "",
        f"At the labelled step: {share(sum(a == b for a, b in at_label), len(at_label))} right, a class given for "
        f"{share(sum(b is not None for _, b in at_label), len(at_label))}. At the named step, right or not: "
        f"{share(sum(a == b for a, b in ends), len(ends))} right, {sum(b is None for _, b in ends)} unclassified.", "",
        "| labelled | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns),
        *[f"| {label} | " + " | ".join(str(table[label, mine] or "") for mine in columns) + " |" for label in rows], "",
    ])  # fmt: skip
