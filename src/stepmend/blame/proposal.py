"""A mixed-precision proposal: more bits for the blamed modules under a size budget, compared with uniform bits of the same size."""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepmend.arms import FULL, Arm
from stepmend.blame.modules import SCALE_BITS, Module
from stepmend.context import Context
from stepmend.facts import Blamed, Mixed
from stepmend.files import write_text
from stepmend.measure import solve as solving
from stepmend.models import check, load
from stepmend.quantize import run as quantizer
from stepmend.quantize import schemes
from stepmend.records import InputError, digest

WIDE = 8
"""Bits of a module that has more than its scheme's and is still quantized."""
MORE = 0.375
"""Bits per weight that a proposal adds if no budget is given: what groups of 32 take more than groups of 128."""
FOLDER = "blame"
RECIPE, IGNORE = "recipe.yaml", "ignore.json"


@dataclass(frozen=True)
class Widening:
    """One step of the greedy search: a module gets ``bits`` per weight; the step's cost in bits, and its gain."""

    name: str
    bits: int
    cost: float
    gain: float


def size_of(modules: Sequence[Module], wide: Mapping[str, int] | None = None) -> float:
    """Mean bits per weight over all modules, those of ``wide`` with that many bits."""
    total = sum(module.weights for module in modules)
    return sum(module.weights * _bits(module, (wide or {}).get(module.name)) for module in modules) / total


def _bits(module: Module, bits: int | None) -> float:
    """What a module takes, in bits per weight, with codes of so many bits."""
    if bits is None:
        return module.size
    return float(schemes.WHOLE) if bits == schemes.WHOLE else module.size - module.bits + bits


def propose(modules: Sequence[Module], values: Mapping[str, float], budget: float) -> dict[str, int]:
    """Bits by module, for those that get more: greedily, by value per bit that it costs, within a mean size of ``budget`` bits per weight.

    A module of b bits first gets 8, which leaves 2^(b - 8) of its rounding error, and may then be left alone (16).
    """
    steps = sorted((step for module in modules for step in _steps(module, values[module.name])), key=lambda s: -s.gain / s.cost)
    room = (budget - size_of(modules)) * sum(module.weights for module in modules) + 1e-6
    found, skipped = dict[str, int](), set[str]()
    for step in steps:
        if step.name in skipped or step.cost > room:
            skipped.add(step.name)
        else:
            found[step.name] = step.bits
            room -= step.cost
    return found


def _steps(module: Module, value: float) -> list[Widening]:
    if value <= 0:
        return []
    left = 2.0 ** (module.bits - WIDE) if module.bits < WIDE else 1.0
    half, whole = _bits(module, WIDE), _bits(module, schemes.WHOLE)
    first = [Widening(module.name, WIDE, (half - module.size) * module.weights, value * (1 - left))] if left < 1 else []
    before = half if first else module.size
    return [*first, Widening(module.name, schemes.WHOLE, (whole - before) * module.weights, value * left)]


def uniform(scheme: schemes.Scheme, modules: Sequence[Module], widths: Mapping[str, tuple[int, int]], budget: float) -> schemes.Scheme:
    """The largest scheme of this method with uniform bits that is no larger than the budget; ``widths`` are rows and columns by layer."""
    found = [(size_of(modules), scheme)]
    for one in schemes.listing():
        like = (one.method, one.symmetric, one.kv_bits) == (scheme.method, scheme.symmetric, None)
        if like and widened(one) and one.group:
            size = one.weight_bits + SCALE_BITS / one.group
            if size <= budget + 1e-6 and all(columns % one.group == 0 for _, columns in widths.values()):
                found.append((size, one))
    return max(found, key=lambda item: item[0])[1]


def widened(scheme: schemes.Scheme) -> bool:
    """Whether modules of a scheme can get more bits: weights alone are rounded, to integers."""
    return scheme.of.kind == "int" and scheme.activation_bits == schemes.WHOLE


