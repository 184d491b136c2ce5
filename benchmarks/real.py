"""A real model restored, beside its peers. Writes docs/results/real.md.

python benchmarks/real.py MODEL --work real                            # every arm on all test problems; a stopped run continues
python benchmarks/real.py MODEL --work real --only ours-s0             # one arm; --only may be repeated
python benchmarks/real.py MODEL --work real --scheme gptq-w3a16-g128   # another scheme: bullets from a run of its own
python benchmarks/real.py MODEL --work real --problems 448             # on a CPU: a fixed random part of the test problems
python benchmarks/real.py MODEL --work real --no-solve                 # checkpoints, divergence and costs, no accuracy
python benchmarks/real.py MODEL --work real --benchmark math --only full --only quantized --only ours-s0    # MATH-500
python benchmarks/real.py MODEL --work real --model-name smollm2-135m --no-solve    # by KL alone; or qwen2.5-coder-1.5b
python benchmarks/real.py --page                                       # the page alone, from docs/results/data/real/
python benchmarks/real.py --quick                                      # every arm, on a built-in reasoner; nothing goes to docs

MODEL is the folder of the full-precision checkpoint, STEPMEND_DATA that of the data. What arms are made from: material.py; the arms:
peers.py. AutoRound needs auto-round, which llm-compressor brings; the paper's recipe needs trl, NNCF's nncf: an arm whose package is not
installed is left out. Each arm is made, measured and solved in processes of their own. What was measured is kept under
docs/results/data/real/: MODEL/SCHEME/ARM.json says what an arm cost and how far it is from full precision, MODEL/SCHEME/ARM-BENCHMARK.jsonl
holds its outcome on every problem. The page is made from these files alone; what no file holds is "not measured". A checkpoint that came
out otherwise than the kept one drops what was measured of that.
"""

import argparse
import json
import random
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import arms
import numpy as np
import peers
import real_page
from material import MODELS, RECORDED, Material, Recorded, data_of, of_run, recorded

from stepmend import Problem, Trace, grading
from stepmend.engines import budget
from stepmend.engines.local import LocalEngine
from stepmend.grading.verify import Verifier
from stepmend.models import chat, load
from stepmend.quantize import schemes
from stepmend.records import Grade, InputError
from stepmend.restore.validation import Readings, Solution

ROOT = Path(__file__).parents[1]
DATA, PAGE = ROOT / "docs/results/data/real", ROOT / "docs/results/real.md"
QUICK = ROOT / "runs/real-quick"
BUILTIN = "builtin:qwen2"
TIMED = 64
"""Test problems that are solved to time a model."""


def part_of(test: Sequence[Problem], count: int | None) -> list[Problem]:
    """So many test problems, drawn once and for all: a smaller part lies within a larger one."""
    order = list(test)
    random.Random("real").shuffle(order)
    return order[: count or len(order)]


def outcome(trace: Trace, grade: Grade) -> dict[str, Any]:
    """What is committed of one solution."""
    return {"problem": trace.problem, "outcome": grade.outcome, "finish": trace.finish, "tokens": len(trace.tokens)}


def write_lines(file: Path, lines: Sequence[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(one) + "\n" for one in lines))


def divergences(parent: str, folders: dict[str, Path], texts: Sequence[Solution]) -> dict[str, list[tuple[str, float, float]]]:
    """Of each checkpoint, a text: (problem, mean KL divergence per token from full precision, share of the same first token)."""
    tokenizer = load.load_tokenizer(parent)
    readings = Readings(load.load_model(parent), [text.row(tokenizer) for text in texts], tokenizer.pad_token_id)
    found = {}
    for name, folder in folders.items():
        load.free()
        values = readings.compare(load.load_model(str(folder)))
        found[name] = [(text.problem, round(kl, 6), round(same, 5)) for text, (kl, same) in zip(texts, values, strict=True)]
        print(f"  {name}: KL {np.mean([kl for _, kl, _ in found[name]]):.4f}", flush=True)
    return found


def engine_of(parent: str, folder: Path, new_tokens: int) -> LocalEngine:
    model = load.load_model(str(folder))
    return LocalEngine(model, load.load_tokenizer(parent), new_tokens, budget.slots_for(model.config, new_tokens, model.device.type))


