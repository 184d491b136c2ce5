"""The locators against labels. Writes docs/results/locate.md.

python benchmarks/locate.py [--data FOLDER] [--out FOLDER]: the vote on labelled failures of a real model; steps and equations on real
texts; then rescue, margins, the vote and the error classes against the oracle, on every regression of both built-in reasoners at 4 and 3
bits (about half an hour on two cores). --only real, --only equations, --only steps or --only builtin writes one of these parts
and keeps the others.

The real model's locators need its checkpoints: --model FULL --quantized Q (and --completer M); without them the vote goes by those that
need none. The work is kept under --out, and the same command continues it.
"""

import argparse
import csv
import itertools
import json
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import locate_real
import numpy as np
import sections

from stepmend import Fault, Problem, Trace, pipeline, tables
from stepmend.arms import FULL
from stepmend.benchmarks import oracle, story
from stepmend.context import Context
from stepmend.engines.local import complete_all
from stepmend.locate import bench, equations, kinds, locators, reliability, steps
from stepmend.locate import run as locating
from stepmend.locate.vote import posterior
from stepmend.measure import solve as solving
from stepmend.measure import statistics
from stepmend.progress import Stages
from stepmend.recipe import Recipe
from stepmend.report.summary import percent

ROOT = Path(__file__).parents[1]
HEAD = "# Locators against labels\n\n`python benchmarks/locate.py` wrote this page.\n\n"
ORDER = (
    "A real model", "Its stated probabilities", "Its locators, each alone", "Its error classes", "A judge",
    "Every locator against the oracle", "Where the vote is wrong", "Error classes", "Equations", "Steps",
)  # fmt: skip
SAMPLES = 8
SCHEMES = ("rtn-w4a16-g128", "rtn-w3a16-g128")


def joined_again(records: Sequence[dict[str, Any]], glue: str) -> str:
    """How many of the labelled boundaries, and of the solutions, come back when steps are joined and split again."""
    same = found = wanted = shared = 0
    for record in records:
        places, end = set(), 0
        for step in record["steps"][:-1]:
            end += len(step) + len(glue)
            places.add(end)
        text = glue.join(record["steps"])
        mine = {end - len(text[begin:end].lstrip(" ")) for begin, end in steps.split(text) if begin}  # the blank is the step's own
        same, found, wanted, shared = same + (mine == places), found + len(mine), wanted + len(places), shared + len(mine & places)
    return f"| {glue!r} | {wanted} | {percent(shared / wanted)} | {percent(shared / found)} | {percent(same / len(records))} |"


def segmented(name: str, texts: Sequence[str]) -> str:
    """Steps of real texts: how many, how long, and whether any begins inside a formula."""
    spans = [steps.split(text) for text in texts]
    cut = sum(any(start < b < end for start, end in steps.formulas(t) for b, _ in of) for t, of in zip(texts, spans, strict=True))
    lossless = all("".join(t[a:b] for a, b in of) == t for t, of in zip(texts, spans, strict=True))
    counts, lengths = sorted(map(len, spans)), sorted(b - a for of in spans for a, b in of)
    middle = f"{counts[len(counts) // 2]} ({counts[0]} to {counts[-1]})"
    return f"| {name} | {len(texts):,} | {middle} | {lengths[len(lengths) // 2]} | {cut} | {'yes' if lossless else 'NO'} |"


CALCULATES = re.compile(r"(?:=|≈|\\approx).*\d|\d.*(?:=|≈|\\approx)|\d\s*(?:[+*×÷]|\\times|\\cdot|\div)", re.DOTALL)
"""A labelled segment with a calculation: an equality with a number, or an operator behind one."""


def shared(records: Sequence[dict[str, Any]]) -> list[str]:
    """How many steps hold two labelled segments that calculate; a segment is where its middle is."""
    alone, counts = 0, []
    for record in records:
        ends = list(itertools.accumulate(map(len, record["steps"]), initial=0))
        segments = zip(itertools.pairwise(ends), record["steps"], strict=True)
        middles = [(begin + end) / 2 for (begin, end), text in segments if CALCULATES.search(text)]
        spans = steps.split("".join(record["steps"]))
        alone += sum(sum(begin <= middle < end for middle in middles) < 2 for begin, end in spans)
        counts.append(len(spans))
    labelled = sum(len(record["steps"]) for record in records)
    return [
        f"{len(records)} failures of a real model, cut into {labelled} segments by two readers (in-sample: the rules were made on them). "
        f"Of {sum(counts)} steps, {alone} ({of_wilson(alone, sum(counts))}) hold at most one segment with a calculation. "
        f"A solution has {sorted(counts)[len(counts) // 2]} steps (median; mean {sum(counts) / len(counts):.1f}).", "",
    ]  # fmt: skip


