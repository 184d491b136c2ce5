"""Names of tensors in a checkpoint's files, if transformers renames them on loading (as for Gemma 3)."""

from collections.abc import Set
from typing import Any

import torch
from torch import nn

from stepmend.formats.base import Format

SCALE = ".weight_scale"
"""The end of a name that transformers renames as it does a layer's, and whose tensor it leaves as it is."""


def by_file_names(model: Any, values: dict[str, torch.Tensor], there: Set[str]) -> dict[str, torch.Tensor]:
    """Tensors of a model by the names in its checkpoint's files, ``there``; what is not there either way keeps a name of transformers'."""
    from transformers.core_model_loading import revert_weight_conversion

    same = {name: value for name, value in values.items() if name in there}
    other = {name: value for name, value in values.items() if name not in there}
    return same | revert_weight_conversion(model, other) if other else same


def layers(model: Any, low_bit: Format) -> dict[str, str]:
    """The name that the files have for each linear layer with codes, by the model's name; ``model`` may be on the meta device."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    numbered = {f"{name}{SCALE}": torch.tensor([i]) for i, name in enumerate(linear)}
    there = {f"{name}{SCALE}" for name in low_bit.layers}
    return {linear[int(i)]: name.removesuffix(SCALE) for name, i in by_file_names(model, numbered, there).items() if name in there}
