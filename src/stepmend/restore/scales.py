"""What is tuned: the group scales of a quantized checkpoint, its integer codes frozen (EfficientQAT, 2407.11062, end-to-end phase).

The forward pass uses the exporter's own dequantization, (code - zero point) * scale with the scale rounded to the dtype it is stored
in, so that what is trained is what is served. Tensor names carry their shape: M rows, N columns, G groups of a row, S columns of a
group.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from stepmend.recipe import Restore
from stepmend.rundir import make_folder


class _Straight(torch.autograd.Function):
    """The value of ``rounded``, with the gradient of ``exact`` (straight-through estimator; Bengio et al., 1308.3432)."""

    @staticmethod
    def forward(ctx: Any, exact: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return rounded.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grads[0], None


def straight(exact: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """``rounded`` going forward, ``exact`` going backward."""
    return _Straight.apply(exact, rounded)  # pyright: ignore[reportReturnType]


@contextmanager
def straight_through() -> Iterator[None]:
    """Inside, compressed-tensors' rounding of activations and KV caches, which knows no gradient, lets gradients through."""
    from compressed_tensors.modeling import attention, kvcache
    from compressed_tensors.quantization.lifecycle import forward

    original = forward.forward_quantize

    def passing(module: nn.Module, value: torch.Tensor, base_name: str, args: Any) -> torch.Tensor:
        return straight(value, original(module, value, base_name, args))

    places: tuple[Any, ...] = (attention, kvcache, forward)
    for place in places:
        place.forward_quantize = passing
    try:
        yield
    finally:
        for place in places:
            place.forward_quantize = original


class ScaleLinear(nn.Module):
    """A linear layer with frozen integer codes and trainable scales.

    ``change`` is the scales' relative change, so that one learning rate suits scales of any size: scale = start * (1 + change).
    """

    def __init__(self, linear: nn.Linear, storage: torch.dtype) -> None:
        super().__init__()
        scheme: Any = linear.quantization_scheme
        codes_MN, scale_MG, zeros_MG = _integers(linear, scheme)
        self.quantization_scheme = scheme
        self.quantization_status = linear.quantization_status
        self.storage = storage
        self.groups = scale_MG.shape[1]
        centred_MN = codes_MN.float()
        if zeros_MG is not None:
            centred_MN = (centred_MN.unflatten(1, (self.groups, -1)) - zeros_MG.float()[:, :, None]).flatten(1)
        self.centred_MN: torch.Tensor
        self.register_buffer("centred_MN", centred_MN.to(scale_MG.dtype), persistent=False)
        self.start_MG: torch.Tensor
        self.register_buffer("start_MG", scale_MG.detach().clone(), persistent=False)
        self.change = nn.Parameter(torch.zeros_like(scale_MG, dtype=torch.float32))
        self.bias = linear.bias
        if self.bias is not None:
            self.bias.requires_grad_(False)

    def scale(self) -> torch.Tensor:
        """The scales as stored, [M, G], in the dtype that is computed in."""
        exact_MG = self.start_MG * (1 + self.change)
        return straight(exact_MG, exact_MG.to(self.storage).to(exact_MG.dtype))

    def weight(self) -> torch.Tensor:
        """The dequantized weight, [M, N]."""
        grouped_MGS = self.centred_MN.unflatten(1, (self.groups, -1))
        return (grouped_MGS * self.scale().to(grouped_MGS.dtype)[:, :, None]).flatten(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.quantization_scheme.input_activations is not None:
            from compressed_tensors.quantization.lifecycle import forward

            x = forward.forward_quantize(self, x, "input", self.quantization_scheme.input_activations)
        return F.linear(x, self.weight(), self.bias)


def _integers(linear: nn.Linear, scheme: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Codes [M, N], scales [M, G] and zero points [M, G] (None for symmetric schemes) of a layer that is still compressed."""
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    held: dict[str, Any] = dict(linear.named_parameters()) | dict(linear.named_buffers())
    scale_MG, zeros = held["weight_scale"].data, held.get("weight_zero_point")
    if "weight_packed" not in held:
        return held["weight"].data, scale_MG, None
    shape = torch.Size(held["weight_shape"].tolist())
    bits = scheme.weights.num_bits
    codes_MN = unpack_from_int32(held["weight_packed"].data, bits, shape)
    if scheme.weights.symmetric:
        return codes_MN, scale_MG, None
    assert zeros is not None, "an asymmetric scheme has zero points"
    return codes_MN, scale_MG, unpack_from_int32(zeros.data, bits, torch.Size((shape[0], scale_MG.shape[1])), packed_dim=0)


def attach(folder: str, recipe: Restore) -> Any:
    """The quantized checkpoint with every quantized layer made a ScaleLinear; nothing else asks for gradients."""
    from transformers import AutoConfig, AutoModelForCausalLM

    storage: Any = AutoConfig.from_pretrained(folder).dtype
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto" if device == "cuda" else torch.float32)
    model.requires_grad_(False)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and getattr(module, "quantization_scheme", None) is not None:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, ScaleLinear(module, storage))
    model.ct_decompress_hook.remove()  # no compressed layer is left for it to decompress
    del model.ct_decompress_hook
    return model.to(device).train()


def scales(model: Any) -> dict[str, ScaleLinear]:
    """The layers being tuned, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, ScaleLinear)}


def export(model: Any, folder: Path, out: Path) -> None:
    """Copy the checkpoint ``folder`` to ``out`` with the trained scales in place of its own; every other byte is the same."""
    import shutil

    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    trained = {f"{name}.weight_scale": layer.scale().detach() for name, layer in scales(model).items()}

    def fill(part: Path) -> None:
        written = 0
        for file in sorted(folder.iterdir()):
            if file.is_dir():
                continue
            if file.suffix != ".safetensors":
                shutil.copy2(file, part / file.name)
                continue
            with safe_open(file, "pt") as opened:
                metadata = opened.metadata()
            tensors = load_file(file)
            for name in trained.keys() & tensors.keys():
                tensors[name] = trained[name].to(tensors[name].dtype).cpu().contiguous()
                written += 1
            save_file(tensors, part / file.name, metadata=metadata)
        assert written == len(trained), f"{written} of {len(trained)} scale tensors found in {folder}"

    make_folder(out, fill)