def of_wilson(count: int, n: int) -> str:
    """A share with its 95 % interval."""
    of = statistics.accuracy(np.arange(n) < count)
    return f"{percent(of.value)}, {percent(of.low)} to {percent(of.high)}"


def segmentation(data: Path) -> list[str]:
    records = tables.read(data / "processbench" / "gsm8k.json")
    golds = [row["answer"] for row in tables.read(data / "gsm8k" / "test.jsonl")]
    traces = [text for pair in r1_traces(data) for text in pair]
    counts = sorted(len(steps.sections(text)) for text in traces)
    return [
        "## Steps", "", *shared(json.loads((data / "real" / "first_faults_60.json").read_text())),
        "ProcessBench's steps, joined and split again; one that holds several calculations is cut further on purpose:", "",
        "| joined by | boundaries | found again | of those found, right | solutions exactly |", "|---|---|---|---|---|",
        *[joined_again(records, glue) for glue in ("\n\n", "\n", " ")], "",
        "A blank is the hardest: sentences are all that is left, and ProcessBench's steps are paragraphs of several.", "",
        "| texts | n | steps, median (range) | characters a step, median | begun in a formula | joins back |", "|---|---|---|---|---|---|",
        segmented("GSM8K test, gold", golds), segmented("R1-Distill-1.5B on MATH-500", traces), "",
        f"R1-Distill-1.5B's thoughts have {counts[0]} to {counts[-1]} sections, median {counts[len(counts) // 2]}.", "",
    ]  # fmt: skip


def r1_traces(data: Path) -> list[tuple[str, str]]:
    """R1-Distill-1.5B at 4 bits (right) and at 3 bits (wrong) on the same problems."""
    csv.field_size_limit(sys.maxsize)
    with (data / "solutions" / "r1-distill-1.5b-quantized" / "gptq_w3_wrong_w4_right_math500.csv").open(newline="", encoding="utf-8") as of:
        return [(row["full_text_4bit"], row["full_text_3bit"]) for row in csv.DictReader(of)]


def labelled(name: str, records: Sequence[dict[str, Any]]) -> str:
    """Where equations fire on labelled solutions: at the fault, at another label that its readers would defend, before it, after it."""
    outcomes: Counter[str] = Counter()
    for record in records:
        label, found = record["label"], bench.first_false(record["steps"], record["problem"])
        outcomes["faulty" if label >= 0 else "right"] += 1
        if found is not None:
            others = record.get("also", ())
            kind = (
                "alarm" if label < 0 else "exact" if found == label else "also" if found in others else "early" if found < label else "late"
            )
            outcomes[kind] += 1
    fired = sum(outcomes[kind] for kind in ("exact", "also", "early", "late"))
    late = of_wilson(fired - outcomes["early"], fired) if fired else "–"
    exact = of_wilson(outcomes["exact"], fired) if fired else "–"
    return (
        f"| {name} | {outcomes['faulty']} | {fired} | {exact} | {outcomes['also']} | {outcomes['early']} | {outcomes['late']} | {late} | "
        f"{outcomes['alarm']} of {outcomes['right']} |"
    )


def left_alone(name: str, texts: Sequence[str]) -> str:
    """How many solutions, all of one outcome, have an alarm."""
    alarms = sum(bench.first_false([text[a:b] for a, b in steps.split(text)]) is not None for text in texts)
    checked = sum(len(equations.claims(text)) for text in texts)
    return f"| {name} | {len(texts):,} | {checked:,} | {alarms} | {of_wilson(len(texts) - alarms, len(texts))} |"


