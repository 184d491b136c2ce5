"""Estimates of a run's stage times on this machine: a short probe, and a count of the stages' multiplications.

Speeds are measured, with matrices of the model's own widths in the dtype and on the device that it is computed in: a linear layer with as
many rows as solutions are written at once, one with the many rows of texts that are read, one small operation, of which a decoder layer has
about ``OPERATIONS`` besides, one pass over numbers in memory, and making the model without numbers. Everything else is counted:

    a token of every slot  =  numbers in linear layers and head * few  +  layers * (OPERATIONS * small + attention of the slots)
    a token that is read   =  numbers in linear layers and head * many * READING
    a token that is tuned on  =  3 * a token that is read (forward, and backward through activations and weights)
    a low-bit model's pass  =  quantized numbers * DEQUANTIZED (forward), and SCALED besides (backward), * a pass over memory
    loading a checkpoint  =  making the model + numbers * LOADED * a pass over memory

Of experts only those that a token goes to count. It is an estimate: lengths of solutions and the number of failures are assumed
(``Work``), and other load on the machine changes both.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch.nn import functional as F

from stepmend.models import check, configs, load

OPERATIONS = 60
"""Small operations of a decoder layer: norms, rotations, residual sums, the activation, and what the cache is written with."""
READING = 1.3
"""Time of a token that is read, relative to its linear layers alone: attention, norms, activations."""
MANY = 256
"""Rows of the linear layer that stands for reading."""
NUMBERS = 1 << 24
"""Numbers that the probe's matrices hold together, at most: they come from where a model's come from, not from the innermost cache."""
PRODUCTS = 1 << 29
"""Products that one of the probe's passes makes, about: 0.02 to 0.1 seconds of a CPU's thread."""
SECONDS = 0.4
"""What each of the probe's measurements takes, about."""
GRID = 21
"""Passes over a layer by AWQ's search."""
LOADED = 4
"""Passes over memory of loading: the file's bytes, the dtype that is computed in, and the copy into the model."""
COMPRESSED = 30
"""Passes over memory of what a quantizer does to a number: its group's range, rounding, the floats for saving, packing, unpacking."""
DEQUANTIZED, SCALED = 2, 4
"""Passes over memory of making a weight of codes and scales, and of the gradients of the scales from that of the weight."""
QUANTIZER = 30
"""Small operations a column of llm-compressor's GPTQ: a rounding, its error, and the columns that follow."""
COLUMN = 14
"""Small operations a column of solving codes: error compensation once, coordinate descent twice."""
BLOCK = 128
"""Columns in whose block every column that is rounded changes the ones behind it (both of GPTQ and of solving codes)."""
STREAMS = 3.5
"""Passes of the texts that codes are solved on: full precision's, the low-bit model's, and its own to each input of a layer."""
SOLVED = 24.5
"""Multiplications of solving codes, over rows times columns squared: 3 ridges (4 each) and the chosen one (2), two errors (2), error
compensation (0.5), and two rounds of least squares and descent (4 each)."""
TRIALS = 7
"""Batches forward and backward before tuning: the longest one, and those that the range test takes its direction from."""
GROUPS = 3
"""Passes of a batch whose texts are not of like length."""
DISTILLED = 8
"""Passes over a place's logits of comparing two distributions (two softmaxes, a divergence), and as many going backward."""
PROSE = 3 * 650
"""Tokens of plain prose: read by full precision, and by the low-bit model before and after."""


@dataclass(frozen=True)
class Speed:
    """Seconds: ``few`` a number for all rows of a step, ``many`` a number and token, ``small`` an operation, ``attend`` a slot a layer,
    ``move`` a number in a pass over memory, ``made`` the model without numbers."""

    few: float
    many: float
    small: float
    attend: float
    move: float
    made: float