def speed(parent: str, folder: Path, prompts: Sequence[str], new_tokens: int) -> float:
    """Tokens/s over all prompts, after one batch to warm up."""
    engine = engine_of(parent, folder, new_tokens)
    engine.complete(prompts[:2])
    start = time.perf_counter()
    made = engine.complete(prompts)
    return sum(len(one.tokens) for one in made) / (time.perf_counter() - start)


def solve(parent: str, folder: Path, name: str, problems: Sequence[Problem], prompts: Sequence[str], new_tokens: int, file: Path) -> None:
    """Solve test problems and keep each outcome as it comes."""
    engine = engine_of(parent, folder, new_tokens)
    start, tokens = time.perf_counter(), 0
    file.parent.mkdir(parents=True, exist_ok=True)
    with Verifier() as verifier, file.open("a") as stream:
        for number, (index, made) in enumerate(engine.generate(prompts), 1):
            problem, tokens = problems[index], tokens + len(made.tokens)
            trace = Trace(problem=problem.id, arm=name, made_by="real", text=made.text, tokens=made.tokens, finish=made.finish)
            (grade,) = grading.grade_all([trace], [problem], "real", verifier)
            stream.write(json.dumps(outcome(trace, grade)) + "\n")
            stream.flush()
            if number % 16 == 0:
                print(f"  {name}: {number} of {len(problems)}, {tokens / (time.perf_counter() - start):.0f} tokens/s", flush=True)


def moved(low: Path, folder: Path, bits: int) -> float:
    """The share of integer codes that differ between two checkpoints of one grid, from their files."""
    import torch
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
    from safetensors.torch import load_file

    before, after = (load_file(one / "model.safetensors") for one in (low, folder))
    changed = total = 0
    for name in (name for name in before if name.endswith("weight_packed")):
        shape = torch.Size(before[name.replace("weight_packed", "weight_shape")].tolist())
        one, other = (unpack_from_int32(tensors[name], bits, shape) for tensors in (before, after))
        changed, total = changed + int((one != other).sum()), total + one.numel()
    return changed / total


def quantized(folder: Path) -> bool:
    """Whether a checkpoint has codes: one that is written dequantized has none."""
    return "quantization_config" in json.loads((folder / "config.json").read_text())


