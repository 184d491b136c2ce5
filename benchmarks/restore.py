"""Restoring beside its peers: the same model, scheme, bullets and seeds, in one run. Writes docs/results/restore.md.

python benchmarks/restore.py            # both reasoners at 3 and 4 bits; the runs lie in runs/restore, and a stopped one continues
python benchmarks/restore.py --quick    # few problems, to see that it works; written beside the runs, not to docs

Peers: the paper's recipe (TRL's DPOTrainer with a PEFT adapter, at several rates), EfficientQAT's end-to-end idea (scales by likelihood
on generic traces), QAD (scales by distillation on generic traces), both of as many supervised tokens; and recalibration (GPTQ on plain
questions against the model's own traces). Needs trl: pip install trl.
"""

import argparse
import resource
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from stepmend import Bullet, Problem
from stepmend.curate import Solved
from stepmend.loop import Loop
from stepmend.measure import statistics
from stepmend.mend import Mend
from stepmend.models import load
from stepmend.progress import Stages
from stepmend.quantize import run as quantizer
from stepmend.quantize import schemes
from stepmend.recipe import QUICK, Recipe, Restore, merge
from stepmend.records import digest
from stepmend.report.summary import percent, points
from stepmend.restore import adapter, tune
from stepmend.rundir import make_folder

ROOT = Path(__file__).parents[1]
FAMILIES = ("qwen2", "llama")
SCHEMES = ("rtn-w3a16", "rtn-w4a16")
"""One scale a row: what loses most at either width, so that there is something to restore."""
SEEDS = 3
RATES = (3e-5, 1e-4, 3e-4)
"""Rates that the paper's recipe is tried at; every one is reported."""
RECALIBRATED = "gptq-w3a16-g128"
TIMED = 64
"""Solutions that are generated to time a model."""


def recipe_of(family: str, quick: bool) -> Recipe:
    values: dict[str, Any] = {"model": f"builtin:{family}", "schemes": list(SCHEMES), "measure": {"noise_floor": False}}
    values["curate"] = {"problems": 2700}
    values["restore"] = {"within_noise": True}
    return Recipe.make(merge(values, {**QUICK, "restore": {"steps": 5, "within_noise": True}}) if quick else values)


class Peers:
    """The arms of one reasoner and scheme."""

    def __init__(self, loop: Loop, scheme: str, seeds: int) -> None:
        self.loop, self.scheme, self.seeds = loop, scheme, seeds
        self.mend, self.test = Mend(loop, scheme), loop.problems("test")
        self.bullets = self.mend.bullets(scheme)
        self.recipe = loop.recipe.restore
        self.rows: dict[str, list[dict[str, Any]]] = {}

    def add(self, name: str, seed: int, make: Callable[[Path], None]) -> None:
        """Measure one peer under one seed: make its checkpoint, time it, and solve the test problems."""
        loop, arm = self.loop, f"{self.scheme}+{name}-s{seed}"
        note = f"peer-{arm}"
        if note not in loop.dir.notes():
            begin = time.perf_counter()
            make(loop.folder(arm))
            seconds = time.perf_counter() - begin
            size = sum(f.stat().st_size for f in loop.folder(arm).rglob("*.safetensors"))
            speed = self.speed(arm)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
            loop.solve(arm, self.test, "test")
            loop.dir.note(note, seconds=seconds, bytes=size, speed=speed, peak=peak)
        else:
            loop.solve(arm, self.test, "test")
        loop.engines.pop(arm, None)
        self.rows.setdefault(name, []).append({**loop.dir.notes()[note], "arm": arm})

    def speed(self, arm: str) -> float:
        """Tokens per second of an arm over those of the quantized model, side by side, alternating, the median of three."""
        texts = [self.loop.prompt_of(p) for p in self.test[:TIMED]]
        ratios = []
        for _ in range(3):
            rates = []
            for name in (arm, self.scheme):
                begin = time.perf_counter()
                made = self.loop.engine(name).complete(texts)
                rates.append(sum(len(c.tokens) for c in made) / (time.perf_counter() - begin))
            ratios.append(rates[0] / rates[1])
        return float(np.median(ratios))

    def tuned(self, recipe: Restore, bullets: Sequence[Bullet], seed: int) -> Callable[[Path], None]:
        def make(out: Path) -> None:
            tune.restore(self.loop.parent, self.loop.folder(self.scheme), list(bullets), recipe, out, seed=seed)

        return make

    def generic(self, seed: int) -> list[Bullet]:
        """Whole traces of full precision on curate problems that it solves, whatever the low-bit model does: as many as bullets."""
        loop, found = self.loop, []
        for part in self.mend.rounds(self.scheme):
            problems = [solved.problem for solved in part.values()]
            right = loop.outcomes(problems, "full")
            found += [part[p.id] for p, good in zip(problems, right, strict=True) if good]
            if len(found) >= 2 * len(self.bullets):
                break
        rng = np.random.default_rng(seed)
        chosen = rng.choice(len(found), min(len(self.bullets), len(found)), replace=False)
        return [_whole(found[i]) for i in chosen]

    def run(self) -> None:
        """Every arm under every seed."""
        own = tune.tokens_of(self.loop.tokenizer, self.bullets, self.recipe)
        for seed in range(self.seeds):
            self.add("stepmend", seed, self.tuned(self.recipe, self.bullets, seed))
            generic = self.generic(seed)
            generics = {
                "EfficientQAT": Restore(objective="sft", span="whole", steps=self.recipe.steps),
                "QAD": Restore(objective="distill", span="whole", features=0, steps=self.recipe.steps),
            }
            for name, recipe in generics.items():
                steps = max(1, round(recipe.steps * own / tune.tokens_of(self.loop.tokenizer, generic, recipe)))
                self.add(name, seed, self.tuned(recipe.model_copy(update={"steps": steps}), generic, seed))
            for rate in RATES:
                self.add(f"paper-{rate:g}", seed, lambda out, seed=seed, rate=rate: paper(self, out, seed, rate))


