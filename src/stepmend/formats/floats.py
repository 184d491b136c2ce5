"""Layers of compressed-tensors checkpoints whose codes are floats: FP8 (E4M3), and two E2M1 codes per byte (NVFP4, MXFP4).

For a layer with M rows and N columns:

| tensor | holds |
|---|---|
| ``weight`` float8_e4m3fn [M, N] | FP8: codes |
| ``weight_packed`` uint8 [M, N / 2] | FP4: codes, the even column's in the low four bits |
| ``weight_scale`` | scales, see below |

Scales are in 16 or 32 bits: [1] for the tensor, [M, 1], [M, G], or one for each block of rows and columns. NVFP4 has them in E4M3, [M, G],
and ``weight_global_scale`` (float32 [1]) divides them all. MX formats have uint8 [M, G]: the exponent of a power of two plus 127 (E8M0).

Such codes do not change when a checkpoint is restored. Rounding and packing are compressed-tensors' and torch's own.
"""

from math import ceil
from typing import TYPE_CHECKING, Any

from stepmend.formats import packing
from stepmend.formats.base import Codes, Layer
from stepmend.formats.tensors import Tensors

if TYPE_CHECKING:
    import torch

SCALES = {**dict.fromkeys(packing.FLOATS, "float"), "F8_E4M3": "E4M3", "U8": "E8M0"}
"""Kinds of scales by their dtype's name in a header."""


def layer(tensors: Tensors, name: str, args: Any) -> Layer:
    """What the headers say of a layer that ``args`` (compressed-tensors' own) are of. Raises InputError for what is not read."""
    if args.num_bits not in (4, 8) or not args.symmetric:
        points = "" if args.symmetric else " with zero points"
        raise packing.wrong(tensors, f"{name}: float codes of {args.num_bits} bits{points} are not restored; allowed: 4 and 8, without")
    if args.num_bits == 8:
        rows, columns = packing.need(tensors, f"{name}.weight", ("F8_E4M3",))
    else:
        rows, columns = packing.need(tensors, f"{name}.weight_packed", ("U8",))
        columns *= 2
    tall, width = _block(tensors, name, args, rows, columns)
    found, wanted = tensors.shape(f"{name}.weight_scale"), (ceil(rows / tall), columns // width)
    kind = SCALES.get(tensors.kind(f"{name}.weight_scale"), "")
    if not kind or columns % width or found not in (wanted, (1,) if wanted == (1, 1) else wanted):
        given = f"{tensors.kind(f'{name}.weight_scale') or 'missing'} {list(found)}"
        raise packing.wrong(tensors, f"{name}.weight_scale is {given}; by its scheme {rows} x {columns} codes have {list(wanted)} scales")
    _check_divisor(tensors, name, args)
    return Layer(rows, columns, args.num_bits, columns // width, True, "float", kind, tall)  # pyright: ignore[reportArgumentType]


def _block(tensors: Tensors, name: str, args: Any, rows: int, columns: int) -> tuple[int, int]:
    """How many rows and columns share a scale."""
    match args.strategy:
        case "tensor":
            return rows, columns
        case "channel":
            return 1, columns
        case "group" | "tensor_group" if args.group_size:
            return 1, min(args.group_size, columns)
        case "block" if len(args.block_structure or ()) == 2 and min(args.block_structure) > 0:
            return min(args.block_structure[0], rows), min(args.block_structure[1], columns)
    raise packing.wrong(tensors, f"{name}: float weights by {args.strategy} are not restored")


def _check_divisor(tensors: Tensors, name: str, args: Any) -> None:
    """Raises InputError if a scheme's global scale is missing or zero."""
    if args.strategy != "tensor_group":
        return
    held = f"{name}.weight_global_scale"
    if tensors.kind(held) != "F32" or tensors.shape(held) != (1,):
        raise packing.wrong(tensors, f"{held} is {tensors.kind(held) or 'missing'} {list(tensors.shape(held))}; F32 [1] is needed")
    if not 0 < float(tensors.read(held)) < float("inf"):
        raise packing.wrong(tensors, f"{held} is zero or not finite; the checkpoint is damaged")


def codes(tensors: Tensors, name: str, of: Layer) -> Codes:
    """The codes and scales of a layer."""
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8

    if of.bits == 8:
        codes_MN = tensors.read(f"{name}.weight")
    else:
        codes_MN = unpack_fp4_from_uint8(tensors.read(f"{name}.weight_packed"), of.rows, of.columns)
    held = f"{name}.weight_global_scale"
    divisor = tensors.read(held) if held in tensors else None
    return Codes(codes_MN, scale(tensors, name, of), None, of.bits, integer=False, tall=of.tall, divisor=divisor)


def scale(tensors: Tensors, name: str, of: Layer) -> "torch.Tensor":
    """The scales of a layer, [ceil(M / tall), G], in the file's dtype; powers of two as E8M0."""
    import torch

    stored = tensors.read(f"{name}.weight_scale")
    return (stored.view(torch.float8_e8m0fnu) if of.scale == "E8M0" else stored).view(-1, of.groups)


def packed(name: str, of: Layer, codes_MN: "torch.Tensor") -> "dict[str, torch.Tensor]":
    """The file's tensor for codes of a layer."""
    from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8

    return {f"{name}.weight": codes_MN} if of.bits == 8 else {f"{name}.weight_packed": pack_fp4_to_uint8(codes_MN)}


def scaled(tensors: Tensors, name: str, of: Layer, scale_PG: "torch.Tensor") -> "dict[str, torch.Tensor]":
    """``weight_scale`` for other scales, which are rounded to its dtype."""
    import torch

    if of.scale == "E8M0":
        scale_PG = scale_PG.to(torch.float8_e8m0fnu).view(torch.uint8)
    return {f"{name}.weight_scale": scale_PG.reshape(tensors.shape(f"{name}.weight_scale"))}
