"""What came of each scheme, in a sentence: the loss, what restoring it brought, and the accuracy kept."""

from dataclasses import dataclass
from typing import Any

from stepmend.measure.statistics import Interval
from stepmend.report import summary
from stepmend.report.sections import restoring
from stepmend.report.summary import Found, percent


@dataclass(frozen=True)
class Verdict:
    """One scheme. ``against`` is the quantized arm beside full precision; ``returned``: restoring gave nothing better."""

    scheme: str
    against: dict[str, Any]
    recovered: Interval
    kept: float | None
    restored: str | None
    restored_kept: float | None
    beside_full: str
    returned: bool
    tuned: str
    bullets: int
    seconds: float | None
    samples: int


def figures(found: Found) -> list[Verdict]:
    """Every scheme that was measured."""
    return [_verdict(found, scheme) for scheme in found.measured]


def _verdict(found: Found, scheme: str) -> Verdict:
    restored = summary.final(found, scheme)
    return Verdict(
        scheme,
        against=summary.against_full(found)[scheme],
        recovered=summary.recovery(found, scheme),
        kept=summary.accuracy_kept(found, scheme),
        restored=restored,
        restored_kept=summary.accuracy_kept(found, restored) if restored else None,
        beside_full=summary.beside_full(found, restored) if restored else "",
        returned=restoring.returned(found, scheme),
        tuned=summary.kinds_text(found.recipe.restore.tune),
        bullets=len(found.bullets.get(scheme, [])),
        seconds=summary.tuning(found, scheme).seconds,
        samples=found.samples,
    )


def lines(of: list[Verdict]) -> list[str]:
    """The loss recovered and the accuracy kept; then each restored model beside full precision."""
    return [f"{one.scheme}: {sentence(one)}" for one in of] + [f"{one.restored}: {one.beside_full}." for one in of if one.restored]


def sentence(of: Verdict) -> str:
    """The accuracy that a scheme kept, quantized and restored, and the loss recovered or why it is undefined."""
    after = f", {percent(of.restored_kept)} restored" if of.restored else ""
    back = f"undefined, {of.recovered.reason}" if of.recovered.reason else summary.recovery_text(of.recovered)
    return f"accuracy kept {percent(of.kept)} quantized{after}; loss recovered {back}"
