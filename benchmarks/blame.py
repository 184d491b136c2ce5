"""Which modules caused the faults, and whether full precision there rescues problems. Writes docs/results/blame.md, a section a model.

stepmend run --scheme rtn-w3a16-g128 --out runs/blame; stepmend blame runs/blame
python benchmarks/blame.py runs/blame                              # the section of a run in which `stepmend blame` is done
python benchmarks/blame.py runs/blame --auto-round                 # and AutoRound's automatic choice of bits, of the proposal's size
python benchmarks/blame.py --model MODEL --low LOW --work real     # a real model: the recorded run of Qwen2.5-Coder-0.5B (STEPMEND_DATA)
python benchmarks/blame.py --model MODEL --low LOW --work real --solve 30    # and its lost problems solved again

MODEL and LOW are the folders of the full-precision and the quantized checkpoint. What is measured of a real model is kept in the work
folder as it comes: the same command continues, and another --faults, --frontiers or --solve adds to it.
"""

import argparse
import json
import random
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sections
from material import RECORDED, Recorded

from stepmend import Problem, Trace, grading
from stepmend.blame import modules as holding
from stepmend.blame import proposal
from stepmend.blame import run as blaming
from stepmend.blame import scores as scoring
from stepmend.blame.scores import Mark
from stepmend.engines.local import LocalEngine
from stepmend.facts import Blamed, Mixed
from stepmend.grading.verify import Verifier
from stepmend.measure import statistics
from stepmend.models import chat, load
from stepmend.quantize import run as quantizer
from stepmend.quantize import schemes
from stepmend.records import Fault
from stepmend.report import summary
from stepmend.report.sections import blame as blamed
from stepmend.report.summary import percent, points

PAGE = Path(__file__).parents[1] / "docs/results/blame.md"
HEAD = """# Which modules caused the faults

`python benchmarks/blame.py` wrote this page, a section a run. Modules are scored at the frontiers of faults of curate problems. Then test
problems that rounding lost, and some that it did not lose, are solved again with the worst modules in full precision: as many as fit into a
share of the weights. Other choices fill the same share: by weight error, by relative weight error, and at random. The measure was chosen on
curate problems; no test problem decides anything but the verdicts stated here.

"""
TOKENS = 400
"""Tokens at most of a solution of the recorded run."""
RANDOM = 2
"""Random choices of modules of a real model."""


def module_table(fact: Blamed) -> list[str]:
    """The worst modules, and each layer's sum."""
    worst = sorted(fact.modules, key=lambda row: -row.score)[: blamed.WORST]
    lines = ["| module | score (nats a fault) | 95 % | share of the weights | relative error |", "|---|---|---|---|---|"]
    total = sum(row.weights for row in fact.modules)
    for row in worst:
        interval = f"{row.low:+.3f} to {row.high:+.3f}"
        lines.append(f"| {row.name} | {row.score:+.3f} | {interval} | {percent(row.weights / total)} | {row.relative:.4f} |")
    layers = {layer: sum(row.score for row in fact.modules if row.layer == layer) for layer in sorted({row.layer for row in fact.modules})}
    by_layer = ", ".join(f"{layer}: {value:+.3f}" for layer, value in layers.items())
    return [*lines, "", f"Sums by layer: {by_layer}."]


def of_run(folder: Path, auto_round: bool) -> list[str]:
    """The sections of a run, one a scheme in which blame is done."""
    found, parts = summary.read(folder), []
    for scheme in found.recipe.low_bit:
        fact, of = found.facts.get(Blamed, scheme), blamed.blamed(found, scheme)
        if fact is None or of is None:
            continue
        tried = ", ".join(f"{name} {count}" for name, count in of.tried.items())
        lines = [
            f"## {found.recipe.model}, {scheme}", "",
            f"{fact.faults} curate faults, {len(found.test)} test problems of {found.recipe.benchmark}. Measure: {fact.measure}. "
            f"Frontiers of unseen curate faults that came back, by measure: {tried}.", "",
            *module_table(fact), "", *rescue_table(of.curve), "",
        ]  # fmt: skip
        lines += [f"- {blamed.test_text(test)[0].upper()}{blamed.test_text(test)[1:]}." for test in of.tests] + [""]
        lines += [line for block in of.mixed for line in mixed_table(block)]
        if auto_round and of.mixed:
            lines += automatic(found, folder, scheme, of.mixed[0])
        parts.append("\n".join(lines) + "\n")
    return parts


