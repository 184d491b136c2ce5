"""Error classes, and where it starts: error classes and places of the located first faults on held-out problems."""

from dataclasses import dataclass

from stepmend.records import EXECUTION
from stepmend.report import summary
from stepmend.report.summary import Found

PLACES = 10
"""Steps that the histogram of first faults tells apart; later ones are counted with the last."""


@dataclass(frozen=True)
class Arm:
    """One arm's faults: by class, as the precursor's two capabilities, and by step."""

    name: str
    classes: dict[str, int]
    capabilities: dict[str, int]
    places: list[int]


@dataclass(frozen=True)
class Kinds:
    """All arms; ``own_failures``: how many of full precision's own failures are located at most."""

    own_failures: int
    arms: list[Arm]


def figures(found: Found) -> Kinds:
    """Every arm that was measured."""
    arms = [Arm(arm, classes := summary.classes(found, arm), _capabilities(classes), _places(found, arm)) for arm in found.arms]
    return Kinds(found.recipe.locate.own_failures, arms)


def _capabilities(classes: dict[str, int]) -> dict[str, int]:
    """Located step errors as the precursor's two capabilities: numerical computation, and reasoning planning."""
    named = {name: count for name, count in classes.items() if name not in ("degenerate", "not located")}
    execution = sum(count for name, count in named.items() if name in EXECUTION)
    return {"numerical computation": execution, "reasoning planning": sum(named.values()) - execution}


def _places(found: Found, arm: str) -> list[int]:
    counts = [0] * PLACES
    test = {p.id for p in found.test}
    for fault in found.faults.get(arm, {}).values():
        if fault.problem in test and fault.step is not None:
            counts[min(fault.step, PLACES - 1)] += 1
    return counts
