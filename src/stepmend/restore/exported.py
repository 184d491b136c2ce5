"""Check that an exported checkpoint, reloaded, is the tuned model: tensor by tensor, and by its logits on one text.

Logits alone are not sufficient: in bfloat16, an error of 1 % in a layer's scales changes them less than bfloat16's own rounding. So every
layer with codes and every tuned norm must hold the tuned values, to half a unit in the last place of the dtype that is computed in; the
dequantization is the exporter's own, so that they are equal if all is right. A layer whose inputs are rounded must give what the tuned one
gives, on one input; after many such layers nothing can be compared (``models/rounding.py``). The logits check what no single tensor shows
(names, an adapter); in that comparison, neither side rounds inputs of layers. In 16 bits they may differ by ``NOISE`` times what the dtype
itself does to them: the exported model's logits in that dtype against the same model's in float32.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import parametrize

from stepmend.models import rounding
from stepmend.models.load import load_model
from stepmend.records import InputError
from stepmend.restore import memory, scales

NOISE = 4.0
"""Allowed difference of logits, as a multiple of the dtype's own noise: both models have that noise, and its maximum varies."""
SHARES = {"32 bits": 1e-4, "16 bits": 5e-2, "rounded keys": 1e-1}
"""How far logits may differ, over the largest: in float32; in 16 bits if there is no memory to measure the noise in; and where keys
and values are rounded, where a last bit turns into a whole step of their grid."""
EXACT = 1e-6
"""Minimum relative difference for two tensors to count as different."""


def compare(model: Any, out: Path, ids: tuple[int, ...]) -> tuple[float, float]:
    """Largest difference between the logits training ended with and those of the checkpoint ``out``, on ``ids``; and what is allowed.

    Raises InputError, and keeps nothing, if a tensor or a logit differs by more.
    """
    served, ids_BT = load_model(str(out), str(model.dtype).removeprefix("torch.")), torch.tensor([ids], device=model.device)
    wrong, error, allowed = _other_tensor(model, served) or _other_output(model, served), 0.0, 0.0
    if not wrong:
        with torch.no_grad(), rounding.exact_inputs(model, served):
            trained_TV, served_TV = (m(input_ids=ids_BT).logits[0].float() for m in (model.eval(), served))
            error, allowed = float((trained_TV - served_TV).abs().max()), _allowed(served, ids_BT, served_TV)
        if not error <= allowed:
            wrong = f"exported logits are {error:.3g} from the trained model's ({allowed:.3g} is allowed)"
    if wrong:
        shutil.rmtree(out)
        raise InputError(f"restore: {wrong}; please report it")
    return error, allowed


def _other_tensor(model: Any, served: Any) -> str:
    """Which layer's weight is not the one that was tuned, and by how much; empty if there is none."""
    there = dict(served.named_modules())
    for name, module in model.named_modules():
        if isinstance(module, scales.ScaleLinear):
            tuned = module.placed(module.weight())
        elif parametrize.is_parametrized(module, "weight"):
            tuned = module.weight
        else:
            continue
        tuned, found = tuned.detach(), there[name].weight.detach()
        off = float((found.float() - tuned.float()).norm() / tuned.float().norm().clamp(min=1e-30))
        if not off <= max(EXACT, torch.finfo(tuned.dtype).eps / 2):
            return f"the exported weight of {name} is {100 * off:.2g} % from the tuned one"
    return ""


def _other_output(model: Any, served: Any) -> str:
    """Which layer whose inputs are rounded gives something else than the tuned one, on one random input; empty if there is none."""
    generator, there = torch.Generator().manual_seed(0), rounding.layers(served)
    for name, module in rounding.layers(model).items():
        if name not in there:
            return f"the exported {name} does not round its input"
        weight = there[name].get_parameter("weight")
        input_BTN = torch.randn((1, 4, weight.shape[1]), generator=generator).to(weight.device, weight.dtype)
        with torch.no_grad():
            tuned, found = (layer(input_BTN).float() for layer in (module, there[name]))
        off = float((found - tuned).norm() / tuned.norm().clamp(min=1e-30))
        if not off <= max(SHARES["32 bits"], 2 * torch.finfo(weight.dtype).eps):
            return f"the exported {name} gives {100 * off:.2g} % else than the tuned one"
    return ""


def _allowed(served: Any, ids_BT: torch.Tensor, served_TV: torch.Tensor) -> float:
    """The allowed difference of logits. In 16 bits this converts ``served`` to float32."""
    largest = float(served_TV.abs().max())
    if rounding.keys(served):
        return SHARES["rounded keys"] * largest
    if served.dtype.itemsize > 2:
        return SHARES["32 bits"] * largest
    if memory.available(served.device) < 6 * sum(p.numel() for p in served.parameters()):  # four bytes for two, beside what they need
        return SHARES["16 bits"] * largest
    exact = torch.nn.Module.float(served)  # transformers' own refuses for checkpoints that were quantized
    noise = float((exact(input_ids=ids_BT).logits[0] - served_TV).abs().max())
    return NOISE * noise + EXACT * largest
