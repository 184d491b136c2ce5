"""AWQ checkpoints in AutoAWQ's ``gemm`` layout.

For a layer with N inputs and M outputs, codes of 4 bits from 0 to 15:

| tensor | holds |
|---|---|
| ``qweight`` int32 [N, M / 8] | eight codes per word, low bits first, of the outputs 0, 2, 4, 6, 1, 3, 5, 7 of each eight |
| ``qzeros`` int32 [G, M / 8] | zero points, packed in the same way |
| ``scales`` [G, M] | scales |

Groups are of columns in a row.
"""

from functools import cached_property
from typing import TYPE_CHECKING, Any

from stepmend.formats import packing
from stepmend.formats.base import Codes, Layer
from stepmend.formats.tensors import Tensors

if TYPE_CHECKING:
    import torch

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""The output of eight at each position of a word, lowest bits first."""
PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Position of each output of eight."""
BITS, A_WORD = 4, 8


class Awq:
    """A checkpoint in AutoAWQ's ``gemm`` layout; see ``base.Format``."""

    name = "awq"
    rounded = False

    def __init__(self, tensors: Tensors, config: dict[str, Any]) -> None:
        self.tensors = tensors
        version = config.get("version", "gemm")
        if not isinstance(version, str) or version.lower() != "gemm":
            raise packing.wrong(tensors, f"AWQ's layout {str(version)[:40]!r} is not read; allowed: gemm")
        packing.bits_of(tensors, config.get("bits", config.get("w_bit")), (BITS,))

    @cached_property
    def layers(self) -> dict[str, Layer]:
        """Every layer with codes."""
        return {name: self._layer(name) for name in packing.named(self.tensors)}

    def _layer(self, name: str) -> Layer:
        groups, rows = packing.need(self.tensors, f"{name}.scales", packing.FLOATS)
        columns, _ = packing.need(self.tensors, f"{name}.qweight", ("I32",))
        packing.need(self.tensors, f"{name}.qweight", ("I32",), (columns, rows // A_WORD))
        packing.need(self.tensors, f"{name}.qzeros", ("I32",), (groups, rows // A_WORD))
        if rows % A_WORD or columns % groups:
            raise packing.wrong(self.tensors, f"{name}: {groups} groups of {rows} x {columns} codes do not come out even")
        return Layer(rows, columns, BITS, groups, bool((self._unpacked(f"{name}.qzeros") == 0).all()))

    def _unpacked(self, name: str) -> "torch.Tensor":
        """Codes or zero points less 8, int8 [M, N or G]."""
        import torch
        from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

        words = self.tensors.read(name)
        placed = unpack_from_int32(words, BITS, torch.Size((words.shape[0], A_WORD * words.shape[1])))
        return placed.unflatten(1, (-1, A_WORD))[:, :, list(PLACES)].flatten(1).T.contiguous()

    def codes(self, layer: str) -> Codes:
        """The codes, scales and zero points of a layer."""
        zeros_MG = None if self.layers[layer].symmetric else self._unpacked(f"{layer}.qzeros")
        return Codes(self._unpacked(f"{layer}.qweight"), self.scale(layer), zeros_MG, BITS)

    def scale(self, layer: str) -> "torch.Tensor":
        """The scales of a layer."""
        return self.tensors.read(f"{layer}.scales").T.contiguous()

    def packed(self, layer: str, codes_MN: "torch.Tensor") -> dict[str, "torch.Tensor"]:
        """``qweight`` for other codes."""
        from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

        placed_NM = codes_MN.T.unflatten(1, (-1, A_WORD))[:, :, list(ORDER)].flatten(1)
        return {f"{layer}.qweight": pack_to_int32(placed_NM.contiguous(), BITS)}

    def scaled(self, layer: str, scale_MG: "torch.Tensor") -> dict[str, "torch.Tensor"]:
        """``scales`` for other scales."""
        return {f"{layer}.scales": scale_MG.T}

    def held(self, layer: str) -> tuple[str, ...]:
        """The names of the tensors that stand for a layer's weight."""
        return tuple(f"{layer}.{end}" for end in ("qweight", "qzeros", "scales"))

    @property
    def multiplied_in(self) -> "torch.dtype":
        """float32: what is loaded is rounded once, from the exact product."""
        import torch

        return torch.float32

    @property
    def loads_in(self) -> str:
        """Where such a checkpoint loads."""
        return "AutoAWQ, GPTQModel, transformers with it, vLLM"