def _whole(solved: Solved) -> Bullet:
    text = solved.full.text
    return Bullet(
        problem=solved.problem.id, arm=solved.quantized.arm, made_by="generic", prompt=solved.prompt, prefix="", chosen=text,
        rejected=solved.quantized.text, continuation="", rejected_rest="", solution=text, place=(0, len(text)), step=0, error_class=None,
    )  # fmt: skip


def paper(peers: Peers, out: Path, seed: int, rate: float) -> None:
    """The paper's recipe: TRL's DPO on the steps at the fault, a LoRA adapter over the quantized weights."""
    from datasets import Dataset
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    loop, folder = peers.loop, peers.loop.folder(peers.scheme)
    torch.manual_seed(seed)
    model = adapter.attach(str(folder), Restore(lora_rank=16))
    rows = [{"prompt": b.prompt, "chosen": b.chosen, "rejected": b.rejected} for b in peers.bullets]
    options = DPOConfig(
        output_dir=str(out.with_suffix(".trl")), max_steps=peers.recipe.steps, per_device_train_batch_size=peers.recipe.batch_size,
        learning_rate=rate, beta=0.1, seed=seed, report_to=[], use_cpu=not torch.cuda.is_available(), bf16=False, save_strategy="no",
        gradient_checkpointing=False, precompute_ref_log_probs=True, disable_tqdm=True, logging_steps=50,
    )  # fmt: skip
    trainer = DPOTrainer(model, args=options, train_dataset=Dataset.from_list(rows), processing_class=loop.tokenizer)
    trainer.train()
    make_folder(out, lambda part: (shutil.copytree(folder, part, dirs_exist_ok=True), model.save_pretrained(part / adapter.FOLDER))[1])
    shutil.rmtree(out.with_suffix(".trl"), ignore_errors=True)


def recalibrated(loop: Loop) -> dict[str, str]:
    """GPTQ calibrated on plain questions, and on the model's own traces: the arms by name."""
    test, found = loop.problems("test"), {}
    calibration = loop.problems("calibration")
    traces = loop.solve("full", calibration, "calibration")
    own = [loop.prompt_of(p) + traces[p.id].text + loop.tokenizer.eos_token for p in calibration]
    for name, texts in (("plain questions", [p.question for p in calibration]), ("own traces", own)):
        arm = f"{RECALIBRATED}+{name.replace(' ', '-')}"
        if not loop.folder(arm).exists():
            quantizer.quantize(loop.parent, schemes.parse(RECALIBRATED), texts, loop.folder(arm))
        loop.solve(arm, test, "test")
        loop.engines.pop(arm, None)
        found[name] = arm
    return found


