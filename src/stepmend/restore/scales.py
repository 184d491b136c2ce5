"""The low-bit model as it is restored: integer codes that ``codes.solve`` sets, scales and norms that are tuned end to end (EfficientQAT,
2407.11062), and the export of all three into the checkpoint's own file.

The forward pass uses the exporter's own dequantization, (code - zero point) * scale with the scale rounded to the dtype it is stored
in, so that what is trained is what is served. Tensor names carry their shape: M rows, N columns, G groups of a row, S columns of a
group.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils import parametrize

from stepmend.models import load
from stepmend.recipe import Restore
from stepmend.records import InputError
from stepmend.rundir import make_folder

FLOOR = 0.1
"""The least share of its start that a scale may shrink to. It keeps its sign: some kernels read scales as unsigned (vLLM, W4A8)."""


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


class Stored(nn.Module):
    """A parametrization: a tensor as stored, rounded to the dtype of its file, from a trainable relative change of its start.

    The change is float32; the tensor has the dtype of its start, which is what is computed in. It stays at least ``floor`` times its start.
    ``offset`` is what the module adds to the tensor before it is used: the change is relative to their sum. ``rounded`` is False inside
    ``unrounded``.
    """

    rounded = True

    def __init__(self, start: torch.Tensor, storage: torch.dtype, floor: float = -math.inf, offset: float = 0.0) -> None:
        super().__init__()
        self.storage, self.floor, self.offset = storage, floor, offset
        self.start: torch.Tensor
        self.register_buffer("start", start.detach().clone(), persistent=False)

    def exact(self, change: torch.Tensor) -> torch.Tensor:
        """The tensor before it is rounded, in float32 where the change is."""
        return self.start * (1 + change).clamp(min=self.floor) + (self.offset * change if self.offset else 0.0)

    def forward(self, change: torch.Tensor) -> torch.Tensor:
        exact = self.exact(change)
        stored = straight(exact, exact.to(self.storage).to(exact.dtype)) if self.rounded else exact
        return stored.to(self.start.dtype)

    def right_inverse(self, value: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(value, dtype=torch.float32)


class ScaleLinear(nn.Module):
    """A linear layer with integer codes and trainable scales.

    ``change`` is the scales' relative change, so that one learning rate suits scales of any size: scale = start * (1 + change).
    ``centred_MN`` are the codes less their zero points. ``watch`` is called with the input of every forward pass, as it is multiplied.
    """

    def __init__(self, linear: nn.Linear, storage: torch.dtype) -> None:
        super().__init__()
        scheme: Any = linear.quantization_scheme
        codes_MN, scale_MG, zeros_MG = _integers(linear, scheme)
        self.quantization_scheme = scheme
        self.quantization_status = linear.quantization_status
        self.groups, self.bits = scale_MG.shape[1], int(scheme.weights.num_bits)
        self.packed = hasattr(linear, "weight_packed")
        self.zeros_MG: torch.Tensor | None
        self.register_buffer("zeros_MG", None if zeros_MG is None else zeros_MG.to(torch.int8), persistent=False)
        self.centred_MN: torch.Tensor
        self.register_buffer("centred_MN", torch.empty(codes_MN.shape, dtype=scale_MG.dtype, device=codes_MN.device), persistent=False)
        self.set_codes(codes_MN)
        self.solved = self.rescaled = False
        self.made: torch.Tensor | None = None
        self.watch: Callable[[torch.Tensor], None] | None = None
        self.stored = Stored(scale_MG, storage, FLOOR)
        self.change = nn.Parameter(torch.zeros_like(scale_MG, dtype=torch.float32))
        self.bias = linear.bias
        if self.bias is not None:
            self.bias.requires_grad_(False)

    def zeros(self) -> torch.Tensor | float:
        """The zero point of every code: [M, N], or 0 for a symmetric scheme."""
        if self.zeros_MG is None:
            return 0.0
        return self.zeros_MG.to(self.centred_MN.dtype).repeat_interleave(self.centred_MN.shape[1] // self.groups, dim=1)

    def codes(self) -> torch.Tensor:
        """The integer codes as stored, int8 [M, N], from -2^(bits-1) to 2^(bits-1) - 1."""
        return (self.centred_MN + self.zeros()).to(torch.int8)

    def set_codes(self, codes_MN: torch.Tensor) -> None:
        """Replace the codes. Raises ValueError where one is outside of the format's range."""
        low, high = self.range
        if int(codes_MN.min()) < low or int(codes_MN.max()) > high:
            raise ValueError(f"codes from {int(codes_MN.min())} to {int(codes_MN.max())}; {self.bits} bits hold {low} to {high}")
        self.centred_MN.copy_(codes_MN - self.zeros())

    def set_scale(self, scale_MG: torch.Tensor) -> None:
        """Replace the scales from which tuning starts."""
        self.stored.start.copy_(scale_MG)
        self.rescaled = True

    @property
    def range(self) -> tuple[int, int]:
        """The least and the largest code that the format holds."""
        return -(1 << self.bits - 1), (1 << self.bits - 1) - 1

    def scale(self) -> torch.Tensor:
        """The scales as stored, [M, G], in the dtype that is computed in; inside ``unrounded``, exact ones."""
        return self.stored(self.change) if self.stored.rounded else self.stored.exact(self.change)

    def weight(self) -> torch.Tensor:
        """The dequantized weight, [M, N]."""
        grouped_MGS = self.centred_MN.unflatten(1, (self.groups, -1))
        return (grouped_MGS * self.scale()[:, :, None]).to(grouped_MGS.dtype).flatten(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.quantization_scheme.input_activations is not None:
            from compressed_tensors.quantization.lifecycle import forward

            x = forward.forward_quantize(self, x, "input", self.quantization_scheme.input_activations)
        if self.watch:
            self.watch(x)
        if self.groups > 1 or x.dtype == torch.float16:  # which codes, not yet scaled, may overflow
            return F.linear(x, self.weight() if self.made is None else self.made, self.bias)
        # One scale a row scales the output: no gradient of a whole weight is ever made, a third of a step's multiplications.
        y = (F.linear(x, self.centred_MN) * self.scale()[:, 0]).to(x.dtype)
        return y if self.bias is None else y + self.bias


@contextmanager
def unrounded(model: Any) -> Iterator[None]:
    """Inside, scales and norms are computed with as they are tuned, not as they are stored.

    Rounding to a file's bfloat16 undoes changes below 0.2 to 0.4 %, so it hides where small steps lead.
    """
    found = [module for module in model.modules() if isinstance(module, Stored)]
    for stored in found:
        stored.rounded = False
    try:
        yield
    finally:
        for stored in found:
            stored.rounded = True


@contextmanager
def made_once(model: Any) -> Iterator[None]:
    """Inside, the weights of grouped layers are made once, for all passes of a step."""
    grouped = [layer for layer in scales(model).values() if layer.groups > 1]
    for layer in grouped:
        layer.made = layer.weight()
    try:
        yield
    finally:
        for layer in grouped:
            layer.made = None


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
    """The quantized checkpoint with every quantized layer made a ScaleLinear; only what the recipe tunes asks for gradients."""
    storage: Any = load.config_of(folder).dtype
    device, dtype = load.placement(folder)
    model = load.pretrained(folder, dtype=dtype).to(device)
    model.requires_grad_(False)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and getattr(module, "quantization_scheme", None) is not None:
            parent, _, child = name.rpartition(".")
            layer = ScaleLinear(module, storage)
            layer.change.requires_grad_("scales" in recipe.kinds)
            setattr(model.get_submodule(parent), child, layer)
        elif "norms" in recipe.kinds and _is_norm(module):
            weight = module.get_parameter("weight")
            stored = Stored(weight, storage, offset=offset_of(module))
            weight.data = weight.data.float()  # what is tuned is float32, whatever is computed in
            parametrize.register_parametrization(module, "weight", stored, unsafe=True)
            module.get_parameter("parametrizations.weight.original").requires_grad_(True)
    model.ct_decompress_hook.remove()  # no compressed layer is left for it to decompress
    del model.ct_decompress_hook
    return model.eval()  # gradients flow all the same, and nothing is dropped out


def offset_of(norm: nn.Module) -> float:
    """What a norm adds to its weight: 1 where it multiplies by (1 + weight), as Gemma's do, else 0. Found by trying."""
    weight = norm.get_parameter("weight")
    states = torch.linspace(0.5, 2, weight.numel(), device=weight.device, dtype=weight.dtype)[None, None]
    biased = {name: torch.zeros_like(p) for name, p in norm.named_parameters() if name == "bias"}
    values = []
    for held in (torch.zeros_like(weight), torch.ones_like(weight)):
        try:
            values.append(float(functional_call(norm, {**biased, "weight": held}, (states,)).float().abs().mean()))
        except (TypeError, ValueError, RuntimeError, AttributeError):
            return 0.0  # a norm that takes more than hidden states
    zero, one = values
    return round(zero / (one - zero), 3) if one > zero else 0.0


def _is_norm(module: nn.Module) -> bool:
    """Every family has a norm class of its own; what they share is the name and one weight vector."""
    weight = getattr(module, "weight", None)
    return "norm" in type(module).__name__.lower() and isinstance(weight, nn.Parameter) and weight.ndim == 1


def scales(model: Any) -> dict[str, ScaleLinear]:
    """The layers being tuned, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, ScaleLinear)}


def changed(model: Any) -> dict[str, int]:
    """How many linear layers have other codes (``solved``) and other scales (``rescaled``) than before, and how many norms are others."""
    layers = scales(model).values()
    norms = [m for m in model.modules() if not isinstance(m, ScaleLinear) and parametrize.is_parametrized(m, "weight")]
    return {
        "solved": sum(layer.solved for layer in layers),
        "rescaled": sum(layer.rescaled or bool(layer.change.any()) for layer in layers),
        "norms": sum(bool(norm.get_parameter("parametrizations.weight.original").any()) for norm in norms),
    }


def trained(model: Any) -> dict[str, torch.Tensor]:
    """What was restored, by the names that the checkpoint's file has for it: scales, norms, and codes as the exporter packs them."""
    found: dict[str, torch.Tensor] = {}
    for name, layer in scales(model).items():
        if layer.change.requires_grad or layer.rescaled:
            found[f"{name}.weight_scale"] = layer.scale()
        if layer.solved:
            found |= {f"{name}.{kind}": packed for kind, packed in _packed(layer).items()}
    norms = {name: module for name, module in model.named_modules() if parametrize.is_parametrized(module, "weight")}
    return {name: t.detach() for name, t in (found | {f"{name}.weight": module.weight for name, module in norms.items()}).items()}


def _packed(layer: ScaleLinear) -> dict[str, torch.Tensor]:
    """The codes of a layer in its format: int8 as they are, others packed into int32 words by compressed-tensors itself."""
    if not layer.packed:
        return {"weight": layer.codes()}
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    return {"weight_packed": pack_to_int32(layer.codes(), layer.bits)}


def check_scales(layer: str, before: torch.Tensor, after: torch.Tensor) -> None:
    """Raises InputError where a scale is no number, is zero, or changed its sign."""
    if not bool((torch.isfinite(after) & (after != 0) & (after.sign() == before.sign())).all()):
        raise InputError(f"restore: a scale of {layer} became zero, changed its sign or is no number; lower restore.learning_rate")


def by_file_names(model: Any, values: dict[str, torch.Tensor], folder: Path) -> dict[str, torch.Tensor]:
    """What was trained, by the names in the checkpoint's files, where transformers renames tensors when it loads them (Gemma 3's)."""
    from transformers.core_model_loading import revert_weight_conversion

    there = load.tensor_names(folder)
    same = {name: value for name, value in values.items() if name in there}
    other = {name: value for name, value in values.items() if name not in there}
    return same | revert_weight_conversion(model, other) if other else same


def untuned(model: Any, folder: Path) -> list[str]:
    """Layers with codes in the checkpoint's files that are not among those being tuned: experts that transformers holds in one tensor."""
    tuned = by_file_names(model, {f"{name}.weight_scale": layer.change for name, layer in scales(model).items()}, folder)
    return sorted(name.removesuffix(".weight_scale") for name in load.tensor_names(folder) - tuned.keys() if name.endswith(".weight_scale"))


def export(model: Any, folder: Path, out: Path) -> None:
    """Copy the checkpoint ``folder`` to ``out`` with what was trained in place of its own; every other byte is the same."""
    import shutil

    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    values = by_file_names(model, trained(model), folder)

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
            for name in values.keys() & tensors.keys():
                value = values[name].to(tensors[name].dtype).cpu().contiguous()
                assert value.shape == tensors[name].shape, f"{name}: {value.shape}, {tensors[name].shape} in {file.name}"
                if name.endswith("weight_scale"):
                    check_scales(name, tensors[name], value)
                tensors[name] = value
                written += 1
            save_file(tensors, part / file.name, metadata=metadata)
        assert written == len(values), f"{written} of {len(values)} tuned tensors found in {folder}"

    make_folder(out, fill)
