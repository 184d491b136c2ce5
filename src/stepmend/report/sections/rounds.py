"""What is still lost against full precision after each round of bullets, by error class."""

from dataclasses import dataclass

from stepmend.arms import parse
from stepmend.report.summary import Found, classes


@dataclass(frozen=True)
class Round:
    """The classes of an arm's faults."""

    arm: str
    classes: dict[str, int]


@dataclass(frozen=True)
class Rounds:
    """One scheme: its quantized arm, and its restored ones."""

    scheme: str
    rounds: list[Round]


def figures(found: Found) -> list[Rounds]:
    """The schemes that were restored in several rounds."""
    every = [Rounds(s, [Round(arm, classes(found, arm)) for arm in found.arms if parse(arm).scheme == s]) for s in found.measured]
    return [of for of in every if len(of.rounds) > 2]
