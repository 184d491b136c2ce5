"""Which modules caused a scheme's faults: scores, what was rescued with them in full precision, and the proposal, from what a run kept."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from stepmend import facts
from stepmend.facts import Mixed, Rescue
from stepmend.measure import statistics
from stepmend.report.summary import Found, percent, points

HEADLINE = 5
"""The share of the weights, in percent, at which choices are tested."""
AGAINST = ("random", "error", "relative")
NAMES = {
    "blame": "by blame",
    "error": "by weight error",
    "relative": "by relative error",
    "random": "at random",
    "mixed": "mixed by blame",
    "mixed-error": "mixed by weight error",
    "uniform": "uniform bits",
}
COLOURS = {"blame": "--bad", "error": "--blue", "relative": "--amber", "random": "--soft"}
WORST = 8
"""Modules that a sentence or a table of the worst names."""


@dataclass(frozen=True)
class Blame:
    """One scheme: scores by module, the rescue curve, the tests at 5 % of the weights, and the proposals.

    ``curve``: by choice and share, the shares of lost problems that are rescued, of other problems that are lost, and of frontiers that
    come back; random choices are averaged. ``tests``: blame against each other choice, over the lost problems. ``mixed``: by budget.
    """

    measure: str
    measured: str
    faults: int
    tried: dict[str, int]
    grid: dict[str, Any]
    worst: list[dict[str, Any]]
    curve: list[dict[str, Any]]
    tests: list[dict[str, Any]]
    mixed: list[dict[str, Any]]
    headline: int
    sentences: list[str]
    colours: dict[str, str]
    names: dict[str, str]


@dataclass(frozen=True)
class Blamed:
    """Every scheme that blame was asked for, on ``n`` test problems."""

    n: int
    schemes: dict[str, Blame]


def figures(found: Found) -> Blamed | None:
    """Every scheme that blame was asked for; None where it was for none."""
    schemes = {scheme: of for scheme in found.recipe.low_bit if (of := blamed(found, scheme))}
    return Blamed(len(found.test), schemes) if schemes else None


def blamed(found: Found, scheme: str) -> Blame | None:
    """What ``stepmend blame`` found of a scheme; None where blame was not asked for."""
    fact = found.facts.get(facts.Blamed, scheme)
    if fact is None:
        return None
    arms = [one for one in found.facts.all(Rescue).values() if one.scheme == scheme and one.arm in found.grades]
    compared = tests(found, arms)
    return Blame(
        fact.measure,
        measured=measure_text(fact.measure),
        faults=fact.faults,
        tried=fact.tried,
        grid=grid(fact),
        worst=[row.model_dump() for row in sorted(fact.modules, key=lambda row: -row.score)[:WORST]],
        curve=curve(found, arms),
        tests=compared,
        mixed=mixed(found, scheme),
        headline=HEADLINE,
        sentences=[test_text(test) for test in compared],
        colours=COLOURS,
        names=NAMES,
    )


def measure_text(measure: str) -> str:
    """A measure in words: its target, and where the gradient was taken."""
    target, _, place = measure.partition(" at ")
    where = {"full": "full precision's weights", "low": "the low-bit weights", "both": "either model's weights, averaged"}
    return f"{target}, with gradients at {where[place]}"


def grid(fact: facts.Blamed) -> dict[str, Any]:
    """The heat map: parts of a layer as columns, layers as rows, and in each cell a module's score and its share of the largest one."""
    parts = list(dict.fromkeys(row.part for row in fact.modules))
    layers = sorted({row.layer for row in fact.modules})
    most = max((abs(row.score) for row in fact.modules), default=0.0) or 1.0
    cells = {(row.layer, row.part): {**row.model_dump(), "shade": row.score / most} for row in fact.modules}
    return {"parts": parts, "rows": [{"layer": layer, "cells": [cells.get((layer, part)) for part in parts]} for layer in layers]}


def rescued(found: Found, arm: Rescue) -> np.ndarray:
    """Which of the problems that rounding lost an arm solves."""
    return np.array([found.grades[arm.arm][p].outcome == "correct" for p in arm.regressions], dtype=bool)


def newly_lost(found: Found, arm: Rescue) -> np.ndarray:
    """Which of the other problems an arm does not solve."""
    return np.array([found.grades[arm.arm][p].outcome != "correct" for p in arm.others], dtype=bool)


def curve(found: Found, arms: list[Rescue]) -> list[dict[str, Any]]:
    """What each choice brings at each share."""
    rows = []
    for choice, share in dict.fromkeys((one.choice, one.share) for one in arms):
        of = [one for one in arms if (one.choice, one.share) == (choice, share)]
        back, seen = (sum(one.frontiers[i] for one in of) for i in (0, 1))
        gone = np.concatenate([newly_lost(found, one) for one in of])
        got = [rescued(found, one) for one in of]
        row = {"choice": choice, "name": NAMES[choice], "share": share, "seeds": len(of), "n": len(of[0].regressions)}
        row |= {"weights": float(np.mean([one.weights for one in of])), "modules": float(np.mean([len(one.modules) for one in of]))}
        row |= {"rescued": float(np.concatenate(got).mean()) if len(got[0]) else None, "count": float(np.mean([one.sum() for one in got]))}
        row |= {"lost": float(gone.mean()) if len(gone) else None, "others": len(of[0].others)}
        rows.append({**row, "frontiers": back / seen if seen else None, "faults": of[0].frontiers[1]})
    return sorted(rows, key=lambda row: (row["share"], list(NAMES).index(row["choice"])))


