"""Quantization-aware distillation (QAD, NVIDIA, 2601.20088), a peer of benchmarks/real.py: every weight of a quantized layer is trained.

Full precision's weights are trained straight through their rounding (1308.3432), by KL divergence from full precision on its own whole
traces, and then rounded. Scales follow the weights: each group's largest value, as in plain rounding. Tensor names carry their shape: M
rows, N columns, N tokens where it stands alone, H hidden width, V vocabulary.
"""

import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from stepmend import Bullet
from stepmend.models import load
from stepmend.models.forward import head_of, in_chunks, states_of
from stepmend.quantize import run as quantizer
from stepmend.quantize import schemes
from stepmend.restore import objectives
from stepmend.restore.training import Batches
from stepmend.restore.validation import Readings

States = Callable[[Any, Sequence[Sequence[int]], Sequence[tuple[int, int]], int], torch.Tensor]
"""Last hidden states of rows of ids at (row, place) pairs, [N, H]: of the model, the rows, the pairs, and the id that pads."""


class Rounded(nn.Module):
    """A parametrization: the weight as the scheme rounds it going forward, itself going backward."""

    def __init__(self, args: Any, storage: torch.dtype) -> None:
        super().__init__()
        self.args, self.storage = args, storage

    def forward(self, weight_MN: torch.Tensor) -> torch.Tensor:
        return weight_MN + (self.rounded(weight_MN) - weight_MN).detach()

    @torch.no_grad()
    def rounded(self, weight_MN: torch.Tensor) -> torch.Tensor:
        from compressed_tensors.quantization.lifecycle.forward import fake_quantize
        from compressed_tensors.quantization.utils import calculate_qparams

        grouped = weight_MN.unflatten(1, (-1, self.args.group_size or weight_MN.shape[1]))
        scale_MG, zero_MG = calculate_qparams(grouped.amin(-1), grouped.amax(-1), self.args)
        return fake_quantize(weight_MN, scale_MG.to(self.storage).to(weight_MN.dtype), zero_MG, self.args)


def attach(parent: str, scheme: str) -> Any:
    """Full precision in float32, its linear layers rounded as the scheme says, and trainable; nothing else is."""
    from transformers import AutoModelForCausalLM

    args = schemes.recipe_of(schemes.parse(scheme))[-1].config_groups["group_0"].weights
    device, _ = load.placement(parent)
    model: Any = AutoModelForCausalLM.from_pretrained(parent, dtype=torch.float32)
    model = model.to(device)
    model.requires_grad_(False)
    storage = load.config_of(parent).dtype or torch.float32
    for name in quantizer.linear_widths(parent):
        linear = model.get_submodule(name)
        linear.weight.requires_grad_(True)
        parametrize.register_parametrization(linear, "weight", Rounded(args, storage), unsafe=True)
    return model


def train(parent: str, traces: Sequence[Bullet], scheme: str, steps: int, size: int, rate: float, seed: int, out: Path) -> None:
    """Train on whole traces and write ``out``, rounded; ``scheme`` is one of plain rounding, ``rate`` the peak learning rate."""
    readings, pad = read(parent, traces)
    torch.manual_seed(seed)
    model = attach(parent, scheme)
    if model.supports_gradient_checkpointing and torch.cuda.is_available():
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    fit(model, [{"params": [p for p in model.parameters() if p.requires_grad], "lr": rate}], readings, steps, size, seed, pad)
    values = {name.replace(".parametrizations.weight.original", ".weight"): t for name, t in model.state_dict().items()}
    with tempfile.TemporaryDirectory() as scratch:
        save_dense(model, values, parent, Path(scratch))
        del model, values
        load.free()
        quantizer.quantize(scratch, schemes.parse(scheme), [], out)


def read(parent: str, traces: Sequence[Bullet]) -> tuple[Readings, int]:
    """Whole traces as full precision reads them, and the id that they are padded with."""
    tokenizer = load.load_tokenizer(parent)
    rows = [objectives.chosen_row(tokenizer, trace, "whole") for trace in traces]
    return Readings(load.load_model(parent), rows, tokenizer.pad_token_id), tokenizer.pad_token_id


def fit(
    model: Any, groups: list[dict[str, Any]], readings: Readings, steps: int, size: int, seed: int, pad: int, states: States = states_of
) -> None:
    """Lower the KL divergence from full precision by AdamW: a linear warm-up over a tenth, a cosine to zero; bfloat16 on a GPU.

    ``groups`` are the optimizer's: parameters, each with its peak learning rate. ``states`` gives the model's last hidden states.
    """
    model.train()
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    warm = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: min(1.0, (n + 1) / warm) * 0.5 * (1 + math.cos(math.pi * n / max(1, steps)))
    )
    batches = Batches(len(readings.rows), size, seed)
    for step in range(steps):
        with torch.autocast("cuda", torch.bfloat16, enabled=torch.cuda.is_available()):
            _loss(model, readings, batches[step], pad, states).backward()
        nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()


def _loss(model: Any, readings: Readings, batch: Sequence[int], pad: int, states: States) -> torch.Tensor:
    """Mean KL(full precision || student) over the targets of a batch."""

    def of(student_NH: torch.Tensor, teacher_NH: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            teacher_NV = readings.head(teacher_NH).float()
        return objectives.distill(head_of(model, student_NH), teacher_NV)

    rows = [readings.rows[i] for i in batch]
    teacher_NH = torch.cat([readings.states[i] for i in batch]).to(model.device)
    student_NH = states(model, [row.ids for row in rows], objectives.places(rows), pad)
    return in_chunks(of, model.config.get_text_config().vocab_size, student_NH, teacher_NH).mean()


def save_dense(model: Any, values: dict[str, torch.Tensor], parent: str, folder: Path) -> None:
    """Write weights as a checkpoint like the parent's, in float32 beside a configuration that says the parent's dtype."""
    model.save_pretrained(folder, state_dict=values)
    shutil.copy(Path(parent) / "config.json", folder)
    load.load_tokenizer(parent).save_pretrained(folder)
