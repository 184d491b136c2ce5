"""Base of the published benchmarks: where a benchmark is stored, and the names of its records' fields. One file per benchmark."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """One benchmark: where the hub has it, and how its records are named. Names are alternatives, the first that is there counts.

    ``solution`` is the field of the worked solution, which a record may lack.

    ``hub`` and ``counts`` are by the benchmark's own split (``train``, ``test``); ``hub`` gives (dataset, configuration, split).
    """

    hub: dict[str, tuple[str, str | None, str]]
    counts: dict[str, tuple[int, ...]]
    licence: str
    question: tuple[str, ...]
    answer: tuple[str, ...]
    solution: tuple[str, ...] = ("solution",)
    level: str | None = None
    subject: str | None = None
