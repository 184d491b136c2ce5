"""Written arithmetic that can be checked: ``left = right`` where both sides are numbers, units and operators. Silent when unsure.

A claim is false only where every sensible reading of it is: the usual precedence or plain left to right, rounded as written, a percent
as itself or as a share, one side in cents and the other in dollars. Letters are variables, and an equation with one says nothing; nor
does one that the text quotes, asks, supposes or rejects, or that is about residues, other bases or operators of its own.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from stepmend.locate.equations import context, source
from stepmend.locate.equations.agreement import agree
from stepmend.locate.equations.reader import Segment, Side, Token, segments, shown
from stepmend.locate.equations.sides import prefix, suffix

__all__ = ["VERSION", "Claim", "claims", "first_false"]

VERSION = "equations-2"
"""Changes whenever another claim may be found, or found false."""
FLOAT = 10
"""Characters of a calculator's result at least that ends in rounding noise."""
FAR = 2000
"""Characters between two settings of one name at most."""
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


def claims(text: str, after: str = "") -> list[Claim]:
    """The equations of a text that can be checked, in order. Linear in the text's length.

    ``total = 3 + 4``, later ``total = 8`` is one, too: the same words before the sign name the same number until they are set again.

    Args:
        text: A step, or several.
        after: What comes after it, which may take back what it says.
    """
    if not context.EQUALITY.search(text) or context.other_arithmetic(text):
        return []
    plain = source.lines(text)
    slips = [side for typed, result in source.told_notes(text) if (side := _noted(typed, result))]
    floats = [side for typed, result, _ in source.notes(text) if len(result) >= FLOAT and (side := _noted(typed, result))]
    found = [Claim(claim.text, claim.holds or not _meant(claim, plain, after, slips, floats)) for claim in _written(plain)]
    if all(claim.holds for claim in found):
        found += [Claim(f"{typed} = {written}", False) for typed, result, written in source.notes(text) if _misread(typed, result, written)]
    return found


def first_false(steps: Sequence[str], question: str = "") -> tuple[int, Claim] | None:
    """The first step with an equation that does not hold, and that equation: a fault is at this step or before it.

    Nothing is found from where the question or a step turns to residues, other bases, or operators that the text defines.
    """
    if context.other_arithmetic(question):
        return None
    for index, step in enumerate(steps):
        if context.other_arithmetic(step):
            return None
        following = steps[index + 1] if index + 1 < len(steps) else ""
        false = next((claim for claim in claims(step, following) if not claim.holds), None)
        if false:
            return index, false
    return None


@dataclass(frozen=True)
class _Equation:
    """Two adjacent sides, their positions and that of their chain in the plain text, and whether they agree."""

    text: str
    holds: bool
    sides: tuple[Side, Side]
    ends: tuple[Side | None, Side | None]
    start: int
    end: int


def _written(plain: str) -> Iterator[_Equation]:
    """The equations of a plain text that can be read."""
    named: dict[str, tuple[Side, Sequence[Token], int]] = {}
    offset = 0
    for line in plain.splitlines(keepends=True):
        parts = segments(line) if "=" in line or "≈" in line else []
        lefts, rights = [suffix(part.tokens) for part in parts], [prefix(part.tokens) for part in parts]
        ends = _chain_ends(parts, lefts, rights)
        for index, (first, second) in enumerate(itertools.pairwise(parts)):
            found, right, tokens = lefts[index], rights[index + 1], first.tokens
            left, start = found or (None, second.place)
            if found is None and (name := _name(first.tokens)):
                left, tokens = _named(name, right, second, plain, offset, named) or (None, tokens)
            if left and right and left.operators + right.operators and not _converts(left, right):
                sign = "≈" if second.rounded else "="
                text = f"{shown(tokens[-SHOWN:])} {sign} {shown(second.tokens[:SHOWN])}"
                holds = agree(left, right, second.rounded)
                yield _Equation(text, holds, (left, right), ends[index], offset + start, offset + second.place + 1)
        offset += len(line)


