"""Bullets in, a restored checkpoint out. Seeded, and it continues from its last saved state."""

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stepmend.models.forward import head_of, hidden_of
from stepmend.models.load import checkpoint_digest, config_of, load_model, load_tokenizer
from stepmend.recipe import Restore
from stepmend.records import Bullet, InputError, digest
from stepmend.restore import adapter, memory, objectives, scales
from stepmend.restore.losses import Loss
from stepmend.restore.training import Batches, check, train

VERSION = "restore-1"
"""Changes whenever the same bullets may give another checkpoint."""
RATES = {"scales": 5e-3, "norms": 5e-3, "scales+norms": 1e-2, "lora": 2e-3}
"""Peak learning rates of distillation: relative change of a scale or norm a step, and the adapter's own."""
TOLERANCES = {"32 bits": 1e-3, "16 bits": 5e-2, "rounded activations": 1e-1}
"""How far the logits of an exported checkpoint may be from the trained model's, over the largest logit."""
SHARES = {"distill": 1.0, "sft": 0.1, "dpo": 0.03}
"""What other objectives get of that: likelihoods of a few steps would be learnt at the cost of everything else (docs/log.md)."""


@dataclass(frozen=True)
class Tuned:
    """What a tuning did.

    The loss of every step; how far the exported checkpoint's logits are from the trained model's, and may be; the tokens it was supervised
    on, in all; and for DPO by how much the chosen text's log-probability changed, a token (negative: the preference was won at its cost).
    """

    losses: list[float]
    export_error: float
    export_tolerance: float
    tokens: int
    chosen_change: float | None = None


def rate_of(recipe: Restore) -> float:
    """The peak learning rate: the recipe's, or what suits its objective and what is tuned."""
    return recipe.learning_rate or RATES[recipe.tune] * SHARES[recipe.objective]


def tokens_of(tokenizer: Any, bullets: list[Bullet], recipe: Restore) -> float:
    """Tokens that one bullet supervises, on average: what makes budgets of different spans comparable."""
    return sum(sum(objectives.chosen_row(tokenizer, bullet, recipe.trained, recipe.prefix).targets) for bullet in bullets) / len(bullets)


def restore(
    parent: str,
    quantized: Path,
    bullets: list[Bullet],
    recipe: Restore,
    out: Path,
    *,
    seed: int,
    tick: Callable[[int], None] = lambda done: None,
    say: Callable[[str], None] = lambda line: None,
) -> Tuned:
    """Tune the checkpoint ``quantized`` on bullets and write ``<out>``, whole or not at all; continues from ``<out>.state``.

    ``say`` is told what memory is needed before it starts. Raises InputError where there are no bullets, or nothing to learn.
    """
    if not bullets:
        raise InputError("restore: there are no bullets to tune on")
    torch.manual_seed(seed)
    tokenizer = load_tokenizer(str(quantized))
    kind = adapter if recipe.tune == "lora" else scales
    model = kind.attach(str(quantized), recipe)
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss_of, batches = Loss(recipe, model, tokenizer, bullets), Batches(len(bullets), recipe.batch_size, seed)
    _provide(loss_of, parameters, recipe.batch_size, say)
    loss_of.read(parent)

    def backward(batch: Sequence[int]) -> float:
        loss = loss_of(batch)
        loss.backward()
        return loss.item()

    state_file = out.with_name(out.name + ".state")
    rate = rate_of(recipe)
    made_by = digest(VERSION, recipe.model_dump(), rate, seed, checkpoint_digest(quantized), [bullet.model_dump() for bullet in bullets])
    with scales.straight_through():
        _check_head(model, loss_of.rows[0])
        _preflight(backward, loss_of, recipe)
        losses = train(
            parameters,
            lambda step: backward(batches[step]),
            steps=recipe.steps,
            rate=rate,
            state_file=state_file,
            made_by=made_by,
            tick=tick,
        )
    tokens = sum(loss_of.targets[i] for step in range(recipe.steps) for i in batches[step])
    change = _chosen_change(loss_of) if recipe.objective == "dpo" else None
    kind.export(model, quantized, out)
    error, tolerance = _compare(model, out, loss_of.rows[0])
    state_file.unlink(missing_ok=True)
    return Tuned(losses, error, tolerance, tokens, change)


