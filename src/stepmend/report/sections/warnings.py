"""What must be known before any figure is read: a model that solves or follows too little, a run of few problems."""

from dataclasses import dataclass

from stepmend.report import summary
from stepmend.report.summary import Found


@dataclass(frozen=True)
class Warnings:
    """``fit`` of full precision, in sentences; ``given`` of the low-bit checkpoints that a run was given, by scheme."""

    fit: list[str]
    given: dict[str, list[str]]
    quick: bool


def figures(found: Found) -> Warnings:
    """All warnings of a run."""
    given = {scheme: list[str](summary.given(found, scheme).get("warnings", [])) for scheme in found.recipe.low_bit}
    return Warnings(summary.fit(found).warnings(found.recipe), given, found.recipe.quick)


def of_given(of: Warnings) -> list[str]:
    """What the terminal says of given checkpoints."""
    return [f"{scheme}: given; warning: {warning}" for scheme, warnings in of.given.items() for warning in warnings]


def lines(of: Warnings) -> list[str]:
    """What the terminal says in the end."""
    return ["A quick run: these figures are from few problems and prove nothing; 'stepmend run' uses more."] if of.quick else []
