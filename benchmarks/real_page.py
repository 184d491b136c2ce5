"""The page of benchmarks/real.py, from the outcomes and facts that it keeps."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peers
from material import MODELS, Model

from stepmend.measure import statistics
from stepmend.report.summary import percent, points

HEAD = """# A real model, beside its peers

Made by `python benchmarks/real.py` from `docs/results/data/real/`, which holds each arm's outcome on every problem it solved. Prompt
`steps-1`, greedy, one solution a problem. Parents are 4-bit GGUF releases, dequantized to bfloat16. Located bullets come from training
problems that no test problem overlaps: of qwen2.5-coder-0.5b in rtn-w4a16-g128 from a recorded run, whose outcomes of `full` and
`quantized` these are (one H200, bfloat16), else from a run of the benchmark's own. Intervals: 95 %; of one solution a problem Tango's
paired score interval, which excludes 0 exactly where McNemar's exact p is below 0.05, else a bootstrap over problems. p: McNemar's exact
test, or paired sign flips where seeds are pooled; Holm's method over the arms of a column, so that an interval may exclude 0 beside a
larger p. `ours` pools the seeds, which are replicates of training: outcomes are averaged within each problem, and intervals and p are
over problems, for these seeds. Single seeds have no p. Which arms are made does not depend on the loss measured here. *Loss recovered*:
(arm − quantized) / (full − quantized); *accuracy kept*: arm / full.

KL: mean divergence per token from full precision, natural log, on both models' solutions of training problems on which nothing was
chosen. There "against ours" is paired over problems (positive: further from full precision than ours). Seconds are those of making an
arm: range test or search of the rate, validation and export included; those of arms that were made side by side are left out. Peak
memory: on a GPU what was allocated there, on a CPU the process's. tokens/s: 64 test problems at once, on the device that stands beside
it. What is not measured yet, and how: [pending](pending.md).
"""
OURS = "ours"
SEEDS = tuple(f"ours-s{seed}" for seed in range(peers.SEEDS))
COLUMNS = (
    "arm", "n", "accuracy", "against full", "p", "against quantized", "against ours", "p", "loss recovered", "accuracy kept", "cut off",
)  # fmt: skip
COSTS = (
    "arm", "KL", "against ours", "same first token", "codes moved", "rates", "steps", "seconds", "peak GiB", "GB", "tokens/s", "device",
)  # fmt: skip
MISSING = "not measured"
STANDING_IN = "It solves next to nothing of GSM8K: there is no fault to locate, and whole solutions of full precision stand in for bullets."

Outcomes = dict[str, dict[str, dict[str, Any]]]
"""Arm -> problem -> what is kept of its solution."""


def arms_of(name: str, scheme: str) -> list[str]:
    """The arms that have a meaning for a model and scheme."""
    return [arm for arm, of in peers.ARMS.items() if of.suits(scheme, MODELS[name].located)]


def file_of(results: Path, name: str, scheme: str, arm: str, end: str) -> Path:
    """Where an arm's facts (``.json``) or outcomes (``-BENCHMARK.jsonl``) are kept; full precision has no scheme."""
    folder = results / name.replace(":", "-")
    return (folder if arm == "full" else folder / scheme) / f"{arm}{end}"


def write(page: Path, results: Path) -> str:
    """Write the page, and give it."""
    sections = [
        text for name, model in MODELS.items() for scheme in model.schemes for text in section(results, name, model, scheme) if text
    ]
    legend = ["## Arms\n", *(f"- `{arm}`: {of.says}" for arm, of in peers.ARMS.items()), ""]
    text = "\n".join([HEAD, *sections, *legend])
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text)
    return text


