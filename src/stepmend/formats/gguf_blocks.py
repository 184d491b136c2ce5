"""GGUF's types of blocks: where their scales and codes stand, bit for bit (ggml's ``ggml-common.h`` and ``ggml-quants.c``).

A row is cut into blocks of 32 columns, or 256 for K-quants, each with a float16 scale d of its own. A K-quant's block is cut into groups
of 16 or 32 columns, each with an integer factor of 6 or 8 bits:

| type | bytes of a block, in order | weight |
|---|---|---|
| Q4_0 | d, 16 of codes | d (q - 8) |
| Q4_1 | d, m, 16 of codes | d q + m |
| Q5_0 | d, 4 of fifth bits, 16 of codes | d (q - 16) |
| Q5_1 | d, m, 4 of fifth bits, 16 of codes | d q + m |
| Q8_0 | d, 32 of codes, signed | d q |
| Q4_K | d, m, 12 of factors, 128 of codes | d f q - m g |
| Q5_K | d, m, 12 of factors, 32 of fifth bits, 128 of codes | d f q - m g |
| Q6_K | 128 of low bits, 64 of high bits, 16 factors, d | d f (q - 32) |

Tensor names carry their shape: M rows, B blocks of a row, S columns of a block, G groups of a row, W bytes of a block.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Kind:
    """A type of blocks.

    ``bits`` of a code, ``columns`` and ``width`` (bytes) of a block, ``groups`` in one, ``scale`` the first byte of d, ``zero`` the zero
    point of codes that are counted from -2^(bits-1). ``codes`` reads codes [M, B, S], ``put`` writes them, if they may change;
    ``factors`` and ``offsets`` read a group's factor of d, and what is added to its weights, both [M, B, groups].
    """

    bits: int
    columns: int
    width: int
    scale: int
    codes: "Callable[[torch.Tensor], torch.Tensor]"
    put: "Callable[[torch.Tensor, torch.Tensor], None] | None" = None
    factors: "Callable[[torch.Tensor], torch.Tensor] | None" = None
    offsets: "Callable[[torch.Tensor], torch.Tensor] | None" = None
    groups: int = 1
    zero: int = 0


def float16(blocks_MBW: "torch.Tensor", start: int) -> "torch.Tensor":
    """The float16 at a byte of every block, [M, B]."""
    import torch

    return blocks_MBW[..., start : start + 2].contiguous().view(torch.float16).squeeze(-1)


def put_float16(blocks_MBW: "torch.Tensor", start: int, values_MB: "torch.Tensor") -> None:
    """Write a float16 at a byte of every block."""
    import torch

    blocks_MBW[..., start : start + 2] = values_MB.to(torch.float16).unsqueeze(-1).contiguous().view(torch.uint8)


def _nibbles(bytes_MBX: "torch.Tensor", size: int) -> "torch.Tensor":
    """The low halves of each run of ``size`` bytes, then their high halves: uint8 [M, B, 2 X]."""
    import torch

    runs = bytes_MBX.unflatten(-1, (-1, 1, size))
    return torch.cat([runs & 15, runs >> 4], dim=-2).flatten(-3)


def _put_nibbles(bytes_MBX: "torch.Tensor", values: "torch.Tensor") -> None:
    """The reverse of ``_nibbles`` for one run of 16 bytes."""
    bytes_MBX.copy_((values[..., :16] & 15) | (values[..., 16:] & 15) << 4)


def _bits(bytes_MBX: "torch.Tensor") -> "torch.Tensor":
    """The bits of bytes, lowest first: uint8 [M, B, 8 X]."""
    import torch

    return (bytes_MBX.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8) & 1).flatten(-2)


def _signed(values: "torch.Tensor", half: int) -> "torch.Tensor":
    import torch

    return (values.to(torch.int16) - half).to(torch.int8)


def _unsigned(codes_MBS: "torch.Tensor", half: int) -> "torch.Tensor":
    import torch

    return (codes_MBS.to(torch.int16) + half).to(torch.uint8)


def _four(start: int) -> "tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[torch.Tensor, torch.Tensor], None]]":
    """Reading and writing 32 codes of 4 bits that start at a byte."""

    def codes(blocks_MBW: "torch.Tensor") -> "torch.Tensor":
        return _signed(_nibbles(blocks_MBW[..., start:], 16), 8)

    def put(blocks_MBW: "torch.Tensor", codes_MBS: "torch.Tensor") -> None:
        _put_nibbles(blocks_MBW[..., start:], _unsigned(codes_MBS, 8))

    return codes, put


def _five(start: int) -> "tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[torch.Tensor, torch.Tensor], None]]":
    """Reading and writing 32 codes of 5 bits whose fifth bits start at a byte, and the others 4 bytes later."""
    second = start + 4

    def codes(blocks_MBW: "torch.Tensor") -> "torch.Tensor":
        high = _bits(blocks_MBW[..., start:second])
        return _signed(_nibbles(blocks_MBW[..., second:], 16) | high << 4, 16)

    def put(blocks_MBW: "torch.Tensor", codes_MBS: "torch.Tensor") -> None:
        import torch

        values = _unsigned(codes_MBS, 16)
        places = torch.arange(8, dtype=torch.uint8)
        blocks_MBW[..., start:second] = ((values >> 4).unflatten(-1, (4, 8)) << places).sum(-1, dtype=torch.uint8)
        _put_nibbles(blocks_MBW[..., second:], values)

    return codes, put


def _eight(blocks_MBW: "torch.Tensor") -> "torch.Tensor":
    import torch

    return blocks_MBW[..., 2:].contiguous().view(torch.int8)


def _put_eight(blocks_MBW: "torch.Tensor", codes_MBS: "torch.Tensor") -> None:
    import torch

    blocks_MBW[..., 2:] = codes_MBS.contiguous().view(torch.uint8)


def _minimum(blocks_MBW: "torch.Tensor") -> "torch.Tensor":
    """m of Q4_1 and Q5_1, [M, B, 1]."""
    return float16(blocks_MBW, 2).float().unsqueeze(-1)


def _packed(blocks_MBW: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
    """f and g of Q4_K and Q5_K, each [M, B, 8]: 6 bits each in 12 bytes, the upper two bits of the last four groups are stored with the
    first four groups."""
    import torch

    first, second, third = blocks_MBW[..., 4:16].split(4, dim=-1)
    factors = torch.cat([first & 63, third & 15 | first >> 2 & 48], dim=-1)
    return factors, torch.cat([second & 63, third >> 4 | second >> 2 & 48], dim=-1)


def _k_factors(blocks_MBW: "torch.Tensor") -> "torch.Tensor":
    return _packed(blocks_MBW)[0].float()


def _k_offsets(blocks_MBW: "torch.Tensor") -> "torch.Tensor":
    return -(float16(blocks_MBW, 2).float().unsqueeze(-1) * _packed(blocks_MBW)[1].float())


def _q4_k(blocks_MBW: "torch.Tensor") -> "torch.Tensor":
    return _signed(_nibbles(blocks_MBW[..., 16:144], 32), 8)


def _q5_k(blocks_MBW: "torch.Tensor") -> "torch.Tensor":
    # Bit i of byte j is of column j of group i.
    high = _bits(blocks_MBW[..., 16:48]).unflatten(-1, (32, 8)).transpose(-1, -2).flatten(-2)
    return _signed(_nibbles(blocks_MBW[..., 48:176], 32) | high << 4, 16)


def _q6_k(blocks_MBW: "torch.Tensor") -> "torch.Tensor":
    import torch

    low = _nibbles(blocks_MBW[..., :128], 64)
    runs = blocks_MBW[..., 128:192].unflatten(-1, (2, 1, 32))
    high = (runs >> torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None] & 3).flatten(-3)
    return _signed(low | high << 4, 32)


def _q6_k_factors(blocks_MBW: "torch.Tensor") -> "torch.Tensor":
    import torch

    return blocks_MBW[..., 192:208].contiguous().view(torch.int8).float()


KINDS = {
    "Q4_0": Kind(4, 32, 18, 0, *_four(2)),
    "Q4_1": Kind(4, 32, 20, 0, *_four(4), offsets=_minimum, zero=-8),
    "Q5_0": Kind(5, 32, 22, 0, *_five(2)),
    "Q5_1": Kind(5, 32, 24, 0, *_five(4), offsets=_minimum, zero=-16),
    "Q8_0": Kind(8, 32, 34, 0, _eight, _put_eight),
    "Q4_K": Kind(4, 256, 144, 0, _q4_k, factors=_k_factors, offsets=_k_offsets, groups=8, zero=-8),
    "Q5_K": Kind(5, 256, 176, 0, _q5_k, factors=_k_factors, offsets=_k_offsets, groups=8, zero=-16),
    "Q6_K": Kind(6, 256, 210, 208, _q6_k, factors=_q6_k_factors, groups=16),
}
"""Types that are read, by ggml's names."""


def dequantize(kind: Kind, blocks_MBW: "torch.Tensor") -> "torch.Tensor":
    """The weights of blocks, float32 [M, B S], multiplied in ggml's order."""
    codes_MBGS = kind.codes(blocks_MBW).float().unflatten(-1, (kind.groups, -1)) - kind.zero
    scale_MBG = float16(blocks_MBW, kind.scale).float().unsqueeze(-1)
    if kind.factors:
        scale_MBG = scale_MBG * kind.factors(blocks_MBW)
    weight_MBGS = codes_MBGS * scale_MBG.unsqueeze(-1)
    return (weight_MBGS + kind.offsets(blocks_MBW).unsqueeze(-1) if kind.offsets else weight_MBGS).flatten(1)
