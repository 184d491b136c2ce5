"""The training loop: bullets in, a restored checkpoint out. Seeded, and it continues from its last saved state."""

import io
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stepmend.models.load import checkpoint_digest, load_model, load_tokenizer
from stepmend.recipe import Restore
from stepmend.records import Bullet, InputError, digest
from stepmend.restore import adapter, objectives, scales
from stepmend.rundir import replace

RATES = {"scales": 5e-3, "lora": 2e-3}
"""Peak learning rates: relative change of a scale a step, and the adapter's own."""
SAVE_EVERY = 25


@dataclass(frozen=True)
class Tuned:
    """What a tuning did: the loss of every step, and how far the exported checkpoint's logits are from the trained model's."""

    losses: list[float]
    export_error: float


class _Batches:
    """Seeded batches of bullets, epoch by epoch; batch k depends on the seed and k alone."""

    def __init__(self, count: int, size: int, seed: int) -> None:
        self.count, self.size, self.seed = count, min(size, count), seed

    def __getitem__(self, step: int) -> list[int]:
        first = step * self.size
        return [self._order(place // self.count)[place % self.count] for place in range(first, first + self.size)]

    def _order(self, epoch: int) -> list[int]:
        order = list(range(self.count))
        random.Random(f"restore {self.seed} {epoch}").shuffle(order)
        return order


class _Loss:
    """One objective over bullets: holds the rows, and what the teacher or the untouched quantized model says of them."""

    def __init__(self, recipe: Restore, student: Any, parent: str, tokenizer: Any, bullets: list[Bullet]) -> None:
        span = recipe.span or objectives.DEFAULT_SPAN[recipe.objective]
        self.recipe, self.student, self.pad = recipe, student, tokenizer.pad_token_id
        self.chosen = [objectives.chosen_row(tokenizer, bullet, span) for bullet in bullets]
        self.teacher = load_model(parent) if recipe.objective == "distill" else None
        if recipe.objective == "dpo":
            self.rejected = [objectives.rejected_row(tokenizer, bullet, span) for bullet in bullets]
            with torch.no_grad():
                self.reference = [self._likelihoods([i]) for i in range(len(bullets))]

    def __call__(self, batch: list[int]) -> torch.Tensor:
        if self.recipe.objective == "dpo":
            return self._preference(batch)
        ids_BT, mask_BT = objectives.collate([self.chosen[i] for i in batch], self.pad, self.student.device)
        logits_BTV = objectives.logits_of(self.student, ids_BT)
        if self.teacher is None:
            return objectives.sft(logits_BTV, ids_BT, mask_BT)
        with torch.no_grad():
            teacher_BTV = objectives.logits_of(self.teacher, ids_BT)
        return objectives.distill(logits_BTV, teacher_BTV, mask_BT)

    def _likelihoods(self, batch: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-likelihoods of chosen and rejected, [B] each."""
        found = []
        for rows in (self.chosen, self.rejected):
            ids_BT, mask_BT = objectives.collate([rows[i] for i in batch], self.pad, self.student.device)
            found.append(objectives.log_likelihood(objectives.logits_of(self.student, ids_BT), ids_BT, mask_BT))
        return found[0], found[1]

    def _preference(self, batch: list[int]) -> torch.Tensor:
        chosen_B, rejected_B = self._likelihoods(batch)
        before_chosen_B, before_rejected_B = (torch.cat([self.reference[i][side] for i in batch]) for side in (0, 1))
        targets = sum(sum(self.chosen[i].targets) for i in batch)
        # DPO alone lowers the chosen text's likelihood as well; the second term keeps it (TRL calls its weight rpo_alpha).
        kept = -chosen_B.sum() / targets
        return objectives.dpo(chosen_B, rejected_B, before_chosen_B, before_rejected_B, self.recipe.beta) + self.recipe.keep_chosen * kept


def restore(
    parent: str,
    quantized: Path,
    bullets: list[Bullet],
    recipe: Restore,
    out: Path,
    *,
    seed: int,
    tick: Callable[[int], None] = lambda done: None,
) -> Tuned:
    """Tune the checkpoint ``quantized`` on bullets and write ``<out>``, whole or not at all; continues from ``<out>.state``.

    Raises InputError where there are no bullets.
    """
    if not bullets:
        raise InputError("restore: there are no bullets to tune on")
    torch.manual_seed(seed)
    kind = {"scales": scales, "lora": adapter}[recipe.tune]
    tokenizer = load_tokenizer(str(quantized))
    model = kind.attach(str(quantized), recipe)
    parameters = [p for p in model.parameters() if p.requires_grad]
    rate = recipe.learning_rate or RATES[recipe.tune]
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    loss_of, batches = _Loss(recipe, model, parent, tokenizer, bullets), _Batches(len(bullets), recipe.batch_size, seed)
    state_file = out.with_name(out.name + ".state")
    made_by = digest(recipe.model_dump(), seed, checkpoint_digest(quantized), [bullet.model_dump() for bullet in bullets])
    losses = _resume(state_file, made_by, parameters, optimizer)
    tick(len(losses))
    with scales.straight_through():
        while len(losses) < recipe.steps:
            for group in optimizer.param_groups:
                group["lr"] = rate * _schedule(len(losses), recipe.steps)
            loss = loss_of(batches[len(losses)])
            loss.backward()
            _check(loss, parameters)
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            tick(1)
            if len(losses) % SAVE_EVERY == 0:
                _save(state_file, made_by, parameters, optimizer, losses)
    kind.export(model, quantized, out)
    error = _compare(model, out, loss_of.chosen[0])
    state_file.unlink(missing_ok=True)
    return Tuned(losses, error)


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
    state = torch.load(state_file, weights_only=True, map_location=parameters[0].device)
    if state["made_by"] != made_by:
        return []  # of another tuning
    with torch.no_grad():
        for parameter, kept in zip(parameters, state["parameters"], strict=True):
            parameter.copy_(kept)
    optimizer.load_state_dict(state["optimizer"])
    return list(state["losses"])


def _schedule(step: int, steps: int) -> float:
    """Ten steps of warm-up, then a linear decay to zero."""
    return min((step + 1) / 10, 1.0) * (1 - step / steps)


def _check(loss: torch.Tensor, parameters: list[torch.nn.Parameter]) -> None:
    if not torch.isfinite(loss):
        raise InputError(f"restore: the loss is {loss.item()}; lower restore.learning_rate")
    assert all(p.grad is not None for p in parameters), "a tuned parameter got no gradient"


def _compare(model: Any, out: Path, row: objectives.Row) -> float:
    """Largest difference between the logits training ended with and those of the exported checkpoint, on one bullet."""
    ids_BT = torch.tensor([row.ids], device=model.device)
    with torch.no_grad():
        return float((objectives.logits_of(model.eval(), ids_BT) - objectives.logits_of(load_model(str(out)), ids_BT)).abs().max())
