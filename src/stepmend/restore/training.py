"""The training loop: AdamW over what is tuned, seeded batches, and a state from which a stopped training continues."""

import io
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from stepmend.records import InputError
from stepmend.rundir import replace

SAVE_EVERY = 25
"""Steps between two saved states."""


class Batches:
    """Seeded batches of ``size`` out of ``count``, epoch by epoch; batch k depends on these numbers and k alone."""

    def __init__(self, count: int, size: int, seed: int) -> None:
        self.count, self.size, self.seed = count, min(size, count), seed

    def __getitem__(self, step: int) -> list[int]:
        first = step * self.size
        return [self._order(place // self.count)[place % self.count] for place in range(first, first + self.size)]

    def _order(self, epoch: int) -> list[int]:
        order = list(range(self.count))
        random.Random(f"restore {self.seed} {epoch}").shuffle(order)
        return order


def train(
    parameters: list[torch.nn.Parameter],
    backward: Callable[[int], float],
    *,
    steps: int,
    rate: float,
    state_file: Path,
    made_by: str,
    tick: Callable[[int], None] = lambda done: None,
) -> list[float]:
    """Train for ``steps`` steps at peak learning rate ``rate``, and give the loss of each.

    ``backward`` adds the gradients of one step and gives its loss. Continues from ``state_file`` where that is of ``made_by``; it is
    the caller's to remove in the end. Raises InputError where a loss is no number.
    """
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    losses = _resume(state_file, made_by, parameters, optimizer)
    tick(len(losses))
    while len(losses) < steps:
        for group in optimizer.param_groups:
            group["lr"] = rate * schedule(len(losses), steps)
        losses.append(check(backward(len(losses))))
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        tick(1)
        if len(losses) % SAVE_EVERY == 0:
            _save(state_file, made_by, parameters, optimizer, losses)
    return losses


def schedule(step: int, steps: int) -> float:
    """The share of the peak learning rate: ten steps of warm-up, then a linear decay to zero."""
    return min((step + 1) / 10, 1.0) * (1 - step / steps)


def check(loss: float) -> float:
    """The loss. Raises InputError where it is no number."""
    if not math.isfinite(loss):
        raise InputError(f"restore: the loss is {loss}; lower the learning rate, or look for infinities in the checkpoint")
    return loss


def _save(
    state_file: Path, made_by: str, parameters: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer, losses: list[float]
) -> None:
    """Keep the state; by way of memory, because torch hides what the system says of a full disk."""
    buffer = io.BytesIO()
    state = {"made_by": made_by, "parameters": [p.detach() for p in parameters], "optimizer": optimizer.state_dict(), "losses": losses}
    torch.save(state, buffer)
    replace(state_file, lambda part: part.write_bytes(buffer.getvalue()))


def _resume(state_file: Path, made_by: str, parameters: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> list[float]:
    """Bring back the last saved state, if there is one; the losses so far."""
    if not state_file.exists():
        return []
    state: dict[str, Any] = torch.load(state_file, weights_only=True, map_location=parameters[0].device)
    if state["made_by"] != made_by:
        return []  # of another training
    with torch.no_grad():
        for parameter, kept in zip(parameters, state["parameters"], strict=True):
            parameter.copy_(kept)
    optimizer.load_state_dict(state["optimizer"])
    return list(state["losses"])