def _check_head(model: Any, row: objectives.Row) -> None:
    """Logits are made from hidden states by the head alone. Raises InputError for an architecture that does more (caps or scales them)."""
    ids_BT = torch.tensor([row.ids], device=model.device)
    with torch.no_grad():
        whole_V, ours_V = (
            model(input_ids=ids_BT).logits[0, -1].float(),
            head_of(model, hidden_of(model, ids_BT, [(0, len(row.ids) - 1)]))[0],
        )
    if (whole_V - ours_V).abs().max() > 1e-2 * whole_V.abs().max():
        raise InputError("restore: this architecture changes its head's logits, and what is tuned here would not be what is served")


def _provide(loss_of: Loss, parameters: list[torch.nn.Parameter], size: int, say: Callable[[str], None]) -> None:
    """See to it that memory suffices, by computing layers twice where it would not; and say what is needed."""
    free, model = memory.room(), loss_of.student
    if not memory.fits(memory.estimate(model, parameters, loss_of, size), free) and model.supports_gradient_checkpointing:
        loss_of.save_memory()
    say(memory.text(memory.estimate(model, parameters, loss_of, size), free, loss_of.twice))


def _preflight(backward: Callable[[Sequence[int]], float], loss_of: Loss, recipe: Restore) -> None:
    """The longest batch that may come, before any step.

    Raises InputError where memory, loss or gradient does not do, or a kind of what is tuned would not move.
    """
    lengths, model = loss_of.lengths, loss_of.student
    try:
        check(backward(sorted(range(len(lengths)), key=lambda i: lengths[i])[-recipe.batch_size :]))
    except torch.OutOfMemoryError:
        raise InputError("restore: the longest bullets do not fit into memory; lower restore.batch_size, in another --out") from None
    reached: dict[str, float] = dict.fromkeys(recipe.tune.split("+"), 0.0)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            reached[_kind(name, recipe)] += float(parameter.grad.abs().sum())
            parameter.grad = None
    for kind, total in reached.items():
        if not math.isfinite(total):
            raise InputError(f"restore: the gradient of {kind} is {total}; look for infinities in the checkpoint")
        if not total:
            what = f"restore.tune = {recipe.tune}, objective = {recipe.objective}"
            raise InputError(f"restore: no gradient reaches the {kind} ({what}): on these bullets there is nothing to learn")


def _kind(name: str, recipe: Restore) -> str:
    """Which of the kinds that a recipe tunes a parameter is of."""
    if recipe.tune != "scales+norms":
        return recipe.tune
    return "scales" if name.endswith(".change") else "norms"


def _chosen_change(loss_of: Loss) -> float:
    """By how much the chosen text's log-probability rose (fell, where negative), a token; natural log."""
    return float((loss_of.preferences() - loss_of.reference_B2)[:, 0].sum()) / max(1, sum(loss_of.targets))


def _compare(model: Any, out: Path, row: objectives.Row) -> tuple[float, float]:
    """Largest difference between the logits training ended with and those of the exported checkpoint, on one bullet; and what is allowed.

    Raises InputError, and keeps nothing, where it is more.
    """
    ids_BT = torch.tensor([row.ids], device=model.device)
    with torch.no_grad():
        trained, served = (m(input_ids=ids_BT).logits.float() for m in (model.eval(), load_model(str(out))))
    error, allowed = float((trained - served).abs().max()), float(trained.abs().max()) * _tolerance(str(out), model.dtype)
    if not error <= allowed:
        shutil.rmtree(out)
        raise InputError(f"restore: exported logits are {error:.3g} from the trained model's ({allowed:.3g} is allowed); please report it")
    return error, allowed


def _tolerance(folder: str, dtype: torch.dtype) -> float:
    """The share of the largest logit that an export may differ by: rounded activations turn a last bit into a whole step of their grid."""
    kept = getattr(config_of(folder), "quantization_config", None) or {}
    groups = kept.get("config_groups", {}).values()
    rounded = kept.get("kv_cache_scheme") or any(group.get("input_activations") for group in groups)
    return TOLERANCES["rounded activations" if rounded else "16 bits" if dtype.itemsize == 2 else "32 bits"]
