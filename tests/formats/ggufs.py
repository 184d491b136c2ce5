"""GGUF files of small Qwen2, Qwen3 and Llama models, in gguf-py's quantizers.

gguf-py has none for K-quants: theirs are written here bit by bit, from the layouts' definitions, and read back by gguf-py in the tests.
"""

import struct
from pathlib import Path

import gguf
import numpy as np
import torch

from benchmarks import gguf_writer

IDS = tuple(range(20, 60))
"""Token ids that two models read."""

BLOCKED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
"""Types of blocks that are read."""


def k_quant(weight: np.ndarray, kind: str) -> np.ndarray:
    """Blocks of Q4_K, Q5_K or Q6_K of a matrix: for each group of columns the factor, minimum and codes that are nearest."""
    rows = weight.astype(np.float64).reshape(len(weight), -1, 256)
    made = [[_six(block) if kind == "Q6_K" else _four_or_five(block, 4 if kind == "Q4_K" else 5) for block in row] for row in rows]
    return np.array([list(b"".join(row)) for row in made], dtype=np.uint8)


def _half(value: float) -> float:
    return float(np.float16(value))


def _six(block: np.ndarray) -> bytes:
    groups = block.reshape(16, 16)
    steps = np.array([group[np.abs(group).argmax()] / -32 for group in groups])
    d = _half(steps[np.abs(steps).argmax()] / -128) or 1.0
    factors = np.clip(np.round(steps / d), -128, 127).astype(int)
    codes = np.array([np.clip(np.round(group / (d * f or 1)), -32, 31) + 32 for group, f in zip(groups, factors, strict=True)])
    codes = codes.astype(int).reshape(256)
    low, high = bytearray(128), bytearray(64)
    for n, code in enumerate(codes):
        half, place = divmod(n, 128)
        quarter, column = divmod(place, 32)
        low[64 * half + column + 32 * (quarter % 2)] |= (code & 15) << 4 * (quarter // 2)
        high[32 * half + column] |= (code >> 4) << 2 * quarter
    return bytes(low) + bytes(high) + struct.pack("16b", *factors) + np.float16(d).tobytes()


def _four_or_five(block: np.ndarray, bits: int) -> bytes:
    groups, most = block.reshape(8, 32), 2**bits - 1
    minima = np.maximum(-groups.min(1), 0)
    steps = np.maximum((groups.max(1) + minima) / most, 0)
    d, m = _half(steps.max() / 63) or 1.0, _half(minima.max() / 63) or 1.0
    factors, lows = (np.clip(np.round(of / by), 0, 63).astype(int) for of, by in ((steps, d), (minima, m)))
    codes = [np.clip(np.round((g + m * low) / (d * f or 1)), 0, most) for g, f, low in zip(groups, factors, lows, strict=True)]
    codes = np.array(codes).astype(int)
    packed = bytearray(12)
    for j in range(4):
        packed[j] = factors[j] | factors[j + 4] >> 4 << 6
        packed[j + 4] = lows[j] | lows[j + 4] >> 4 << 6
        packed[j + 8] = factors[j + 4] & 15 | (lows[j + 4] & 15) << 4
    high = bytearray(32)
    for j in range(8):
        for n in range(32):
            high[n] |= (codes[j][n] >> 4 & 1) << j
    low = bytes(int(codes[j][n] & 15 | (codes[j + 1][n] & 15) << 4) for j in range(0, 8, 2) for n in range(32))
    return np.float16(d).tobytes() + np.float16(m).tobytes() + bytes(packed) + (bytes(high) if bits == 5 else b"") + low


def blocks(weight: np.ndarray, kind: str) -> np.ndarray:
    """A matrix in a type of ggml: its bytes, row by row."""
    if kind.endswith("_K"):
        return k_quant(weight, kind)
    return gguf.quants.quantize(weight.astype(np.float32), gguf.GGMLQuantizationType[kind])


def make(parent: str, kinds: dict[str, str] | str, out: Path, *, head: str | None = None, alignment: int = 32, texts: bool = False) -> None:
    """Write ``parent`` as a GGUF file: in one type, or in types by a part of a tensor's name, the rest F16."""

    def kind_of(name: str) -> str:
        return kinds if isinstance(kinds, str) else next((kind for word, kind in kinds.items() if word in name), "F16")

    gguf_writer.write(parent, out, kind_of, blocks, head=head, alignment=alignment, texts=texts, name="made by a test")


def dequantized(file: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a file by its name there, float32, as gguf-py reads it."""
    found = gguf.GGUFReader(file).tensors
    shapes = {tensor.name: [int(size) for size in reversed(tensor.shape)] for tensor in found}
    values = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy() for tensor in found}
    return {name: torch.from_numpy(value).view(shapes[name]) for name, value in values.items()}


def kinds_of(kind: str) -> dict[str, str] | str:
    return {"ffn_down": kind, "blk": "Q4_0"} if kind.endswith("_K") else kind


def patched(file: Path, out: Path, change) -> Path:
    """A copy of a file with other bytes."""
    data = bytearray(file.read_bytes())
    out.write_bytes(bytes(change(data) or data))
    return out