@dataclass(frozen=True)
class Work:
    """The assumed work of a run: tokens of a prompt and of a solution, test problems, parallel solutions, and so on."""

    slots: int
    problems: int = 300
    prompt: int = 128
    solution: int = 400
    calibration: int = 64
    failures: float = 0.1
    """Share of the problems that are located."""
    continuations: int = 24
    """Continuations that locating one failure takes, of half a solution."""
    taught: int = 1600
    solved: int = 65536
    steps: int = 200
    batch: int = 8
    held_out: int = 96
    """Solutions of problems that are held out: two of each of 48."""

    @property
    def states(self) -> int:
        """How often half of the held-out solutions is read: before and after codes are solved, in the range test (twice six rates), while
        tuning, by full precision (both halves), and the other half before and after."""
        return 2 + 13 + 1 + min(self.steps, 10) + 2 + 2

    @property
    def passes(self) -> int:
        """Forward passes of the low-bit model in them."""
        half = self.held_out / 2
        return round(self.states * min(half, GROUPS * math.ceil(half / 16)))


@dataclass(frozen=True)
class Size:
    """What a model multiplies: numbers per token meets in linear layers and head, and its decoder layers; for solving, both sums below."""

    numbers: float
    layers: int
    squares: float
    """Columns squared, over the quantized layers: multiplications of a token in their Hessians."""
    rounding: float
    """Rows times columns squared, over the quantized layers: multiplications of rounding with error compensation."""
    cubes: float
    """Columns cubed, over the quantized layers: what factorizing their Hessians is counted in."""
    columns: int
    """Columns of all quantized layers, which are rounded one after the other."""
    quantized: int
    """Numbers in quantized layers."""
    held: int
    """Numbers of the model."""
    vocabulary: int
    """Logits of a place."""
    head: int
    """Numbers of the head."""


def size_of(model: Any, layers: list[check.Layer]) -> Size:
    """The sizes of a model on the meta device."""
    config = model.config.get_text_config()
    total = next((n for name in ("num_experts", "num_local_experts", "n_routed_experts") if (n := getattr(config, name, None))), 1)
    share = (getattr(config, "num_experts_per_tok", None) or total) / total
    body = [layer for layer in layers if layer.quantized or layer.why == "it chooses experts"]
    numbers = sum(layer.numbers * (share if layer.why == check.EXPERTS else 1) for layer in body)
    quantized = [layer for layer in layers if layer.quantized and layer.why != check.EXPERTS]
    return Size(
        numbers + config.hidden_size * config.vocab_size,
        config.num_hidden_layers,
        sum(layer.columns**2 for layer in quantized),
        sum(layer.rows * layer.columns**2 for layer in quantized),
        sum(layer.columns**3 for layer in quantized),
        sum(layer.columns for layer in quantized),
        sum(layer.numbers for layer in layers if layer.quantized),
        sum(p.numel() for p in model.parameters()),
        config.vocab_size,
        config.hidden_size * config.vocab_size,
    )