def tests(found: Found, arms: list[Rescue]) -> list[dict[str, Any]]:
    """Blame against the other choices at the headline share: paired over the lost problems, random choices averaged; Holm's over all."""
    at = [one for one in arms if one.share == HEADLINE]
    by = {choice: [rescued(found, one) for one in at if one.choice == choice] for choice in ("blame", *AGAINST)}
    if not by["blame"] or not len(by["blame"][0]):
        return []
    mine, rows = by["blame"][0], []
    for choice in AGAINST:
        if by[choice]:
            other = np.stack(by[choice], axis=1)
            other = other[:, 0] if other.shape[1] == 1 else other
            change, mean = statistics.difference(mine, other), float(other.mean())
            row = {"choice": choice, "name": NAMES[choice], "n": len(mine), "mine": float(mine.mean()), "other": mean}
            row |= {"ratio": float(mine.mean()) / mean if mean else None, "value": change.value, "low": change.low, "high": change.high}
            rows.append({**row, "p": statistics.permutation(mine, other)})
    for row, holm in zip(rows, statistics.holm([row["p"] for row in rows]), strict=True):
        row["holm"] = holm
    return rows


def mixed(found: Found, scheme: str) -> list[dict[str, Any]]:
    """Proposals by budget, each with what it is compared with; ``wins`` where it beats uniform bits of its size, p < 5 %."""
    made = [one for one in found.facts.all(Mixed).values() if one.scheme == scheme and one.arm in found.grades]
    blocks = []
    for budget in sorted({one.budget for one in made}):
        of = {one.choice: one for one in made if one.budget == budget}
        if {"mixed", "uniform"} <= of.keys() and all(p.id in found.grades[one.arm] for one in of.values() for p in found.test):
            blocks.append(_block(found, budget, of))
    return blocks


def _block(found: Found, budget: float, of: dict[str, Mixed]) -> dict[str, Any]:
    right = {choice: found.outcomes(one.arm) for choice, one in of.items()}
    rows = []
    for choice, one in of.items():
        row: dict[str, Any] = {"choice": choice, "name": NAMES[choice], "made": one.made, "size": one.size, "wide": one.wide}
        row |= {"accuracy": float(right[choice].mean()), "n": len(right[choice])}
        if choice != "mixed":
            change = statistics.difference(right["mixed"], right[choice])
            row |= {"value": change.value, "low": change.low, "high": change.high}
            row["p"] = statistics.paired(right["mixed"], right[choice]).p
        rows.append(row)
    others = [row for row in rows if "p" in row]
    for row, holm in zip(others, statistics.holm([row["p"] for row in others]), strict=True):
        row["holm"] = holm
    uniform = next(row for row in others if row["choice"] == "uniform")
    wins = uniform["value"] > 0 and uniform["p"] < 1 - statistics.LEVEL
    return {"budget": budget, "rows": rows, "wide": of["mixed"].wide, "wins": wins}


def lines(of: Blamed | None) -> list[str]:
    """What a reader must be told, a scheme at a time."""
    lines = []
    for scheme, one in of.schemes.items() if of else ():
        worst = ", ".join(f"{row['name']} {row['score']:+.3f}" for row in one.worst[:4]).replace("-", "−")
        lines.append(f"{scheme}: blamed most, by the {one.measured} (nats per fault, {one.faults} curate faults): {worst}")
        lines += [f"{scheme}: {said}" for said in (*one.sentences, *map(mixed_text, one.mixed))]
    return lines


def test_text(test: dict[str, Any]) -> str:
    """One comparison of choices in words."""
    counts = f"{percent(test['mine'])} of {test['n']} lost problems are solved again by blame, {percent(test['other'])} {test['name']}"
    interval = f"{points(test['low'])} to {points(test['high'])} points, Holm p = {test['holm']:.2g}"
    shown = "more" if test["value"] > 0 and test["holm"] < 1 - statistics.LEVEL else "fewer" if test["holm"] < 1 - statistics.LEVEL else ""
    ratio = "" if test["ratio"] is None else f", {test['ratio']:.1f} times as many"
    says = f"{shown} by blame" if shown else "the difference is not significant"
    return f"with {HEADLINE} % of the weights in full precision, {counts}{ratio} ({interval}): {says}"


def mixed_text(block: dict[str, Any]) -> str:
    """A proposal beside uniform bits, in words."""
    mine = next(row for row in block["rows"] if row["choice"] == "mixed")
    other = next(row for row in block["rows"] if row["choice"] == "uniform")
    sizes = [f"at {row['size']:.2f} bits per weight" for row in (mine, other)]
    counts = f"mixed by blame {sizes[0]} solves {percent(mine['accuracy'])}, {other['made']} {sizes[1]} {percent(other['accuracy'])}"
    interval = f"{points(other['low'])} to {points(other['high'])} points, p = {other['p']:.2g}"
    return f"{counts} ({interval}): {'it is offered' if block['wins'] else 'it is not offered'}"
