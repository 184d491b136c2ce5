"""A real model's Q4_0 file, restored, before and after in llama.cpp itself. Writes docs/results/gguf.md.

python benchmarks/gguf_models.py MODEL --work gguf              # all parts that are not done; a stopped one continues
python benchmarks/gguf_models.py MODEL --work gguf --part kl    # one part: make, restore, kl, time, solve
python benchmarks/gguf_models.py --page                         # the page alone, from docs/results/data/gguf/

MODEL is the folder of qwen2.5-coder-0.5b. STEPMEND_DATA names the data's folder; STEPMEND_LLAMA_CPP llama.cpp's shared library, where
neither xllamacpp nor llama-cpp-python is installed. What is restored on, and what divergence is measured on, are solutions of the recorded
run (material.py). llama.cpp runs on one thread.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
from gguf_writer import write
from material import MODELS, RECORDED, Recorded, assembled

from stepmend import Trace, grading
from stepmend.grading.verify import Verifier
from stepmend.keys import Restore
from stepmend.measure import statistics
from stepmend.models import chat, load
from stepmend.models.gguf import beside
from stepmend.quantize.given import look
from stepmend.report.summary import percent, points
from stepmend.restore import tune
from stepmend.restore.validation import Readings
from stepmend.rundir import write_text

ROOT = Path(__file__).parents[1]
DATA, PAGE = ROOT / "docs/results/data/gguf", ROOT / "docs/results/gguf.md"
KIND, HEAD = "Q4_0", "Q8_0"
"""The type of layers; and of the embeddings, which are the head: llama.cpp takes Q8_0 where rows are no multiple of 256 columns."""
ARMS = ("full", "quantized", "restored")
NEW_TOKENS, CONTEXT = 400, 1024
PARTS = ("make", "restore", "kl", "time", "solve")
TIMED = 8
"""Problems that are solved to time a file."""


def blocks(weight_MN: np.ndarray, kind: str) -> np.ndarray:
    """A matrix's blocks, by llama.cpp's own quantizer."""
    number = gguf.GGMLQuantizationType[kind]
    columns, width = gguf.GGML_QUANT_SIZES[number]
    return llama_cpp.quantize(weight_MN, int(number), weight_MN.shape[1] // columns * width)


class Bench:
    """One model: its files, and what is measured of them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.parent, self.work, self.options = load.locate(options.model), options.work.resolve(), options
        self.work.mkdir(parents=True, exist_ok=True)
        self.name = RECORDED[0]
        self.facts_file = DATA / "facts.json"

    def file(self, arm: str) -> Path:
        """The GGUF file of an arm."""
        ends = {"full": f"{self.name}-BF16.gguf", "quantized": f"{self.name}-{KIND}.gguf"}
        return self.work / ends[arm] if arm in ends else self.work / "restored" / ends["quantized"]

    @cached_property
    def run(self) -> Recorded:
        return Recorded(self.parent)

    def note(self, part: str, **found: Any) -> None:
        """Keep what a part has found."""
        kept = facts() | {part: facts().get(part, {}) | found}
        DATA.mkdir(parents=True, exist_ok=True)
        write_text(self.facts_file, json.dumps(kept, indent=1) + "\n")

    def make(self) -> None:
        """The files of full precision and of the quantized model."""
        for arm, kind_of in (("full", lambda _: "BF16"), ("quantized", lambda name: HEAD if name == "token_embd.weight" else KIND)):
            if not self.file(arm).exists():
                part = self.file(arm).with_suffix(".part")
                write(self.parent, part, kind_of, blocks, name=self.name)
                part.rename(self.file(arm))
        self.note("bytes", **{arm: self.file(arm).stat().st_size for arm in ("full", "quantized")})

    def restore(self) -> None:
        """The restored file: codes and block scales, by the product's own function."""
        if self.file("restored").exists():
            return
        sizes, run, options = MODELS[self.name], self.run, self.options
        given = look(self.parent, self.parent, str(self.file("quantized")))
        pool, held = run.train[: sizes.curated], run.train[sizes.curated : sizes.curated + options.validation]
        material = assembled(Path(given.folder), run.bullets, run.solved(pool), [], [], run.solved(held), [])
        recipe = Restore.model_validate({"tune": options.tune, "steps": options.steps, "solve_tokens": options.solve_tokens})
        start = time.perf_counter()
        done = tune.restore(
            self.parent, material.low, material.bullets, recipe, self.work / "restored", seed=0, anchors=material.anchors,
            held_out=material.held_out, say=partial(print, flush=True),
        )  # fmt: skip
        kept = {
            key: value for key, value in asdict(done).items() if key in ("moved", "solved", "verdict", "other", "kept", "layers", "rates")
        }
        seconds = time.perf_counter() - start
        self.note("restored", **kept, seconds=seconds, recipe=recipe.model_dump(), held_out=options.validation, holds=given.holds())
        self.note("bytes", restored=self.file("restored").stat().st_size)

    def kl(self) -> None:
        """Mean KL divergence from full precision on both models' solutions of training problems, in llama.cpp and in our forward pass."""
        solutions = [one for solved in self.run.solved(self.run.train[-self.options.texts :]) for one in tune_solutions(solved)]
        rows = [solution.row(self.run.tokenizer) for solution in solutions]
        todo = [arm for arm in ARMS[1:] if self.file(arm).exists() and arm not in facts().get("kl", {})]
        if not todo:
            return
        teacher = load.load_model(self.parent, "float32")
        readings = Readings(teacher, rows, self.run.tokenizer.pad_token_id)
        del teacher
        for arm in todo:
            ours = readings.divergences(load.load_model(beside(self.file(arm), self.parent), "float32"))
            load.free()
            theirs, same = [], []
            with llama_cpp.Model(self.file("full"), CONTEXT) as full, llama_cpp.Model(self.file(arm), CONTEXT) as low:
                for row in rows:
                    start = row.question - 1  # the logits at a token are those of the next one
                    full_TV, low_TV = (model.logits(row.ids[:-1], start) for model in (full, low))
                    theirs.append(float(divergence(full_TV, low_TV).mean()))
                    same.append(float((full_TV.argmax(1) == low_TV.argmax(1)).mean()))
                    print(f"  {arm}: text {len(theirs)} of {len(rows)}: KL {np.mean(theirs):.4f} in llama.cpp", flush=True)
            self.note("kl", **{arm: {"llama.cpp": theirs, "same": same, "stepmend": ours, "problem": [one.problem for one in solutions]}})

    def time(self) -> None:
        """Tokens/s of greedy answers, arms in turn."""
        if "speed" in facts() or not self.file("restored").exists():
            return
        prompts = [self.prompt(problem) for problem in self.test[:TIMED]]
        found: dict[str, list[tuple[int, float]]] = {arm: [] for arm in ARMS}
        for prompt in prompts:
            for arm in ARMS:
                with llama_cpp.Model(self.file(arm), CONTEXT) as model:
                    model.greedy(prompt[:8], 4, frozenset())
                    start = time.perf_counter()
                    count = len(model.greedy(prompt, 64, frozenset()))
                    found[arm].append((count, time.perf_counter() - start))
        self.note("speed", **{arm: sum(n for n, _ in each) / sum(s for _, s in each) for arm, each in found.items()})

    @cached_property
    def test(self) -> list[Any]:
        """Test problems in an order that is the same each time."""
        order = list(self.run.test)
        random.Random("gguf").shuffle(order)
        return order

    def prompt(self, problem: Any) -> list[int]:
        return chat.encode(self.run.tokenizer, chat.render(self.run.tokenizer, "steps-1", problem.question))

    def solve(self) -> None:
        """Outcomes of both files in llama.cpp, problem by problem in turn, so that a stopped run is paired."""
        ends, decode = load.ends_of(self.parent), self.run.tokenizer.decode
        arms = [arm for arm in ARMS[1:] if self.file(arm).exists()]
        models = {arm: llama_cpp.Model(self.file(arm), CONTEXT) for arm in arms}
        with Verifier() as verifier:
            for number, problem in enumerate(self.test[: self.options.problems], 1):
                for arm in arms:
                    if problem.id in outcomes(arm):
                        continue
                    tokens = models[arm].greedy(self.prompt(problem), NEW_TOKENS, ends)
                    ended = tokens[-1] in ends
                    text = decode(tokens[:-1] if ended else tokens)
                    trace = Trace(
                        problem=problem.id, arm=arm, made_by="gguf", text=text, tokens=tuple(tokens), finish="stop" if ended else "length"
                    )
                    (grade,) = grading.grade_all([trace], [problem], "gguf", verifier)
                    line = {"problem": problem.id, "outcome": grade.outcome, "finish": trace.finish, "tokens": len(tokens)}
                    with (DATA / f"{arm}.jsonl").open("a") as stream:
                        stream.write(json.dumps(line) + "\n")
                print(f"  solved {number} of {self.options.problems}", flush=True)
        self.note("full", **{p.id: self.run.right("full", p) for p in self.test[: self.options.problems]})


