"""Written arithmetic that can be checked: ``left = right`` where both sides are numbers, units and operators. Silent when unsure.

A claim is false only where every sensible reading of it is: the usual precedence or plain left to right, rounded as written, a percent
as itself or as a share, one side in cents and the other in dollars. Letters are variables, and an equation with one says nothing; nor
does one that the text quotes, asks, supposes or rejects, or that is about residues, other bases or operators of its own.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stepmend.locate.equations import context, source
from stepmend.locate.equations.agreement import agree
from stepmend.locate.equations.reader import Segment, Side, Token, prefix, segments, shown, suffix

__all__ = ["VERSION", "Claim", "claims", "first_false"]

VERSION = "equations-2"
"""Changes whenever another claim may be found, or found false."""
SHOWN = 12
"""Tokens of each side in a claim's text."""


@dataclass(frozen=True)
class Claim:
    """One equation as written, and whether it holds."""

    text: str
    holds: bool

    @property
    def evidence(self) -> str:
        """What a locator says of it: false arithmetic proves a fault at or before its step, not that it is the first."""
        return f"{self.text} holds" if self.holds else f"{self.text} is false: the first fault is here or before"


def claims(text: str, *, before: str = "", after: str = "") -> list[Claim]:
    """The equations of a text that can be checked, in order.

    ``total = 3 + 4``, later ``total = 8`` is one, too: the same words before the sign name the same number until they are set anew.

    Args:
        text: One step.
        before: The question and the steps before, which may define what signs mean.
        after: The steps after, which may take back what the text says.
    """
    if "=" not in text and "≈" not in text and "approx" not in text:
        return []
    if context.other_arithmetic(text) or (before and context.other_arithmetic(before)):
        return []
    plain = source.lines(text)
    noted = [side for typed, result in source.notes(text) if (side := _noted(typed, result))]
    return [Claim(claim.text, claim.holds or not _meant(claim, plain, after, noted)) for claim in _written(plain)]


def first_false(steps: Sequence[str], question: str = "") -> tuple[int, Claim] | None:
    """The first step with an equation that does not hold, and that equation; a fault lies at it or before it."""
    told = question
    for index, step in enumerate(steps):
        following = steps[index + 1] if index + 1 < len(steps) else ""
        false = next((claim for claim in claims(step, before=told if index == 0 else "", after=following) if not claim.holds), None)
        if false:
            return index, false
        if index == 0 and context.other_arithmetic(question):
            return None
        if context.other_arithmetic(step):
            return None
    return None


@dataclass(frozen=True)
class _Equation:
    """Two sides beside each other, where they stand in the plain text, and whether they agree."""

    text: str
    holds: bool
    sides: tuple[Side, Side]
    last: Side
    start: int
    end: int


def _written(plain: str) -> Iterator[_Equation]:
    """The equations of a plain text that can be read."""
    named: dict[str, tuple[Side, Sequence[Token], int]] = {}
    offset = 0
    for line in plain.splitlines(keepends=True):
        parts = segments(line)
        rights = [prefix(part.tokens) for part in parts]
        for index, (first, second) in enumerate(itertools.pairwise(parts)):
            right, found = rights[index + 1], suffix(first.tokens)
            left, start, tokens = (found[0], found[1], first.tokens) if found else (None, second.place, first.tokens)
            if found is None and (name := _name(first.tokens)):
                left, tokens = _named(name, right, second, plain, offset, named) or (None, tokens)
            if left and right and left.operators + right.operators and not _converts(left, right):
                sign = "≈" if second.rounded else "="
                text = f"{shown(tokens[-SHOWN:])} {sign} {shown(second.tokens[:SHOWN])}"
                end = second.place + 1
                yield _Equation(
                    text, agree(left, right, second.rounded), (left, right), _last(rights[index + 1 :]), offset + start, offset + end
                )
        offset += len(line)


def _last(sides: Sequence[Side | None]) -> Side:
    """The last side of a chain that can be read."""
    return next(side for side in reversed(sides) if side)


def _named(
    name: str, right: Side | None, part: Segment, plain: str, offset: int, named: dict[str, tuple[Side, Sequence[Token], int]]
) -> tuple[Side, Sequence[Token]] | None:
    """What the same words were set to before, where they are now set to a plain number and nothing tells the two apart."""
    place = offset + part.place
    if right and right.operators:
        named[name] = right, part.tokens, place
        return None
    before = named.pop(name, None)
    if right is None or before is None or context.CASES.search(plain, before[2], place):
        return None
    return before[0], before[1]


def _converts(left: Side, right: Side) -> bool:
    """``8 batches = 5.5 * 8``: so many of one thing make so many of another."""
    return not left.operators and bool(left.units) and right.units.isdisjoint(left.units)


def _meant(equation: _Equation, plain: str, after: str, noted: Sequence[Side]) -> bool:
    """Whether a false equation is what the text says: not quoted or taken back, nor a slip beside a right calculator note."""
    if any(agree(note, side, False) for note in noted for side in (equation.sides[1], equation.last)):
        return False
    if _scaled(equation.sides) and context.LARGE.search(plain):
        return False
    return context.asserted(plain, equation.start, equation.end, after)


def _noted(typed: str, result: str) -> Side | None:
    """What a calculator note computes, where it computes it right, cut as floats are."""
    left, right = suffix(segments(typed)[0].tokens), prefix(segments(result)[0].tokens)
    return right if left and right and agree(left[0], right, True) else None


def _scaled(sides: tuple[Side, Side]) -> bool:
    """Whether two sides differ by thousands or millions: ``5 * 3 = 15,000`` of 5 thousand."""
    values = [(a, b) for a in sides[0].values for b in sides[1].values if a and b]
    return any(max(abs(a), abs(b)) == min(abs(a), abs(b)) * scale for a, b in values for scale in (10**3, 10**6, 10**9))


def _name(tokens: Sequence[Token]) -> str:
    """The words that an equation begins with, back to the last punctuation; empty where there is anything else among them."""
    words = []
    for token in reversed(tokens):
        if token.kind == "other" and token.text not in "'’_":
            break
        if token.kind not in ("word", "other"):
            return ""
        words.append(token.text.lower())
    return " ".join(reversed(words)) if len(words) > 1 else ""
