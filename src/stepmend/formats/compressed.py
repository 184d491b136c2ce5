"""compressed-tensors checkpoints: integer codes (``pack-quantized``, ``int-quantized``) by group and by row, and floats (``floats.py``).

For a layer of integers with M rows and N columns, codes of b bits from -2^(b-1) to 2^(b-1) - 1:

| tensor | holds |
|---|---|
| ``weight_packed`` int32 [M, ceil(N b / 32)] | pack-quantized: codes of a row, low bits first, without gaps, each more by 2^(b-1) |
| ``weight_shape`` int64 [2] | M and N |
| ``weight`` int8 [M, N] | int-quantized: codes |
| ``weight_scale`` [M, G] | scales |
| ``weight_zero_point`` | int32 [ceil(M b / 32), G], packed downwards, or int8 [M, G]; only where zero points are not 0 |
"""

import re
from functools import cached_property
from math import ceil
from typing import TYPE_CHECKING, Any

from stepmend.formats import floats, packing
from stepmend.formats.base import Codes, Layer
from stepmend.formats.tensors import Tensors

if TYPE_CHECKING:
    import torch

INTEGERS = ("pack-quantized", "int-quantized")
"""Values of ``format`` that hold integer codes."""
FLOATS = ("float-quantized", "nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp8-quantized")
"""Values of ``format`` that hold float codes."""
READ = (*INTEGERS, *FLOATS, "naive-quantized", "mixed-precision")
"""Values of ``format`` that are read; what the last two hold, each layer's scheme and tensors say."""