def checked_equations(data: Path) -> list[str]:
    processbench = tables.read(data / "processbench" / "gsm8k.json")
    failures = json.loads((data / "real" / "first_faults_60.json").read_text())
    golds = {split: [row["answer"] for row in tables.read(data / "gsm8k" / f"{split}.jsonl")] for split in ("train", "test")}
    math500 = [row["solution"] for row in tables.read(data / "math" / "math500_test.jsonl")]
    written = tables.read(data / "solutions" / "gsm8k-openai" / "example_model_solutions.jsonl")
    models = [row[name] for row in written for name in row if isinstance(row[name], dict)]
    traces = r1_traces(data)
    return [
        "## Equations", "",
        "An alarm means that a fault lies at its step or before it. All sources were looked at while the rules were made: in-sample.", "",
        "| labelled solutions | faulty | fired | exact (95 %) | at another label | before the fault | after it | fault at the step or "
        "before | alarms on right ones |",
        "|---|---|---|---|---|---|---|---|---|",
        labelled("ProcessBench, GSM8K", processbench), labelled("Qwen2.5-Coder-0.5B at 4 bits, GSM8K", failures), "",
        "| solutions that are right | n | equations checked | alarms | left alone (95 %) |", "|---|---|---|---|---|",
        *[left_alone(f"GSM8K {split}, gold", texts) for split, texts in golds.items()], left_alone("MATH-500, gold", math500),
        left_alone("GSM8K, four models", [row["solution"] for row in models if row["is_correct"]]),
        left_alone("R1-Distill-1.5B at 4 bits, MATH-500", [right for right, _ in traces]), "",
        "Models' right solutions hold false arithmetic too: a slip that is taken back, or that the answer does not need.", "",
        "| solutions that are wrong | n | equations checked | fired | silent (95 %) |", "|---|---|---|---|---|",
        left_alone("GSM8K, four models", [row["solution"] for row in models if not row["is_correct"]]),
        left_alone("R1-Distill-1.5B at 3 bits, MATH-500", [wrong for _, wrong in traces]), "",
    ]  # fmt: skip


@dataclass(frozen=True)
class Regression:
    """One regression, located; with the oracle's word on it."""

    arm: str
    problem: Problem
    trace: Trace
    full: Trace
    fault: Fault
    truth: oracle.Truth
    rescued: locators.Rescued
    sampled: locators.Rescued


def regressions(family: str, out: Path, count: int) -> tuple[Context, list[Regression]]:
    """Every regression of one reasoner on test and curate problems, at 4 and 3 bits."""
    recipe = Recipe.make({"model": f"builtin:{family}", "schemes": list(SCHEMES), "curate": {"problems": count}})
    context = Context(recipe, out / family, Stages())
    found: list[Regression] = []
    for scheme in context.schemes:
        pipeline.quantize(context, scheme)
    for arm in SCHEMES:
        for split in ("test", "curate"):
            problems = context.problems(split)
            full, traces = (solving.solve(context, one, problems, split) for one in (FULL, arm))
            lost = solving.regressions(context, arm, problems)
            faults = locating.locate(context, arm, lost, full, traces, split)
            for begin in range(0, len(lost), 64):
                part = lost[begin : begin + 64]
                found += rescue_again(context, arm, part, faults[begin : begin + 64], full, traces)
        context.release(arm)
    return context, found


def rescue_again(
    context: Context, arm: str, part: Sequence[Problem], faults: Sequence[Fault], full: Mapping[str, Trace], traces: Mapping[str, Trace]
) -> list[Regression]:
    """Rescue once more, greedily and by samples, for what it costs."""
    cases = [locators.make_case(context.prompt_of(p), traces[p.id], full[p.id]) for p in part]
    locator = locating.locator(context)
    found = [locator.rescue(part)(cases), locator.sampled(part, SAMPLES)(cases, *[[prior_of(case) for case in cases]] * 2)]
    return [
        Regression(f"{context.recipe.model.partition(':')[2]} {arm}", p, traces[p.id], full[p.id], fault, truth_of(p, traces[p.id]), *of)
        for p, fault, *of in zip(part, faults, *found, strict=True)
    ]


def prior_of(case: locators.Case) -> np.ndarray:
    """The vote's prior of a generated problem's trace."""
    return posterior([], kinds.kinds(case.steps), reliability.DEFAULT.table("story", kinds.written(case.trace.text)))


def truth_of(problem: Problem, trace: Trace) -> oracle.Truth:
    assert problem.program
    return oracle.judge(story.parse(problem.program), trace.text)