def check_budget(parent: str, scheme: str, budget: float) -> None:
    """Before any work: raises InputError for a budget that leaves nothing to give, or is not below full precision's."""
    of, widths = schemes.parse(scheme), quantizer.linear_widths(parent).values()
    if not widened(of):
        raise InputError(f"blame: --budget needs a weight-only integer scheme; {scheme} is not one")
    scale = SCALE_BITS + (0 if of.symmetric else of.weight_bits)
    bits = [(rows * columns, of.weight_bits + scale / (of.group or columns)) for rows, columns in widths]
    own = sum(weights * size for weights, size in bits) / sum(weights for weights, _ in bits)
    if not own < budget < schemes.WHOLE:
        raise InputError(f"blame: --budget {budget:g}: must be above {scheme}'s own {own:.3f} bits per weight and below 16")


def compare(
    context: Context, scheme: str, modules: Sequence[Module], blamed: Blamed, budget: float | None, texts: Callable[[], list[str]]
) -> list[Mixed]:
    """The proposal, a proposal by weight error, and uniform bits: each is made and measured on all test problems; no checkpoint is kept.

    ``texts`` gives what a scheme is calibrated on.
    """
    own = schemes.parse(scheme)
    budget = size_of(modules) + MORE if budget is None else budget
    peer = uniform(own, modules, quantizer.linear_widths(context.parent), budget)
    scores = {row.name: row.score for row in blamed.modules}
    errors = {row.name: row.error for row in blamed.modules}
    plans = [("mixed", own, propose(modules, scores, budget)), ("mixed-error", own, propose(modules, errors, budget))]
    made, shared = [], (context.digest(FULL), context.prompt, context.recipe.quantize.model_dump(), context.recipe.seed)
    for choice, of, wide in [*plans, ("uniform", peer, {})]:
        arm = str(Arm(scheme, variant=f"{choice}-{budget:g}"))
        size = size_of(modules, wide) if of == own else of.weight_bits + SCALE_BITS / (of.group or 1)
        made_by = digest("mixed", *shared, of.name, sorted(wide.items()))
        what: dict[str, Any] = {"scheme": scheme, "choice": choice, "made": of.name, "budget": budget, "size": size, "wide": wide}
        fact = Mixed(arm=arm, made_by=made_by, checkpoint="", seconds=0.0, **what)
        made.append(_measured(context, fact, of, texts))
    return made


def _measured(context: Context, fact: Mixed, of: schemes.Scheme, texts: Callable[[], list[str]]) -> Mixed:
    """Make a checkpoint, solve the test problems with it, and delete it; existing results are reused."""
    test, arm = context.problems("test"), fact.arm
    kept = context.finished(Mixed, arm, fact.made_by)
    if kept:
        context.digests[arm] = kept.checkpoint
        if solving.is_solved(context, arm, test):
            solving.solve(context, arm, test, "test")
            return kept
        del context.digests[arm]
    folder, start = context.folder(arm), time.perf_counter()
    shutil.rmtree(folder, ignore_errors=True)
    with context.stages.stage(f"{arm}: quantize", 1, "model") as tick:
        quantizer.quantize(context.parent, of, texts() if of.calibrated else [], folder, fact.wide)
        tick(1)
    context.made(arm, checkpoint := load.checkpoint_digest(folder))
    made = fact.model_copy(update={"checkpoint": checkpoint, "seconds": time.perf_counter() - start})
    context.dir.keep(made)
    solving.solve(context, arm, test, "test")
    context.release(arm)
    shutil.rmtree(folder, ignore_errors=True)
    return made


def write(parent: str, scheme: str, wide: Mapping[str, int], folder: Path) -> None:
    """Write llm-compressor's recipe of a proposal, and the list of modules that it leaves in full precision."""
    from llmcompressor.recipe import Recipe

    left = check.ignored(check.layers_of(load.skeleton(load.config_of(parent))))
    modifiers: list[Any] = schemes.recipe_of(schemes.parse(scheme), left, wide=wide)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / RECIPE, Recipe.from_modifiers(modifiers).yaml())
    ignored = [*left, *(name for name, bits in wide.items() if bits == schemes.WHOLE)]
    write_text(folder / IGNORE, json.dumps(ignored, indent=2) + "\n")


def offer(parent: str, scheme: str, blocks: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Write the proposals that win, one folder each; delete the folder of an earlier call if its proposal no longer wins."""
    for block in blocks:
        place = folder / f"{scheme}-{block['budget']:g}"
        if block["wins"]:
            write(parent, scheme, block["wide"], place)
        elif place.exists():
            shutil.rmtree(place)
