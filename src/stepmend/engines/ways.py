"""How a model that cannot decode from slots writes a batch with its own ``generate``: the fastest way that gives what it reads.

Not every model has a cache of fixed size, and some do not leave padding out. Each way is tried on two short texts of unequal length: the
logits that it writes with must be those of a plain pass over the text.
"""

import weakref
from dataclasses import dataclass
from typing import Any

import torch

from stepmend.engines import slots
from stepmend.records import InputError


@dataclass(frozen=True)
class Way:
    """Options of ``generate``, and whether texts of unequal length go together, padded on the left."""

    padded: bool
    options: tuple[tuple[str, Any], ...] = ()


STATIC = Way(True, (("cache_implementation", "static"), ("disable_compile", True)))
WAYS = (STATIC, Way(True), Way(False), Way(False, (("use_cache", False),)))
"""In the order in which they are tried. A cache of fixed size is for CPUs: there a growing one takes longer to copy than the model to
compute."""
_ways: "weakref.WeakKeyDictionary[Any, Way]" = weakref.WeakKeyDictionary()


def way_of(model: Any) -> Way:
    """The way in which a model writes. Raises InputError where it can in none."""
    if model not in _ways:
        allowed = WAYS if model.device.type == "cpu" else WAYS[1:]
        _ways[model] = next((way for way in allowed if _agrees(model, way)), WAYS[-1])
        if not _finite(model, _ways[model]):
            raise InputError(f"model: {model.config.model_type} cannot write a text in this release of transformers")
    return _ways[model]


def _texts(model: Any, lengths: tuple[int, ...]) -> list[list[int]]:
    vocabulary = model.config.get_text_config().vocab_size
    rows = torch.randint(0, vocabulary, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(0)).tolist()
    return [row[:length] for row, length in zip(rows, lengths, strict=True)]


@torch.inference_mode()
def _written(model: Any, way: Way, rows: list[list[int]], steps: int) -> tuple[torch.Tensor, list[list[int]]]:
    """Logits [N, V] of ``steps`` tokens after every row, row by row, and the rows with these tokens."""
    groups = [rows] if way.padded else [[row] for row in rows]
    logits, longer = [], []
    for group in groups:
        width = max(map(len, group))
        ids_BT = torch.tensor([[0] * (width - len(row)) + row for row in group], device=model.device)
        mask_BT = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in group], device=model.device)
        made = model.generate(
            input_ids=ids_BT, attention_mask=mask_BT, do_sample=False, max_new_tokens=steps, min_new_tokens=steps, pad_token_id=0,
            return_dict_in_generate=True, output_logits=True, **dict(way.options),
        )  # fmt: skip
        logits += torch.stack(made.logits, 1).float().unbind(0)
        longer += [row + new for row, new in zip(group, made.sequences[:, width:].tolist(), strict=True)]
    return torch.cat(logits), longer


def _finite(model: Any, way: Way) -> bool:
    try:
        return bool(torch.isfinite(_written(model, way, _texts(model, (9,)), 2)[0]).all())
    except (AttributeError, TypeError, ValueError, LookupError, RuntimeError):
        return False


def _agrees(model: Any, way: Way, lengths: tuple[int, int] = (21, 9), steps: int = 4) -> bool:
    try:
        found_NV, rows = _written(model, way, _texts(model, lengths), steps)
        with torch.inference_mode():
            wanted = [model(input_ids=torch.tensor([row], device=model.device)).logits[0, -steps - 1 : -1].float() for row in rows]
    except (AttributeError, TypeError, ValueError, LookupError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return False
    return slots.near(model, found_NV, torch.cat(wanted))