def tune_solutions(solved: Any) -> Iterator[Any]:
    """Both models' solutions of a problem."""
    from stepmend.restore.texts import solutions

    return iter(solutions(solved))


def divergence(full_TV: np.ndarray, low_TV: np.ndarray) -> np.ndarray:
    """KL(full || low) of every row of logits, natural log: the formula of llama-perplexity's --kl-divergence."""
    full, low = (values.astype(np.float64) - values.max(1, keepdims=True) for values in (full_TV, low_TV))
    full, low = (values - np.log(np.exp(values).sum(1, keepdims=True)) for values in (full, low))
    return (np.exp(full) * (full - low)).sum(1)


def facts() -> dict[str, Any]:
    """What is kept."""
    file = DATA / "facts.json"
    return json.loads(file.read_text()) if file.exists() else {}


def outcomes(arm: str) -> dict[str, bool]:
    """Whether an arm solved each problem that it has tried."""
    file = DATA / f"{arm}.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return {line["problem"]: line["outcome"] == "correct" for line in map(json.loads, lines)}


def page() -> str:
    """The page, from what is kept."""
    kept = facts()
    of, kl, speed = kept["restored"], kept.get("kl", {}), kept.get("speed", {})
    lines = [
        HEAD_TEXT,
        "| arm | GB | KL in llama.cpp | KL in stepmend | same first token | accuracy | tokens/s |",
        "|---|---|---|---|---|---|---|",
    ]
    both = [problem for problem in outcomes("quantized") if problem in outcomes("restored")]
    for arm in ARMS:
        read = kl.get(arm, {})
        values = [f"{np.mean(read[key]):.4f}" if read else "–" for key in ("llama.cpp", "stepmend")]
        same = percent(float(np.mean(read["same"]))) if read else "–"
        right = kept.get("full", {}) if arm == "full" else outcomes(arm)
        solved = np.array([right[problem] for problem in both if problem in right])
        accuracy = "not measured"
        if len(solved):
            share = statistics.accuracy(solved)
            accuracy = f"{percent(share.value)} ({percent(share.low)} to {percent(share.high)}), n = {len(solved)}"
        rate = f"{speed[arm]:.1f}" if arm in speed else "–"
        lines.append(f"| {arm} | {kept['bytes'][arm] / 1e9:.3f} | {values[0]} | {values[1]} | {same} | {accuracy} | {rate} |")
    lines.append("")
    if "restored" in kl and "quantized" in kl:
        for where in ("llama.cpp", "stepmend"):
            change = statistics.difference(*(np.array(kl[arm][where]) for arm in ("restored", "quantized")))
            texts = len(kl["restored"][where])
            lines.append(
                f"KL, restored − quantized, in {where}: {change.value:+.4f} ({change.low:+.4f} to {change.high:+.4f}), {texts} solutions."
            )
    if both:
        pair = statistics.paired(*(np.array([outcomes(arm)[p] for p in both]) for arm in ("restored", "quantized")))
        change = statistics.paired_interval(pair)
        said = f"{points(change.value)} points ({points(change.low)} to {points(change.high)}), p = {pair.p:.2g}, n = {pair.n}"
        lines.append(f"Accuracy, restored − quantized: {said}; {pair.only_first} turned right, {pair.only_second} wrong.")
    verdict = of["verdict"] or {}
    lines += [
        "", f"Restored ({of['recipe']['tune']}, {of['holds']}): {percent(of['moved'])} of the codes moved, solved on at most "
        f"{of['recipe']['solve_tokens']:,} tokens, in {of['seconds'] / 60:.0f} minutes on one CPU thread of a busy machine.",
    ]  # fmt: skip
    if verdict:
        lines.append(
            f"Validation KL, of {verdict['problems']} held-out training problems that chose nothing: {verdict['before']:.4f} → "
            f"{verdict['after']:.4f} (95 % interval of the change {verdict['low']:+.4f} to {verdict['high']:+.4f})."
        )
    text = "\n".join(lines) + "\n"
    PAGE.write_text(text, encoding="utf-8")
    return text


