"""The arms of benchmarks/real.py: stepmend's own, its peers and its controls, each trained on the same data in a separate process.

Where a peer has no way to find its learning rate, three are tried for a quarter of the steps, and the one with the least validation KL is
taken: on the solutions that ours are chosen on, and within the seconds that are counted. NNCF writes OpenVINO's format; here its weights
are written dequantized.
"""

import importlib.util
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import absorbed
import arms
import numpy as np
import qad
from material import Material

from stepmend import Bullet
from stepmend.curate import controls
from stepmend.keys import Restore
from stepmend.models import load
from stepmend.quantize import run as quantizer
from stepmend.quantize import schemes
from stepmend.restore import tune
from stepmend.restore.validation import Validation

SEEDS = 3
RATES = {
    "qad": (1e-5, 3e-5, 1e-4),
    "efficientqat": (3e-4, 1e-3, 3e-3),
    "paper": (1e-5, 3e-5, 1e-4),
    "nncf": (5e-5, 1e-4, 3e-4),
    "step": (3e-4, 1e-3, 3e-3),
}
"""Peak learning rates that are tried; those of scales and norms are relative changes, NNCF's that of its adapters."""
BATCH = Restore().batch_size


@dataclass(frozen=True)
class Options:
    """What is the same for all arms: optimizer steps at most, tokens that codes are solved on, AutoRound's iterations a layer."""

    steps: int = 200
    solve_tokens: int = 65536
    iterations: int = 200


@dataclass(frozen=True)
class Task:
    """One arm to be made: the full-precision model, the scheme, what there is to make it from, and where it goes."""

    parent: str
    scheme: str
    material: Material
    options: Options
    out: Path

    @property
    def recipe(self) -> Restore:
        """The product's default, at most so many steps and tokens."""
        return Restore(steps=self.options.steps, solve_tokens=self.options.solve_tokens)


Make = Callable[[Task], dict[str, Any]]
"""Writes ``task.out`` and gives what there is to say of it."""


@dataclass(frozen=True)
class Arm:
    """How an arm is made, and what it needs: ``located`` bullets, a scheme whose rounding is not GPTQ already (``rounded``), ``four`` bits,
    a ``package`` that the product does without."""

    make: Make
    says: str
    located: bool = False
    rounded: bool = False
    four: bool = False
    package: str | None = None

    def suits(self, scheme: str, located: bool) -> bool:
        """Whether the arm has a meaning for a scheme, and for a model with or without located bullets."""
        of = schemes.parse(scheme)
        return (located or not self.located) and not (self.rounded and of.method == "gptq") and (of.weight_bits == 4 or not self.four)

    @property
    def lacks(self) -> str | None:
        """The package that the arm needs and that is not installed."""
        return self.package if self.package and importlib.util.find_spec(self.package) is None else None


def ours(task: Task, recipe: Restore, seed: int = 0, bullets: list[Bullet] | None = None) -> dict[str, Any]:
    """The product's restoration, with its range test, validation and acceptance by KL divergence."""
    material = task.material
    anchors = material.anchors[: recipe.anchors]
    tuned = tune.restore(
        task.parent, material.low, bullets or material.bullets, recipe, task.out, seed=seed, anchors=anchors,
        held_out=material.held_out, say=partial(print, flush=True),
    )  # fmt: skip
    facts = {key: value for key, value in asdict(tuned).items() if key not in ("losses", "export_error", "export_tolerance")}
    return {**facts, "steps": len(tuned.losses), "recipe": recipe.model_dump()}


def changed(seed: int = 0, **changes: Any) -> Make:
    """Ours with other keys of the recipe."""
    return lambda task: ours(task, _with(task.recipe, changes), seed)


def _with(recipe: Restore, changes: dict[str, Any]) -> Restore:
    """The recipe with changes; a key that would then have no effect is left at its default."""
    values = {"steps": recipe.steps, "solve_tokens": recipe.solve_tokens, **changes}
    if "codes" not in values.get("tune", recipe.tune).split("+"):
        values.pop("solve_tokens")
    return Restore.model_validate(values)


def random_solved(**changes: Any) -> Make:
    """Ours on as many random problems that both models solve, in place of the problems of the bullets; without anchors."""

    def make(task: Task) -> dict[str, Any]:
        material = task.material
        taught = controls.bullets_of("solved-problems", material.bullets, material.solved, task.recipe, 0)
        return ours(task, _with(task.recipe, {**changes, "anchors": 0}), 0, taught)

    return make