@dataclass
class Bench:
    """One model and scheme, measured on one benchmark."""

    name: str
    parent: str
    scheme: str
    benchmark: str
    work: Path
    results: Path
    problems: int | None
    validation: int
    options: peers.Options

    @cached_property
    def material(self) -> Material:
        """Made in a process of its own, which loads models."""
        self.work.mkdir(parents=True, exist_ok=True)
        if (self.name, self.scheme) == RECORDED:
            return arms.in_child(recorded, self.parent, self.work, self.validation)
        model, tuned_on = (BUILTIN, "story") if self.name == BUILTIN else (self.parent, "gsm8k")
        return arms.in_child(of_run, MODELS[self.name], model, self.scheme, tuned_on, self.work, self.validation)

    @cached_property
    def test(self) -> list[Problem]:
        return part_of(data_of(self.benchmark).measured(None, 0), self.problems)

    @cached_property
    def prompts(self) -> dict[str, str]:
        """The rendered test problems."""
        tokenizer, prompt = load.load_tokenizer(self.parent), chat.prompt_for(self.parent, self.name == BUILTIN)
        return {p.id: chat.render(tokenizer, prompt, p.question) for p in self.test}

    @property
    def new_tokens(self) -> int:
        return MODELS[self.name].new_tokens[self.benchmark]

    def names(self) -> list[str]:
        """All arms, in the page's order."""
        return ["full", "quantized", *real_page.arms_of(self.name, self.scheme)]

    def folder(self, name: str) -> Path:
        """The folder of an arm's checkpoint."""
        if name == "full":
            return Path(self.parent)
        return self.material.low if name == "quantized" else self.work / name

    def file(self, name: str, end: str) -> Path:
        return real_page.file_of(self.results, self.name, self.scheme, name, end)

    def outcomes_of(self, name: str) -> Path:
        return self.file(name, f"-{self.benchmark}.jsonl")

    def facts(self, name: str) -> dict[str, Any]:
        """What is kept of an arm."""
        file = self.file(name, ".json")
        return json.loads(file.read_text()) if file.exists() else {}

    def note(self, name: str, **facts: Any) -> None:
        """Keep further facts of an arm."""
        file = self.file(name, ".json")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(self.facts(name) | facts, indent=1) + "\n")

    def left(self, name: str) -> list[Problem]:
        """Test problems that an arm has no outcome of."""
        file = self.outcomes_of(name)
        done = {json.loads(line)["problem"] for line in file.read_text().splitlines()} if file.exists() else set()
        return [problem for problem in self.test if problem.id not in done]

    def keep_recorded(self) -> None:
        """The outcomes of the recorded run on the test problems: full precision's, and the rounded model's."""
        if self.name != RECORDED[0] or self.benchmark != "gsm8k":
            return
        run = Recorded(self.parent)
        for arm, name in (("full", "full"), (RECORDED[1], "quantized")):
            if name == "full" or self.scheme == RECORDED[1]:
                write_lines(self.outcomes_of(name), [outcome(run.traces[arm, p.id], run.grades[arm, p.id]) for p in run.test])

    def make(self, name: str) -> None:
        """The checkpoint of an arm, where it is not there; what was measured of another one is dropped."""
        if name in ("full", "quantized"):
            if "bytes" not in self.facts(name):
                device, dtype = load.placement(self.parent)
                size = sum(file.stat().st_size for file in self.folder(name).glob("*.safetensors"))
                self.note(name, bytes=size, device=device, dtype=str(dtype).removeprefix("torch."))
            return
        folder = self.folder(name)
        if folder.exists():
            return
        print(f"{self.name}, {self.scheme}, {name}", flush=True)
        task = peers.Task(self.parent, self.scheme, self.material, self.options, folder)
        found = arms.in_child(peers.made, name, task)
        if quantized(folder) and not (folder / "adapter").exists():
            found["moved"] = moved(self.material.low, folder, schemes.parse(self.scheme).weight_bits)
        if found["checkpoint"] != self.facts(name).get("checkpoint"):
            for file in self.file(name, "").parent.glob(f"{name}-*.jsonl"):
                file.unlink()
            self.file(name, ".json").unlink(missing_ok=True)
        self.note(name, **found)

    def measure(self, names: Sequence[str]) -> None:
        """Divergence from full precision, of arms that lack it."""
        lacking = {name: self.folder(name) for name in names if name != "full" and "readings" not in self.facts(name)}
        if lacking:
            for name, readings in arms.in_child(divergences, self.parent, lacking, self.material.measured).items():
                kl, same = np.array([values for _, *values in readings]).mean(0)
                self.note(name, kl=float(kl), same=float(same), readings=readings)

    def solve(self, name: str) -> None:
        """Outcomes on the test problems that an arm lacks."""
        if problems := self.left(name):
            prompts = [self.prompts[problem.id] for problem in problems]
            arms.in_child(solve, self.parent, self.folder(name), name, problems, prompts, self.new_tokens, self.outcomes_of(name))

    def time(self, name: str) -> None:
        """Tokens/s of an arm that lacks it."""
        if "speed" not in self.facts(name):
            prompts = [self.prompts[problem.id] for problem in self.test[:TIMED]]
            self.note(name, speed=arms.in_child(speed, self.parent, self.folder(name), prompts, self.new_tokens))

    def run(self, names: Sequence[str], *, solved: bool, timed: bool) -> list[str]:
        """Make, measure, time and solve arms, as far as anything is left to do; those that could not be made."""
        self.keep_recorded()
        todo = [name for name in names if self._lacks(name, solved, timed) and self._can(name)]
        failed = [name for name in todo if not self._made(name)]
        todo = [name for name in todo if name not in failed]
        if self.benchmark in ("gsm8k", "story"):
            self.measure(todo)
        for name in todo if timed else ():
            self.time(name)
        for name in todo if solved else ():
            self.solve(name)
        return failed

    def _made(self, name: str) -> bool:
        """Whether an arm could be made; a peer that fails is said, and the others go on."""
        try:
            self.make(name)
        except Exception:
            traceback.print_exc()
            print(f"{name}: failed, and is left out", flush=True)
            return False
        return True

    def _can(self, name: str) -> bool:
        """Whether what an arm needs is installed; said where it is not."""
        lacking = peers.ARMS[name].lacks if name in peers.ARMS else None
        if lacking:
            print(f"{name}: left out, as {lacking} is not installed", flush=True)
        return not lacking

    def _lacks(self, name: str, solved: bool, timed: bool) -> bool:
        facts = self.facts(name)
        kinds = {"bytes"} | ({"readings"} if name != "full" else set()) | ({"speed"} if timed else set())
        return not kinds <= facts.keys() or (solved and bool(self.left(name)))


