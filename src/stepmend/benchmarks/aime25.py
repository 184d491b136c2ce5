"""AIME 2025, both papers: 30 problems, with the fields of ``aime``."""

from dataclasses import replace

from stepmend.benchmarks import aime

SOURCE = replace(aime.SOURCE, hub={"test": ("math-ai/aime25", None, "test")})