def searched(task: Task, rates: Iterable[float], train: Callable[[float, int, Path], None]) -> dict[str, Any]:
    """Try rates for a quarter of the steps, and train at the one that leaves the least validation KL."""
    tokenizer = load.load_tokenizer(task.parent)
    validation = Validation(load.load_model(task.parent), task.material.held_out, tokenizer)
    tested = []
    for rate in rates:
        trial = task.out.with_name(task.out.name + ".trial")
        shutil.rmtree(trial, ignore_errors=True)
        train(rate, max(1, task.options.steps // 4), trial)
        tested.append((rate, validation.choose(load.load_model(str(trial)))))
        print(f"  rate {rate:g}: validation KL {tested[-1][1]:.4f}", flush=True)
        shutil.rmtree(trial)
        load.free()
    rate = min(tested, key=lambda one: one[1] if np.isfinite(one[1]) else np.inf)[0]
    train(rate, task.options.steps, task.out)
    return {"rates": {"all": rate}, "tested": {"all": tested}, "steps": task.options.steps}


def distilled_weights(task: Task) -> dict[str, Any]:
    """QAD: every weight, by distillation on whole traces."""
    grid = grid_of(task.scheme, "rtn")
    return searched(
        task,
        RATES["qad"],
        lambda rate, steps, out: qad.train(task.parent, task.material.generic, grid, steps, BATCH, rate, 0, out),
    )


def likely_scales(task: Task) -> dict[str, Any]:
    """EfficientQAT's end-to-end phase: scales, by likelihood on whole traces (2407.11062, section 3.3)."""

    def train(rate: float, steps: int, out: Path) -> None:
        recipe = Restore(tune="scales", objective="sft", steps=steps, learning_rate=rate)
        tune.restore(task.parent, task.material.low, task.material.generic, recipe, out, seed=0)

    return searched(task, RATES["efficientqat"], train)


def absorbed_adapter(task: Task) -> dict[str, Any]:
    """NNCF: an adapter inside the rounding, and scales, by distillation on whole traces."""
    of = schemes.parse(task.scheme)

    def train(rate: float, steps: int, out: Path) -> None:
        absorbed.train(task.parent, task.material.generic, of, steps, BATCH, rate, 0, out)

    return searched(task, RATES["nncf"], train) | {"format": "dequantized"}


def preferences(task: Task) -> dict[str, Any]:
    """The paper's recipe: TRL's DPO on the steps at the fault, with a LoRA adapter."""

    def train(rate: float, steps: int, out: Path) -> None:
        arms.paper(task.parent, task.material.low, task.material.bullets, Restore(steps=steps), 0, rate, out)

    return searched(task, RATES["paper"], train)


def at_step(control: str | None) -> Make:
    """Scales and norms, distilled on the faulty step alone, or on another one drawn at random: of as many tokens, without anchors.

    The result is taken as it is: a quantized model returned in its place would say nothing of the steps.
    """

    def make(task: Task) -> dict[str, Any]:
        located = task.material.bullets
        recipe = Restore(tune="scales+norms", span="step", anchors=0)
        taught, share = located, 1.0
        if control:
            taught, tokenizer = controls.bullets_of(control, located, [], recipe, 0), load.load_tokenizer(task.parent)
            share = tune.tokens_of(tokenizer, located, recipe) / tune.tokens_of(tokenizer, taught, recipe)

        def train(rate: float, steps: int, out: Path) -> None:
            of = recipe.model_copy(update={"steps": max(1, round(steps * share)), "learning_rate": rate})
            tune.restore(task.parent, task.material.low, taught, of, out, seed=0)

        return searched(task, RATES["step"], train) | {"steps": max(1, round(task.options.steps * share))}

    return make


def grid_of(scheme: str, method: str) -> str:
    """The same bits and groups, with or without zero points, by another method."""
    of = schemes.parse(scheme)
    group = f"-g{of.group}" if of.group else ""
    return f"{method}-w{of.weight_bits}a{of.activation_bits}{group}-{'sym' if of.symmetric else 'asym'}"


def recalibrated(same: bool) -> Make:
    """GPTQ from full precision, calibrated on its own traces or on the texts that our codes are solved on."""

    def make(task: Task) -> dict[str, Any]:
        tokenizer = load.load_tokenizer(task.parent)
        texts = task.material.texts(tokenizer, task.options.solve_tokens) if same else task.material.calibration(tokenizer)
        arms.recalibrated(task.parent, task.material.low, texts, grid_of(task.scheme, "gptq"), 0, task.out)
        return {"texts": len(texts)}

    return make


def rounded(task: Task) -> dict[str, Any]:
    """AutoRound (2309.05516) by llm-compressor, on the texts that our codes are solved on; its own defaults."""
    from llmcompressor.modifiers.autoround import AutoRoundModifier

    texts = task.material.texts(load.load_tokenizer(task.parent), task.options.solve_tokens)
    grid = schemes.parse(grid_of(task.scheme, "gptq"))
    (plain,) = schemes.recipe_of(grid)
    modifier = AutoRoundModifier(
        config_groups=plain.config_groups, ignore=plain.ignore, iters=task.options.iterations, enable_torch_compile=False
    )
    # The product has no such scheme: here, in a process that does nothing else, its recipe is AutoRound's, which pads texts itself.
    with mock.patch.object(schemes, "recipe_of", lambda scheme: [modifier]), mock.patch.object(quantizer, "BATCH", 1):
        quantizer.quantize(task.parent, grid, texts, task.out)
    return {"texts": len(texts), "iterations": task.options.iterations}


ARMS: dict[str, Arm] = {
    **{f"ours-s{seed}": Arm(changed(seed), f"the default, seed {seed}") for seed in range(SEEDS)},
    "ours-solved": Arm(changed(tune="codes+scales", steps=0), "codes and scales solved, nothing tuned"),
    "ours-codes": Arm(changed(tune="codes"), "codes alone solved"),
    "ours-without-codes": Arm(changed(tune="scales+norms"), "scales and norms tuned, no codes"),
    "ours-bullets-only": Arm(changed(anchors=0), "without anchors", located=True),
    "ours-random": Arm(random_solved(), "the same on as many random solved problems", located=True),
    "solved-bullets-only": Arm(changed(tune="codes+scales", steps=0, anchors=0), "without anchors, solved and not tuned", located=True),
    "solved-random": Arm(random_solved(tune="codes+scales", steps=0), "the same on as many random solved problems", located=True),
    "gptq": Arm(recalibrated(False), "GPTQ, calibrated on 64 of the model's own traces", rounded=True),
    "gptq-same": Arm(recalibrated(True), "GPTQ, calibrated on the texts that our codes are solved on"),
    "autoround": Arm(rounded, "AutoRound on the same texts", package="auto_round"),
    "qad": Arm(distilled_weights, "QAD on whole traces: all weights, distilled"),
    "efficientqat": Arm(likely_scales, "EfficientQAT's end-to-end phase on whole traces: scales, by likelihood"),
    "paper": Arm(preferences, "the paper's recipe: TRL's DPO with LoRA on the bullets", located=True, package="trl"),
    "nncf": Arm(absorbed_adapter, "NNCF's absorbable LoRA on whole traces, written dequantized", four=True, package="nncf"),
    "lora-distill": Arm(changed(tune="lora", lora_rank=arms.LORA_RANK), "LoRA, distilled on our texts"),
    "located-step": Arm(at_step(None), "scales and norms, distilled on the faulty step alone", located=True),
    "random-step": Arm(at_step("random-step"), "the same on another step drawn at random, as many tokens", located=True),
}


def made(name: str, task: Task) -> dict[str, Any]:
    """Make an arm; its facts, seconds and peak GiB. For a process that does nothing else."""
    facts: dict[str, Any] = {}
    begun = any(task.out.with_name(task.out.name + end).exists() for end in (".state", ".codes.state"))
    seconds, peak = arms.measured(lambda out: facts.update(ARMS[name].make(task)), task.out)
    device, dtype = load.placement(task.parent)
    cost = {"seconds": None if begun else seconds, "peak": peak, "bytes": sum(f.stat().st_size for f in task.out.rglob("*.safetensors"))}
    where = {"device": device, "dtype": str(dtype).removeprefix("torch.")}
    return {**facts, **cost, **where, "checkpoint": load.checkpoint_digest(task.out)}
