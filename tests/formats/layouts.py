"""AWQ and GPTQ checkpoints of a tiny model, packed bit by bit by the layouts' definitions, and read back in the same naive way.

Nothing here is shared with what it tests: codes are Python integers, words are made and taken apart one bit at a time.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

AWQ_OUTPUTS = [0, 2, 4, 6, 1, 3, 5, 7]
"""Which output of eight each nibble of a word holds, lowest first."""


@dataclass(frozen=True)
class Kind:
    """A layout to make: its method, bits, columns of a group (0: all), and what else GPTQ varies in."""

    method: str
    bits: int = 4
    group: int = 32
    symmetric: bool = False
    ordered: bool = False
    second: bool = False
    dtype: torch.dtype = torch.float16

    @property
    def name(self) -> str:
        parts = [self.method + ("-v2" if self.second else ""), f"w{self.bits}", f"g{self.group}", "sym" if self.symmetric else "asym"]
        return "-".join([*parts, "act-order"] if self.ordered else parts)


KINDS = [
    Kind("awq"),
    Kind("awq", group=64, dtype=torch.bfloat16),
    Kind("awq", group=0),
    Kind("gptq"),
    Kind("gptq", symmetric=True),
    Kind("gptq", bits=8, symmetric=True),
    Kind("gptq", bits=8),
    Kind("gptq", bits=3),
    Kind("gptq", bits=2),
    Kind("gptq", group=0, symmetric=True),
    Kind("gptq", ordered=True),
    Kind("gptq", ordered=True, symmetric=True, second=True),
    Kind("gptq", second=True),
    Kind("gptq", bits=3, second=True, ordered=True, group=64),
]


@dataclass
class Numbers:
    """What a layer holds: codes [M][N] and zero points [M][G] as the layout counts them (from 0), scales [M, G], groups of columns."""

    codes: torch.Tensor
    zeros: torch.Tensor
    scales: torch.Tensor
    group_of: list[int]

    def weight(self) -> torch.Tensor:
        """The dequantized weight, by the definition: scale * (code - zero point), column by column."""
        columns = [self.scales[:, g].double() * (self.codes[:, n] - self.zeros[:, g]).double() for n, g in enumerate(self.group_of)]
        return torch.stack(columns, dim=1).float()


def rounded(weight_MN: torch.Tensor, kind: Kind, seed: int) -> Numbers:
    """Round a weight to a kind's grid, group by group."""
    rows, columns = weight_MN.shape
    size, most = kind.group or columns, 2**kind.bits - 1
    group_of = [n // size for n in range(columns)]
    if kind.ordered:
        group_of = [group_of[i] for i in torch.randperm(columns, generator=torch.Generator().manual_seed(seed)).tolist()]
    groups = columns // size
    codes, zeros = torch.zeros(rows, columns, dtype=torch.long), torch.zeros(rows, groups, dtype=torch.long)
    scales = torch.zeros(rows, groups)
    for g in range(groups):
        mine = [n for n in range(columns) if group_of[n] == g]
        part = weight_MN[:, mine].float()
        if kind.symmetric:
            scales[:, g], zeros[:, g] = 2 * part.abs().amax(1) / most, (most + 1) // 2
        else:
            low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
            scales[:, g] = (high - low) / most
            zeros[:, g] = (-low / scales[:, g]).round().long().clamp(1 if kind.method == "gptq" else 0, most)
        scales[:, g] = scales[:, g].to(kind.dtype).float()
        codes[:, mine] = (part / scales[:, g, None] + zeros[:, g, None]).round().long().clamp(0, most)
    return Numbers(codes, zeros, scales, group_of)


def words(values: list[int], bits: int) -> list[int]:
    """Integers as signed 32-bit words: every value's bits behind the last one's, lowest first."""
    stream = [value >> i & 1 for value in values for i in range(bits)]
    assert len(stream) % 32 == 0
    packed = [sum(bit << i for i, bit in enumerate(stream[at : at + 32])) for at in range(0, len(stream), 32)]
    return [word - (1 << 32) if word >> 31 else word for word in packed]


def values(packed: list[int], bits: int) -> list[int]:
    """The reverse of ``words``."""
    stream = [(word & 0xFFFFFFFF) >> i & 1 for word in packed for i in range(32)]
    return [sum(bit << i for i, bit in enumerate(stream[at : at + bits])) for at in range(0, len(stream) - bits + 1, bits)]


def gptq_tensors(held: Numbers, kind: Kind) -> dict[str, torch.Tensor]:
    stored = held.zeros if kind.second else (held.zeros - 1) % 2**kind.bits
    tensors = {
        "qweight": torch.tensor([words(row, kind.bits) for row in held.codes.tolist()], dtype=torch.int32).T,
        "qzeros": torch.tensor([words(row, kind.bits) for row in stored.T.tolist()], dtype=torch.int32),
        "scales": held.scales.T.to(kind.dtype),
        "g_idx": torch.tensor(held.group_of, dtype=torch.int32),
    }
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def awq_tensors(held: Numbers, kind: Kind) -> dict[str, torch.Tensor]:
    def packed(rows: torch.Tensor) -> torch.Tensor:
        shuffled = [[row[8 * j + out] for j in range(len(row) // 8) for out in AWQ_OUTPUTS] for row in rows.tolist()]
        return torch.tensor([words(row, 4) for row in shuffled], dtype=torch.int32)

    return {"qweight": packed(held.codes.T), "qzeros": packed(held.zeros.T), "scales": held.scales.T.to(kind.dtype).contiguous()}


def unpacked(tensors: dict[str, torch.Tensor], kind: Kind) -> Numbers:
    """What a layer's tensors hold, by the layout's definition."""
    scales = tensors["scales"].float().T
    if kind.method == "awq":

        def outputs(rows: torch.Tensor) -> torch.Tensor:
            found = []
            for row in rows.tolist():
                nibbles = values(row, 4)
                found.append([nibbles[8 * j + AWQ_OUTPUTS.index(out)] for j in range(len(nibbles) // 8) for out in range(8)])
            return torch.tensor(found).T

        codes = outputs(tensors["qweight"])
        return Numbers(codes, outputs(tensors["qzeros"]), scales, [n // (codes.shape[1] // scales.shape[1]) for n in range(codes.shape[1])])
    codes = torch.tensor([values(column, kind.bits) for column in tensors["qweight"].T.tolist()])
    zeros = torch.tensor([values(row, kind.bits) for row in tensors["qzeros"].tolist()]).T
    zeros = zeros if kind.second else (zeros + 1) % 2**kind.bits
    return Numbers(codes, zeros, scales, tensors["g_idx"].tolist())


def config_of(kind: Kind) -> dict:
    """What the layouts' own tools write into config.json."""
    if kind.method == "awq":
        return {"quant_method": "awq", "bits": 4, "group_size": kind.group or -1, "version": "gemm", "zero_point": True}
    common = {"quant_method": "gptq", "bits": kind.bits, "group_size": kind.group or -1, "desc_act": kind.ordered, "sym": kind.symmetric}
    return common | ({"checkpoint_format": "gptq_v2"} if kind.second else {"checkpoint_format": "gptq"})


def make(parent: str, kind: Kind, out: Path, *, metadata: dict[str, str] | None = None) -> dict[str, Numbers]:
    """Write a checkpoint of ``parent`` in a layout; gives what each layer holds."""
    shutil.copytree(parent, out)
    (weights,) = out.glob("*.safetensors")
    tensors, made = load_file(weights), dict[str, Numbers]()
    for seed, name in enumerate(sorted(tensors)):
        if name.endswith("proj.weight"):
            layer = name.removesuffix(".weight")
            made[layer] = rounded(tensors.pop(name), kind, seed)
            packed = (awq_tensors if kind.method == "awq" else gptq_tensors)(made[layer], kind)
            tensors |= {f"{layer}.{end}": tensor for end, tensor in packed.items()}
        elif tensors[name].dtype.is_floating_point:
            tensors[name] = tensors[name].to(kind.dtype)
    save_file(tensors, weights, metadata=metadata or {"format": "pt", "made": "by a test"})
    config = json.loads((out / "config.json").read_text())
    config |= {"dtype": str(kind.dtype).removeprefix("torch."), "quantization_config": config_of(kind)}
    (out / "config.json").write_text(json.dumps(config, indent=2))
    (out / "README.md").write_text("A card that somebody else wrote.\n")
    return made