def _chain_ends(
    parts: Sequence[Segment], lefts: Sequence[tuple[Side, int] | None], rights: Sequence[Side | None]
) -> list[tuple[Side | None, Side | None]]:
    """For each equality sign the first and the last side of its chain ``a = b = c``, where those can be read."""
    whole = [
        bool(side and part.tokens and side[1] <= part.tokens[min(1, len(part.tokens) - 1)].place)
        for side, part in zip(lefts, parts, strict=True)
    ]
    firsts, lasts = [], []
    for index in range(len(parts) - 1):
        left = lefts[index]
        firsts.append(firsts[-1] if index and whole[index] and firsts[-1] else left and left[0])
    for index in reversed(range(1, len(parts))):
        lasts.append(lasts[-1] if lasts and whole[index] and lasts[-1] else rights[index])
    return list(zip(firsts, reversed(lasts), strict=True))


def _named(
    name: str, right: Side | None, part: Segment, plain: str, offset: int, named: dict[str, tuple[Side, Sequence[Token], int]]
) -> tuple[Side, Sequence[Token]] | None:
    """What the same words were set to before, if they are now set to a plain number and nothing tells the two apart."""
    place = offset + part.place
    if right and right.operators:
        named[name] = right, part.tokens, place
        return None
    before = named.pop(name, None)
    if right is None or before is None or place - before[2] > FAR or context.CASES.search(plain, before[2], place):
        return None
    return before[0], before[1]


def _converts(left: Side, right: Side) -> bool:
    """``8 batches = 5.5 * 8``: a number of one thing makes a number of another."""
    return not left.operators and bool(left.units) and right.units.isdisjoint(left.units)


def _meant(equation: _Equation, plain: str, after: str, slips: Sequence[Side], floats: Sequence[Side]) -> bool:
    """Whether a false equation is the text's own claim: not quoted or taken back, nor a slip next to a correct calculator note."""
    first, last = equation.ends
    if any(agree(note, side, True) for note in slips for side in (equation.sides[1], last) if side):
        return False
    if any(agree(note, side, True) for note in floats for side in equation.sides[1:]) and any(
        agree(note, equation.sides[0], False) for note in floats
    ):
        return False  # 4.20 + 9.45 + 1.35 = 14.999999999999998, cut to 14.99
    if first and last and (first, last) != equation.sides and agree(first, last, False):
        return False  # the slip within a chain whose ends agree
    if _scaled(equation.sides) and context.LARGE.search(plain):
        return False
    return context.asserted(plain, equation.start, equation.end, after)


def _noted(typed: str, result: str) -> Side | None:
    """What a calculator note computes, where it computes it right, cut as floats are."""
    left, right = suffix(segments(typed)[0].tokens), prefix(segments(result)[0].tokens)
    return right if left and right and left[0].operators and agree(left[0], right, True) else None


def _misread(typed: str, result: str, written: str) -> bool:
    """Whether the text continues with another number than the calculator's result."""
    note, right = _noted(typed, result), prefix(segments(source.lines(written))[0].tokens)
    if note is None or right is None or context.LARGE.search(written) or _scaled((note, right)):
        return False
    return not any(agree(note, replace(right, values=tuple(sign * value for value in right.values)), True) for sign in (1, -1))


def _scaled(sides: tuple[Side, Side]) -> bool:
    """Whether two sides differ by thousands or millions: ``5 * 3 = 15,000`` of 5 thousand."""
    values = [(a, b) for a in sides[0].values for b in sides[1].values if a and b]
    return any(max(abs(a), abs(b)) == min(abs(a), abs(b)) * scale for a, b in values for scale in (10**3, 10**6, 10**9))


def _name(tokens: Sequence[Token]) -> str:
    """The words that an equation starts with, back to the last punctuation; empty if there is anything else among them."""
    words = []
    for token in reversed(tokens):
        if token.kind == "other" and token.text not in "'’_":
            break
        if token.kind not in ("word", "other"):
            return ""
        words.append(token.text.lower())
    return " ".join(reversed(words)) if len(words) > 1 else ""
