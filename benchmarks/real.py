"""A real model restored, beside its peers: Qwen2.5-Coder-0.5B-Instruct on GSM8K. Writes docs/results/real.md.

python benchmarks/real.py MODEL --work real                       # every arm, on all 1,319 test problems; a stopped run continues
python benchmarks/real.py MODEL --work real --only ours-s0        # one arm; --only may be repeated
python benchmarks/real.py MODEL --work real --problems 448        # on a CPU: a fixed random part of the test problems
python benchmarks/real.py --page                                  # the page alone, from docs/results/data/

MODEL is the folder of the full-precision checkpoint. The bullets, and both models' solutions of all problems, are those of a recorded run
(STEPMEND_DATA/real/qwen2.5-coder-0.5b-gsm8k-run.tgz): curated from its first 1,400 training problems. The other 1,398 choose states
(the first ones) and measure KL divergence (the last ones). Each arm's outcomes are kept under docs/results/data/, a problem a line; the
tables are made from these files alone, and what no file holds is "not measured".
"""

import argparse
import json
import os
import random
import tarfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import arms
import numpy as np

from stepmend import Bullet, Problem, Trace, grading
from stepmend.engines.local import LocalEngine
from stepmend.grading.verify import Verifier
from stepmend.measure import statistics
from stepmend.models import chat, load
from stepmend.quantize import run as quantizer
from stepmend.quantize import schemes
from stepmend.recipe import Restore
from stepmend.records import Grade
from stepmend.report.summary import percent, points
from stepmend.restore import tune
from stepmend.restore.validation import Readings, Solution

ROOT = Path(__file__).parents[1]
DATA, PAGE = ROOT / "docs/results/data", ROOT / "docs/results/real.md"
SCHEME, NEW_TOKENS, CURATED = "rtn-w4a16-g128", 400, 1400
KL_PROBLEMS = 16
"""Training problems, the last of the recorded run, on whose solutions KL divergence is measured."""
HEAD = f"""# A real model: Qwen2.5-Coder-0.5B-Instruct on GSM8K

Made by `python benchmarks/real.py` from `docs/results/data/real-*.jsonl`, which hold each arm's outcome on every problem it solved.
Prompt `steps-1`, greedy, at most {NEW_TOKENS} new tokens. The parent is a 4-bit GGUF release, dequantized to bfloat16. Bullets: 180, from
the first 1,400 training problems. KL divergence per token from full precision: on both models' solutions of {KL_PROBLEMS} other training
problems. Intervals are over problems; p is McNemar's exact test. One sample a problem. The outcomes of `full` and `quantized` are those of
the recorded run (one H200, bfloat16); the others' device and dtype stand in the second table. "not measured": see [what is
pending](pending.md).
"""


class Recorded:
    """The recorded run: problems, bullets, and the solutions and outcomes of full precision and of the quantized model."""

    def __init__(self, file: Path, model: str) -> None:
        with tarfile.open(file) as archive:
            lines = {Path(m.name).name: archive.extractfile(m).read().splitlines() for m in archive if m.name.endswith(".jsonl")}  # pyright: ignore
        self.problems = [Problem.model_validate_json(line) for line in lines["problems.jsonl"]]
        self.bullets = [Bullet.model_validate_json(line) for line in lines["bullets.jsonl"]]
        self.traces = {(t.arm, t.problem): t for t in map(Trace.model_validate_json, lines["traces.jsonl"])}
        self.grades = {(g.arm, g.problem): g for g in map(Grade.model_validate_json, lines["grades.jsonl"])}
        self.test = [p for p in self.problems if p.split == "test"]
        self.train = [p for p in self.problems if p.split != "test"]
        self.tokenizer = load.load_tokenizer(model)

    def prompt(self, problem: Problem) -> str:
        return chat.render(self.tokenizer, "steps-1", problem.question)

    def solutions(self, problems: Sequence[Problem]) -> list[Solution]:
        """Both models' solutions of problems."""
        return [Solution(p.id, self.prompt(p), self.traces[arm, p.id].tokens) for p in problems for arm in ("full", SCHEME)]

    def anchors(self, count: int) -> list[Solution]:
        """Solutions of curated problems that both models solve and that no bullet is of."""
        taken = {bullet.problem for bullet in self.bullets}
        both = [p for p in self.train[:CURATED] if p.id not in taken and self._solved("full", p) and self._solved(SCHEME, p)]
        return self.solutions(both)[:count]

    def _solved(self, arm: str, problem: Problem) -> bool:
        return self.grades[arm, problem.id].outcome == "correct"

    def outcomes(self, arm: str) -> list[dict[str, Any]]:
        """The recorded outcomes of an arm on the test problems."""
        return [outcome(self.traces[arm, p.id], self.grades[arm, p.id]) for p in self.test]


