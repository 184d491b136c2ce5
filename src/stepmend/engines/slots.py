"""A KV cache with fixed slots, and attention over it, for the attention interface of transformers.

The cache stands in for ``past_key_values``; the attention function is registered under ``NAME``. Both work on a model's own modules,
so every architecture whose attention is plain, causal and full can use them; ``supported`` tests that on the model itself.

Tensor names carry their shape: B slots, T tokens, K key/value heads, G query heads of one key/value head, D head width, L cache length,
H hidden width, V vocabulary.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from stepmend.models import forward
from stepmend.models.graphs import Tried
from stepmend.models.head import body_of

NAME = "stepmend-slots"
"""The attention function's name in the interface of transformers."""
BUCKET = 64
"""Cache lengths are rounded up to a multiple of this."""
PAD = 16
"""Prompts are padded (on the right, where nothing looks) to a multiple of this: few shapes keep a CPU's kernels warm."""
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Root-mean-square difference of logits from those of a plain pass, in standard deviations of the logits, by dtype."""
LOW = 0.1
"""The same in 16 bits, and where activations are quantized: one value rounded differently is enough to move them."""

_active: ContextVar["Slots"] = ContextVar("slots")
_verdicts: "weakref.WeakKeyDictionary[Any, bool]" = weakref.WeakKeyDictionary()


class UnsupportedError(Exception):
    """The model's attention asks for something that slots do not do."""


