"""What the terminal says of a run: a table, and lines section by section."""

from rich.table import Table

from stepmend.report.sections import (
    accuracy,
    behaviour,
    blame,
    controls,
    effects,
    margins,
    noise,
    regularities,
    run_card,
    verdict,
    warnings,
)  # fmt: skip
from stepmend.report.summary import Found


def table(found: Found) -> Table:
    """The closing table; fits 100 columns."""
    return accuracy.table(accuracy.figures(found))


def notices(found: Found) -> list[str]:
    """What a reader of the table must be told."""
    warned, by_scheme = warnings.figures(found), {of.scheme: of for of in margins.figures(found)}
    lines = [*verdict.lines(verdict.figures(found)), *warnings.of_given(warned)]
    lines += [*behaviour.lines(behaviour.figures(found)), *noise.lines(noise.figures(found))]
    for scheme in found.recipe.low_bit:
        lines += [margins.line(by_scheme[scheme])] if scheme in by_scheme else []
        lines += regularities.located(found, scheme)
    lines += [f"judge {name}: {text}" for name, text in regularities.judges(found).items()]
    return [*lines, *run_card.lines(run_card.figures(found)), *warnings.lines(warned)]


def lines(found: Found) -> list[str]:
    """All that is said below the table."""
    below = [*effects.lines(effects.figures(found)), *controls.lines(controls.figures(found))]
    return [*notices(found), *below, *regularities.lines(regularities.figures(found)), *blame.lines(blame.figures(found))]
