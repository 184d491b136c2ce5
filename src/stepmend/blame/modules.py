"""The quantized linear layers of a low-bit model and those of full precision: listing, their differences, and restoring full-precision
weights.

Tensor names carry their shape: M rows (outputs), N columns (inputs).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from stepmend.formats.base import Format, Layer
from stepmend.models import names
from stepmend.records import InputError

NUMBER = re.compile(r"\.(\d+)\.")
SCALE_BITS = 16
NEAR = 0.02
"""Maximum relative difference from full precision of tensors without codes: rounding to another dtype changes them by at most 0.4 %."""


@dataclass(frozen=True)
class Module:
    """One linear layer with codes, by the model's name: ``layer`` is its number in the stack, ``part`` what follows that in the name.

    ``size`` is what its file takes, in bits per weight: codes, scales and zero points.
    """

    name: str
    layer: int
    part: str
    weights: int
    bits: int
    size: float


def modules_of(low: Any, low_bit: Format) -> list[Module]:
    """Every linear layer with codes, in the model's order."""
    named = names.layers(low, low_bit)
    return [_module(name, low_bit.layers[named[name]]) for name, _ in low.named_modules() if name in named]


def _module(name: str, of: Layer) -> Module:
    number = NUMBER.search(name)
    layer, part = (int(number[1]), name[number.end() :]) if number else (0, name)
    scale = SCALE_BITS + (0 if of.symmetric else of.bits)
    return Module(name, layer, part, of.rows * of.columns, of.bits, of.bits + scale * of.groups / of.columns)


def check(full: Any, low: Any, low_bit: Format, modules: Sequence[Module], what: str) -> None:
    """Raises InputError for a low-bit model that differs from full precision in more than the rounding of linear layers' weights."""
    if low_bit.rounded:
        raise InputError(f"blame: {what} rounds activations or the KV cache too; allowed: weight-only schemes")
    if len(modules) < len(low_bit.layers):
        raise InputError(f"blame: {what} holds codes outside of linear layers (experts in one tensor); such models are not supported")
    coded, mine = {f"{module.name}.weight" for module in modules}, dict(full.named_parameters())
    for name, value in low.named_parameters():
        if name not in coded and name in mine and not _near(mine[name], value):
            raise InputError(
                f"blame: {what}: {name} differs from full precision (AWQ and SmoothQuant scale layers before they round them); "
                "allowed: weight-only schemes"
            )


def _near(full: torch.Tensor, low: torch.Tensor) -> bool:
    return bool((low.float() - full.float()).norm() <= NEAR * full.float().norm() + 1e-6)


def errors(full: Any, low: Any, modules: Sequence[Module]) -> dict[str, tuple[float, float]]:
    """By module: the sum of squared rounding errors of its weights, and that over the sum of squared weights."""
    found = {}
    for module in modules:
        weight_MN, low_MN = (model.get_parameter(f"{module.name}.weight").detach().float() for model in (full, low))
        squared = float((low_MN - weight_MN).square().sum())
        found[module.name] = (squared, squared / max(float(weight_MN.square().sum()), 1e-30))
    return found


@contextmanager
def restored(full: Any, low: Any, chosen: Sequence[str]) -> Iterator[None]:
    """Context manager: the low-bit model with the chosen modules' weights in full precision. Weights are copied in place, so references to
    the model's tensors stay valid.
    """
    weights = {name: low.get_parameter(f"{name}.weight").data for name in chosen}
    kept = {name: weight.clone() for name, weight in weights.items()}
    try:
        for name, weight in weights.items():
            weight.copy_(full.get_parameter(f"{name}.weight").data)
        yield
    finally:
        for name, weight in weights.items():
            weight.copy_(kept[name])


def fill(modules: Sequence[Module], order: Sequence[str], share: float) -> list[str]:
    """Modules in this order, as long as they fit into a share of all weights; one that does not fit is skipped."""
    weights = {module.name: module.weights for module in modules}
    room, chosen = share * sum(weights.values()) + 0.5, list[str]()
    for name in order:
        if weights[name] <= room:
            chosen.append(name)
            room -= weights[name]
    return chosen


def by_density(modules: Sequence[Module], values: Mapping[str, float]) -> list[str]:
    """Modules by value per weight, largest first; those without a positive value are left out."""
    density = {module.name: values[module.name] / module.weights for module in modules if values[module.name] > 0}
    return sorted(density, key=lambda name: -density[name])