def outcome(trace: Trace, grade: Grade) -> dict[str, Any]:
    """What is committed of one solution."""
    return {"problem": trace.problem, "outcome": grade.outcome, "finish": trace.finish, "tokens": len(trace.tokens)}


def part_of(test: Sequence[Problem], count: int | None) -> list[Problem]:
    """So many test problems, drawn once and for all: a smaller part lies within a larger one."""
    order = list(test)
    random.Random("real").shuffle(order)
    return order[: count or len(order)]


def recipes(steps: int, validation: int, solve_tokens: int) -> dict[str, tuple[Restore, int]]:
    """What is restored in each of our arms, and the seed."""
    common = {"steps": steps, "validation": validation}
    ours = Restore.model_validate({**common, "solve_tokens": solve_tokens})
    found = {f"ours-s{seed}": (ours, seed) for seed in range(3)}
    found["ours-solved"] = (
        Restore.model_validate({**common, "solve_tokens": solve_tokens, "tune": "codes+scales", "steps": 0}),
        0,
    )
    found["ours-codes"] = Restore.model_validate({**common, "solve_tokens": solve_tokens, "tune": "codes"}), 0
    found["ours-bullets-only"] = Restore.model_validate({**common, "solve_tokens": solve_tokens, "anchors": 0}), 0
    found["ours-without-codes"] = Restore.model_validate({**common, "tune": "scales+norms"}), 0
    return found


def make(name: str, model: str, work: Path, recorded: Recorded, options: argparse.Namespace) -> dict[str, Any]:
    """Write the checkpoint of an arm, and give what it cost."""
    out, low = work / name, work / SCHEME
    if not low.exists():
        quantizer.quantize(model, schemes.parse(SCHEME), [], low)
    if name == "quantized":
        return {}
    start = time.perf_counter()
    if name == "gptq":
        texts = [s.prompt + recorded.tokenizer.decode(s.tokens) for s in recorded.solutions(recorded.train[:64])[::2]]
        arms.recalibrated(model, low, texts, SCHEME.replace("rtn", "gptq"), 0, out)
        return {"seconds": time.perf_counter() - start}
    recipe, seed = recipes(options.steps, options.validation, options.solve_tokens)[name]
    held = recorded.solutions(recorded.train[CURATED : CURATED + options.validation])
    anchors = recorded.anchors(round(recipe.anchors * len(recorded.bullets)))
    tuned = tune.restore(
        model, low, recorded.bullets, recipe, out, seed=seed, anchors=anchors, held_out=held, say=partial(print, flush=True)
    )
    facts = {"moved": tuned.moved, "rates": tuned.rates, "curve": tuned.curve, "kept": tuned.kept, "other": tuned.other}
    return {"seconds": time.perf_counter() - start, **facts, "recipe": recipe.model_dump()}


def measure_kl(folder: Path, model: str, recorded: Recorded) -> dict[str, float]:
    """Mean KL divergence per token and the share of the same first token, on solutions that nothing was chosen on."""
    rows = [solution.row(recorded.tokenizer) for solution in recorded.solutions(recorded.train[-KL_PROBLEMS:])]
    readings = Readings(load.load_model(model), rows, recorded.tokenizer.pad_token_id)
    kl, same = np.array(readings.compare(load.load_model(str(folder)))).mean(0)
    return {"kl": float(kl), "same": float(same)}