class Compressed:
    """A compressed-tensors checkpoint; see ``base.Format``."""

    name = "compressed-tensors"
    multiplied_in = None

    def __init__(self, tensors: Tensors, config: dict[str, Any]) -> None:
        from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme

        self.tensors, self.layout = tensors, config.get("format")
        if (layout := self.layout) not in (*READ, None):
            raise packing.wrong(tensors, f"compressed-tensors' format {str(layout)[:40]!r} is not restored; allowed: {', '.join(READ)}")
        for key, what in (("transform_config", "rotated weights"), ("sparsity_config", "sparse weights")):
            if (of := config.get(key)) and not (isinstance(of, dict) and of.get("format") == "dense"):
                raise packing.wrong(tensors, f"{what} ({key}) are not restored")
        try:
            read = QuantizationConfig.model_validate({key: value for key, value in config.items() if key not in NOT_READ})
            for target in (one for scheme in read.config_groups.values() for one in getattr(scheme, "targets", ())):
                re.compile(target.removeprefix("re:") if target.startswith("re:") else "")
        except Exception as error:  # pydantic's own, and what compressed-tensors raises for values that it does not expect
            first = (str(error).strip().splitlines() or [type(error).__name__])[-1 if "validation error" in str(error) else 0]
            raise packing.wrong(tensors, f"compressed-tensors cannot read quantization_config ({first.strip()[:160]})") from None
        self.schemes = [scheme for scheme in read.config_groups.values() if isinstance(scheme, QuantizationScheme)]
        if any(scheme.output_activations for scheme in self.schemes):
            raise packing.wrong(tensors, "rounded outputs of layers (output_activations) are not restored")
        self.rounded = bool(read.kv_cache_scheme) or any(scheme.input_activations for scheme in self.schemes)

    @cached_property
    def layers(self) -> dict[str, Layer]:
        """Every layer with codes."""
        names = {name.removesuffix(".weight_scale") for name in self.tensors.headers if name.endswith(".weight_scale")}
        names |= {name.removesuffix(".weight_packed") for name in self.tensors.headers if name.endswith(".weight_packed")}
        if not names:
            raise packing.wrong(self.tensors, "no tensor holds scales (NAME.weight_scale)")
        return {name: self._layer(name) for name in sorted(names)}

    def _layer(self, name: str) -> Layer:
        scheme = self._scheme(name)
        args, others = scheme.weights, INTEGERS if scheme.weights.type == "float" else FLOATS
        for layout in (getattr(scheme.format, "value", scheme.format), self.layout):
            if layout in others:
                raise packing.wrong(self.tensors, f"{name}: format {layout!r} is not restored with {args.type} weights; it holds others")
        if args.type == "float":
            return floats.layer(self.tensors, name, args)
        if args.strategy not in ("group", "channel"):
            raise packing.wrong(self.tensors, f"{name}: int weights by {args.strategy} are not restored; allowed: by group or channel")
        if f"{name}.weight_g_idx" in self.tensors:
            raise packing.wrong(self.tensors, f"{name}: groups of columns out of order (weight_g_idx) are not restored")
        bits = packing.bits_of(self.tensors, args.num_bits, packing.BITS)
        rows, groups = packing.need(self.tensors, f"{name}.weight_scale", packing.FLOATS)
        if f"{name}.weight_packed" in self.tensors:
            columns = self._columns(name, rows)
            packing.need(self.tensors, f"{name}.weight_packed", ("I32",), (rows, ceil(columns * bits / 32)))
        else:
            columns = packing.need(self.tensors, f"{name}.weight", ("I8",))[1]
            packing.need(self.tensors, f"{name}.weight", ("I8",), (rows, columns))
        wanted = columns // args.group_size if args.strategy == "group" and args.group_size else 1
        if columns % groups or groups != wanted:
            raise packing.wrong(self.tensors, f"{name}: {groups} groups of {columns} columns are not what its scheme says")
        if not args.symmetric:
            self._need_zeros(name, rows, groups, bits)
        return Layer(rows, columns, bits, groups, bool(args.symmetric))

    def _scheme(self, name: str) -> Any:
        """How a layer is quantized: the scheme that names it, or else all linear layers."""
        import torch
        from compressed_tensors.utils import is_match

        linear = torch.nn.Linear(1, 1, device="meta")
        matching = [scheme for scheme in self.schemes if is_match(name, linear, scheme.targets) and scheme.weights]
        named = [scheme for scheme in matching if "Linear" not in scheme.targets]
        if not matching:
            raise packing.wrong(self.tensors, f"{name} has scales, and no scheme of quantization_config is for it")
        return (named or matching)[0]

    def _columns(self, name: str, rows: int) -> int:
        if self.tensors.kind(f"{name}.weight_shape") not in ("I32", "I64") or self.tensors.shape(f"{name}.weight_shape") != (2,):
            raise packing.wrong(self.tensors, f"{name}.weight_shape is not two integers")
        held = self.tensors.read(f"{name}.weight_shape").tolist()
        if held[0] != rows or held[1] < 1:
            raise packing.wrong(self.tensors, f"{name}.weight_shape says {held}, and there are scales for {rows} rows")
        return held[1]

    def _need_zeros(self, name: str, rows: int, groups: int, bits: int) -> None:
        if f"{name}.weight_packed" in self.tensors:
            packing.need(self.tensors, f"{name}.weight_zero_point", ("I32",), (ceil(rows * bits / 32), groups))
        else:
            packing.need(self.tensors, f"{name}.weight_zero_point", ("I8",), (rows, groups))

    def codes(self, layer: str) -> Codes:
        """The codes, scales and zero points of a layer."""
        import torch
        from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

        of, read = self.layers[layer], self.tensors.read
        if of.code == "float":
            return floats.codes(self.tensors, layer, of)
        scale_MG = self.scale(layer)
        zeros = None if of.symmetric else read(f"{layer}.weight_zero_point")
        if f"{layer}.weight_packed" not in self.tensors:
            return Codes(read(f"{layer}.weight"), scale_MG, zeros, of.bits)
        codes_MN = unpack_from_int32(read(f"{layer}.weight_packed"), of.bits, torch.Size((of.rows, of.columns)))
        if zeros is not None:
            zeros = unpack_from_int32(zeros, of.bits, torch.Size((of.rows, of.groups)), packed_dim=0)
        return Codes(codes_MN, scale_MG, zeros, of.bits)

    def scale(self, layer: str) -> "torch.Tensor":
        """The scales of a layer."""
        of = self.layers[layer]
        return floats.scale(self.tensors, layer, of) if of.code == "float" else self.tensors.read(f"{layer}.weight_scale")

    def packed(self, layer: str, codes_MN: "torch.Tensor") -> dict[str, "torch.Tensor"]:
        """``weight_packed`` or ``weight`` for other codes."""
        from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

        of = self.layers[layer]
        if of.code == "float":
            return floats.packed(layer, of, codes_MN)
        if f"{layer}.weight_packed" not in self.tensors:
            return {f"{layer}.weight": codes_MN}
        return {f"{layer}.weight_packed": pack_to_int32(codes_MN, of.bits)}

    def scaled(self, layer: str, scale_MG: "torch.Tensor") -> dict[str, "torch.Tensor"]:
        """``weight_scale`` for other scales."""
        of = self.layers[layer]
        return floats.scaled(self.tensors, layer, of, scale_MG) if of.code == "float" else {f"{layer}.weight_scale": scale_MG}

    def held(self, layer: str) -> tuple[str, ...]:
        """The names of the tensors that stand for a layer's weight."""
        ends = ("weight", "weight_packed", "weight_shape", "weight_scale", "weight_global_scale", "weight_zero_point")
        return tuple(name for end in ends if (name := f"{layer}.{end}") in self.tensors)

    @property
    def loads_in(self) -> str:
        """Where such a checkpoint loads."""
        kinds = self.layers.values()
        odd = any(layer.code == "int" and layer.bits not in (4, 8) for layer in kinds) or any(layer.scale == "E8M0" for layer in kinds)
        return "transformers" if odd else "transformers, vLLM"


NOT_READ = ("version", "transform_config", "sparsity_config")
"""Keys of ``quantization_config`` that say nothing of codes, or are examined before."""