HEAD_TEXT = f"""# A GGUF file, restored

Made by `python benchmarks/gguf_models.py MODEL` from `docs/results/data/gguf/`. Qwen2.5-Coder-0.5B-Instruct as {KIND}, by llama.cpp's own
quantizer (`ggml_quantize_chunk`), its embeddings, which are the head, as {HEAD}. Full precision is a 4-bit GGUF release, dequantized to
bfloat16. Bullets, anchors and held-out problems are those of the recorded run (training problems; its faults are those of rtn-w4a16-g128,
another rounding of the same model). KL: mean divergence per token from full precision, natural log, on both recorded models' solutions of
training problems on which nothing was chosen. In llama.cpp both models run there, and its kernels round activations to 8 bits; in
stepmend nothing is rounded but the weights. Accuracy: GSM8K test problems in a random order, prompt `steps-1`, greedy, in llama.cpp; full
precision's is that of the recorded run, which computed in bfloat16 on a GPU. tokens/s: llama.cpp, one thread, prompt included, arms in
turn: on a busy machine their ratios count. Intervals: 95 %.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="folder of the full-precision checkpoint")
    parser.add_argument("--work", type=Path, default=Path("gguf"), help="folder for files")
    parser.add_argument("--part", action="append", choices=PARTS, help="a part; may be repeated; default: all")
    parser.add_argument("--problems", type=int, default=200, help="test problems")
    parser.add_argument("--texts", type=int, default=16, help="training problems on whose solutions divergence is measured")
    parser.add_argument("--tune", default="codes+scales+norms", help="what is restored")
    parser.add_argument(
        "--steps", type=int, default=200, help="optimizer steps at most; 0: codes and scales are solved, and nothing is tuned"
    )
    parser.add_argument("--solve-tokens", type=int, default=65536, help="tokens of text that codes are solved on, at most")
    parser.add_argument("--validation", type=int, default=48, help="training problems held out")
    parser.add_argument("--page", action="store_true", help="write the page from what was kept, and nothing else")
    options = parser.parse_args()
    if not options.page:
        if not options.model:
            parser.error("give the folder of the model, or --page")
        bench = Bench(options)
        for part in options.part or PARTS:
            getattr(bench, part)()
    if "restored" in facts():
        print(page())


if __name__ == "__main__":
    main()
