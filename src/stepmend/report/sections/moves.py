"""Changed outcomes between right and wrong, from one arm to another."""

from dataclasses import dataclass

from stepmend.arms import FULL
from stepmend.measure import statistics
from stepmend.report.summary import Found, final


@dataclass(frozen=True)
class Move:
    """How the problems moved from the first arm to the second."""

    first: str
    second: str
    right_right: int
    right_wrong: int
    wrong_right: int
    wrong_wrong: int


@dataclass(frozen=True)
class Moves:
    """Every pair of arms that belong together."""

    n: int
    samples: int
    pairs: list[Move]


def figures(found: Found) -> Moves:
    """Of each scheme: full precision and the quantized arm, and both beside the restored one."""
    pairs = []
    for scheme in found.measured:
        restored = final(found, scheme)
        pairs += [(FULL, scheme), *([(scheme, restored), (FULL, restored)] if restored else [])]
    return Moves(len(found.test), found.samples, [_move(found, *pair) for pair in pairs])


def _move(found: Found, first: str, second: str) -> Move:
    of = statistics.paired(found.outcomes(first), found.outcomes(second))
    return Move(first, second, of.both_right, of.only_first, of.only_second, of.both_wrong)
