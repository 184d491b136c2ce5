"""Nothing else breaks, or it is said: what restoring did beside the accuracy, each against noise."""

from collections.abc import Callable
from typing import Any

import numpy as np

from stepmend.measure import behaviour, statistics
from stepmend.records import Grade, Trace
from stepmend.report.summary import Found, final, points, tuning

LEVEL = 0.05
MEASURES = {
    "question": "loss on the questions' text (nats a token)",
    "kl": "KL from full precision where both models were right (nats a token)",
}
ENDINGS: dict[str, tuple[str, Callable[[Trace, Grade], bool]]] = {
    "truncated": ("cut off", lambda trace, grade: trace.finish == "length"),
    "loops": ("in a loop", lambda trace, grade: behaviour.loops(trace.text)),
    "unboxed": ("without a boxed answer", lambda trace, grade: grade.form != "boxed"),
}
"""Odd endings of solutions, in words and as a question."""


def effects(found: Found, scheme: str) -> dict[str, Any] | None:
    """What the restored model does otherwise than the low-bit one, by level and beyond accuracy; None where nothing was restored.

    ``levels``: paired counts a level, with Holm's adjustment over the levels. ``measures``: means before and after, and the change with
    its 95 % interval over problems. ``endings``: odd ones before and after, with Holm's adjustment over them. ``worse``: one sentence for
    everything that is worse beyond noise. ``missing``: what should have been measured and was not.
    """
    restored = final(found, scheme)
    if restored is None:
        return None
    names = list(dict.fromkeys(p.level for p in found.test))
    pairs = [statistics.paired(found.outcomes(scheme, level), found.outcomes(restored, level)) for level in names]
    adjusted = statistics.holm([pair.p for pair in pairs])
    levels = [
        {"level": name, "n": pair.n, "lost": pair.only_first, "gained": pair.only_second, "p": p}
        for name, pair, p in zip(names, pairs, adjusted, strict=True)
    ]
    note = found.notes.get(f"effects-{restored}", {})
    measures = {name: {**note[name], "text": text} for name, text in MEASURES.items() if name in note}
    total = statistics.paired(found.outcomes(scheme), found.outcomes(restored))
    worse = [
        f"{row['level']}: {row['lost']} right answers turned wrong and {row['gained']} wrong ones right (p = {row['p']:.2g})"
        for row in levels
        if row["lost"] > row["gained"] and row["p"] < LEVEL
    ]
    if total.only_first > total.only_second and total.p < LEVEL:
        worse.append(f"accuracy: {points((total.only_second - total.only_first) / total.n)} points (p = {total.p:.2g})")
    worse += [f"{m['text']}: {m['before']:.4f} before, {m['after']:.4f} after" for m in measures.values() if m["low"] > 0]
    endings = _endings(found, scheme, restored)
    worse += [
        f"solutions {row['ending']}: {row['before']} before, {row['after']} after (p = {row['p']:.2g})"
        for row in endings
        if row["after"] > row["before"] and row["p"] < LEVEL
    ]
    if (change := tuning(found, scheme).get("chosen_change") or 0.0) < 0:
        worse.append(f"the bullets' own chosen texts: {-change:.3f} nats a token less likely (raise restore.keep_chosen)")
    counts = {"lost": total.only_first, "gained": total.only_second}
    missing = [] if note else list(MEASURES.values())
    return {"arm": restored, "levels": levels, **counts, "measures": measures, "endings": endings, "worse": worse, "missing": missing}


def _endings(found: Found, scheme: str, restored: str) -> list[dict[str, Any]]:
    """How many solutions have each odd ending, before and after, and the exact McNemar test of the difference."""

    def odd(arm: str, of: Callable[[Trace, Grade], bool]) -> statistics.Outcomes:
        return np.array([of(found.traces[arm][p.id], found.grades[arm][p.id]) for p in found.test], dtype=bool)

    pairs = [(text, odd(scheme, of), odd(restored, of)) for text, of in ENDINGS.values()]
    adjusted = statistics.holm([statistics.paired(before, after).p for _, before, after in pairs])
    return [
        {"ending": text, "n": len(before), "before": int(before.sum()), "after": int(after.sum()), "p": p}
        for (text, before, after), p in zip(pairs, adjusted, strict=True)
    ]


def sentences(found: Found) -> list[str]:
    """One line a restored scheme: what turned wrong, and what is worse beyond noise."""
    lines = []
    for scheme in found.recipe.schemes:
        if scheme in found.arms and (of := effects(found, scheme)):
            worse = f"worse beyond noise: {'; '.join(of['worse'])}" if of["worse"] else "nothing is worse beyond noise"
            lines.append(f"{of['arm']}: {of['gained']} turned right, {of['lost']} turned wrong; {worse}")
    return lines
