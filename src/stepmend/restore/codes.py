"""Integer codes and their scales, solved decoder layer by decoder layer; this module computes the inputs of each linear layer in both
models.

Both models' hidden states are propagated through the stack in parallel. Within a layer, linear layers that read the same input are solved
together (``grid.resolve``), in the order in which they are computed, so that each sees inputs of layers that are solved already.

Tensor names carry their shape: M rows, N columns, T tokens, B texts.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from stepmend.models import check
from stepmend.models.forward import collate
from stepmend.models.head import body_of
from stepmend.restore.grid import Sums, resolve, smoothing
from stepmend.restore.scales import ScaleLinear

TOKENS = 4096
"""Tokens that go through a decoder layer at once, padding included."""


class _Stop(Exception):  # noqa: N818
    """Raised to end a forward pass when the wanted input has been captured."""


@dataclass(frozen=True)
class Text:
    """A text that codes are solved on: its token ids, what a token of it counts, and how many tokens are the question's."""

    ids: tuple[int, ...]
    weight: float = 1.0
    question: int = 0


@dataclass(frozen=True)
class Batch:
    """Texts that go through a decoder layer together: of every token, flat [B * T], its weight and the half of the texts that it is in; and
    each layer's other arguments."""

    weight_T: torch.Tensor
    half_T: torch.Tensor
    arguments: list[dict[str, Any]]


def halves(texts: Sequence[Text]) -> list[int]:
    """Which half each text is in, 0 or 1. Texts of one question are in the same half: they are alike."""
    numbers: dict[tuple[int, ...], int] = {}
    return [numbers.setdefault(text.ids[: text.question], len(numbers)) % 2 for text in texts]


def token_weights(texts: Sequence[Text]) -> list[list[float]]:
    """Each text's weight, token by token; a start that all texts share (a system prompt) counts as one text's."""
    rows, shared = [text.ids for text in texts], 0
    while all(len(row) > shared for row in rows) and len({row[shared] for row in rows}) == 1:
        shared += 1
    return [[text.weight / (len(rows) if place < shared else 1) for place in range(len(text.ids))] for text in texts]


