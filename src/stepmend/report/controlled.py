"""Whether located steps mattered: located bullets against every control, paired by problem, seeds pooled.

Seeds are replicates of training: each problem's outcome is averaged over them. Intervals and p are over problems, for these seeds.
"""

from typing import Any

import numpy as np

from stepmend.facts import Control
from stepmend.measure import statistics
from stepmend.report.summary import Found, points

LOCATED = "located"
SEEDS = "Seeds are replicates of training, averaged within each problem; intervals and p are over problems, for these seeds."
ENOUGH = 3
"""Seeds below which a sentence says that they are few."""
ELSEWHERE = ("random-step", "shuffled-step")
"""The controls that differ from located bullets in nothing but the step."""


def controls(found: Found, scheme: str) -> dict[str, Any] | None:
    """Every control of a scheme beside located bullets; None where none was measured.

    ``rows`` hold, for each control and budget: accuracy over seeds, located minus control with its 95 % interval (problems resampled,
    seeds kept together), the sign-flip test with Holm's adjustment over the rows, tokens and seconds. ``sentence`` says what follows.
    """
    groups = _groups(found, scheme)
    located = groups.pop((LOCATED, "steps"), None)
    if located is None or not groups:
        return None
    ours, rows = _outcomes(found, located), []
    for (name, budget), of in groups.items():
        theirs = _outcomes(found, of)
        change = statistics.difference(ours, theirs)
        row = {"name": f"{name}, equal {budget}", "control": name, "budget": budget, "seeds": len(of)}
        row |= {"accuracy": statistics.average_at(theirs), "p": statistics.permutation(ours, theirs)}
        row |= {"difference": {"value": change.value, "low": change.low, "high": change.high}}
        row |= {key: float(np.mean([getattr(one, key) for one in of])) for key in ("tokens", "seconds", "bullets")}
        rows.append(row)
    for row, p in zip(rows, statistics.holm([row["p"] for row in rows]), strict=True):
        row |= {"raw_p": row["p"], "p": p}
    first = {"accuracy": statistics.average_at(ours), "seeds": len(located), "bullets": located[0].bullets}
    first |= {"tokens": float(np.mean([one.tokens for one in located]))}
    return {"located": first, "rows": rows, "sentence": _sentence(rows)}


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


def _sentence(rows: list[dict[str, Any]]) -> str:
    chosen = [row for row in rows if row["control"] in ELSEWHERE]
    if not chosen:
        return f"Whether located steps mattered was not tested: neither {' nor '.join(ELSEWHERE)} is among these controls."
    row = max(chosen, key=lambda row: row["p"])  # what is claimed must hold against each of them, under every budget
    said, signs = f"{_said(row)} against {row['control']}, at equal {row['budget']}", {row["difference"]["value"] > 0 for row in chosen}
    if row["seeds"] < ENOUGH:
        said += f" (seeds: {row['seeds']}; take at least {ENOUGH})"
    if row["p"] >= 0.05 or len(signs) > 1:
        return f"Located steps were not shown to matter here: {said}."
    verb = "mattered" if row["difference"]["value"] > 0 else "did harm"
    return f"Located steps {verb} here: {said}."


def sentences(found: Found) -> list[str]:
    """Whether located steps mattered, and every control's figures, a line each."""
    lines = []
    for scheme in found.recipe.low_bit:
        if scheme in found.arms and (of := controls(found, scheme)):
            lines.append(f"{scheme}: {of['sentence']} {SEEDS}")
            lines += [f"  located minus {row['name']}: {_said(row)}; {row['tokens']:,.0f} tokens" for row in of["rows"]]
    return lines


def _said(row: dict[str, Any]) -> str:
    change = row["difference"]
    return f"{points(change['value'])} points ({points(change['low'])} to {points(change['high'])}, p = {row['p']:.2g})"
