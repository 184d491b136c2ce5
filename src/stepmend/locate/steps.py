"""Steps of a trace: spans that join back to the text, character for character; and what an equation step says."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from stepmend.grading.extract import boxed

VERSION = "steps-3"
"""Changes whenever the same text may be split otherwise."""
MARK = re.compile(r"^[ \t#*>]*step\s+\d+\b\s*[:.)*]", re.IGNORECASE | re.MULTILINE)
PARAGRAPH = re.compile(r"\n(?:[^\S\n]*\n)+(?=[^\S\n]*\S)")
LINE = re.compile(r"\n(?:[^\S\n]*\n)*(?=[^\S\n]*\S)")
SENTENCE = re.compile(r"(?<=[^\s.!?])[.!?]+[\"'”’)*]*(?=\s+[\"'“‘(\\*$A-Z0-9])")
ABBREVIATIONS = frozenset("mr mrs ms dr st vs eq fig no approx etc e.g i.e min max hr hrs ft in oz lb lbs".split())  # noqa: SIM905
FORMULA = re.compile(
    r"\\\[.{0,2000}?\\\]|\\\(.{0,2000}?\\\)|\$\$.{0,2000}?\$\$|\\begin\{(?P<of>\w+\*?)\}.{0,4000}?\\end\{(?P=of)\}", re.DOTALL
)
"""Displayed and inline formulas. A single dollar sign is money more often than mathematics, so it marks none."""
DISPLAYED = re.compile(r"\s*(?:\\\[|\$\$|\\begin\{)")
EQUATION = re.compile(r"(?<![\d.*/+\-])(?<![*/+\-] )(-?\d+(?:\.\d+)?)\s*([-+*/])\s*(-?\d+(?:\.\d+)?)\s*=\s*(-?\d+(?:\.\d+)?)")
ASKED = re.compile(r"Step (\d+): \S")
"""How each line but the answer's begins in the step format."""


@dataclass(frozen=True)
class Equation:
    """One equation of two operands, as written."""

    left: float
    op: str
    right: float
    result: float


def split(text: str) -> list[tuple[int, int]]:
    """Half-open spans of the steps; they cover the text without gaps.

    Where a text is written in ``Step k:`` marks, a step reaches from one mark to the next, and the lines from the one with the
    ``\\boxed{`` answer on are a step of their own. Else steps are paragraphs, else lines, else sentences, whichever there is more
    than one of. Blanks before a step's first word are the step's own: they belong to that word's token. No step begins inside a formula,
    and a displayed formula belongs to the words before it.
    """
    if not text:
        return []
    formulas = [match.span() for match in FORMULA.finditer(text)]
    marks = _marks(text)
    kept: list[int] = []
    for starts in (_ends(PARAGRAPH, text), _ends(LINE, text), _sentences(text)) if marks is None else (marks,):
        kept = sorted({place for place in starts if text[:place].strip() and not _inside(place, text, formulas)})
        if kept:
            break
    return list(zip([0, *kept], [*kept, len(text)], strict=True))


def first(prefix: str, rest: str) -> int:
    """Where the first step of ``rest`` ends in it, by the rule that the whole text is split by: paragraphs stay paragraphs."""
    return next(end for _, end in split(prefix + rest) if end > len(prefix)) - len(prefix)


def _inside(place: int, text: str, formulas: Iterable[tuple[int, int]]) -> bool:
    """Whether a place lies in a formula, or before a displayed one."""
    shown = DISPLAYED.match(text, place)
    return any(begin < place < end or (shown and place <= begin < shown.end()) for begin, end in formulas)


def _marks(text: str) -> list[int] | None:
    """Where marked steps begin behind the first one; None where a text is not written in them: it neither begins with one nor has two."""
    starts = [match.start() for match in MARK.finditer(text)]
    if not starts or (len(starts) == 1 and text[: starts[0]].strip()):
        return None
    answer = text.rfind("\\boxed")
    line = text.rfind("\n", 0, answer) + 1 if answer >= 0 else -1
    return [*starts[1:], line] if line > starts[-1] else starts[1:]


def _ends(boundary: re.Pattern[str], text: str) -> list[int]:
    return [match.end() for match in boundary.finditer(text)]


def _sentences(text: str) -> list[int]:
    """Where sentences begin: not behind an abbreviation, an initial, or the number of a list's item."""
    starts = [0]
    for match in SENTENCE.finditer(text):
        sentence = text[starts[-1] : match.start()].split()
        last = sentence[-1].strip("(\"'“‘").lower()
        if not (last in ABBREVIATIONS or (len(last) == 1 and last.isalpha() and last != "i") or (len(sentence) == 1 and last.isdigit())):
            starts.append(match.end())
    return starts[1:]


def in_format(text: str) -> bool:
    """Whether a solution is in the step format that a model is asked for (``models/chat.py``).

    That is: nothing but ``Step k: …`` lines, k from 1 on, and a last line that alone has a ``\\boxed{}`` answer. The last line may be a
    step itself, but not the only one. Empty lines count for nothing.
    """
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if len(lines) < 2 or not boxed(lines[-1]) or any("\\boxed" in line for line in lines[:-1]):
        return False
    found = lines if ASKED.match(lines[-1]) else lines[:-1]
    return all((mark := ASKED.match(line)) is not None and int(mark[1]) == k for k, line in enumerate(found, 1))


def equations(step: str) -> list[Equation]:
    """The two-operand equations of a step, in order."""
    return [Equation(float(a), op, float(b), float(c)) for a, op, b, c in EQUATION.findall(step)]
