"""The training loop: AdamW over what is tuned, seeded batches, validation, and a state from which a stopped training continues."""

import io
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from stepmend.records import InputError
from stepmend.rundir import replace

SAVE_EVERY = 25
"""Steps between two saved states."""
EVALUATIONS = 10
"""Validations over all steps of a training."""
PATIENCE = 3
"""Validations in a row, none of which improves on the best, after which a training stops."""
ADAMW: dict[str, Any] = {"betas": (0.9, 0.95), "weight_decay": 0.0}


@dataclass(frozen=True)
class Group:
    """Parameters of one kind, and the peak learning rate they are tuned at."""

    parameters: list[torch.nn.Parameter]
    rate: float


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


@dataclass
class Trained:
    """What a training did: the loss of every step, and the validation values by step, if there were any."""

    losses: list[float] = field(default_factory=list)
    curve: list[tuple[int, float]] = field(default_factory=list)


def train(
    groups: list[Group],
    backward: Callable[[int], float],
    *,
    steps: int,
    state_file: Path,
    made_by: str,
    validate: Callable[[], float] | None = None,
    tick: Callable[[int], None] = lambda done: None,
) -> Trained:
    """Train for at most ``steps`` steps; with ``validate``, stop where its value stops falling, and end with the best state.

    Args:
        groups: parameters, each with its peak learning rate.
        backward: adds the gradients of one step and gives its loss.
        steps: the steps that the learning rate's schedule is laid out for.
        state_file: a training of the same ``made_by`` continues from it; it is the caller's to remove in the end.
        validate: gives the value to lower; asked before the first step and ``EVALUATIONS`` times over all steps.

    Raises:
        InputError: if a loss is not finite.
    """
    parameters = [p for group in groups for p in group.parameters]
    optimizer = torch.optim.AdamW([{"params": group.parameters, "lr": group.rate} for group in groups], **ADAMW)
    state = _State(parameters, optimizer, Trained(), [p.detach().clone() for p in parameters] if validate else [])
    state.resume(state_file, made_by)
    done = state.trained
    tick(len(done.losses))
    every = max(1, steps // EVALUATIONS)
    if validate and not done.curve:
        done.curve.append((0, validate()))
    while len(done.losses) < steps and not _stalled(done.curve):
        step(optimizer, groups, parameters, lambda: backward(len(done.losses)), schedule(len(done.losses), steps), done.losses)
        tick(1)
        if validate and (len(done.losses) % every == 0 or len(done.losses) == steps):
            done.curve.append((len(done.losses), validate()))
            if done.curve[-1][1] == min(value for _, value in done.curve):
                state.best = [p.detach().clone() for p in parameters]
        if len(done.losses) % SAVE_EVERY == 0:
            state.save(state_file, made_by)
    if validate:
        put(parameters, state.best)
    return done


def step(
    optimizer: torch.optim.Optimizer,
    groups: list[Group],
    parameters: list[torch.nn.Parameter],
    backward: Callable[[], float],
    share: float,
    losses: list[float],
) -> None:
    """One optimizer step at a share of every group's peak rate; its loss is appended to ``losses``."""
    for group, own in zip(optimizer.param_groups, groups, strict=True):
        group["lr"] = own.rate * share
    losses.append(check(backward()))
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad()


def direction(parameters: Sequence[torch.nn.Parameter], backward: Callable[[int], float], steps: int) -> list[torch.Tensor]:
    """The update of a few Adam steps with learning rate 1 and all gradients taken at the start; no parameter is changed. Multiplied by a
    small rate, it approximates that rate's first steps, so one pass of gradients serves a range test of every rate and kind.

    Args:
        parameters: what the steps would change; their gradients are cleared.
        backward: adds the gradients of one step and gives its loss.
        steps: how many.
    """
    beta, gamma = ADAMW["betas"]
    total, first, second = ([torch.zeros_like(p) for p in parameters] for _ in range(3))
    for number in range(1, steps + 1):
        check(backward(number - 1))
        for i, parameter in enumerate(parameters):
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            first[i].lerp_(gradient, 1 - beta)
            second[i].lerp_(gradient.square(), 1 - gamma)
            total[i] -= first[i] / (1 - beta**number) / ((second[i] / (1 - gamma**number)).sqrt() + 1e-8)
            parameter.grad = None
    return total


def put(parameters: Sequence[torch.nn.Parameter], values: Sequence[torch.Tensor]) -> None:
    """Set the parameters to a saved state."""
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


def _stalled(curve: Sequence[tuple[int, float]]) -> bool:
    """Whether the last ``PATIENCE`` validations were all worse than the best before them."""
    values = [value for _, value in curve]
    return len(values) > PATIENCE and min(values[-PATIENCE:]) > min(values[:-PATIENCE])


def schedule(step: int, steps: int) -> float:
    """The share of the peak learning rate: ten steps of warm-up, then a linear decay to zero."""
    return min((step + 1) / 10, 1.0) * (1 - step / steps)


def check(loss: float) -> float:
    """The loss. Raises InputError if it is no number."""
    if not math.isfinite(loss):
        raise InputError(f"restore: the loss is {loss}; lower the learning rate, or look for infinities in the checkpoint")
    return loss


@dataclass
class _State:
    """All that a stopped training continues from."""

    parameters: list[torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    trained: Trained
    best: list[torch.Tensor]

    def save(self, file: Path, made_by: str) -> None:
        """Save the state; through memory, because torch hides the system's error for a full disk."""
        buffer = io.BytesIO()
        state = {"made_by": made_by, "parameters": [p.detach() for p in self.parameters], "optimizer": self.optimizer.state_dict()}
        torch.save(state | {"best": self.best, "losses": self.trained.losses, "curve": self.trained.curve}, buffer)
        replace(file, lambda part: part.write_bytes(buffer.getvalue()))

    def resume(self, file: Path, made_by: str) -> None:
        """Restore the last saved state, if there is one of ``made_by``."""
        if not file.exists():
            return
        state: dict[str, Any] = torch.load(file, weights_only=True, map_location=self.parameters[0].device)
        if state["made_by"] != made_by:
            return  # of another training
        put(self.parameters, state["parameters"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.trained.losses[:], self.best = state["losses"], state["best"]
        self.trained.curve[:] = [(int(at), float(value)) for at, value in state["curve"]]
