"""What `stepmend check` estimates beside what the stages took. Writes docs/results/estimates.md.

python benchmarks/estimates.py MODEL [MODEL ...]      # folders of checkpoints; GSM8K from STEPMEND_DATA
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import arms
import sections
import torch

from stepmend import Bullet, tables
from stepmend.engines.local import LocalEngine
from stepmend.keys import Restore
from stepmend.models import chat, check, load, timing
from stepmend.quantize import run as quantizer
from stepmend.quantize import schemes
from stepmend.restore import tune
from stepmend.restore.validation import Solution

PAGE = Path(__file__).parents[1] / "docs" / "results" / "estimates.md"
HEAD = """# Estimates of `stepmend check` beside measurements

`python benchmarks/estimates.py MODEL` wrote this page. Each stage ran in its own process, with few problems, texts and steps. The estimate
is for the same numbers of them and for their measured lengths: what is compared is the estimate of the machine and of the model, not the
lengths that `check` assumes. Speeds are probed before and after each stage, and their mean counts. Operations
are counted in the code (`models/timing.py`), and their speeds are the probe's; no constant is solved for from these measurements. What
restoring consists of was counted with a profile of smollm2-135m at hand, so that row is in-sample. Target: time within a factor of 2,
memory within 20 %. Memory is the process's peak, less what it held before the model was loaded.

"""
GIB = 1 << 30


@dataclass(frozen=True)
class Sizes:
    """How much of each stage is run."""

    problems: int
    tokens: int
    texts: int
    bullets: int
    anchors: int
    held_out: int
    solved: int
    steps: int


@dataclass(frozen=True)
class Outcome:
    """Seconds estimated and measured; bytes too, where a stage's are estimated."""

    expected: float
    seconds: float
    memory: tuple[float, float] | None = None


class Probed:
    """Estimates of one model on this machine: the speeds at the start and at the end of a ``with`` block, and its seconds."""

    def __init__(self, folder: str, scheme: schemes.Scheme, slots: int) -> None:
        config = load.config_of(folder)
        self.model, (self.device, dtype) = load.skeleton(config), load.placement(folder)
        self.dtype = torch.float32 if dtype == "auto" else dtype
        self.layers, self.slots = quantizer.preflight(folder, scheme), slots

    def __enter__(self) -> "Probed":
        self._before = timing.probe(self.model, self.slots, self.device, self.dtype)
        self._start = time.perf_counter()
        return self

    def __exit__(self, *reason: object) -> None:
        self.seconds = time.perf_counter() - self._start
        after = timing.probe(self.model, self.slots, self.device, self.dtype)
        mean = {name: (value + getattr(after, name)) / 2 for name, value in vars(self._before).items()}
        self.speed = timing.Speed(**mean)

    def expected(self, work: timing.Work, stage: str, *methods: str) -> float:
        """Seconds of one stage."""
        return timing.stages(timing.size_of(self.model, self.layers), self.speed, work, self.device, set(methods))[stage]


def data(folder: str, count: int) -> list[tuple[str, str]]:
    """Rendered questions and worked solutions of GSM8K's training problems."""
    tokenizer = load.load_tokenizer(folder)
    rows = tables.read(Path(os.environ["STEPMEND_DATA"]) / "gsm8k" / "train.jsonl")[:count]
    return [(chat.render(tokenizer, "steps-1", row["question"]), row["answer"]) for row in rows]


def solving(folder: str, scheme: schemes.Scheme, sizes: Sizes) -> Outcome:
    """Solutions of a batch of problems."""
    prompts = [prompt for prompt, _ in data(folder, sizes.problems)]
    with Probed(folder, scheme, sizes.problems) as probed:
        engine = LocalEngine(load.load_model(folder), load.load_tokenizer(folder), sizes.tokens, slots=sizes.problems)
        found = engine.complete(prompts)
    work = timing.Work(
        slots=sizes.problems, problems=sizes.problems, prompt=_mean(engine.tokenizer, prompts),
        solution=sum(len(one.tokens) for one in found) // len(found),
    )  # fmt: skip
    return Outcome(probed.expected(work, "solve"), probed.seconds)


def quantizing(folder: str, scheme: schemes.Scheme, sizes: Sizes) -> Outcome:
    """One scheme, calibrated on worked solutions."""
    texts = [prompt + answer for prompt, answer in data(folder, sizes.texts)]
    with tempfile.TemporaryDirectory() as out, Probed(folder, scheme, 1) as probed:
        quantizer.quantize(folder, scheme, texts, Path(out) / "quantized")
    work = timing.Work(slots=1, calibration=len(texts), prompt=0, solution=_mean(load.load_tokenizer(folder), texts))
    written = work.calibration * work.solution * timing.writing(timing.size_of(probed.model, probed.layers), probed.speed, 1, probed.device)
    expected = probed.expected(work, "quantize", scheme.method)
    return Outcome(expected - (written if scheme.method != "rtn" else 0.0), probed.seconds)  # the texts were written already


