"""What a model is asked, and in which form: versioned prompts, and the model's own chat template."""

import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from stepmend import inputs

PROMPTS: dict[str, str] = {
    "plain-1": "{question}",
    "steps-1": (
        "{question}\n\nSolve the problem step by step. Write one step a line, as in 'Step 1: 3 * 4 = 12'. "
        "Put the final answer in \\boxed{{}} on the last line."
    ),
}
"""``plain-1`` for models that write steps by themselves (the built-in reasoners, aligned parents); ``steps-1`` for all others."""

TODAY = date(2025, 1, 1)
"""What chat templates that write the date are told it is: the same question must not be another one tomorrow."""
TEMPLATE = {"date_string": TODAY.strftime("%d %b %Y"), "strftime_now": TODAY.strftime, "enable_thinking": False}
"""What chat templates are told, where they ask. Models that think on request (Qwen3) are asked for their steps instead."""
NEAR = 16
"""Tokens before one that may change how it is written: bytes of one character, blanks at a text's begin."""
ALIGNED = "align.json"
"""The file in which an aligned checkpoint says how it was made, and what it was asked then."""


def aligned(folder: str | Path) -> dict[str, Any]:
    """What an aligned checkpoint says of its making; empty where ``folder`` is none."""
    try:
        found = json.loads(inputs.content(Path(folder) / ALIGNED))
    except (ValueError, RecursionError):  # InputError is a ValueError
        return {}
    return found if isinstance(found, dict) else {}


def prompt_for(folder: str, builtin: bool) -> str:
    """The prompt of a checkpoint: the one it was aligned to, else ``plain-1`` for the built-in reasoners and ``steps-1`` for others."""
    return aligned(folder).get("settings", {}).get("prompt", "plain-1" if builtin else "steps-1")


def render(tokenizer: Any, prompt: str, question: str, shown: Sequence[tuple[str, str]] = ()) -> str:
    """The text up to where the model's answer begins, by the tokenizer's own chat template; ``shown`` are earlier turns, asked and said."""
    turns = [part for asked, said in shown for part in (PROMPTS[prompt].format(question=asked), said)]
    turns.append(PROMPTS[prompt].format(question=question))
    messages = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(turns)]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **TEMPLATE)


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a rendered text; the template has written the special tokens already."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def token_spans(tokenizer: Any, tokens: tuple[int, ...] | list[int]) -> list[tuple[int, int]]:
    """The half-open span that each token takes in the text of all of them; special tokens take none."""
    spans, end = [], 0
    for i in range(len(tokens)):
        # A token's text is what it adds to those before it; how a text begins changes nothing far behind.
        near = tokens[max(0, i - NEAR) : i + 1]
        before, after = (len(tokenizer.decode(part, skip_special_tokens=True)) for part in (near[:-1], near))
        spans.append((end, end + max(0, after - before)))
        end = spans[-1][1]
    return spans