def row_of(loop: Loop, test: Sequence[Problem], scheme: str, name: str, notes: list[dict[str, Any]], size: int) -> str:
    full, low = loop.outcomes(test, "full"), loop.outcomes(test, scheme)
    arms = np.stack([loop.outcomes(test, note["arm"]) for note in notes], axis=1)
    loss = statistics.difference(arms, full)
    gain, lost = statistics.per_problem(arms).mean() - low.mean(), full.mean() - low.mean()
    each = [statistics.recovery(full, low, arms[:, k]) for k in range(arms.shape[1])]
    back = "undefined" if each[0].value is None else f"{percent(gain / lost)} ({', '.join(percent(e.value) for e in each)})"
    mean = {key: float(np.mean([note[key] for note in notes])) for key in ("seconds", "bytes", "speed", "peak")}
    cells = [
        name, percent(statistics.average_at(arms)), f"{points(loss.value)} ({points(loss.low)} to {points(loss.high)})", back,
        f"{mean['seconds']:.0f}", f"{mean['peak']:.1f}", f"{mean['bytes'] / size:.2f}", f"{mean['speed']:.2f}",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def page_of(loop: Loop, family: str, found: list[Peers]) -> list[str]:
    test = loop.problems("test")
    full = loop.outcomes(test, "full")
    lines = [f"## {family}", "", f"Full precision: {percent(full.mean())} of {len(test)} problems.", ""]
    for peers in found:
        low = loop.outcomes(test, peers.scheme)
        pair, change = statistics.paired(full, low), statistics.difference(low, full)
        size = sum(f.stat().st_size for f in loop.folder(peers.scheme).glob("*.safetensors"))
        lines += [
            f"### {peers.scheme}", "",
            f"Quantized: {percent(low.mean())}, {points(change.value)} points ({points(change.low)} to {points(change.high)}), McNemar p = "
            f"{pair.p:.2g}; {len(peers.bullets)} bullets.", "",
            "| arm | accuracy | against full (95 %) | recovery (each seed) | seconds | peak GiB | bytes | tokens/s |",
            "|---|---|---|---|---|---|---|---|",
            *[row_of(loop, test, peers.scheme, name, notes, size) for name, notes in peers.rows.items()], "",
        ]  # fmt: skip
    return lines


HEAD = """# Restoring beside its peers

`python benchmarks/restore.py` wrote this page. {n} held-out `story` problems, {seeds} seeds; intervals are paired bootstraps over problems,
seeds kept together. Bytes and tokens/s are over the quantized model's, timed side by side. The same bullets for stepmend and the paper's
recipe; EfficientQAT and QAD have as many supervised tokens of whole traces that were not chosen by their faults. Checkpoint {made}.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few problems, one seed")
    parser.add_argument("--family", choices=FAMILIES, action="append", help="only this reasoner (may be given again)")
    parser.add_argument("--scheme", action="append", help="only this scheme (may be given again)")
    args = parser.parse_args()
    seeds, parts, count, made = 1 if args.quick else SEEDS, [], 0, []
    for family in args.family or FAMILIES:
        out = ROOT / "runs" / ("restore-quick" if args.quick else "restore") / family
        with Loop(recipe_of(family, args.quick), out, Stages(Console(stderr=True))) as loop:
            test = loop.problems("test")
            loop.solve("full", test, "test")
            found = []
            for scheme in args.scheme or SCHEMES:
                loop.quantize(schemes.parse(scheme), loop.problems("calibration"))
                loop.solve(scheme, test, "test")
                found.append(Peers(loop, scheme, seeds))
                found[-1].run()
            arms = recalibrated(loop)
            parts += page_of(loop, family, found)
            shares = {name: loop.outcomes(test, arm) for name, arm in arms.items()}
            change = statistics.difference(shares["own traces"], shares["plain questions"])
            parts += [
                f"`{RECALIBRATED}` calibrated on plain questions {percent(shares['plain questions'].mean())}, on the model's own traces "
                f"{percent(shares['own traces'].mean())}: {points(change.value)} points ({points(change.low)} to {points(change.high)}).",
                "",
            ]  # fmt: skip
            count, made = len(test), [*made, load.checkpoint_digest(loop.parent)]
    page = ROOT / ("runs/restore-quick" if args.quick else "docs/results") / "restore.md"
    page.write_text(HEAD.format(n=count, seeds=seeds, made=digest(made)) + "\n" + "\n".join(parts))
    print(page.read_text())


if __name__ == "__main__":
    main()
