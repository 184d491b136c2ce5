"""Teacher-forced passes, in chunks that fit into memory. Tensor names carry their shape: B rows, T tokens, N places, V vocabulary, H
width."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from stepmend.models.head import Head, body_of

WIDTH = 16
"""Batches are padded to a multiple of this: few shapes keep the allocator small and a CPU's kernels warm (docs/log.md)."""
SIMILAR = {"cpu": 0.8, "cuda": 0.4}
"""Rows at least this share of the longest's length go through together; shorter ones by themselves, for padding costs as much as text. On
a GPU a further pass costs its thousands of launches, which with few tokens is more than padding costs."""
LOGITS = 1 << 26
"""Logits held at once where only a number of each place is wanted (256 MiB in float32)."""


def collate(rows: Sequence[Sequence[int]], pad: int, device: Any) -> torch.Tensor:
    """Ids [B, T], padded on the right, where a causal model's attention does not reach."""
    width = -(-max(map(len, rows)) // WIDTH) * WIDTH
    return torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], device=device)


def hidden_of(model: Any, ids_BT: torch.Tensor, where: Sequence[tuple[int, int]], **options: Any) -> torch.Tensor:
    """The last hidden states, after the final norm, at (row, position) pairs: [N, H]. No logits are computed."""
    hidden_BTH = body_of(model)(input_ids=ids_BT, use_cache=False, **options).last_hidden_state
    row_N, place_N = torch.tensor(where, device=ids_BT.device).T
    return hidden_BTH[row_N, place_N]


def states_of(model: Any, rows: Sequence[Sequence[int]], where: Sequence[tuple[int, int]], pad: int) -> torch.Tensor:
    """``hidden_of`` of rows of ids, [N, H], in one pass for every group of similar length."""
    parts, order = [], []
    for group in length_groups([len(row) for row in rows], model.device):
        inside = {row: place for place, row in enumerate(group)}
        mine = [n for n, (row, _) in enumerate(where) if row in inside]
        ids_BT = collate([rows[row] for row in group], pad, model.device)
        parts.append(hidden_of(model, ids_BT, [(inside[where[n][0]], where[n][1]) for n in mine]))
        order += mine
    return torch.cat(parts)[torch.tensor(order, device=model.device).argsort()]


def length_groups(lengths: Sequence[int], device: torch.device) -> list[list[int]]:
    """Indices in groups of similar length, longest first."""
    groups, least = list[list[int]](), SIMILAR.get(device.type, SIMILAR["cuda"])
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not groups or lengths[i] < least * lengths[groups[-1][0]]:
            groups.append([])
        groups[-1].append(i)
    return groups


def head_of(model: Any, hidden_NH: torch.Tensor) -> torch.Tensor:
    """Float32 logits [N, V] of last hidden states."""
    return Head(model)(hidden_NH)


def in_chunks(of: Callable[..., torch.Tensor], vocabulary: int, *tensors: torch.Tensor) -> torch.Tensor:
    """Apply ``of``, which computes logits, to tensors with one row per position, [N, ...], in chunks of at most ``LOGITS`` logits.

    Going backward the logits of each piece are computed again, so that no more than one piece's are ever held.
    """
    size = max(1, LOGITS // vocabulary)
    if len(tensors[0]) <= size:
        return of(*tensors)
    pieces = zip(*(tensor.split(size) for tensor in tensors), strict=True)
    return torch.cat([checkpoint(of, *piece, use_reentrant=False) for piece in pieces])


def losses(model: Any, rows: Sequence[Sequence[int]], starts: Sequence[int], pad: int) -> list[float]:
    """Each row's mean negative log-likelihood (natural log) of its tokens from ``starts[i]`` (at least 1) on."""
    return _means(rows, starts, lambda ids_BT, where: _likelihoods(model, ids_BT, where), pad, model.device)


def divergences(first: Any, second: Any, rows: Sequence[Sequence[int]], starts: Sequence[int], pad: int) -> list[float]:
    """Each row's mean KL divergence, first model from second, over its tokens from ``starts[i]`` (at least 1) on."""
    return _means(rows, starts, lambda ids_BT, where: _divergences(first, second, ids_BT, where), pad, first.device)


def _means(rows: Sequence[Sequence[int]], starts: Sequence[int], of: Any, pad: int, device: Any, size: int = 32) -> list[float]:
    found: dict[int, float] = {}
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    with torch.inference_mode():
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            where = [(r, t - 1) for r, i in enumerate(batch) for t in range(starts[i], len(rows[i]))]
            values = of(collate([rows[i] for i in batch], pad, device), where)
            counts = [len(rows[i]) - starts[i] for i in batch]
            found |= {i: float(part.mean()) for i, part in zip(batch, values.split(counts), strict=True)}
    return [found[i] for i in range(len(rows))]


def _likelihoods(model: Any, ids_BT: torch.Tensor, where: list[tuple[int, int]]) -> torch.Tensor:
    row_N, place_N = torch.tensor(where, device=ids_BT.device).T
    return likelihoods(model, hidden_of(model, ids_BT, where), ids_BT[row_N, place_N + 1])


def likelihoods(model: Any, hidden_NH: torch.Tensor, token_N: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood (natural log) of each token, given the last hidden state that it is predicted from: [N]."""

    def of(hidden_NH: torch.Tensor, token_N: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(head_of(model, hidden_NH), token_N, reduction="none")

    return in_chunks(of, model.config.get_text_config().vocab_size, hidden_NH, token_N)


def _divergences(first: Any, second: Any, ids_BT: torch.Tensor, where: list[tuple[int, int]]) -> torch.Tensor:
    def of(one_NH: torch.Tensor, other_NH: torch.Tensor) -> torch.Tensor:
        mine, theirs = head_of(first, one_NH).log_softmax(-1), head_of(second, other_NH).log_softmax(-1)
        return F.kl_div(theirs, mine, log_target=True, reduction="none").sum(-1)

    one_NH, other_NH = hidden_of(first, ids_BT, where), hidden_of(second, ids_BT, where)
    return in_chunks(of, first.config.get_text_config().vocab_size, one_NH, other_NH)
