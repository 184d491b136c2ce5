"""Estimates of a run's stage times on this machine: a short probe, and a count of the stages' multiplications.

Three speeds are measured, with matrices of the model's own widths in the dtype and on the device that it is computed in: a linear layer
with as many rows as solutions are written at once, one with the many rows of texts that are read, and one small operation, of which a
decoder layer has about ``OPERATIONS`` besides. Everything else is counted:

    a token of every slot  =  numbers in linear layers and head * few  +  layers * (OPERATIONS * small + attention of the slots)
    a token that is read   =  numbers in linear layers and head * many * READING
    a token that is tuned on  =  3 * a token that is read (forward, and backward through activations and weights)

Of experts only those that a token goes to count. It is an estimate: lengths of solutions and the number of failures are assumed
(``Work``), and other load on the machine changes both.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch.nn import functional as F

from stepmend.models import check

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


@dataclass(frozen=True)
class Speed:
    """Seconds: ``few`` a number for all rows of a step, ``many`` a number and token, ``small`` an operation, ``attend`` a slot a layer."""

    few: float
    many: float
    small: float
    attend: float


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
    validated: int = 40 * 48
    """Solutions read for validation: about forty states, on half of the 48 problems' two solutions."""


@dataclass(frozen=True)
class Size:
    """What a model multiplies: numbers per token meets in linear layers and head, and its decoder layers; for solving, both sums below."""

    numbers: float
    layers: int
    squares: float
    """Columns squared, over the quantized layers: multiplications of a token in their Hessians."""
    rounding: float
    """Rows times columns squared, over the quantized layers: multiplications of rounding with error compensation."""


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
    )


def probe(model: Any, slots: int, device: str, dtype: torch.dtype, clock: Callable[[], float] = time.perf_counter) -> Speed:
    """The speeds of this machine, in about two seconds."""
    config = model.config.get_text_config()
    width = config.hidden_size
    heads = getattr(config, "num_attention_heads", None) or getattr(config, "num_heads", 1)  # state-space models have none of attention
    inner = getattr(config, "intermediate_size", None)
    inner = inner if isinstance(inner, int) else 4 * width
    by_columns = device == "cpu" and dtype == torch.float32  # as engines.decode stores them for writing
    head_width = getattr(config, "head_dim", None) or width // heads
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
        return Speed(
            linear(slots, by_columns),
            linear(MANY, False) / MANY,
            seconds(lambda: [states * states for _ in range(100)]) / 100,
            seconds(lambda: [F.scaled_dot_product_attention(keys[:, :, :1], keys, keys) for _ in range(20)]) / 20,
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


def stages(size: Size, speed: Speed, work: Work, device: str, methods: set[str]) -> dict[str, float]:
    """Seconds of each stage: ``quantize`` for all methods together, the others for one arm or one scheme."""
    write, read = writing(size, speed, work.slots, device) / work.slots, reading(size, speed)
    text = work.prompt + work.solution
    solve = work.problems * (work.prompt * read + work.solution * write)
    calibrate = work.calibration * (work.prompt * read + work.solution * write) if methods - {"rtn"} else 0.0
    passes = {"rtn": 0, "gptq": 2, "awq": 2 + GRID, "smoothquant": 3}
    quantize = sum(work.calibration * text * read * passes[method] for method in methods)
    compensate = (work.calibration * text * size.squares + size.rounding) * speed.many
    quantize += sum(compensate for method in methods if method in ("gptq", "smoothquant"))
    located = work.failures * work.problems * work.continuations * work.solution / 2 * write
    solving = 2 * work.solved * read + (2 * work.solved * size.squares + 4 * size.rounding) * speed.many
    tuning = (3 * work.steps * work.batch + work.taught + work.validated) * text * read
    return {"quantize": calibrate + quantize, "solve": solve, "locate": located, "restore": solving + tuning}
