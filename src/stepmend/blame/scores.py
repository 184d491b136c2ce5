"""First-order blame: the effect of a module's rounding on the token that full precision would have generated at a fault's frontier.

The score of a module is minus the first-order change of the target by its rounding, <gradient, rounded - full weight>: a large positive
score means that rounding this module makes the token less likely. The target is the token's log-probability, or its margin (its logit minus
the best other one). The gradient is taken at full precision's weights, at the low-bit ones, or as the mean of both, which is the
trapezoidal rule for the change along the line between them (compare integrated gradients, Sundararajan et al., 1703.01365).

Tensor names carry their shape: T tokens, V vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stepmend.blame.modules import Module
from stepmend.models import forward

TARGETS = ("log-probability", "margin")
AT = ("full", "low")
BOTH = "both"
PLAIN = "log-probability at full"
"""The first-order change of full precision's log-probability; taken where no other measure chooses better."""


@dataclass(frozen=True)
class Mark:
    """A fault's frontier: the ids up to the token before it, and the token that full precision writes there."""

    problem: str
    row: tuple[int, ...]
    token: int


def scores(full: Any, low: Any, modules: Sequence[Module], mark: Mark, at: Sequence[str] = AT) -> dict[str, tuple[float, ...]]:
    """The modules' scores at one frontier, in natural-log units, by measure (``log-probability at full``).

    Two backward passes per model; each gradient is multiplied with the weight difference and freed immediately.
    """
    found: dict[str, tuple[float, ...]] = {}
    for place in at:
        model, other, sign = (full, low, -1.0) if place == "full" else (low, full, 1.0)
        with _summed(model, other, modules) as sums:
            ids_1T = torch.tensor([mark.row], device=model.device)
            for last, (target, value) in zip((False, True), _targets(model, ids_1T, mark.token).items(), strict=True):
                sums.clear()
                value.backward(retain_graph=not last)
                found[f"{target} at {place}"] = tuple(sign * sums.get(module.name, 0.0) for module in modules)
    return found


def _targets(model: Any, ids_1T: torch.Tensor, token: int) -> dict[str, torch.Tensor]:
    hidden_1H = forward.hidden_of(model, ids_1T, [(0, ids_1T.shape[1] - 1)])
    logits_V = forward.head_of(model, hidden_1H)[0]
    others_V = logits_V.index_fill(0, torch.tensor([token], device=logits_V.device), -torch.inf)
    return {"log-probability": logits_V.log_softmax(-1)[token], "margin": logits_V[token] - others_V.max()}


@contextmanager
def _summed(model: Any, other: Any, modules: Sequence[Module]) -> Iterator[dict[str, float]]:
    """While this lasts: a pass backward leaves <gradient, other's weight - model's> of every module, and no gradient."""
    sums: dict[str, float] = {}
    wanted = [(name, p.requires_grad) for name, p in model.named_parameters()]
    model.requires_grad_(False)
    hooks = []
    for module in modules:
        weight = model.get_parameter(f"{module.name}.weight")
        theirs = other.get_parameter(f"{module.name}.weight")

        def add(weight: torch.Tensor, name: str = module.name, theirs: torch.Tensor = theirs) -> None:
            assert weight.grad is not None
            sums[name] = float((weight.grad.float() * (theirs.detach().float() - weight.detach().float())).sum())
            weight.grad = None

        weight.requires_grad_(True)
        hooks.append(weight.register_post_accumulate_grad_hook(add))
    try:
        yield sums
    finally:
        for hook in hooks:
            hook.remove()
        for name, before in wanted:
            model.get_parameter(name).requires_grad_(before)


def measures(held: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, np.ndarray]:
    """Scores [faults, modules] by measure, of what ``scores`` gave for each fault; with the means over both models' gradients."""
    found = {name: np.array([one[name] for one in held]) for name in held[0]}
    for target in TARGETS:
        ends = [f"{target} at {place}" for place in AT]
        if all(name in found for name in ends):
            found[f"{target} at {BOTH}"] = (found[ends[0]] + found[ends[1]]) / 2
    return found