def batches(rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Indices of texts of similar length, in batches of at most ``TOKENS`` tokens (or one text)."""
    batch: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: len(rows[i])):
        if batch and (len(batch) + 1) * len(rows[i]) > TOKENS:
            yield batch
            batch = []
        batch.append(i)
    yield batch


def solve(
    student: Any,
    parent: Any,
    texts: Sequence[Text],
    pad: int,
    *,
    rescaled: bool,
    tick: Callable[[int], None] = lambda done: None,
) -> float:
    """Set the codes of ``student`` (see ``scales.attach``), and its scales too where ``rescaled``, on texts.

    Args:
        student: the low-bit model.
        parent: the full-precision model, of the same architecture.
        texts: what they are solved on; every other question's texts choose the ridge.
        pad: the id of the padding token.
        rescaled: whether scales are solved too.
        tick: called with 1 after every decoder layer.

    Returns:
        The share of codes that moved. Layers outside of the decoder stack, and those that no token reached, keep their codes.
    """
    stack = check.decoder_stack(student)
    low_layers, full_layers = student.get_submodule(stack), parent.get_submodule(stack)
    moved = total = 0
    with torch.no_grad():
        low, full, given, rows = [], [], [], [text.ids for text in texts]
        per_token, half_of = token_weights(texts), halves(texts)
        for batch in batches(rows):
            ids_BT = collate([rows[i] for i in batch], pad, student.device)
            weight_BT = torch.zeros(ids_BT.shape, device=student.device)
            half_BT = torch.zeros_like(weight_BT)
            for row, i in enumerate(batch):
                weight_BT[row, : len(rows[i])] = torch.tensor(per_token[i], device=student.device)
                half_BT[row] = half_of[i]
            hidden, arguments = _entering(parent, full_layers, ids_BT)
            full.append(hidden)
            low.append(_entering(student, low_layers, ids_BT)[0])
            given.append(Batch(weight_BT.flatten(), half_BT.flatten(), arguments))
        for index, (low_layer, full_layer) in enumerate(zip(low_layers, full_layers, strict=True)):
            found = _solve_layer(low_layer, full_layer, low, full, given, index, rescaled)
            moved, total = moved + found[0], total + found[1]
            tick(1)
    return moved / max(total, 1)


def _entering(model: Any, layers: nn.ModuleList, ids_BT: torch.Tensor) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """What enters the first decoder layer, [B, T, H], and the further arguments of every one; only the first layer is computed."""
    arguments: list[dict[str, Any]] = []
    entering: list[torch.Tensor] = []
    originals = [layer.forward for layer in layers]
    first: list[Any] = []

    def record(*given: Any, **further: Any) -> Any:
        named = dict(zip(_names(layers[len(arguments)]), given, strict=False)) | further
        hidden = named.pop(_names(layers[len(arguments)])[0])
        arguments.append(named)
        entering.append(hidden)
        if not first:
            first.append(originals[0](hidden, **named))
        return (hidden, *first[0][1:]) if isinstance(first[0], tuple) else hidden

    for layer in layers:
        layer.forward = record
    try:
        body_of(model)(input_ids=ids_BT, use_cache=False)
    finally:
        for layer, original in zip(layers, originals, strict=True):
            layer.forward = original
    return entering[0], arguments


def _names(layer: nn.Module) -> list[str]:
    """The names of a layer's arguments; hidden states come first."""
    return [name for name in inspect.signature(type(layer).forward).parameters if name != "self"]


def _run(layer: nn.Module, hidden: torch.Tensor, arguments: dict[str, Any]) -> torch.Tensor:
    out = layer(hidden, **arguments)
    return out[0] if isinstance(out, tuple) else out


def _solve_layer(
    low_layer: nn.Module,
    full_layer: nn.Module,
    low: list[torch.Tensor],
    full: list[torch.Tensor],
    given: list[Batch],
    index: int,
    rescaled: bool,
) -> tuple[int, int]:
    """Solve one decoder layer, in the order in which its linear layers are computed; both streams go on to the next layer.

    Gives how many codes moved, and of how many.
    """
    groups = _same_input(low_layer, low[0], given[0].arguments[index])
    inputs: dict[str, list[torch.Tensor]] = {group[0]: [] for group in groups}
    hooks = [full_layer.get_submodule(name).register_forward_pre_hook(_keeper(kept)) for name, kept in inputs.items()]
    for i, batch in enumerate(given):
        full[i] = _run(full_layer, full[i], batch.arguments[index])
    for hook in hooks:
        hook.remove()
    moved = total = 0
    for group in groups:
        layers: list[Any] = [low_layer.get_submodule(name) for name in group]
        weight_MN = torch.cat([_in_order(full_layer.get_submodule(name).get_parameter("weight"), layers[0]) for name in group]).float()
        row_M, column_N = smoothing(weight_MN, torch.cat([layer.weight() for layer in layers]).float())
        sums = _sums(low_layer, layers[0], inputs.pop(group[0]), column_N, low, given, index)
        moved += resolve(layers, row_M[:, None] * weight_MN * column_N, sums, rescaled)
        total += weight_MN.numel()
    for i, batch in enumerate(given):
        low[i] = _run(low_layer, low[i], batch.arguments[index])
    return moved, total


def _same_input(low_layer: nn.Module, hidden: torch.Tensor, arguments: dict[str, Any]) -> list[list[str]]:
    """The quantized linear layers of a decoder layer in execution order; those that read the same tensor and share a grid form one
    group."""
    groups: list[list[str]] = []
    same: list[list[str]] = []  # those of the input last seen
    last: torch.Tensor | None = None
    for name, tensor in _inputs(low_layer, hidden, arguments):
        same = same if tensor is last else []
        alike = next((group for group in same if _one_grid(*map(low_layer.get_submodule, (group[0], name)))), None)
        if alike is None:
            alike = list[str]()
            same.append(alike)
            groups.append(alike)
        alike.append(name)
        last = tensor
    return groups


def _one_grid(first: Any, second: Any) -> bool:
    """Whether two layers of one input can be solved together: in bits, groups, order of columns and dtype of scales they are alike."""
    mine, other = ((layer.bits, layer.groups, layer.stored.storage, layer.order_N is None) for layer in (first, second))
    return mine == other and (first.order_N is None or torch.equal(first.order_N, second.order_N))


def _in_order(tensor: torch.Tensor, layer: ScaleLinear) -> torch.Tensor:
    """A tensor whose last dimension is a layer's columns, with these group by group."""
    return tensor if layer.order_N is None else tensor[..., layer.order_N]


def _keeper(kept: list[torch.Tensor]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    """A hook that keeps a module's input, [T, N]."""
    return lambda _, arguments: kept.append(arguments[0].flatten(0, -2))


def _inputs(low_layer: nn.Module, hidden: torch.Tensor, arguments: dict[str, Any]) -> list[tuple[str, torch.Tensor]]:
    """The input tensor of every linear layer with integer codes, in execution order."""
    seen: list[tuple[str, torch.Tensor]] = []

    def note(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _, given: seen.append((name, given[0]))

    linear = [(name, module) for name, module in low_layer.named_modules() if isinstance(module, ScaleLinear) and not module.frozen]
    hooks = [module.register_forward_pre_hook(note(name)) for name, module in linear]
    _run(low_layer, hidden, arguments)
    for hook in hooks:
        hook.remove()
    return seen


def _sums(
    low_layer: nn.Module,
    layer: Any,
    inputs: list[torch.Tensor],
    column_N: torch.Tensor,
    low: list[torch.Tensor],
    given: list[Batch],
    index: int,
) -> Sums:
    """H and C of a layer's input, over all texts; full precision's is divided by ``column_N``. Each pass ends where that input is."""
    width = layer.centred_MN.shape[1]
    sums = Sums(width, low[0].device)
    seen: list[torch.Tensor] = []
    factor: float | None = None  # factors of rows and columns are known except one that goes from all rows to all columns

    def watch(input_BTN: torch.Tensor) -> None:
        seen.append(input_BTN.flatten(0, -2))
        raise _Stop

    layer.watch = watch
    try:
        for hidden, full_TN, batch in zip(low, inputs, given, strict=True):
            with suppress(_Stop):
                _run(low_layer, hidden, batch.arguments[index])
            counted_T = batch.weight_T > 0
            full_TN, low_TN = _in_order(full_TN[counted_T], layer) / column_N, seen.pop()[counted_T]
            if factor is None:
                factor = 1.0 if bool((column_N == 1).all()) else float((full_TN * low_TN).sum() / full_TN.square().sum())
            sums.add(full_TN * factor, low_TN, batch.weight_T[counted_T], batch.half_T[counted_T])
    finally:
        layer.watch = None
    return sums
