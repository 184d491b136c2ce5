"""The trainable low-bit model: integer codes set by ``codes.solve``, scales and norms tuned end to end (EfficientQAT, 2407.11062), and the
export of all three in the checkpoint's own format.

The forward pass uses the exporter's own dequantization, (code - zero point) * scale with the scale rounded to the dtype it is stored
in (of 8 bits too: E4M3, E8M0), plus an offset where the format has one, which does not change; so that what is trained is what is served.
Codes that are floats (FP8, FP4) do not change. Tensor names carry their shape: M rows, N columns, G groups of a row, S columns of a
group, P rows of scales, each for one row or for more of them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils import parametrize

from stepmend import formats
from stepmend.formats.base import Codes, Format, used
from stepmend.keys import Restore
from stepmend.models import load, names
from stepmend.records import InputError

FLOOR = 0.1
"""Minimum ratio of a scale to its start. It keeps its sign: some kernels read scales as unsigned (vLLM, W4A8)."""


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
    """Context manager: gradients pass straight through compressed-tensors' rounding of activations and KV caches."""
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


LEAST = {torch.float8_e4m3fn: 2.0**-9, torch.float8_e8m0fnu: 2.0**-127}
"""The smallest positive number of each 8-bit dtype of scales. torch converts numbers beyond the largest to infinities."""