def section(results: Path, name: str, model: Model, scheme: str) -> Iterable[str]:
    """A model and scheme: accuracies by benchmark, then divergence and costs. Nothing of a built-in reasoner that was not measured."""
    arms = ["full", "quantized", *arms_of(name, scheme)]
    facts = {arm: json.loads(file.read_text()) for arm in arms if (file := file_of(results, name, scheme, arm, ".json")).exists()}
    found = {benchmark: outcomes(results, name, scheme, benchmark, arms) for benchmark in model.new_tokens}
    if name.startswith("builtin:") and not facts:
        return
    yield f"## {name}, {scheme}\n"
    if not facts:
        yield "Not measured.\n"
        return
    if not model.located:
        yield f"{STANDING_IN}\n"
    for benchmark, of in found.items():
        if model.located or len(of) > 1:
            asked = [arm for arm in arms if arm in of or benchmark != "math" or arm in ("full", "quantized")]
            yield f"### {benchmark}, at most {model.new_tokens[benchmark]} tokens\n"
            yield "\n".join(accuracies(of, asked)) + "\n"
    yield "### Divergence, and what it cost\n"
    yield "\n".join(costs(facts, arms)) + "\n"


def outcomes(results: Path, name: str, scheme: str, benchmark: str, arms: Sequence[str]) -> Outcomes:
    """What is kept of every arm that solved anything."""
    files = {arm: file_of(results, name, scheme, arm, f"-{benchmark}.jsonl") for arm in arms}
    read = {arm: map(json.loads, file.read_text().splitlines()) for arm, file in files.items() if file.exists()}
    return {arm: {one["problem"]: one for one in lines} for arm, lines in read.items()}


def shares(found: Outcomes, arm: str, ids: Sequence[str]) -> statistics.Shares:
    """Right or not: [problems], or for ``ours`` [problems, seeds]."""
    each = [np.array([found[one][i]["outcome"] == "correct" for i in ids]) for one in ((arm,) if arm != OURS else SEEDS) if one in found]
    return each[0] if len(each) == 1 else np.stack(each, axis=1)


def ids_of(found: Outcomes, *arms: str) -> list[str]:
    """Problems that all of these arms have solved, ``ours`` under every seed that is there."""
    each = [found[one] for arm in arms for one in ([seed for seed in SEEDS if seed in found] if arm == OURS else [arm])]
    return [i for i in each[0] if all(i in of for of in each)] if each else []


def against(found: Outcomes, names: Iterable[str], other: str) -> dict[str, tuple[str, float]]:
    """Of every arm: its difference from another one with the interval, and p adjusted over the arms."""
    cells, p = {}, {}
    for arm in names:
        if ids := ids_of(found, arm, other):
            one, two = shares(found, arm, ids), shares(found, other, ids)
            gap = statistics.difference(one, two)
            cells[arm], p[arm] = f"{points(gap.value)} ({points(gap.low)} to {points(gap.high)})", statistics.permutation(one, two)
    adjusted = dict(zip(p, statistics.holm(list(p.values())), strict=True)) if p else {}
    return {arm: (cells[arm], adjusted[arm]) for arm in cells}


def accuracies(found: Outcomes, arms: Sequence[str]) -> list[str]:
    """The table of accuracies."""
    seeds = [seed for seed in SEEDS if seed in found]
    there = [arm for arm in arms if arm in found and arm not in SEEDS]
    named = [*there, *([OURS] if seeds else [])]
    full = against(found, [arm for arm in named if arm != "full"], "full") if "full" in found else {}
    single = against(found, seeds, "full") if "full" in found else {}
    own = against(found, [arm for arm in there if arm != "full"], OURS) if seeds else {}
    rows = [_line(COLUMNS), "|" + "---|" * len(COLUMNS)]
    order = [arm for arm in arms if arm not in SEEDS]
    order[2:2] = [OURS, *seeds] if seeds else [OURS]
    for arm in order:
        if arm not in named and arm not in seeds:
            continue
        cells = (full | {seed: (cell, None) for seed, (cell, _) in single.items()}).get(arm, ("", None))
        rows.append(_line([arm, *_accuracy(found, arm, cells, own.get(arm, ("", None)))]))
    return _with_missing(rows, [arm for arm in arms if arm not in found])


