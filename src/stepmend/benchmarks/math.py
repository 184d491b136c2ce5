"""MATH (Hendrycks et al., 2021, 2103.03874), and of its test problems the 500 of MATH-500 (Lightman et al., 2023, 2305.20050).

A record is ``{"problem": …, "solution": …, "answer": …, "subject": …, "level": …}``; without ``answer``, it is what the solution boxes.
"""

from stepmend.benchmarks.base import Source

SOURCE = Source(
    {"train": ("nlile/hendrycks-MATH-benchmark", None, "train"), "test": ("HuggingFaceH4/MATH-500", None, "test")},
    {"train": (12000, 7500), "test": (500, 5000)},
    "MIT",
    ("problem",),
    ("answer", "solution"),
    level="level",
    subject="subject",
)