def as_stored(exact: torch.Tensor, storage: torch.dtype) -> torch.Tensor:
    """A tensor rounded to the dtype of its file. In 8 bits it stays finite, and a scale that is not zero does not become zero."""
    if storage not in LEAST:
        return exact.to(storage)
    inside = exact.clamp(LEAST[storage], torch.finfo(storage).max)
    return torch.where(exact == 0, exact, inside).to(storage)


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
        stored = straight(exact, as_stored(exact, self.storage).to(exact.dtype)) if self.rounded else exact
        return stored.to(self.start.dtype)

    def right_inverse(self, value: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(value, dtype=torch.float32)


class ScaleLinear(nn.Module):
    """A linear layer with codes that gradients do not reach, and trainable scales.

    ``change`` is the scales' relative change, so that one learning rate suits scales of any size: scale = start * (1 + change).
    ``centred_MN`` are the codes less their zero points, columns group by group; ``order_N`` says which columns of the model these are,
    None if they are all in their places. Codes that are ``frozen`` may not be set. How scales are used, and what is added to the weights
    of a group, is as in ``Codes``. ``watch`` is called with the input of every forward pass, as it is multiplied.
    """

    def __init__(self, linear: nn.Linear, codes: Codes, dtype: torch.dtype, scale_dtype: torch.dtype) -> None:
        """``dtype`` is what weights are computed in, ``scale_dtype`` what scales are multiplied in."""
        super().__init__()
        device = next(iter((*linear.parameters(), *linear.buffers()))).device
        scale_MG, codes_MN = codes.scale_MG.to(device, scale_dtype), codes.grouped().to(device)
        for name in ("quantization_scheme", "quantization_status"):  # what compressed-tensors rounds activations by
            setattr(self, name, getattr(linear, name, None))
        for name, value in (*linear.named_parameters(), *linear.named_buffers()):
            if name.startswith("input_"):
                self.register_buffer(name, value.data, persistent=False)
        for name, value in (("divisor", codes.divisor), ("factor_MG", codes.factor_MG), ("offset_MG", codes.offset_MG)):
            self.register_buffer(name, None if value is None else value.to(device, scale_dtype), persistent=False)
        self.divisor: torch.Tensor | None
        self.factor_MG: torch.Tensor | None
        self.offset_MG: torch.Tensor | None
        self.groups = (scale_MG if codes.factor_MG is None else codes.factor_MG).shape[1]
        self.bits, self.tall, self.frozen = codes.bits, codes.tall, codes.frozen
        self.order_N: torch.Tensor | None
        self.register_buffer("order_N", None if codes.order_N is None else codes.order_N.to(device), persistent=False)
        self.zeros_MG: torch.Tensor | None
        self.register_buffer("zeros_MG", None if codes.zeros_MG is None else codes.zeros_MG.to(device), persistent=False)
        self.centred_MN: torch.Tensor
        self.register_buffer("centred_MN", torch.empty(codes_MN.shape, dtype=dtype, device=device), persistent=False)
        if codes.integer:
            self.set_codes(codes_MN)
        else:
            self.centred_MN.copy_(codes_MN)
        self.solved = self.rescaled = False
        self.made: torch.Tensor | None = None
        self.watch: Callable[[torch.Tensor], None] | None = None
        self.stored = Stored(scale_MG, codes.scale_MG.dtype, FLOOR)
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
        """The integer codes, int8 [M, N], from -2^(bits-1) to 2^(bits-1) - 1, columns group by group."""
        return (self.centred_MN + self.zeros()).to(torch.int8)

    def set_codes(self, codes_MN: torch.Tensor) -> None:
        """Replace integer codes. Raises ValueError if one is outside of the format's range."""
        low, high = self.range
        if int(codes_MN.min()) < low or int(codes_MN.max()) > high:
            raise ValueError(f"codes from {int(codes_MN.min())} to {int(codes_MN.max())}; {self.bits} bits hold {low} to {high}")
        self.centred_MN.copy_(codes_MN - self.zeros())

    def set_scale(self, scale_MG: torch.Tensor) -> None:
        """Replace the scales from which tuning starts."""
        self.stored.start.copy_(scale_MG)
        self.rescaled = True

    @property
    def made_whole(self) -> bool:
        """Whether the whole weight is made before it is multiplied by."""
        return self.groups > 1 or self.offset_MG is not None

    @property
    def range(self) -> tuple[int, int]:
        """The least and the largest code that the format holds."""
        return -(1 << self.bits - 1), (1 << self.bits - 1) - 1

    def scale(self) -> torch.Tensor:
        """The scales as stored, in the dtype that they are multiplied in; inside ``unrounded``, exact ones."""
        return self.stored(self.change) if self.stored.rounded else self.stored.exact(self.change)

    def used(self, scale: torch.Tensor) -> torch.Tensor:
        """What codes are multiplied with, [M, G], from what ``scale`` gives."""
        return used(scale, self.centred_MN.shape[0], self.tall, self.divisor, self.factor_MG)

    def offset(self) -> torch.Tensor | float:
        """What is added to every weight: [M, N], or 0."""
        if self.offset_MG is None:
            return 0.0
        return self.offset_MG.repeat_interleave(self.centred_MN.shape[1] // self.groups, dim=1)

    def weight(self, scale: torch.Tensor | None = None) -> torch.Tensor:
        """The dequantized weight, [M, N], columns group by group; ``scale`` is what ``scale()`` gives, if it is made already."""
        grouped_MGS = self.centred_MN.unflatten(1, (self.groups, -1))
        weight_MGS = grouped_MGS * self.used(self.scale() if scale is None else scale)[:, :, None]
        if self.offset_MG is not None:
            weight_MGS = weight_MGS + self.offset_MG[:, :, None]
        return weight_MGS.to(grouped_MGS.dtype).flatten(1)

    def placed(self, grouped_MN: torch.Tensor) -> torch.Tensor:
        """A matrix whose columns are group by group, with its columns in the model's places."""
        return grouped_MN if self.order_N is None else grouped_MN[:, self.order_N.argsort()]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scheme: Any = self.quantization_scheme
        if scheme is not None and scheme.input_activations is not None:
            from compressed_tensors.quantization.lifecycle import forward

            x = forward.forward_quantize(self, x, "input", scheme.input_activations)
        if self.order_N is not None:
            x = x[..., self.order_N]
        if self.watch:
            self.watch(x)
        if self.made_whole or x.dtype == torch.float16:  # which codes, not yet scaled, may overflow
            return F.linear(x, self.weight() if self.made is None else self.made, self.bias)
        # One scale per row scales the output: no gradient of a whole weight is ever made, a third of a step's multiplications.
        y = (F.linear(x, self.centred_MN) * self.used(self.scale())[:, 0]).to(x.dtype)
        return y if self.bias is None else y + self.bias


@contextmanager
def unrounded(model: Any) -> Iterator[None]:
    """Context manager: forward passes use scales and norms as tuned, not rounded to their stored dtypes.

    Rounding to a file's bfloat16 undoes changes below 0.2 to 0.4 %, to E4M3 those below 3 to 6 %, so it hides the effect of small steps.
    Powers of two (E8M0) stay rounded: no small step leads to the next one.
    """
    found = [module for module in model.modules() if isinstance(module, Stored) and module.storage != torch.float8_e8m0fnu]
    for stored in found:
        stored.rounded = False
    try:
        yield
    finally:
        for stored in found:
            stored.rounded = True


@contextmanager
def made_once(model: Any) -> Iterator[None]:
    """Context manager: the weights of grouped layers are dequantized once, for all passes of a step."""
    grouped = [layer for layer in scales(model).values() if layer.made_whole]
    for layer, scale_MG in zip(grouped, scales_of(grouped), strict=True):
        layer.made = layer.weight(scale_MG)
    try:
        yield
    finally:
        for layer in grouped:
            layer.made = None


def scales_of(layers: Sequence[ScaleLinear]) -> list[torch.Tensor]:
    """What ``scale`` gives of each layer, made together: for a few scales a GPU takes longer to launch the operations than to do them."""
    kinds: dict[Any, list[int]] = {}
    for i, layer in enumerate(layers):
        kinds.setdefault((layer.stored.storage, layer.stored.start.dtype, layer.stored.rounded), []).append(i)
    found: dict[int, torch.Tensor] = {}
    for (storage, _, rounded), places in kinds.items():
        alike = [layers[i] for i in places]
        joint = Stored(torch.cat([layer.stored.start.flatten() for layer in alike]), storage, FLOOR)
        change_N = torch.cat([layer.change.flatten() for layer in alike])
        scale_N = joint(change_N) if rounded else joint.exact(change_N)
        parts = scale_N.split([layer.change.numel() for layer in alike])
        found |= {i: part.view_as(layer.change) for i, part, layer in zip(places, parts, alike, strict=True)}
    return [found[i] for i in range(len(layers))]


def attach(folder: str, recipe: Restore, dtype: str = "auto") -> Any:
    """The quantized checkpoint with every quantized layer made a ScaleLinear; only what the recipe tunes asks for gradients.

    ``dtype`` is the compute dtype: full precision's, which may differ from a given checkpoint's.

    The model's ``low_bit`` is the checkpoint's format, and ``file_names`` are the names that the files have for its layers.
    """
    found = formats.detect(folder)
    assert found is not None, f"{folder} holds no codes"
    device, placed = load.placement(folder, dtype)
    model = load.pretrained(folder, dtype=placed).to(device)
    model.requires_grad_(False)
    model.low_bit, model.file_names = found, names.layers(model, found)
    for name, module in list(model.named_modules()):
        if name in model.file_names:
            parent, _, child = name.rpartition(".")
            codes = found.codes(model.file_names[name])
            multiplied_in = found.multiplied_in or (model.dtype if codes.divisor is None else torch.float32)
            layer = ScaleLinear(module, codes, model.dtype, multiplied_in)
            layer.change.requires_grad_("scales" in recipe.kinds)
            setattr(model.get_submodule(parent), child, layer)
    if "norms" in recipe.kinds:
        _attach_norms(model, found)
    if hasattr(model, "ct_decompress_hook"):
        model.ct_decompress_hook.remove()  # no compressed layer is left for it to decompress
        del model.ct_decompress_hook
    return model.eval()  # gradients flow all the same, and nothing is dropped out


def _attach_norms(model: Any, low_bit: Format) -> None:
    """Make the weight of every norm a tuned one, in the dtype of its file."""
    norms = {f"{name}.weight": module for name, module in model.named_modules() if _is_norm(module)}
    numbered = {name: torch.tensor([i]) for i, name in enumerate(norms)}
    files = {int(i): name for name, i in names.by_file_names(model, numbered, low_bit.tensors.headers.keys()).items()}
    for i, module in enumerate(norms.values()):
        weight = module.get_parameter("weight")
        stored = Stored(weight, low_bit.tensors.dtype(files[i]), offset=offset_of(module))
        weight.data = weight.data.float()  # what is tuned is float32, whatever is computed in
        parametrize.register_parametrization(module, "weight", stored, unsafe=True)
        module.get_parameter("parametrizations.weight.original").requires_grad_(True)


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
    """What was restored, as the checkpoint's files have it: scales, norms and packed codes, by their names there.

    Raises InputError if a scale became zero or changed its sign.
    """
    low_bit, found = model.low_bit, dict[str, torch.Tensor]()
    for name, layer in scales(model).items():
        file = model.file_names[name]
        if layer.change.requires_grad or layer.rescaled:
            scale, before = layer.scale().detach(), low_bit.scale(file)
            check_scales(file, before.float(), as_stored(scale, before.dtype).cpu().float())
            found |= low_bit.scaled(file, scale)
        if layer.solved:
            found |= low_bit.packed(file, layer.placed(layer.codes()).contiguous())
    norms = {name: module for name, module in model.named_modules() if parametrize.is_parametrized(module, "weight")}
    weights = {f"{name}.weight": module.weight.detach() for name, module in norms.items()}
    return found | names.by_file_names(model, weights, low_bit.tensors.headers.keys())


def check_scales(layer: str, before: torch.Tensor, after: torch.Tensor) -> None:
    """Raises InputError if a scale is no number, became zero, or changed its sign."""
    if not bool((torch.isfinite(after) & (after.sign() == before.sign())).all()):
        raise InputError(f"restore: a scale of {layer} became zero, changed its sign or is not finite; lower restore.learning_rate")


def solvable(model: Any) -> list[str]:
    """The layers being tuned whose codes may change, by name."""
    return [name for name, layer in scales(model).items() if not layer.frozen]


def untuned(model: Any) -> list[str]:
    """Layers with codes in the checkpoint's files that are not among those being tuned: experts that transformers holds in one tensor."""
    return sorted(model.low_bit.layers.keys() - set(model.file_names.values()))


def export(model: Any, folder: Path, out: Path) -> None:
    """Copy the checkpoint ``folder`` to ``out`` with what was trained in place of its own; every other byte is the same."""
    assert model.low_bit.tensors.folder == folder, f"{model.low_bit.tensors.folder} was attached"
    model.low_bit.tensors.write(out, trained(model))
