"""The protocol of a low-bit file format, and its description of a layer.

Tensor names carry their shape: M rows (outputs), N columns (inputs), G groups of columns that share a scale.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from stepmend.formats.tensors import Tensors

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Layer:
    """A layer according to the files' headers: its shape, bits per code, groups per row, and whether all zero points are 0.

    ``code`` and ``scale`` are the kinds of numbers that these are: ``int`` or ``float`` codes; scales in a ``float`` of 16 bits or more,
    in ``E4M3``, or in ``E8M0`` (powers of two). ``tall`` rows share a scale. ``kind`` is the name that the format has for such blocks, if
    any.
    """

    rows: int
    columns: int
    bits: int
    groups: int
    symmetric: bool
    code: Literal["int", "float"] = "int"
    scale: Literal["float", "E4M3", "E8M0"] = "float"
    tall: int = 1
    kind: str = ""


@dataclass(frozen=True)
class Codes:
    """The numbers of a layer: weight = (code - zero point) * scale + offset.

    ``codes_MN`` are int8 from -2^(bits-1) to 2^(bits-1) - 1, whatever offset the file has; ``zeros_MG`` (int8) has the same offset and is
    None if every zero point is 0. ``scale_MG`` has the file's dtype. ``order_N`` lists the columns group by group; None if they
    are in that order already.

    Float codes (E4M3, E2M1) keep their dtype and do not change: ``integer`` is False, and the weight is code * scale.
    ``tall`` rows share a row of ``scale_MG``, which then has ceil(M / tall) rows. Where there is a ``divisor`` (float32 [1]), scales are
    divided by it before they are used. ``factor_MG`` (float32) multiplies the scales, where several groups in a row share one:
    ``scale_MG`` then has a column for each such set of groups, and the codes do not change. ``offset_MG`` (float32) is None if every
    offset is 0.
    """

    codes_MN: "torch.Tensor"
    scale_MG: "torch.Tensor"
    zeros_MG: "torch.Tensor | None"
    bits: int
    order_N: "torch.Tensor | None" = None
    integer: bool = True
    tall: int = 1
    divisor: "torch.Tensor | None" = None
    factor_MG: "torch.Tensor | None" = None
    offset_MG: "torch.Tensor | None" = None

    def grouped(self) -> "torch.Tensor":
        """The codes [M, N] with columns group by group."""
        return self.codes_MN if self.order_N is None else self.codes_MN[:, self.order_N]

    def dequantize(self) -> "torch.Tensor":
        """The weight, float32 [M, N], columns as the model has them."""
        scale_MG = used(self.scale_MG.float(), len(self.codes_MN), self.tall, self.divisor, self.factor_MG)
        weight_MGS = self.grouped().float().unflatten(1, (scale_MG.shape[1], -1))
        if self.zeros_MG is not None:
            weight_MGS = weight_MGS - self.zeros_MG.float()[:, :, None]
        weight_MGS = weight_MGS * scale_MG[:, :, None]
        if self.offset_MG is not None:
            weight_MGS = weight_MGS + self.offset_MG[:, :, None]
        weight_MN = weight_MGS.flatten(1)
        return weight_MN if self.order_N is None else weight_MN[:, self.order_N.argsort()]

    @property
    def frozen(self) -> bool:
        """Whether the codes may not be changed."""
        return not self.integer or self.factor_MG is not None


def used(
    scale: "torch.Tensor", rows: int, tall: int = 1, divisor: "torch.Tensor | None" = None, factor_MG: "torch.Tensor | None" = None
) -> "torch.Tensor":
    """What codes are multiplied with, [M, G], from scales as a file holds them (see ``Codes``); ``rows`` is M."""
    scale = scale if divisor is None else scale / divisor
    scale = scale if tall == 1 else scale.repeat_interleave(tall, 0)[:rows]
    return scale if factor_MG is None else scale.repeat_interleave(factor_MG.shape[1] // scale.shape[1], dim=1) * factor_MG


class Format(Protocol):
    """A low-bit checkpoint in one file format. Layers have the names that the files have for them.

    ``name`` is the method as configurations write it. ``rounded`` says whether activations or the KV cache are rounded too.
    ``multiplied_in`` is the dtype that codes and scales are multiplied in, before the product is rounded to that of the computation;
    None if it is that of the computation.
    """

    name: str
    rounded: bool

    @property
    def tensors(self) -> Tensors:
        """The tensors of the checkpoint's files."""
        ...

    @property
    def multiplied_in(self) -> "torch.dtype | None": ...

    @property
    def layers(self) -> Mapping[str, Layer]:
        """Every layer with codes."""
        ...

    def codes(self, layer: str) -> Codes:
        """The codes, scales and zero points of a layer."""
        ...

    def scale(self, layer: str) -> "torch.Tensor":
        """The scales of a layer alone, as in its ``Codes``."""
        ...

    def packed(self, layer: str, codes_MN: "torch.Tensor") -> dict[str, "torch.Tensor"]:
        """The file's tensors for other codes of a layer (columns as the model has them), by name."""
        ...

    def scaled(self, layer: str, scale_MG: "torch.Tensor") -> dict[str, "torch.Tensor"]:
        """The file's tensors for other scales of a layer, by name."""
        ...

    def held(self, layer: str) -> tuple[str, ...]:
        """The names of the tensors that stand for a layer's weight."""
        ...

    @property
    def loads_in(self) -> str:
        """Where such a checkpoint loads."""
        ...


def dense(low_bit: Format, known: Iterable[str], dtype: Any, own: "torch.dtype | None") -> "dict[str, torch.Tensor]":
    """All tensors of a checkpoint, with the weights of layers with codes dequantized, by the names in its files.

    ``known`` are the names of the model's parameters: biases of zeros are left out where the model has none, because AutoGPTQ wrote one
    beside every layer. Weights are rounded to ``dtype``, or if that is none (``auto``) to the checkpoint's ``own``.
    """
    import torch

    tensors, layers = low_bit.tensors, low_bit.layers
    ends = {_end(name) for name in known}
    parts = {name for layer in layers for name in low_bit.held(layer)}
    unknown = {name for layer in layers if _end(name := f"{layer}.bias") not in ends}
    found = {name: tensors.read(name) for name in tensors.headers if name not in parts}
    found = {name: value for name, value in found.items() if name not in unknown or bool(value.any())}
    dtype = dtype if isinstance(dtype, torch.dtype) else own or torch.float16
    return found | {f"{layer}.weight": low_bit.codes(layer).dequantize().to(dtype) for layer in layers}


def _end(name: str) -> str:
    return ".".join(name.split(".")[-2:])