def probe(model: Any, slots: int, device: str, dtype: torch.dtype, clock: Callable[[], float] = time.perf_counter) -> Speed:
    """The speeds of this machine, in about two seconds."""
    config = model.config.get_text_config()
    width = config.hidden_size
    (heads, _, head_width), inner = configs.heads(config), configs.inner(config)
    by_columns = device == "cpu" and dtype == torch.float32  # as engines.decode stores them for writing
    keys = torch.zeros((1, heads, 256, head_width), device=device, dtype=dtype)

    def seconds(of: Callable[[], Any]) -> float:
        return _seconds(of, device, clock)

    def linear(rows: int, by_columns: bool) -> float:
        """Seconds a number of a linear layer takes, for all rows together."""
        count = max(1, min(NUMBERS, PRODUCTS // rows) // (width * inner))
        made = [torch.full((inner, width), 0.01, device=device, dtype=dtype) for _ in range(count)]
        weights = [weight.t().contiguous().t() for weight in made] if by_columns else made
        states = torch.ones((rows, width), device=device, dtype=dtype)
        return seconds(lambda: [F.linear(states, weight) for weight in weights]) / (count * inner * width)

    with torch.inference_mode():
        states = torch.ones((slots, 1, width), device=device, dtype=dtype)
        numbers, out = (torch.ones(NUMBERS // 4, device=device) for _ in range(2))
        start = clock()
        load.skeleton(model.config)
        made = clock() - start
        return Speed(
            linear(slots, by_columns),
            linear(MANY, False) / MANY,
            seconds(lambda: [states * states for _ in range(100)]) / 100,
            seconds(lambda: [F.scaled_dot_product_attention(keys[:, :, :1], keys, keys) for _ in range(20)]) / 20,
            seconds(lambda: torch.mul(numbers, numbers, out=out)) / len(numbers),
            made,
        )


def _seconds(of: Callable[[], Any], device: str, clock: Callable[[], float]) -> float:
    """What a call takes: the median of several, after one that is not counted."""
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < 3 or (time.perf_counter() - start < SECONDS and len(times) < 50):
        begin = clock()
        of()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(clock() - begin)
    return median(times[1:])


def writing(size: Size, speed: Speed, slots: int, device: str) -> float:
    """Seconds in which each of ``slots`` solutions gets one token longer."""
    attended = slots if device == "cpu" else 1  # a GPU attends for all slots at once
    return size.numbers * speed.few + size.layers * (OPERATIONS * speed.small + attended * speed.attend)


def reading(size: Size, speed: Speed) -> float:
    """Seconds for a token that is read."""
    return size.numbers * speed.many * READING


def loading(size: Size, speed: Speed) -> float:
    """Seconds for loading a checkpoint."""
    return speed.made + size.held * LOADED * speed.move


def stages(size: Size, speed: Speed, work: Work, device: str, methods: set[str]) -> dict[str, float]:
    """Seconds of each stage: ``quantize`` for all methods together, the others for one arm or one scheme."""
    write, read = writing(size, speed, work.slots, device) / work.slots, reading(size, speed)
    solve = loading(size, speed) + work.problems * (work.prompt * read + work.solution * write)
    calibrate = work.calibration * (work.prompt * read + work.solution * write) if methods - {"rtn"} else 0.0
    located = work.failures * work.problems * work.continuations * work.solution / 2 * write
    quantize = sum(_quantizing(size, speed, work, method) for method in methods)
    return {"quantize": calibrate + quantize, "solve": solve, "locate": located, "restore": _restoring(size, speed, work)}


def _quantizing(size: Size, speed: Speed, work: Work, method: str) -> float:
    """Seconds for one scheme, beyond its calibration texts: it is loaded, compressed, saved, and loaded again."""
    tokens, passes = work.calibration * (work.prompt + work.solution), {"rtn": 0, "gptq": 2, "awq": 2 + GRID, "smoothquant": 3}[method]
    fixed = 2 * loading(size, speed) + size.quantized * COMPRESSED * speed.move
    rounded = (tokens * size.squares + size.rounding / 2 + 4 / 3 * size.cubes) * speed.many
    rounded += size.columns * QUANTIZER * speed.small + size.quantized * BLOCK * speed.move
    return fixed + tokens * passes * reading(size, speed) + (rounded if method in ("gptq", "smoothquant") else 0.0)


def _restoring(size: Size, speed: Speed, work: Work) -> float:
    """Seconds for one restoration: three checkpoints are loaded; codes are solved; then comes the tuning, with its validation."""
    read, text = reading(size, speed), work.prompt + work.solution
    solving = STREAMS * work.solved * read + (2 * work.solved * size.squares + SOLVED * size.rounding + 8 / 3 * size.cubes) * speed.many
    solving += size.columns * COLUMN * speed.small + size.quantized * 2.5 * BLOCK * speed.move
    compared = size.head * speed.many + DISTILLED * size.vocabulary * speed.move  # full precision's logits are made again each time
    batches = work.steps + TRIALS
    tuning = batches * work.batch * text * (3 * read + compared + DISTILLED * size.vocabulary * speed.move) + work.taught * text * read
    tuning += (PROSE + work.states * work.held_out / 2 * text) * (read + compared)
    dequantized = batches * GROUPS * (DEQUANTIZED + SCALED) + work.passes * DEQUANTIZED
    return 3 * loading(size, speed) + solving + tuning + dequantized * size.quantized * speed.move
