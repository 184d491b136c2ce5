"""Steps of a trace: spans that join back to the text, character for character; and what an equation step says."""

import re
from dataclasses import dataclass

MARKER = re.compile(r"^\s*(?:\*\*)?step\s+\d+\s*[:.)]", re.IGNORECASE | re.MULTILINE)
EQUATION = re.compile(r"(-?\d+(?:\.\d+)?)\s*([-+*/])\s*(-?\d+(?:\.\d+)?)\s*=\s*(-?\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Equation:
    """One equation of two operands, as written."""

    left: float
    op: str
    right: float
    result: float


def split(text: str) -> list[tuple[int, int]]:
    """Half-open spans of the steps; they cover the text without gaps.

    A step is a non-empty line; where lines begin with ``Step k:`` markers, a step reaches from one marker to the next, and the lines
    from the one with the ``\\boxed{`` answer on are a step of their own.
    """
    if not text:
        return []
    starts = [m.start() for m in MARKER.finditer(text)]
    if starts:
        answer = text.rfind("\\boxed")
        line = text.rfind("\n", 0, answer) + 1 if answer >= 0 else -1
        if line > starts[-1]:
            starts.append(line)
    else:
        starts = [m.start() for m in re.finditer(r"^.*\S.*$", text, re.MULTILINE)]
    starts = sorted({0, *starts[1:]}) if starts else [0]
    return [(a, b) for a, b in zip(starts, [*starts[1:], len(text)], strict=True) if a < b]


def equations(step: str) -> list[Equation]:
    """The two-operand equations of a step, in order."""
    return [Equation(float(a), op, float(b), float(c)) for a, op, b, c in EQUATION.findall(step)]
