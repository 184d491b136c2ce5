"""Nothing else breaks, or it is said: what restoring did beside the accuracy, each against noise."""

from typing import Any

from stepmend.measure import statistics
from stepmend.report.summary import Found, final, points

LEVEL = 0.05
MEASURES = {
    "question": "loss on the questions' text (nats a token)",
    "kl": "KL from full precision where the low-bit model was right (nats a token)",
}


def effects(found: Found, scheme: str) -> dict[str, Any] | None:
    """What the restored model does otherwise than the low-bit one, by level and beyond accuracy; None where nothing was restored.

    ``levels``: paired counts a level, with Holm's adjustment over the levels. ``measures``: means before and after, and the change with
    its 95 % interval over problems. ``worse``: one sentence for everything that is worse beyond noise.
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
    return {"arm": restored, "levels": levels, "lost": total.only_first, "gained": total.only_second, "measures": measures, "worse": worse}


def sentences(found: Found) -> list[str]:
    """One line a restored scheme: what turned wrong, and what is worse beyond noise."""
    lines = []
    for scheme in found.recipe.schemes:
        if scheme in found.arms and (of := effects(found, scheme)):
            worse = f"worse beyond noise: {'; '.join(of['worse'])}" if of["worse"] else "nothing is worse beyond noise"
            lines.append(f"{of['arm']}: {of['gained']} wrong answers turned right, {of['lost']} right ones wrong; {worse}")
    return lines