def rescue_table(curve: Sequence[dict[str, Any]]) -> list[str]:
    lines = ["| in full precision | weights | modules | solved again | newly lost | frontiers back |", "|---|---|---|---|---|---|"]
    for row in curve:
        seeds = f" (mean of {row['seeds']})" if row["seeds"] > 1 else ""
        counts = [f"{percent(row['rescued'])} of {row['n']}", f"{percent(row['lost'])} of {row['others']}"]
        counts.append(f"{percent(row['frontiers'])} of {row['faults']}")
        lines.append(f"| {row['share']} %, {row['name']}{seeds} | {row['weights']:,.0f} | {row['modules']:.3g} | {' | '.join(counts)} |")
    return lines


def mixed_table(block: dict[str, Any]) -> list[str]:
    lines = [f"Mixed precision within {block['budget']:.3g} bits a weight, each checkpoint made by llm-compressor:", ""]
    lines += ["| bits | bits a weight | accuracy | mixed by blame minus this, 95 % | p | Holm p |", "|---|---|---|---|---|---|"]
    for row in block["rows"]:
        against = "| | |"
        if "p" in row:
            against = f"{points(row['value'])} ({points(row['low'])} to {points(row['high'])}) | {row['p']:.2g} | {row['holm']:.2g} |"
        lines.append(f"| {row['name']} ({row['made']}) | {row['size']:.3f} | {percent(row['accuracy'])} of {row['n']} | {against}")
    verdict = "is offered" if block["wins"] else "is not offered: it is not shown to be more accurate than uniform bits of its size"
    wide = ", ".join(f"{name} ({bits})" for name, bits in block["wide"].items())
    return [*lines, "", f"The proposal {verdict}. More bits: {wide or 'none'}.", ""]