def moved(low: Path, folder: Path) -> float:
    """The share of integer codes that differ between two checkpoints of the scheme, from their files."""
    import torch
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
    from safetensors.torch import load_file

    bits, (before, after) = schemes.parse(SCHEME).weight_bits, (load_file(one / "model.safetensors") for one in (low, folder))
    changed = total = 0
    for name in (name for name in before if name.endswith("weight_packed")):
        shape = torch.Size(before[name.replace("weight_packed", "weight_shape")].tolist())
        one, other = (unpack_from_int32(tensors[name], bits, shape) for tensors in (before, after))
        changed, total = changed + int((one != other).sum()), total + one.numel()
    return changed / total


def where(model: str) -> dict[str, str]:
    """The kind of device and the dtype that an arm is computed in."""
    device, dtype = load.placement(model)
    return {"device": device, "dtype": str(dtype).removeprefix("torch.")}


def solve(name: str, folder: Path, problems: Sequence[Problem], recorded: Recorded) -> None:
    """Solve test problems and keep each outcome as it comes."""
    file = DATA / f"real-{SCHEME}-{name}.jsonl"
    done = {json.loads(line)["problem"] for line in file.read_text().splitlines()} if file.exists() else set()
    left = [p for p in problems if p.id not in done]
    if not left:
        return
    engine = LocalEngine(load.load_model(str(folder)), recorded.tokenizer, NEW_TOKENS)
    start, tokens = time.perf_counter(), 0
    with Verifier() as verifier, file.open("a") as stream:
        for number, (index, completion) in enumerate(engine.stream([recorded.prompt(p) for p in left]), 1):
            problem, tokens = left[index], tokens + len(completion.tokens)
            trace = Trace(
                problem=problem.id, arm=name, made_by="real", text=completion.text, tokens=completion.tokens, finish=completion.finish
            )
            (grade,) = grading.grade_all([trace], [problem], "real", verifier)
            stream.write(json.dumps(outcome(trace, grade)) + "\n")
            stream.flush()
            if number % 16 == 0:
                print(f"  {name}: {number} of {len(left)}, {tokens / (time.perf_counter() - start):.0f} tokens/s", flush=True)


def run(options: argparse.Namespace) -> None:
    """Make, measure and solve every arm that was asked for."""
    recorded = Recorded(Path(os.environ["STEPMEND_DATA"]) / "real/qwen2.5-coder-0.5b-gsm8k-run.tgz", options.model)
    DATA.mkdir(parents=True, exist_ok=True)
    for arm, name in (("full", "full"), (SCHEME, "quantized")):
        lines = "".join(json.dumps(one) + "\n" for one in recorded.outcomes(arm))
        (DATA / f"real-{SCHEME}-{name}.jsonl").write_text(lines)
    problems = part_of(recorded.test, options.problems)
    for name in options.only or ["quantized", *recipes(1, 1, 1024), "gptq"]:
        folder, file = options.work / (SCHEME if name == "quantized" else name), DATA / f"real-{SCHEME}-{name}.json"
        facts = json.loads(file.read_text()) if file.exists() else {}
        if not folder.exists():
            facts = make(name, options.model, options.work, recorded, options) | where(options.model)
            file.write_text(json.dumps(facts, indent=1) + "\n")
        if name != "quantized" and not options.no_solve:
            solve(name, folder, problems, recorded)
        if "moved" not in facts and name != "quantized":
            facts |= {"moved": moved(options.work / SCHEME, folder)}
            file.write_text(json.dumps(facts, indent=1) + "\n")
        if "kl" not in facts:
            facts |= measure_kl(folder, options.model, recorded) | where(options.model)
            file.write_text(json.dumps(facts, indent=1) + "\n")
    write_page()


