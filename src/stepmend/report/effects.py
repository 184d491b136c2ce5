"""Nothing else breaks, or it is said: what restoring did beside the accuracy, each against noise."""

from collections.abc import Callable
from typing import Any

import numpy as np

from stepmend.facts import Effects
from stepmend.grading.visible import visible
from stepmend.measure import behaviour, endings, statistics
from stepmend.measure.fitness import is_thought
from stepmend.records import Grade, Trace
from stepmend.report.summary import Found, final, points, span, tuning

MEASURES = {
    "question": "loss on the questions' text (nats a token)",
    "kl": "KL from full precision where both models were right (nats a token)",
}
ENDINGS: dict[str, tuple[str, Callable[[Trace, Grade], bool]]] = {
    "truncated": ("cut off", lambda trace, grade: trace.finish == "length"),
    "loops": ("in a loop", lambda trace, grade: behaviour.loops(trace.text)),
    "unclosed": ("in an unclosed thought", lambda trace, grade: not visible(trace.said).whole),
    "unboxed": ("without a boxed answer", lambda trace, grade: grade.form != "boxed"),
}
"""Odd endings of solutions, in words and as a question."""


def effects(found: Found, scheme: str) -> dict[str, Any] | None:
    """What the restored model does otherwise than the low-bit one, by level and beyond accuracy; None where nothing was restored.

    ``accuracy``: the change over all problems. ``levels``: paired counts a level. ``endings``: odd ones before and after. Each with its
    change in accuracy or share, the 95 % interval, McNemar's p (``mcnemar_p``; ``p`` is adjusted by Holm's method over the levels, or the
    endings) and the verdict by the recipe's margin. ``measures``: means before and after, and the change with its 95 % interval over
    problems. ``worse``: one sentence for everything that is shown to be worse, by more than the margin where that applies.
    ``undecided``: what is shown neither to be worse nor to be within the margin. ``missing``: what should have been measured and was not.
    """
    restored = final(found, scheme)
    if restored is None:
        return None
    names = list(dict.fromkeys(p.level for p in found.test))
    margin = found.recipe.measure.margin
    pairs = [(found.outcomes(scheme, level), found.outcomes(restored, level)) for level in names]
    adjusted = statistics.holm([statistics.paired(*pair).p for pair in pairs])
    levels = [{"level": name, **_row(*pair, margin, p)} for name, pair, p in zip(names, pairs, adjusted, strict=True)]
    kept = found.facts.get(Effects, restored)
    changes = {"question": kept.question, "kl": kept.kl} if kept else {}
    measures = {name: {**of.model_dump(), "text": text} for name, text in MEASURES.items() if (of := changes.get(name))}
    total = _row(found.outcomes(scheme), found.outcomes(restored), margin)
    endings = _endings(found, scheme, restored)
    worse = _worse(levels, total, measures, endings)
    undecided = [row.get("level") or row["ending"] for row in (*levels, *endings) if row["verdict"] == "not shown"]
    undecided += [m["text"] for m in measures.values() if m["low"] <= 0 < m["high"]]
    if (change := tuning(found, scheme).chosen_change or 0.0) < 0:
        worse.append(f"the bullets' own chosen texts: {-change:.3f} nats a token less likely (raise restore.keep_chosen)")
    counts = {"lost": total["lost"], "gained": total["gained"], "accuracy": total, "margin": margin, "undecided": undecided}
    counts |= {"shown": _shown(total, margin, undecided)}
    missing = [] if kept else list(MEASURES.values())
    return {"arm": restored, "levels": levels, **counts, "measures": measures, "endings": endings, "worse": worse, "missing": missing}


def _worse(
    levels: list[dict[str, Any]], total: dict[str, Any], measures: dict[str, dict[str, Any]], endings: list[dict[str, Any]]
) -> list[str]:
    """A sentence for everything that is shown to be worse."""
    worse = [
        f"{row['level']}: {row['lost']} right answers turned wrong and {row['gained']} wrong ones right (p = {row['p']:.2g})"
        for row in levels
        if row["verdict"] == "worse"
    ]
    if total["verdict"] == "worse":
        worse.append(f"accuracy: {points(total['value'])} points (p = {total['p']:.2g})")
    worse += [f"{m['text']}: {m['before']:.4f} before, {m['after']:.4f} after" for m in measures.values() if m["low"] > 0]
    return worse + [
        f"solutions {row['ending']}: {row['before']} before, {row['after']} after (p = {row['p']:.2g})"
        for row in endings
        if row["verdict"] == "worse"
    ]


def _row(first: statistics.Samples, second: statistics.Samples, margin: float, p: float | None = None) -> dict[str, Any]:
    """What two paired arms show; the change is second minus first, and ``p`` the adjusted one where several are tested."""
    pair, change = statistics.paired(first, second), statistics.difference(second, first)
    shown = statistics.verdict(change, margin, p=p)
    counts = {"n": pair.n, "lost": pair.only_first, "gained": pair.only_second, "mcnemar_p": pair.p, "p": pair.p if p is None else p}
    return counts | {"value": change.value, "low": change.low, "high": change.high, "verdict": shown}


def _endings(found: Found, scheme: str, restored: str) -> list[dict[str, Any]]:
    """How many solutions have each odd ending, before and after, and the change of the share of those that have not."""

    def odd(arm: str, of: Callable[[Trace, Grade], bool]) -> statistics.Samples:
        columns = [[of(trace, grade) for _, trace, grade in found.solutions(arm, number=n)] for n in range(found.samples)]
        return np.array(columns[0] if len(columns) == 1 else columns, dtype=bool).T

    kinds = endings_of(found)
    arms = [(odd(scheme, of), odd(restored, of)) for _, of in kinds.values()]
    tested = endings.tested([(~before, ~after) for before, after in arms])
    margin = found.recipe.measure.margin
    return [
        {"ending": text, "before": int(before.sum()), "after": int(after.sum()), **_row(~before, ~after, margin, of.holm)}
        for (text, _), (before, after), of in zip(kinds.values(), arms, tested, strict=True)
    ]


def endings_of(found: Found) -> dict[str, tuple[str, Callable[[Trace, Grade], bool]]]:
    """The odd endings that solutions of a run may have: unclosed thoughts only where a model thinks."""
    thinks = any(is_thought(trace) for arm in found.arms for _, trace, _ in found.solutions(arm))
    return {name: of for name, of in ENDINGS.items() if name != "unclosed" or thinks}


def sentences(found: Found) -> list[str]:
    """One line a restored scheme: what turned wrong, whether it is worse than the quantized model, and what else is."""
    lines = []
    for scheme in found.recipe.low_bit:
        if scheme in found.arms and (of := effects(found, scheme)):
            lines.append(f"{of['arm']}: {of['gained']} turned right, {of['lost']} turned wrong; {verdict_text(of)}")
    return lines


def verdict_text(of: dict[str, Any]) -> str:
    """What is shown of a restored model against the quantized one it started from, from its effects."""
    worse = f"worse beyond noise: {'; '.join(of['worse'])}" if of["worse"] else "nothing is shown to be worse"
    return f"{of['shown']}; {worse}"


def _shown(total: dict[str, Any], margin: float, undecided: list[str]) -> str:
    rest = f"; not shown either way: {', '.join(undecided)}" if undecided else ""
    return f"accuracy {span(total)} points, n = {total['n']}: {statistics.verdict_text(total['verdict'], margin)}{rest}"
