"""Texts for tests: rendered story problems with their reference solutions, and what a model says of a text."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch

from stepmend.benchmarks import story
from stepmend.models import chat


def calibration_texts(tokenizer: Any, count: int) -> list[str]:
    problems = itertools.islice(story.problems("calibration", "medium", seed=0), count)
    return [chat.render(tokenizer, "plain-1", p.question) + story.program_of(p).solution() + tokenizer.eos_token for p in problems]


def logits(model: Any, row: Sequence[int]) -> torch.Tensor:
    """Logits [T, V] of one row of token ids, on the CPU, wherever the model is."""
    return model(input_ids=torch.tensor([list(row)], device=model.device)).logits[0].cpu()