def restoring(folder: str, low: Path, scheme: schemes.Scheme, sizes: Sizes) -> Outcome:
    """Codes solved and a few steps, with validation; ``low`` is the quantized checkpoint."""
    tokenizer, device = load.load_tokenizer(folder), load.placement(folder)[0]
    pairs = data(folder, sizes.bullets + sizes.anchors + sizes.held_out)
    bullets = [_bullet(str(i), *pair) for i, pair in enumerate(pairs[: sizes.bullets])]
    solutions = [
        Solution(str(i), prompt, (*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id))
        for i, (prompt, answer) in enumerate(pairs)
    ]
    anchors, held_out = solutions[sizes.bullets : -sizes.held_out], solutions[-sizes.held_out :]
    recipe = Restore(steps=sizes.steps, solve_tokens=sizes.solved, validation=sizes.held_out)
    before = _resident()

    def make(out: Path) -> None:
        tune.restore(folder, low, bullets, recipe, out, seed=0, anchors=anchors, held_out=held_out)

    with Probed(folder, scheme, 1) as probed, tempfile.TemporaryDirectory() as out:
        _, peak = arms.measured(make, Path(out) / "restored")
    lengths = [len(chat.encode(tokenizer, prompt + answer)) for prompt, answer in pairs]
    taught, longest = lengths[: -sizes.held_out], sorted(lengths[: -sizes.held_out])[-recipe.batch_size :]
    mean = sum(taught) // len(taught)
    work = timing.Work(
        slots=1, prompt=0, solution=mean, taught=len(taught), solved=min(sizes.solved, sum(taught)), steps=sizes.steps,
        batch=min(recipe.batch_size, len(taught)), held_out=sizes.held_out,
    )  # fmt: skip
    parts = check.memory(probed.model, probed.layers, len(taught), work.batch, sum(longest) // len(longest), probed.dtype.itemsize)
    used = peak * GIB - (0 if device == "cuda" else before)
    return Outcome(probed.expected(work, "restore"), probed.seconds, (sum(parts.values()), used))


def _resident() -> int:
    import psutil

    return psutil.Process().memory_info().rss


def _mean(tokenizer: Any, texts: list[str]) -> int:
    return sum(len(chat.encode(tokenizer, text)) for text in texts) // len(texts)


def _bullet(problem: str, prompt: str, answer: str) -> Bullet:
    return Bullet(
        problem=problem, arm="quantized", made_by="estimates", prompt=prompt, prefix="", chosen=answer, rejected=answer, continuation="",
        rejected_rest="", solution=answer, place=(0, len(answer)), step=0, error_class=None,
    )  # fmt: skip


def section(folder: str, sizes: Sizes, group: int) -> str:
    """One model's table, in Markdown."""
    rtn, gptq = (schemes.parse(f"{method}-w4a16-g{group}") for method in ("rtn", "gptq"))
    rows = []
    with tempfile.TemporaryDirectory() as work:
        low = Path(work) / "quantized"
        arms.in_child(quantizer.quantize, folder, rtn, [], low)
        todo: dict[str, Callable[[], Outcome]] = {
            f"solve {sizes.problems} problems": partial(solving, folder, rtn, sizes),
            f"quantize, {gptq.name}, {sizes.texts} texts": partial(quantizing, folder, gptq, sizes),
            f"restore, {rtn.name}, {sizes.solved:,} tokens solved, {sizes.steps} steps": partial(restoring, folder, low, rtn, sizes),
        }
        for name, of in todo.items():
            one: Outcome = arms.in_child(of)
            print(name, one, flush=True)
            rows.append(f"| {name} | {one.expected:.0f} s | {one.seconds:.0f} s | {one.expected / one.seconds:.2f} |")
            if one.memory:
                expected, used = one.memory
                rows.append(f"| memory of restoring | {expected / GIB:.2f} GiB | {used / GIB:.2f} GiB | {expected / used:.2f} |")
    device, dtype = load.placement(folder)
    where = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads of a CPU"
    lines = [
        f"## {Path(folder).name}", "", f"{str(dtype).removeprefix('torch.')}, on {where}.", "",
        "| stage | estimated | measured | estimated / measured |", "|---|---|---|---|", *rows,
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", help="folders of checkpoints")
    parser.add_argument("--group", type=int, default=64, help="columns that share a scale")
    for name, count in vars(Sizes(32, 96, 8, 8, 16, 6, 2048, 4)).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=count)
    args = parser.parse_args()
    if "STEPMEND_DATA" not in os.environ:
        parser.error("STEPMEND_DATA is needed: the folder that holds gsm8k/train.jsonl")
    sizes = Sizes(**{name: getattr(args, name) for name in Sizes.__dataclass_fields__})
    for folder in args.models:
        sections.write(PAGE, HEAD, section(folder, sizes, args.group))
    print(PAGE)


if __name__ == "__main__":
    main()