def linear_tokens(context: Context, found: Sequence[Regression]) -> int:
    """Tokens of a scan step by step from the second step on, each until full precision no longer arrives."""
    locator, tokens = locating.locator(context), 0
    live = list(found)
    for step in range(1, max(r.fault.steps for r in found) + 1):
        live = [r for r in live if step <= r.fault.steps]
        if not live:
            break
        spans = [[*steps.split(r.trace.text), (len(r.trace.text),) * 2] for r in live]
        prefixes = [r.trace.text[: of[step][0]] for r, of in zip(live, spans, strict=True)]
        texts = [context.prompt_of(r.problem) + prefix for r, prefix in zip(live, prefixes, strict=True)]
        completions = complete_all(context.engine(FULL), texts, context.batch_size)
        tokens += sum(len(c.tokens) for c in completions)
        arrived = locator.arrive([(r.problem, p + c.text, c.finish == "stop") for r, p, c in zip(live, prefixes, completions, strict=True)])
        live = [r for r, good in zip(live, arrived, strict=True) if good]
    return tokens


def scored(name: str, found: Sequence[Regression], step_of: Callable[[Regression], int | None], cost: str) -> str:
    """One locator's row: exact over all, of those it speaks on, early and late, and how often it abstains."""
    pairs = [(step_of(r), r.truth.step) for r in found]
    spoke = [(step, truth) for step, truth in pairs if step is not None and truth is not None]
    exact = sum(step == truth for step, truth in spoke)
    early, late = (sum(bool(of(step, truth)) for step, truth in spoke) for of in (lambda s, t: s < t, lambda s, t: s > t))
    wilson = statistics.accuracy(np.array([step == truth for step, truth in pairs], dtype=bool))
    return (
        f"| {name} | {percent(exact / len(pairs))} ({percent(wilson.low)} to {percent(wilson.high)}) | "
        f"{percent(exact / len(spoke) if spoke else None)} | {early} | {late} | {percent(1 - len(spoke) / len(pairs))} | {cost} |"
    )


def cost_of(found: Sequence[locators.Rescued]) -> str:
    completions, tokens = (sum(getattr(r, name) for r in found) / len(found) for name in ("completions", "tokens"))
    return f"{completions:.1f} completions, {tokens:.0f} tokens"


def voted(name: str) -> Callable[[Regression], int | None]:
    return lambda r: next(v.step for v in r.fault.votes if v.locator == name)


def against_the_oracle(found: Sequence[Regression], linear: int) -> list[str]:
    n = len(found)
    tokens = sum(r.rescued.tokens for r in found)
    within = sum(r.rescued.completions <= math.ceil(math.log2(r.fault.steps)) + 1 for r in found)
    counts = Counter(r.arm for r in found)
    return [
        "## Every locator against the oracle", "",
        f"{n} regressions: " + ", ".join(f"{arm} {count}" for arm, count in counts.items()) + ".", "",
        "| locator | exact first fault (95 %) | where it speaks | earlier | later | abstains | cost a fault |",
        "|---|---|---|---|---|---|---|",
        scored("equations", found, voted("equations"), "none"),
        scored("rescue", found, lambda r: r.rescued.vote.step, cost_of([r.rescued for r in found])),
        scored(f"rescue, {SAMPLES} samples", found, lambda r: r.sampled.vote.step, cost_of([r.sampled for r in found])),
        scored("margins", found, voted("margins"), "one pass of both models"),
        scored("vote", found, lambda r: r.fault.step, "all of these"), "",
        f"Rescue stays within ceil(log2 steps) + 1 completions for {within} of {n}; a linear scan of the same cases in the same run takes "
        f"{linear:,} tokens, rescue {tokens:,} ({percent(tokens / linear)}).", "",
        *confidence(found),
    ]  # fmt: skip


