"""What is tuned, as in the paper: a LoRA adapter (2106.09685) over the frozen quantized weights.

It is not merged: rounding to a 4-bit grid would erase it. The checkpoint that it belongs to is exported with it.
"""

import json
from pathlib import Path
from typing import Any

import torch

from stepmend import formats
from stepmend.formats.tensors import copy
from stepmend.keys import Restore
from stepmend.models import check, load, names
from stepmend.rundir import make_folder, write_text

FOLDER = "adapter"
"""The adapter's folder in the exported checkpoint; vLLM loads it with ``--lora-modules``."""


def attach(folder: str, recipe: Restore, dtype: str = "auto") -> Any:
    """The checkpoint with its adapter, or if it has none a fresh one on every linear layer of the decoder.

    Layers of a class that only derives from ``nn.Linear`` have none: they compute something else (Phi-MoE's router gives three tensors).

    A quantized one is dequantized in memory: its values are those that are served.
    """
    from compressed_tensors.offload import remove_dispatch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import CompressedTensorsConfig

    device, placed = load.placement(folder, dtype)
    compressed = formats.method_of(folder) == "compressed-tensors"  # others are dequantized when they are loaded
    config = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if compressed else {}
    model: Any = load.pretrained(folder, dtype=placed, **config)
    model = remove_dispatch(model).to(device)  # which compressed-tensors lays over what it dequantizes, and which holds it on the CPU
    if compressed:
        _exact(model, folder)
    if (Path(folder) / FOLDER).is_dir():  # a further round goes on from the last one
        further: Any = PeftModel.from_pretrained(model, str(Path(folder) / FOLDER), is_trainable=True)
        further.peft_config["default"].base_model_name_or_path = folder
        return further.eval()  # gradients flow all the same, and nothing is dropped out
    stack = check.decoder_stack(model)
    linear = [name for name, module in model.named_modules() if type(module) is torch.nn.Linear and name.startswith(f"{stack}.")]
    targets = [name for name in linear if _takes(model, name)]
    lora = LoraConfig(r=recipe.lora_rank, lora_alpha=2 * recipe.lora_rank, target_modules=targets, task_type="CAUSAL_LM")
    return get_peft_model(model, lora).eval()


def _exact(model: Any, folder: str) -> None:
    """Give dequantized layers the weights that are served: transformers makes those of vision-language models in the file's 16 bits."""
    low_bit = formats.detect(folder)
    assert low_bit is not None
    for name, file in names.layers(model, low_bit).items():
        weight = model.get_submodule(name).get_parameter("weight")
        weight.data.copy_(low_bit.codes(file).dequantize())


def _takes(model: Any, name: str) -> bool:
    """Whether a linear layer takes an adapter: not the output of a state-space layer, whose kernels read the weight past the adapter
    (PEFT refuses it)."""
    parent, _, child = name.rpartition(".")
    return not (child == "out_proj" and hasattr(model.get_submodule(parent), "conv1d"))


def changed(model: Any) -> dict[str, int]:
    """How many linear layers have an adapter."""
    return {"adapted": sum(hasattr(module, "lora_A") for module in model.modules())}


def export(model: Any, folder: Path, out: Path) -> None:
    """Copy the quantized checkpoint, and write the adapter to its subfolder ``adapter/``."""

    def fill(part: Path) -> None:
        copy(folder, part)
        model.save_pretrained(part / FOLDER)
        (part / FOLDER / "README.md").unlink(missing_ok=True)  # PEFT's own card, empty except this machine's paths
        config = json.loads((part / FOLDER / "adapter_config.json").read_text())
        write_text(part / FOLDER / "adapter_config.json", json.dumps(config | {"base_model_name_or_path": ".."}, indent=2) + "\n")

    make_folder(out, fill)
