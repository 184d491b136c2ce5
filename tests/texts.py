"""Texts for tests: rendered story problems with their reference solutions."""

import itertools
from typing import Any

from stepmend.benchmarks import story
from stepmend.models import chat


def calibration_texts(tokenizer: Any, count: int) -> list[str]:
    problems = itertools.islice(story.problems("calibration", "medium", seed=0), count)
    return [chat.render(tokenizer, "plain-1", p.question) + story.program_of(p).solution() + tokenizer.eos_token for p in problems]