def confidence(found: Sequence[Regression]) -> list[str]:
    """Whether what sampled rescue and the vote state as confidence is what comes out."""
    lines = ["Stated confidence beside the share that is exact:", "", "| | stated | n | mean stated | exact |", "|---|---|---|---|---|"]
    said = {
        f"rescue, {SAMPLES} samples": [(r.sampled.vote.confidence, r.sampled.vote.step == r.truth.step) for r in found],
        "vote": [(r.fault.confidence, r.fault.step == r.truth.step) for r in found],
    }
    for name, pairs in said.items():
        for low, high in ((0.0, 0.9), (0.9, 0.99), (0.99, 1.01)):
            of = [(c, right) for c, right in pairs if c is not None and low <= c < high]
            if of:
                mean, exact = sum(c for c, _ in of) / len(of), sum(right for _, right in of) / len(of)
                lines.append(f"| {name} | {low:g} to {min(high, 1):g} | {len(of)} | {mean:.3f} | {percent(exact)} |")
    return [*lines, ""]


def classes(found: Sequence[Regression]) -> list[str]:
    """The confusion table of error classes, where the step is exact."""
    pairs = Counter((r.truth.error_class or "none", r.fault.error_class or "unclassified") for r in found if r.fault.step == r.truth.step)
    names = sorted({name for pair in pairs for name in pair})
    right, n = sum(count for (truth, mine), count in pairs.items() if truth == mine), len(found)
    return [
        "## Error classes", "", f"Right for {right} of {n} regressions ({percent(right / n)}); rows are the oracle's, columns ours.", "",
        "| | " + " | ".join(names) + " |", "|---|" + "---|" * len(names),
        *[f"| {truth} | " + " | ".join(str(pairs[truth, mine] or "") for mine in names) + " |" for truth in names], "",
    ]  # fmt: skip


def misses(found: Sequence[Regression]) -> list[str]:
    """The vote's misses, one by one."""
    lines = [
        f"- {r.problem.id} ({r.arm}): the oracle says step {None if r.truth.step is None else r.truth.step + 1}, the vote "
        f"{'abstains' if r.fault.step is None else r.fault.step + 1}; "
        + ", ".join(f"{v.locator} {'–' if v.step is None else v.step + 1}" for v in r.fault.votes)
        for r in found
        if r.fault.step != r.truth.step
    ]
    return ["## Where the vote is wrong", "", *(lines or ["Nowhere."]), ""]


def builtin(out: Path, count: int) -> list[str]:
    """The sections against the oracle."""
    found, linear = [], 0
    for family in ("qwen2", "llama"):
        context, mine = regressions(family, out, count)
        with context:
            linear += linear_tokens(context, mine)
        found += mine
    return ["\n".join(of) for of in (against_the_oracle(found, linear), misses(found), classes(found))]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = Path(os.environ.get("STEPMEND_DATA", ROOT.parent / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=default, help="the folder of real data (default: STEPMEND_DATA)")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "locate", help="where runs are kept; the same command continues them")
    parser.add_argument("--problems", type=int, default=2700, help="curate problems, besides the 900 test ones")
    parser.add_argument("--only", choices=("real", "judge", "equations", "steps", "builtin"), help="write one part, and keep the others")
    parser.add_argument("--labels", type=Path, help="real: another file of labelled failures (default: DATA/real/first_faults_60.json)")
    for name, what in (("model", "full-precision checkpoint"), ("quantized", "quantized checkpoint"), ("completer", "better model")):
        parser.add_argument(f"--{name}", help=f"real: the {what}")
    parser.add_argument("--judge", action="append", default=[], help="judge: NAME=MODEL@BASE_URL; may be repeated")
    parser.add_argument("--max-new-tokens", type=int, default=400, help="real: as many as the solutions were cut off at")
    options = parser.parse_args()
    labels = options.labels or options.data / "real" / "first_faults_60.json"
    models = {"model": options.model, "quantized": options.quantized, "completer": options.completer}
    parts = {
        "real": lambda: locate_real.parts(labels, options.data, models, options.max_new_tokens, options.out / "real"),
        "judge": lambda: [locate_real.judge_section(labels, options.data, options.judge, options.out / "judgements.jsonl")],
        "equations": lambda: ["\n".join(checked_equations(options.data))],
        "steps": lambda: ["\n".join(segmentation(options.data))],
        "builtin": lambda: builtin(options.out, options.problems),
    }
    page = ROOT / "docs" / "results" / "locate.md"
    for name in [options.only] if options.only else [name for name in parts if name != "judge" or options.judge]:
        for section in parts[name]():
            sections.write(page, HEAD, section.rstrip() + "\n", ORDER)
            print(section)


if __name__ == "__main__":
    main()