def automatic(found: summary.Found, folder: Path, scheme: str, block: dict[str, Any]) -> list[str]:
    """AutoRound's automatic choice among the scheme's bits, 8 and 16, within the proposal's size, rounded as the proposal is."""
    from auto_round import AutoRound, AutoScheme  # pyright: ignore[reportMissingImports]
    from auto_round.schemes import QuantizationScheme  # pyright: ignore[reportMissingImports]

    parent, own = load.locate(found.recipe.model), schemes.parse(scheme)
    options: list[Any] = [
        QuantizationScheme(bits=bits, group_size=own.group or -1, sym=own.symmetric) for bits in (own.weight_bits, proposal.WIDE)
    ]
    tokenizer, prompt = load.load_tokenizer(parent), chat.prompt_for(parent, found.recipe.model.startswith(load.BUILTIN))
    curate = [p for p in found.problems.values() if p.split != "test" and p.id in found.traces["full"]][:64]
    texts = [chat.render(tokenizer, prompt, p.question) + found.traces["full"][p.id].text for p in curate]
    (data := folder / "auto-round.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    codes = block["budget"] - holding.SCALE_BITS / own.group if own.group else block["budget"]  # its own count has zero points too
    how: dict[str, Any] = {"dataset": str(data), "seqlen": 64, "nsamples": len(texts), "enable_torch_compile": False}
    wanted = AutoScheme(avg_bits=codes, options=options, ignore_scale_zp_bits=True, batch_size=8, low_gpu_mem_usage=False, **how)
    rounder = AutoRound(load.load_model(parent, "float32"), tokenizer, scheme=wanted, iters=0, **how)
    rounder.quantize()
    data.unlink()
    chosen = {name: int(of["bits"]) for name, of in (rounder.layer_config or {}).items() if "layers" in name}
    wide = {name: bits for name, bits in chosen.items() if bits > own.weight_bits}
    out = folder / "auto-round"
    quantizer.quantize(parent, own, [], out, wide)
    right = solve(parent, out, prompt, found.test, 180)
    shutil.rmtree(out)
    mine = next(
        one for one in found.facts.all(Mixed).values() if (one.scheme, one.choice, one.budget) == (scheme, "mixed", block["budget"])
    )
    outcomes = found.outcomes(mine.arm)
    change, pair = statistics.difference(outcomes, right), statistics.paired(outcomes, right)
    interval = f"{points(change.value)} ({points(change.low)} to {points(change.high)}) points, p = {pair.p:.2g}"
    named = ", ".join(f"{name} ({bits})" for name, bits in wide.items())
    return [
        f"AutoRound's automatic choice: {named or 'none'}; {percent(float(right.mean()))} right. Mixed by blame minus this: {interval}.",
        "",
    ]


def solve(parent: str, folder: Path, prompt: str, problems: Sequence[Problem], tokens: int) -> statistics.Outcomes:
    tokenizer = load.load_tokenizer(parent)
    engine = LocalEngine(load.load_model(str(folder)), tokenizer, tokens, 150)
    return right_of(engine, problems, [chat.render(tokenizer, prompt, p.question) for p in problems])


def right_of(engine: LocalEngine, problems: Sequence[Problem], prompts: Sequence[str]) -> statistics.Outcomes:
    made = engine.complete(prompts)
    traces = [
        Trace(problem=problem.id, arm="x", made_by="x", text=one.text, tokens=one.tokens, finish=one.finish)
        for problem, one in zip(problems, made, strict=True)
    ]
    with Verifier() as verifier:
        return np.array([grade.outcome == "correct" for grade in grading.grade_all(traces, list(problems), "x", verifier)], dtype=bool)


class Real:
    """The recorded run's faults, and what is measured at them; all kept in the work folder."""

    def __init__(self, model: str, low: Path, work: Path) -> None:
        self.run, self.work = Recorded(model), work
        work.mkdir(parents=True, exist_ok=True)
        tokenizer = self.run.tokenizer
        full, quantized = (LocalEngine(load.load_model(one), tokenizer, TOKENS, 8) for one in (model, str(low)))
        self.pair = blaming.Pair.of(full, quantized, str(low), RECORDED[1])
        self.faults = [fault for fault in self.run.faults if fault.frontier is not None]
        self.problems = {problem.id: problem for problem in self.run.problems}

    def drawn(self, split: str, count: int) -> list[Fault]:
        """A fixed random part of a split's faults: a smaller part lies within a larger one."""
        found = [fault for fault in self.faults if (self.problems[fault.problem].split == "test") == (split == "test")]
        random.Random(f"blame {split}").shuffle(found)
        return found[:count]

    def marks(self, faults: Iterable[Fault]) -> Iterable[Mark]:
        """Frontiers, one after another, for each takes a pass."""
        for fault in faults:
            text = chat.render(self.run.tokenizer, "steps-1", self.problems[fault.problem].question)
            trace = self.run.traces[RECORDED[1], fault.problem]
            row = (*chat.encode(self.run.tokenizer, text), *trace.tokens[: fault.frontier])
            (read,) = self.pair.full.score([[*row, row[-1]]], [len(row)])
            yield Mark(fault.problem, row, read.tokens[0])

    def kept(self, name: str) -> dict[str, Any]:
        file = self.work / f"{name}.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return {one["key"]: one["value"] for one in map(json.loads, lines)}

    def keep(self, name: str, key: str, value: Any) -> None:
        with (self.work / f"{name}.jsonl").open("a") as stream:
            stream.write(json.dumps({"key": key, "value": value}) + "\n")

    def scored(self, count: int) -> Blamed:
        """Blame at so many training faults, by full precision's log-probability: the plain measure, as trying others takes too long."""
        done = self.kept("scores")
        chosen = self.drawn("train", count)
        for mark in self.marks(fault for fault in chosen if fault.problem not in done):
            found = scoring.scores(self.pair.full.model, self.pair.low.model, self.pair.modules, mark, at=("full",))
            self.keep("scores", mark.problem, {name: [float(f"{x:.5g}") for x in values] for name, values in found.items()})
            print(f"scored {mark.problem}", flush=True)
        done = self.kept("scores")
        return blaming.blamed_of(self.pair, [done[fault.problem] for fault in chosen], [], scoring.PLAIN)

    def frontiers(self, choices: dict[str, list[str]], count: int) -> dict[str, list[bool]]:
        """At which test frontiers full precision's token comes first again, by choice."""
        faults, done = self.drawn("test", count), self.kept("frontiers")
        for fault in faults:
            missing = {name: chosen for name, chosen in choices.items() if f"{name} {sorted(chosen)} {fault.problem}" not in done}
            for mark in self.marks([fault] if missing else []):
                for chosen in missing.items():
                    (back,) = self.pair.frontiers([mark], chosen[1])
                    self.keep("frontiers", f"{chosen[0]} {sorted(chosen[1])} {fault.problem}", back)
                print(f"read {mark.problem}", flush=True)
        done = self.kept("frontiers")
        return {name: [done[f"{name} {sorted(chosen)} {fault.problem}"] for fault in faults] for name, chosen in choices.items()}

    def solved(self, choices: dict[str, list[str]], count: int) -> dict[str, list[bool]]:
        """Which of so many lost test problems are solved again, by choice."""
        lost, done = [self.problems[fault.problem] for fault in self.drawn("test", count)], self.kept("solved")
        for name, chosen in choices.items():
            missing = [p for p in lost if f"{name} {sorted(chosen)} {p.id}" not in done]
            for start in range(0, len(missing), 4):
                part = missing[start : start + 4]
                prompts = [chat.render(self.run.tokenizer, "steps-1", p.question) for p in part]
                with holding.restored(self.pair.full.model, self.pair.low.model, chosen):
                    right = right_of(self.pair.low, part, prompts)
                for problem, good in zip(part, right.tolist(), strict=True):
                    self.keep("solved", f"{name} {sorted(chosen)} {problem.id}", good)
                print(f"solved {name}: {start + len(part)} of {len(missing)}", flush=True)
        done = self.kept("solved")
        return {name: [done[f"{name} {sorted(chosen)} {p.id}"] for p in lost] for name, chosen in choices.items()}


def of_real(model: str, low: Path, work: Path, faults: int, frontiers: int, solve_count: int) -> str:
    """The section of the recorded run."""
    real = Real(model, low, work)
    fact = real.scored(faults)
    choices = {
        f"{choice}{'' if seed is None else f' {seed}'}": holding.fill(real.pair.modules, order, blamed.HEADLINE / 100)
        for choice, seed, order in blaming.choices(real.pair, fact, RANDOM)
    }
    back = real.frontiers({"none": [], **choices}, frontiers)
    lines = [
        f"## {RECORDED[0]}, {RECORDED[1]}", "",
        f"The recorded run of GSM8K: scores at {fact.faults} of its training faults, frontiers of {frontiers} of its test faults; "
        f"measure: {fact.measure}, not chosen. {blamed.HEADLINE} % of the weights are put back.", "",
        *module_table(fact), "",
        "| in full precision | modules | frontiers back | 95 % | against blame: McNemar p |", "|---|---|---|---|---|",
        *(compared(name, len(choices.get(name, [])), back["blame"], right) for name, right in back.items()), "",
    ]  # fmt: skip
    if solve_count:
        right = real.solved(choices, solve_count)
        lines += [f"{solve_count} of the test problems that rounding lost, solved again greedily:", ""]
        lines += ["| in full precision | modules | solved again | 95 % | against blame: McNemar p |", "|---|---|---|---|---|"]
        lines += [*(compared(name, len(choices[name]), right["blame"], of) for name, of in right.items()), ""]
    return "\n".join(lines)


def compared(name: str, modules: int, mine: Sequence[bool], other: Sequence[bool]) -> str:
    share, p = statistics.proportion(sum(other), len(other)), statistics.paired(np.array(mine), np.array(other)).p
    first = f"| {name} | {modules} | {percent(share.value)} of {len(other)} | {percent(share.low)} to {percent(share.high)} |"
    return f"{first} {'' if name == 'blame' else f'{p:.2g}'} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path, help="folders of runs in which stepmend blame is done")
    parser.add_argument("--auto-round", action="store_true", help="measure AutoRound's automatic choice too")
    parser.add_argument("--model", help="a real model's full-precision checkpoint")
    parser.add_argument("--low", type=Path, help="its quantized checkpoint")
    parser.add_argument("--work", type=Path, default=Path("runs/blame-real"))
    parser.add_argument("--faults", type=int, default=64, help="training faults that modules are scored at")
    parser.add_argument("--frontiers", type=int, default=48, help="test faults at which frontiers are read")
    parser.add_argument("--solve", type=int, default=0, help="lost test problems that are solved again")
    args = parser.parse_args()
    parts = [part for folder in args.runs for part in of_run(folder, args.auto_round)]
    if args.model:
        parts.append(of_real(args.model, args.low, args.work, args.faults, args.frontiers, args.solve))
    for part in parts:
        sections.write(PAGE, HEAD, part)
    print("\n".join(parts))


if __name__ == "__main__":
    main()