def _accuracy(found: Outcomes, arm: str, full: tuple[str, float | None], own: tuple[str, float | None]) -> list[str]:
    """The cells of an arm, which was measured."""
    ids = ids_of(found, arm, *(one for one in ("full", "quantized") if one in found))
    right = {one: shares(found, one, ids) for one in {"full", "quantized", arm} & {*found, arm}}
    cut = [found[one][i]["finish"] == "length" for one in (SEEDS if arm == OURS else [arm]) if one in found for i in ids]
    gain, recovered, kept = "", "", ""
    if arm != "full" and "full" in found:
        kept = percent(float(right[arm].mean() / max(right["full"].mean(), 1e-9)))
    if arm not in ("full", "quantized") and {"full", "quantized"} <= found.keys():
        gap = statistics.difference(right[arm], right["quantized"])
        gain = f"{points(gap.value)} ({points(gap.low)} to {points(gap.high)})"
        of = statistics.recovery(right["full"].astype(bool), right["quantized"].astype(bool), right[arm])
        recovered = f"undefined: {of.reason}"
        if of.value is not None and of.low is not None and of.high is not None:
            recovered = f"{percent(of.value)} ({percent(of.low)} to {percent(of.high)})"
    p = ["" if one is None else f"{one:.2g}" for one in (full[1], own[1])]
    cells = [f"{len(ids):,}", percent(float(right[arm].mean())), full[0], p[0], gain, own[0], p[1], recovered, kept]
    return [*cells, percent(float(np.mean(cut)))]


def by_problem(fact: dict[str, Any]) -> dict[str, float]:
    """Problem -> mean KL divergence of its texts."""
    found: dict[str, list[float]] = {}
    for problem, kl, _ in fact.get("readings", ()):
        found.setdefault(problem, []).append(kl)
    return {problem: float(np.mean(values)) for problem, values in found.items()}


def costs(facts: dict[str, dict[str, Any]], arms: Sequence[str]) -> list[str]:
    """The table of divergence and costs."""
    of = {arm: by_problem(fact) for arm, fact in facts.items()}
    seeds = [of[seed] for seed in SEEDS if of.get(seed)]
    own = {problem: float(np.mean([seed[problem] for seed in seeds])) for problem in seeds[0]} if seeds else {}
    rows = [_line(COSTS), "|" + "---|" * len(COSTS)]
    for arm in arms:
        fact, gap = facts.get(arm), ""
        if fact is None:
            continue
        if arm not in SEEDS and own.keys() and own.keys() == of[arm].keys():
            change = statistics.mean(np.array([of[arm][problem] - own[problem] for problem in own]))
            gap = f"{change.value:+.4f} ({change.low:+.4f} to {change.high:+.4f})".replace("-", "−")
        apart = {"full": ("kl", "same", "seconds", "peak"), "quantized": ("seconds", "peak")}.get(arm, ())
        rows.append(_line([arm, *_cost(fact, gap, apart)]))
    return _with_missing(rows, [arm for arm in arms if arm not in facts])


def _with_missing(rows: list[str], missing: Sequence[str]) -> list[str]:
    """A table and what it lacks; no table where it lacks everything."""
    if len(rows) == 2:
        return ["Not measured."]
    return [*rows, "", f"Not measured: {', '.join(f'`{arm}`' for arm in missing)}."] if missing else rows


def _cost(fact: dict[str, Any], gap: str, apart: Sequence[str]) -> list[str]:
    """The cells of an arm; those ``apart`` have no meaning for it."""
    rates = ", ".join(f"{kind} {rate:.2g}" if kind != "all" else f"{rate:.2g}" for kind, rate in fact.get("rates", {}).items())
    steps = f"{fact['steps']}" if "steps" in fact else ""
    steps += "; not better, quantized returned" if fact.get("kept") is False else ""
    size = fact.get("format") or (f"{fact['bytes'] / 1e9:.3f}" if "bytes" in fact else MISSING)
    numbers = {key: fact.get(key) for key in ("kl", "same", "moved", "seconds", "peak", "speed")}
    forms = {"kl": "{:.4f}", "seconds": "{:.0f}", "peak": "{:.1f}", "speed": "{:,.0f}"}
    cell = {key: forms[key].format(value) if key in forms else percent(value) for key, value in numbers.items() if value is not None}
    cell = dict.fromkeys(("kl", "same", "seconds", "peak", "speed"), MISSING) | {"moved": ""} | cell
    cell |= dict.fromkeys(apart, "")
    where = f"{fact.get('device', '')} {fact.get('dtype', '')}".strip()
    return [cell["kl"], gap, cell["same"], cell["moved"], rates, steps, cell["seconds"], cell["peak"], size, cell["speed"], where]


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
