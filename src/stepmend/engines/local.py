"""Greedy generation in this process, with transformers: batches of prompts of like length, padded on the left."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch


@dataclass(frozen=True)
class Completion:
    """What a model wrote behind one text: the new text, its token ids, and whether it ended by itself or was cut off."""

    text: str
    tokens: tuple[int, ...]
    finish: Literal["stop", "length"]


@dataclass(frozen=True)
class LocalEngine:
    """One loaded model. Equal batches give equal completions, so callers keep their batches fixed when they resume."""

    model: Any
    tokenizer: Any
    max_new_tokens: int

    def complete(self, texts: Sequence[str]) -> list[Completion]:
        """Complete rendered texts as one batch."""
        inputs = self.tokenizer(list(texts), return_tensors="pt", padding=True, add_special_tokens=False).to(self.model.device)
        # On a CPU a growing cache spends more time on copying itself than the model does on thinking.
        cache = {"cache_implementation": "static", "disable_compile": True} if self.model.device.type == "cpu" else {}
        # Plainly greedy, whatever the checkpoint asks for: a penalty would make margins and traces two different models.
        plain = {"do_sample": False, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "max_new_tokens": self.max_new_tokens}
        with torch.inference_mode():
            out = self.model.generate(**inputs, **plain, pad_token_id=self.tokenizer.pad_token_id, **cache)
        return [self._completion(row) for row in out[:, inputs["input_ids"].shape[1] :].tolist()]

    def _completion(self, row: list[int]) -> Completion:
        ends = self.model.generation_config.eos_token_id
        ends = {ends} if isinstance(ends, int) else set(ends or [self.tokenizer.eos_token_id])
        length = next((i + 1 for i, token in enumerate(row) if token in ends), None)
        tokens = tuple(row[:length])
        return Completion(self.tokenizer.decode(tokens, skip_special_tokens=True), tokens, "stop" if length else "length")


def batches(texts: Sequence[str], size: int) -> Iterator[list[int]]:
    """Indices of ``texts`` in batches of like length, longest first, so that a batch that does not fit memory fails at once."""
    order = sorted(range(len(texts)), key=lambda i: (-len(texts[i]), i))
    for begin in range(0, len(order), size):
        yield order[begin : begin + size]


def complete_all(
    engine: LocalEngine, texts: Sequence[str], size: int, *, tick: Callable[[int], None] = lambda done: None
) -> list[Completion]:
    """Complete many texts, batch by batch, and give the completions in the order of the texts."""
    found: dict[int, Completion] = {}
    for batch in batches(texts, size):
        found |= dict(zip(batch, engine.complete([texts[i] for i in batch]), strict=True))
        tick(len(batch))
    return [found[i] for i in range(len(texts))]