def write_page() -> None:
    """The tables, from what was kept."""
    found = {
        file.stem.removeprefix(f"real-{SCHEME}-"): {one["problem"]: one for one in map(json.loads, file.read_text().splitlines())}
        for file in sorted(DATA.glob(f"real-{SCHEME}-*.jsonl"))
    }
    facts = {f.stem.removeprefix(f"real-{SCHEME}-"): json.loads(f.read_text()) for f in sorted(DATA.glob(f"real-{SCHEME}-*.json"))}
    rows = ["| arm | n | accuracy | against full (95 %) | p | against quantized (95 %) | p | loss recovered | accuracy kept | cut off |"]
    rows.append("|" + "---|" * 10)
    for name in dict.fromkeys(["full", "quantized", *recipes(1, 1, 1024), "gptq", *found]):
        rows.append(_row(name, found))
    kl = ["| arm | KL | same first token | codes moved | seconds | device |", "|" + "---|" * 6]
    for name, fact in facts.items():
        if "kl" not in fact:
            continue
        moved, seconds = fact.get("moved"), fact.get("seconds")
        cells = [
            f"{fact['kl']:.4f}",
            percent(fact["same"]),
            percent(moved) if moved else "",
            f"{seconds:.0f}" if seconds else "",
            fact["device"],
        ]
        kl.append("| " + " | ".join([name, *cells]) + " |")
    PAGE.write_text("\n".join([HEAD, f"## {SCHEME}\n", *rows, "", "### Divergence, and what it cost\n", *kl, ""]))
    print(PAGE.read_text())


def _row(name: str, found: dict[str, dict[str, dict[str, Any]]]) -> str:
    if name not in found:
        return f"| {name} | " + " | ".join(["not measured"] * 9) + " |"
    ids = list(found[name])
    right = {arm: np.array([found[arm][i]["outcome"] == "correct" for i in ids]) for arm in ("full", "quantized", name)}
    cells = [str(len(ids)), percent(float(right[name].mean()))]
    for other in ("full", "quantized"):
        if name in ("full", other):
            cells += ["", ""]
            continue
        pair = statistics.paired(right[name], right[other])
        gap = statistics.difference(right[name], right[other])
        cells.append(f"{points(gap.value)} ({points(gap.low)} to {points(gap.high)})")
        cells.append(f"{pair.p:.2g} ({pair.only_first} to {pair.only_second})")
    recovered = statistics.recovery(right["full"], right["quantized"], right[name]) if name not in ("full", "quantized") else None
    if recovered and recovered.value is not None:
        cells.append(f"{percent(recovered.value)} ({percent(recovered.low)} to {percent(recovered.high)})")
    else:
        cells.append("undefined: " + recovered.reason if recovered and recovered.reason else "")
    cut = np.mean([found[name][i]["finish"] == "length" for i in ids])
    cells += [percent(float(right[name].mean() / right["full"].mean())), percent(float(cut))]
    return f"| {name} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="folder of the full-precision checkpoint")
    parser.add_argument("--work", type=Path, default=Path("real"), help="folder for checkpoints")
    parser.add_argument("--only", action="append", help="an arm; may be repeated")
    parser.add_argument("--problems", type=int, help="test problems; default: all")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of our arms, at most")
    parser.add_argument("--validation", type=int, default=48, help="training problems held out to choose states")
    parser.add_argument("--solve-tokens", type=int, default=65536, help="tokens of text that codes are solved on, at most")
    parser.add_argument("--no-solve", action="store_true", help="checkpoints and divergence only")
    parser.add_argument("--page", action="store_true", help="write the page from what was kept, and nothing else")
    options = parser.parse_args()
    if options.page:
        write_page()
    elif options.model:
        options.work.mkdir(parents=True, exist_ok=True)
        run(options)
    else:
        parser.error("give the folder of the model, or --page")


if __name__ == "__main__":
    main()
