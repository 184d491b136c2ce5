"""Decoding with in-flight batching: when a sequence ends, the next prompt takes its slot.

The text of a row does not depend on the other rows, on their order or on when it started: every layer always sees the same number of rows,
attention and prompts are computed row by row, and each row has its own random numbers.
"""

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from stepmend.engines import slots as cache
from stepmend.models.head import unwrapped

KEPT = 0.05
"""Maximum share of a GPU's memory that a cache may occupy between two runs."""


@dataclass
class Row:
    """One prompt: its index in the caller's list, its ids, the seed of its random numbers, and the tokens written so far."""

    index: int
    ids: Sequence[int]
    seed: str = ""
    tokens: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)


@dataclass
class Decoder:
    """Decodes rows with ``model``.

    ``halved`` is called with the new number of slots when a GPU is out of memory, ``written`` with the number of tokens after every pass.
    ``kept`` holds a small cache with its recorded passes from one run of the same model to the next. Above ``temperature`` 0, tokens are
    sampled from the nucleus of probability ``top_p``.
    """

    model: Any
    ends: frozenset[int]
    max_new_tokens: int
    temperature: float = 0.0
    halved: Callable[[int], None] = lambda count: None
    written: Callable[[int], None] = lambda count: None
    kept: list[cache.Slots] = field(default_factory=list)
    top_p: float = 1.0

    def run(self, rows: Sequence[Row], count: int) -> Iterator[Row]:
        """The rows as they end, in ``count`` slots.

        Raises torch.OutOfMemoryError where not even one slot fits.
        """
        by_columns(self.model)
        waiting = deque(rows)
        length = max((len(row.ids) for row in rows), default=0) + self.max_new_tokens
        while waiting:
            live: dict[int, Row] = {}
            slots = self._slots(count, length)
            try:
                yield from self._drain(waiting, slots, live)
            except torch.OutOfMemoryError:
                if count == 1:
                    raise
                count //= 2
                waiting.extendleft(Row(row.index, row.ids, row.seed) for row in reversed(live.values()))
            else:
                self._keep(slots)
                return
            slots.close()
            del slots
            torch.cuda.empty_cache()
            self.halved(count)

    def _slots(self, count: int, length: int) -> cache.Slots:
        """The existing cache if it fits, else a new one."""
        while self.kept:
            slots = self.kept.pop()
            if slots.count == count and slots.length >= length:
                return slots
            slots.close()
        return cache.Slots(count, length)

    def _keep(self, slots: cache.Slots) -> None:
        """Keep a GPU cache for the next run, if it is small."""
        device = self.model.device
        if device.type == "cuda" and slots.bytes <= KEPT * torch.cuda.get_device_properties(device).total_memory:
            self.kept.append(slots)
        else:
            slots.close()

    def _drain(self, waiting: deque[Row], slots: cache.Slots, live: dict[int, Row]) -> Iterator[Row]:
        last: tuple[Sequence[int], int, torch.Tensor] | None = None
        while waiting or live:
            while waiting and len(live) < slots.count:
                slot = next(i for i in range(slots.count) if i not in live)
                row = live[slot] = waiting.popleft()
                if last and last[0] == row.ids:  # samples of one prompt read it once; it is whole if it was read last
                    slots.copy(last[1], slot, len(row.ids))
                    logits_1V = last[2]
                else:
                    logits_1V = cache.prefill(self.model, slots, slot, row.ids)
                last = row.ids, slot, logits_1V.clone()  # the next pass writes over its logits
                row.tokens += self._choose(logits_1V, [row])
                self.written(1)
                if self._ended(row):
                    yield self._leave(slots, live, slot)
            if not live:
                continue
            logits_BV = cache.step(self.model, slots, [live[i].tokens[-1] if i in live else 0 for i in range(slots.count)])
            self.written(len(live))
            for slot, token in enumerate(self._choose(logits_BV, [live.get(i) for i in range(slots.count)])):
                if slot in live:
                    live[slot].tokens.append(token)
                    if self._ended(live[slot]):
                        yield self._leave(slots, live, slot)

    def _ended(self, row: Row) -> bool:
        return row.tokens[-1] in self.ends or len(row.tokens) >= self.max_new_tokens

    def _leave(self, slots: cache.Slots, live: dict[int, Row], slot: int) -> Row:
        slots.ends[slot] = 0
        return live.pop(slot)

    @torch.inference_mode()
    def _choose(self, logits_BV: torch.Tensor, rows: Sequence[Row | None]) -> list[int]:
        """The next token of each row: the likeliest, or at a temperature the one that the row's next random number falls on."""
        if not self.temperature:
            return logits_BV.argmax(-1).tolist()
        drawn = [row.random.random() if row else 0.5 for row in rows]
        share_BV = (logits_BV / self.temperature).softmax(-1)
        if self.top_p < 1:
            share_BV = nucleus(share_BV, self.top_p)
        sum_BV = share_BV.cumsum(-1)
        all_B1 = sum_BV[:, -1:].contiguous()
        place_B1 = torch.searchsorted(sum_BV, all_B1 * torch.tensor(drawn, device=all_B1.device)[:, None], right=True)
        return torch.minimum(place_B1, torch.searchsorted(sum_BV, all_B1))[:, 0].tolist()


def nucleus(share_BV: torch.Tensor, top_p: float) -> torch.Tensor:
    """Nucleus sampling: probabilities with only the smallest set of largest ones kept that sums to ``top_p`` (Holtzman et al.,
    1904.09751)."""
    sorted_BV, order_BV = torch.sort(share_BV, dim=-1, descending=True, stable=True)
    kept_BV = sorted_BV.cumsum(-1) - sorted_BV < top_p
    return torch.zeros_like(share_BV).scatter(-1, order_BV, sorted_BV * kept_BV)


def by_columns(model: Any) -> None:
    """Store the weights of float32 linear layers on a CPU column by column: with few rows, matrix products are then 1.4 times as fast.

    Values, shapes and memory stay the same. The head is unchanged: if it is tied, the embedding is read from it row by row.
    """
    head = unwrapped(model).get_output_embeddings()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            weight = module.weight
            if weight.dtype == torch.float32 and weight.device.type == "cpu" and weight.is_contiguous():
                weight.data = weight.data.t().contiguous().t()
