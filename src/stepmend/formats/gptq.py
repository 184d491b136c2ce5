"""GPTQ checkpoints (AutoGPTQ's, GPTQModel's and AutoRound's ``gptq`` and ``gptq_v2`` layouts).

For a layer with N inputs and M outputs, codes of b bits from 0 to 2^b - 1:

| tensor | holds |
|---|---|
| ``qweight`` int32 [N b / 32, M] | codes, the columns of the model's weight downwards, low bits first, without gaps |
| ``qzeros`` int32 [G, M b / 32] | zero points, packed to the right in the same way; ``gptq`` stores them less 1, ``gptq_v2`` as they are |
| ``scales`` [G, M] | scales |
| ``g_idx`` int32 [N] | the group of each column; not in order where ``desc_act`` is set |

A zero point of 0 is stored as 2^b - 1 in the first layout.
"""

from functools import cached_property
from typing import TYPE_CHECKING, Any

from stepmend.formats import packing
from stepmend.formats.base import Codes, Layer
from stepmend.formats.tensors import Tensors

if TYPE_CHECKING:
    import torch

LAYOUTS = ("gptq", "gptq_v2")
"""Values of ``checkpoint_format`` that are read; without one it is the first."""


class Gptq:
    """A checkpoint in GPTQ's layout; see ``base.Format``. Shapes are read from the headers, so that layers may differ in bits."""

    name = "gptq"
    rounded = False

    def __init__(self, tensors: Tensors, config: dict[str, Any]) -> None:
        self.tensors = tensors
        layout = config.get("checkpoint_format") or LAYOUTS[0]
        if layout not in LAYOUTS:
            raise packing.wrong(tensors, f"checkpoint_format {str(layout)[:40]!r} is not read; allowed: {', '.join(LAYOUTS)}")
        packing.bits_of(tensors, config.get("bits"), (2, 3, 4, 8))
        self.first = layout == LAYOUTS[0]

    @cached_property
    def layers(self) -> dict[str, Layer]:
        """Every layer with codes."""
        return {name: self._layer(name) for name in packing.named(self.tensors)}

    def _layer(self, name: str) -> Layer:
        groups, rows = packing.need(self.tensors, f"{name}.scales", packing.FLOATS)
        words, _ = packing.need(self.tensors, f"{name}.qweight", ("I32",))
        packed = packing.need(self.tensors, f"{name}.qzeros", ("I32",))[1]
        bits = packing.bits_of(self.tensors, packed * 32 // rows, (2, 3, 4, 8))
        columns = words * 32 // bits
        packing.need(self.tensors, f"{name}.qweight", ("I32",), (columns * bits // 32, rows))
        packing.need(self.tensors, f"{name}.qzeros", ("I32",), (groups, rows * bits // 32))
        if columns * bits % 32 or rows * bits % 32 or columns % groups:
            raise packing.wrong(self.tensors, f"{name}: {groups} groups of {rows} x {columns} codes of {bits} bits do not come out even")
        self._order(name, columns, groups)
        return Layer(rows, columns, bits, groups, bool((self._zeros(name, bits, groups, rows) == 0).all()))

    def _zeros(self, name: str, bits: int, groups: int, rows: int) -> "torch.Tensor":
        """The zero points less 2^(bits-1), int8 [M, G]."""
        import torch
        from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

        zeros_GM = unpack_from_int32(self.tensors.read(f"{name}.qzeros"), bits, torch.Size((groups, rows)))
        if self.first:
            half = 1 << bits - 1
            zeros_GM = ((zeros_GM.to(torch.int16) + half + 1) % (2 * half) - half).to(torch.int8)
        return zeros_GM.T.contiguous()

    def codes(self, layer: str) -> Codes:
        """The codes, scales and zero points of a layer."""
        import torch
        from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

        of = self.layers[layer]
        codes_NM = unpack_from_int32(self.tensors.read(f"{layer}.qweight"), of.bits, torch.Size((of.columns, of.rows)), packed_dim=0)
        zeros_MG = None if of.symmetric else self._zeros(layer, of.bits, of.groups, of.rows)
        scale_MG = self.scale(layer)
        return Codes(codes_NM.T.contiguous(), scale_MG, zeros_MG, of.bits, self._order(layer, of.columns, of.groups))

    def _order(self, name: str, columns: int, groups: int) -> "torch.Tensor | None":
        """The columns group by group; None if they stand so. Raises InputError if groups are not of one size."""
        import torch

        if f"{name}.g_idx" not in self.tensors:
            return None
        if self.tensors.kind(f"{name}.g_idx") not in ("I32", "I64") or self.tensors.shape(f"{name}.g_idx") != (columns,):
            raise packing.wrong(self.tensors, f"{name}.g_idx does not name the group of each of {columns} columns")
        group_N = self.tensors.read(f"{name}.g_idx").long()
        usual_N = torch.arange(columns) // (columns // groups)
        order_N = group_N.argsort(stable=True)
        if not torch.equal(group_N[order_N], usual_N):
            raise packing.wrong(self.tensors, f"{name}.g_idx: every one of {groups} groups needs {columns // groups} columns")
        return None if torch.equal(group_N, usual_N) else order_N

    def scale(self, layer: str) -> "torch.Tensor":
        """The scales of a layer."""
        return self.tensors.read(f"{layer}.scales").T.contiguous()

    def packed(self, layer: str, codes_MN: "torch.Tensor") -> dict[str, "torch.Tensor"]:
        """``qweight`` for other codes."""
        from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

        return {f"{layer}.qweight": pack_to_int32(codes_MN.T.contiguous(), self.layers[layer].bits, packed_dim=0)}

    def scaled(self, layer: str, scale_MG: "torch.Tensor") -> dict[str, "torch.Tensor"]:
        """``scales`` for other scales."""
        return {f"{layer}.scales": scale_MG.T}

    def held(self, layer: str) -> tuple[str, ...]:
        """The names of the tensors that stand for a layer's weight."""
        return tuple(name for end in ("qweight", "qzeros", "scales", "g_idx") if (name := f"{layer}.{end}") in self.tensors)

    @property
    def multiplied_in(self) -> "torch.dtype":
        """float32: what is loaded is rounded once, from the exact product."""
        import torch

        return torch.float32

    @property
    def loads_in(self) -> str:
        """Where such a checkpoint loads."""
        return "GPTQModel, transformers with it, vLLM"