class Slots:
    """Keys and values of ``count`` slots of ``length`` positions, in each layer; allocated when a layer first writes."""

    is_compileable = False

    def __init__(self, count: int, length: int) -> None:
        """``length`` is rounded up to a multiple of ``BUCKET``."""
        self.count, self.length = count, -(-length // BUCKET) * BUCKET
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.ends: list[int] = [0] * count  # places of each slot that a step attends to; 0 where a slot is empty
        self.filled_1: torch.Tensor | None = None  # the slot whose prompt is read now
        self.write_B = self.mask_B11L = self.every_B = torch.empty(0)
        self.programs: dict[Any, Tried] = {}

    @property
    def bytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(tensor.nbytes for kept in self.layers.values() for tensor in kept)

    def close(self) -> None:
        """Release recorded passes, which refer to these slots, so that their memory is freed immediately."""
        self.programs.clear()

    def program(self, function: Callable[..., tuple[torch.Tensor]], model: Any) -> Tried:
        """``function`` of a model and these slots, whose kernels are recorded on a GPU."""
        return self.programs.setdefault(function, Tried(partial(function, model, self)))

    @torch.inference_mode()
    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` positions of slot ``source`` to ``target``."""
        for kept in self.layers.values():
            for tensor_BKLD in kept:
                tensor_BKLD[target, :, :length] = tensor_BKLD[source, :, :length]
        self.ends[target] = length

    def advance(self) -> tuple[list[int], int]:
        """The next pass writes one token to every slot in use, after what is there.

        Returns their positions (0 for empty slots), and the length that a step attends to.
        """
        places, self.ends = self.ends, [end + 1 if end else 0 for end in self.ends]
        return places, -(-(max(places) + 1) // BUCKET) * BUCKET

    def step(self, place_B: torch.Tensor, longest: int) -> None:
        """The next pass writes to these positions and attends up to ``longest``.

        Empty slots write to their last position, which no row reaches, because nothing follows a row's last token.
        """
        self.filled_1 = None
        self.write_B = torch.where(place_B > 0, place_B, self.length - 1)
        self.every_B = torch.arange(self.count, device=place_B.device)
        self.mask_B11L = (torch.arange(longest, device=place_B.device) <= place_B[:, None])[:, None, None]

    def update(self, key_BKTD: torch.Tensor, value_BKTD: torch.Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Any, Any]:
        """What transformers calls: keep a layer's new keys and values, and give those to attend to."""
        if layer_idx not in self.layers:
            made = [t.new_zeros((self.count, t.shape[1], self.length, t.shape[3])) for t in (key_BKTD, value_BKTD)]
            self.layers[layer_idx] = made[0], made[1]
        kept = self.layers[layer_idx]
        for tensor_BKLD, new_BKTD in zip(kept, (key_BKTD, value_BKTD), strict=True):
            if self.filled_1 is not None:  # padding too: the tokens that follow are written over it
                tensor_BKLD[self.filled_1, :, : new_BKTD.shape[2]] = new_BKTD
            else:
                tensor_BKLD[self.every_B, :, self.write_B] = new_BKTD[:, :, 0]
        return kept if self.filled_1 is None else (key_BKTD, value_BKTD)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """What transformers asks if it is given no positions."""
        return 0

    def attend(self, query_BHTD: torch.Tensor, key_BKLD: torch.Tensor, value_BKLD: torch.Tensor, scale: float) -> torch.Tensor:
        """One step's attention, [B, 1, H, D]. The query heads of one key/value head go in as if they were queries of their own.

        On a CPU each slot is computed separately, over its own length, so a row's result cannot depend on the others. On a GPU all slots
        are computed together, with a mask: the kernel processes each row's keys in tiles of fixed size, and masked ones add exact zeros.
        """
        count, heads, _, width = query_BHTD.shape
        attend = self.by_row if query_BHTD.device.type == "cpu" else self.by_mask
        return attend(query_BHTD.view(count, key_BKLD.shape[1], -1, width), key_BKLD, value_BKLD, scale).reshape(count, 1, heads, -1)

    def by_row(self, query_BKGD: torch.Tensor, key_BKLD: torch.Tensor, value_BKLD: torch.Tensor, scale: float) -> torch.Tensor:
        """Attention [B, K, G, D] of the slots in use, one after the other; zeros for the others."""
        found_BKGD = query_BKGD.new_zeros((*query_BKGD.shape[:3], value_BKLD.shape[-1]))
        for slot, end in enumerate(self.ends):
            if end:
                one, mask_111L = slice(slot, slot + 1), None
                if query_BKGD.dtype != torch.float32:  # in 16 bits a CPU makes a kernel for every length, which takes longer than using it
                    end = -(-end // BUCKET) * BUCKET
                    mask_111L = self.mask_B11L[one, :, :, :end]
                kept = key_BKLD[one, :, :end], value_BKLD[one, :, :end]
                found_BKGD[slot] = F.scaled_dot_product_attention(query_BKGD[one], *kept, attn_mask=mask_111L, scale=scale)[0]
        return found_BKGD

    def by_mask(self, query_BKGD: torch.Tensor, key_BKLD: torch.Tensor, value_BKLD: torch.Tensor, scale: float) -> torch.Tensor:
        """Attention [B, K, G, D] of all slots together, up to the longest; the values of empty slots are undefined."""
        longest = self.mask_B11L.shape[-1]
        mask_BKGL = self.mask_B11L.expand(-1, *query_BKGD.shape[1:3], -1)
        return F.scaled_dot_product_attention(
            query_BKGD, key_BKLD[:, :, :longest], value_BKLD[:, :, :longest], attn_mask=mask_BKGL, scale=scale
        )


def _attention(module: Any, query_BHTD: Any, key: Any, value: Any, mask: Any, scaling: float | None = None, **options: Any) -> Any:
    """The attention function of ``NAME``."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    wanted = [name for name in ("sliding_window", "softcap", "s_aux", "position_bias") if options.get(name) is not None]
    if wanted or mask is not None or not getattr(module, "is_causal", True):
        raise UnsupportedError(", ".join(wanted) or "a mask of its own")
    slots = _active.get()
    scale = query_BHTD.shape[-1] ** -0.5 if scaling is None else scaling
    if slots.filled_1 is not None:
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query_BHTD, key, value, None, scaling=scale)
    return slots.attend(query_BHTD, key, value, scale), None


@contextmanager
def _using(model: Any, slots: Slots) -> Iterator[None]:
    """Context manager: the model's attention uses ``slots``."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attention)
    config = model.config.get_text_config()
    before, token = config._attn_implementation, _active.set(slots)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        _active.reset(token)


@torch.inference_mode()
def prefill(model: Any, slots: Slots, slot: int, ids: Sequence[int]) -> torch.Tensor:
    """Read a prompt, alone, into a slot; the logits [1, V] of what follows it, until the next call."""
    slots.ends[slot] = len(ids)
    padded_T = torch.tensor([*ids, *[0] * (-len(ids) % PAD)], device=model.device)
    where_2 = torch.tensor([slot, len(ids) - 1], device=model.device)
    return slots.program(_prefill, model)(padded_T, where_2)[0]


def _prefill(model: Any, slots: Slots, padded_T: torch.Tensor, where_2: torch.Tensor) -> tuple[torch.Tensor]:
    slots.filled_1, last_1 = where_2.split(1)
    hidden_BTH = _pass(model, slots, padded_T[None], torch.arange(len(padded_T), device=padded_T.device)[None])
    return (forward.head_of(model, hidden_BTH.index_select(1, last_1)[0]),)


@torch.inference_mode()
def step(model: Any, slots: Slots, tokens: Sequence[int]) -> torch.Tensor:
    """Put one token after what is in every slot in use (any id in the others); the logits [B, V] of what follows, until the next call."""
    places, longest = slots.advance()
    given_2B = torch.tensor([tokens, places], device=model.device)
    return slots.program(_step, model)(given_2B, longest=longest)[0]


def _step(model: Any, slots: Slots, given_2B: torch.Tensor, *, longest: int) -> tuple[torch.Tensor]:
    token_B, place_B = given_2B
    slots.step(place_B, longest)
    return (forward.head_of(model, _pass(model, slots, token_B[:, None], place_B[:, None])[:, 0]),)


def _pass(model: Any, slots: Slots, ids_BT: torch.Tensor, place_BT: torch.Tensor) -> torch.Tensor:
    with _using(model, slots):
        return body_of(model)(input_ids=ids_BT, position_ids=place_BT, past_key_values=slots, use_cache=True).last_hidden_state


def supported(model: Any) -> bool:
    """Whether decoding with slots gives the model's own logits; tested on a short text, once per model."""
    if model not in _verdicts:
        _verdicts[model] = _plain(model) and _agrees(model)
    return _verdicts[model]


def _plain(model: Any) -> bool:
    """Whether the configuration names nothing that a short text cannot show."""
    config = model.config.get_text_config()
    quantization = getattr(model.config, "quantization_config", None)
    quantization = getattr(quantization, "quantization_config", quantization)  # transformers wraps that of compressed-tensors
    scheme = quantization.get("kv_cache_scheme") if isinstance(quantization, dict) else getattr(quantization, "kv_cache_scheme", None)
    experts = any(getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts"))
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    usual = config._attn_implementation in ("sdpa", "eager")  # else something is hooked into it, as where the cache is quantized
    scaled = {(getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")} & {"dynamic", "longrope"}
    return usual and not scheme and not experts and not scaled and kinds == {"full_attention"}


def _agrees(model: Any, lengths: tuple[int, int] = (21, 9), steps: int = 4) -> bool:
    vocabulary = model.config.get_text_config().vocab_size
    rows = torch.randint(0, vocabulary, (2, lengths[0] + steps), generator=torch.Generator().manual_seed(0)).tolist()
    slots, found, wanted = Slots(3, lengths[0] + steps), [], []
    try:
        for slot, length in enumerate(lengths):
            found.append(prefill(model, slots, slot, rows[slot][:length])[0].clone())
        for n in range(steps):
            found += step(model, slots, [*(row[length + n] for row, length in zip(rows, lengths, strict=True)), 0])[:2].clone()
        with torch.inference_mode():
            logits = [model(input_ids=torch.tensor([row], device=model.device)).logits[0].float() for row in rows]
    except (UnsupportedError, AttributeError, TypeError, ValueError, KeyError, IndexError, RuntimeError):
        return False
    finally:
        slots.close()
    wanted = [logits[slot][length - 1] for slot, length in enumerate(lengths)]
    wanted += [logits[slot][length + n] for n in range(steps) for slot, length in enumerate(lengths)]
    return near(model, torch.stack(found), torch.stack(wanted))


def near(model: Any, found_NV: torch.Tensor, wanted_NV: torch.Tensor) -> bool:
    """Whether logits are those of a plain pass, but for the order in which they are summed."""
    difference, scale = (found_NV - wanted_NV).square().mean().sqrt(), wanted_NV.std()
    quantized = getattr(model.config, "quantization_config", None) is not None
    return bool(difference <= (LOW if quantized else TOLERANCE.get(model.dtype, LOW)) * scale)
