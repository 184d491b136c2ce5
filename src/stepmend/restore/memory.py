"""Estimate of the memory that tuning needs, printed before it starts."""

from typing import Any

import torch

from stepmend.models import configs
from stepmend.models.forward import LOGITS, length_groups
from stepmend.restore import scales
from stepmend.restore.losses import Loss

GIB = 1 << 30
STATES = 12
"""Hidden-width vectors that a layer keeps a token for its backward pass: inputs of norms and projections, rotated queries and keys, values;
attention's own matrix is not kept (SDPA). Counted in Qwen2 and Llama they are 9 in 32 bits and 11 in 16; what comes and goes beside them is
a third more, as measured."""


def estimate(model: Any, tuned: list[torch.nn.Parameter], loss: Loss, batch_size: int) -> dict[str, float]:
    """Bytes by purpose: ``model`` (weights as held), ``optimizer`` (gradient and AdamW's two moments), ``teacher`` (kept readings, and
    its head), ``activations`` of the longest batch, with the dense weights that scales of groups make (of one layer alone, and what goes
    into the others, with gradient checkpointing), and ``logits`` of its targets, of which no more are held at once. Before, while nothing
    but the model is there, a teacher is held whole: about as much as ``model``.
    """
    config = model.config.get_text_config()
    element = model.dtype.itemsize
    held = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    read, width = sum(loss.targets) + sum(loss.questions), config.hidden_size
    taught = element * width * (config.vocab_size + read) if loss.recipe.objective == "distill" else 0
    lengths = sorted(loss.lengths)[-batch_size:]
    tokens = sum(len(group) * lengths[group[0]] for group in length_groups(lengths, model.device))
    layers = config.num_hidden_layers
    dense = sum(scaled.centred_MN.numel() for scaled in scales.scales(model).values() if scaled.made_whole)
    kept = element * (tokens * (layers * (STATES * width + 4 * inner_width(model)) + _outputs(model)) + dense)
    targets = sum(sorted(loss.targets)[-batch_size:]) * (2 if loss.recipe.objective == "dpo" else 1)
    targets += sum(sorted(loss.questions)[-batch_size:])
    return {
        "model": held,
        "optimizer": 12 * sum(p.numel() for p in tuned),
        "teacher": taught,
        "activations": element * tokens * layers * width + kept / layers if loss.checkpointing else kept,
        "logits": 4 * 6 * min(targets * config.vocab_size, LOGITS),
    }


def inner_width(model: Any) -> int:
    """The width inside the feed-forward part: the configuration's, or if it has none that of the widest layer but the head."""
    config = model.config.get_text_config()
    if width := configs.number(config, "intermediate_size"):
        return width
    widths = [m.out_features for m in model.modules() if isinstance(m, torch.nn.Linear)]
    widths += [scaled.centred_MN.shape[0] for scaled in scales.scales(model).values()]
    return max((width for width in widths if width != config.vocab_size), default=4 * config.hidden_size)


def _outputs(model: Any) -> int:
    """Numbers per token that layers keep besides: outputs that one scale per row changes, before and after."""
    return 2 * sum(scaled.change.numel() for scaled in scales.scales(model).values() if not scaled.made_whole)


def available(device: torch.device) -> int:
    """Free memory of the training device, in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available


def room() -> int:
    """Free memory of the training device, in bytes."""
    return available(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def fits(parts: dict[str, float], free: int) -> bool:
    """Whether what an estimate says fits into ``free`` bytes, beside the model, which is held already."""
    needed = sum(parts.values()) - parts["model"]
    return (max(needed, parts["model"]) if parts["teacher"] else needed) < free


def text(parts: dict[str, float], free: int, checkpointing: bool = False) -> str:
    """The estimate in one line, and what to do if it does not fit."""
    detail = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items())
    line = f"  memory: about {sum(parts.values()) / GIB:.2f} GiB ({detail}); {free / GIB:.1f} GiB free"
    line += "; with gradient checkpointing" if checkpointing else ""
    return line if fits(parts, free) else f"{line}: this may not fit; lower restore.batch_size"
