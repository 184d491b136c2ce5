"""The bullets: how many of each error class, and the first of each."""

from collections import Counter
from dataclasses import dataclass

from stepmend.records import Bullet
from stepmend.report import summary
from stepmend.report.summary import Found


@dataclass(frozen=True)
class Example:
    """The first bullet of an error class."""

    error_class: str
    question: str
    prefix: str
    chosen: str
    rejected: str
    continuation: str


@dataclass(frozen=True)
class Bullets:
    """One scheme's bullets; ``agreement``: the share of all regressions in which the voted step is the oracle's."""

    scheme: str
    count: int
    classes: dict[str, int]
    examples: list[Example]
    agreement: float | None


def figures(found: Found) -> list[Bullets]:
    """Every scheme that has bullets."""
    return [_bullets(found, scheme, of) for scheme in found.measured if (of := found.bullets.get(scheme))]


def _bullets(found: Found, scheme: str, bullets: list[Bullet]) -> Bullets:
    names, first = [b.error_class or "not classified" for b in bullets], dict[str, Bullet]()
    for name, bullet in zip(names, bullets, strict=True):
        first.setdefault(name, bullet)
    examples = [Example(name, b.question, b.prefix, b.chosen, b.rejected, b.continuation) for name, b in first.items()]
    agreement = summary.oracle_agreement(found, list(found.faults.get(scheme, {}).values()))
    return Bullets(scheme, len(bullets), dict(Counter(names)), examples, agreement)