def bench_of(options: argparse.Namespace) -> Bench:
    """What the command line asks for."""
    name = options.model_name or (BUILTIN if options.quick else RECORDED[0])
    scheme = options.scheme or MODELS[name].schemes[0]
    if scheme not in MODELS[name].schemes:
        raise InputError(f"--scheme {scheme}: {name} is measured in {', '.join(MODELS[name].schemes)}")
    parent = load.locate(name if name == BUILTIN else options.model)
    benchmark = options.benchmark or ("story" if name == BUILTIN else "gsm8k")
    where = name.replace(":", "-"), scheme
    settings = peers.Options(options.steps, options.solve_tokens, options.iterations)
    problems, validation, work, results = options.problems, options.validation, options.work, options.results
    if options.quick:
        if name != BUILTIN:  # few texts: a real model on a CPU
            MODELS[name] = replace(MODELS[name], bullets=6, measured=2, curated=100)
        settings = peers.Options(steps=4, solve_tokens=4096, iterations=2)
        problems, validation, work, results = 8, 12, QUICK, QUICK / "results"
    return Bench(name, parent, scheme, benchmark, work.resolve().joinpath(*where), results, problems, validation, settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="folder of the full-precision checkpoint")
    parser.add_argument("--model-name", choices=MODELS, help=f"which model it is; default: {RECORDED[0]}")
    parser.add_argument("--scheme", help="default: the model's first one")
    parser.add_argument("--benchmark", choices=("gsm8k", "math"), help="test problems; default: gsm8k")
    parser.add_argument("--work", type=Path, default=Path("real"), help="folder for checkpoints and runs")
    parser.add_argument("--results", type=Path, default=DATA, help="folder for what is measured; default: docs/results/data/real")
    parser.add_argument("--only", action="append", help="an arm; may be repeated")
    parser.add_argument("--problems", type=int, help="test problems; default: all")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of arms that train, at most")
    parser.add_argument("--validation", type=int, default=48, help="training problems held out to choose rates and states")
    parser.add_argument("--solve-tokens", type=int, default=65536, help="tokens of text that codes are solved on, at most")
    parser.add_argument("--iterations", type=int, default=200, help="AutoRound's iterations a layer")
    parser.add_argument("--no-solve", action="store_true", help="checkpoints, divergence and costs only")
    parser.add_argument("--no-speed", action="store_true", help="do not time solving")
    parser.add_argument("--quick", action="store_true", help=f"few problems and steps, to see that every arm works: {QUICK}")
    parser.add_argument("--page", action="store_true", help="write the page from what was kept, and nothing else")
    options = parser.parse_args()
    page, results, failed = PAGE, options.results, list[str]()
    if not options.page:
        if not (options.model or (options.quick and not options.model_name)):
            parser.error("give the folder of the model, or --page, or --quick")
        try:
            bench = bench_of(options)
        except InputError as error:
            parser.error(str(error))
        if unknown := set(options.only or ()) - set(bench.names()):
            parser.error(f"--only: no {', '.join(sorted(unknown))} here; allowed: {', '.join(bench.names())}")
        failed = bench.run(options.only or bench.names(), solved=not options.no_solve, timed=not options.no_speed)
        page, results = (QUICK / "real.md" if options.quick else PAGE), bench.results
    print(real_page.write(page, results))
    if failed:
        sys.exit(f"not made: {', '.join(failed)}")


if __name__ == "__main__":
    main()
