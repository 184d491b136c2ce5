"""AIME 2024, both papers of the American Invitational Mathematics Examination: 30 problems, to be measured and not tuned on.

A record is ``{"problem": …, "answer": …}``; the answer is an integer from 0 to 999.
"""

from stepmend.benchmarks.base import Source

SOURCE = Source(
    {"test": ("HuggingFaceH4/aime_2024", None, "train")},
    {"test": (30, 15)},
    "as published by the MAA",
    ("problem", "Problem", "question", "Question"),
    ("answer", "Answer"),
)
