"""What quantization did to margins, on full precision's own solutions, beside what was published for as many bits."""

import re
from collections import Counter
from dataclasses import dataclass

from stepmend.facts import Damage
from stepmend.measure.damage import PUBLISHED, kind
from stepmend.report.summary import Found


@dataclass(frozen=True)
class Margins:
    """One scheme; ``frontier`` counts the kinds of tokens at the frontiers of its faults."""

    scheme: str
    damage: Damage
    published: float | None
    frontier: dict[str, int]


def figures(found: Found) -> list[Margins]:
    """Every scheme of which margins were measured."""
    return [_margins(found, scheme, damage) for scheme in found.measured if (damage := found.facts.get(Damage, scheme))]


def _margins(found: Found, scheme: str, damage: Damage) -> Margins:
    bits = re.search(r"w(\d)a", scheme)
    frontier = Counter(kind(f.reference) for f in found.faults.get(scheme, {}).values() if f.reference is not None)
    return Margins(scheme, damage, PUBLISHED.get(int(bits[1])) if bits else None, dict(frontier))


def line(of: Margins) -> str:
    """The scheme's margins in words."""
    ratio, auc = of.damage.ratio, of.damage.auc
    foretold = "" if auc is None else f"; small margins predict flips with AUC {auc:.3f}"
    return (
        f"{of.scheme}: margins are {ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f}) times full precision's; "
        f"{of.damage.flips} of {of.damage.tokens:,} tokens flip{foretold}"
    )
