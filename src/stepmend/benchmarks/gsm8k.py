"""GSM8K (Cobbe et al., 2021, 2110.14168): grade-school word problems, 7,473 to train on and 1,319 to test.

A record is ``{"question": …, "answer": …}``; the answer is a worked solution, with its calculations in ``<<…>>``, that ends in
``#### `` and a number.
"""

from stepmend.benchmarks.base import Source

SOURCE = Source(
    {"train": ("openai/gsm8k", "main", "train"), "test": ("openai/gsm8k", "main", "test")},
    {"train": (7473,), "test": (1319,)},
    "MIT",
    ("question",),
    ("answer",),
    ("answer",),
)
