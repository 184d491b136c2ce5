"""Whether two sides of an equation agree under some sensible reading: rounded as written, a percent as a share, cents as dollars."""

from fractions import Fraction

from stepmend.locate.equations.reader import Side
from stepmend.locate.equations.units import MEASURES

CONVERSIONS = tuple(Fraction(n) for n in (100, 60, 12, 24, 7, 1000, 3600, 16, 3, 36, 52, 365, 30, 10))
"""Between units of one kind: cents, minutes, inches, hours, days, grams, ounces, feet, weeks."""


def agree(left: Side, right: Side, rounded: bool) -> bool:
    """Whether some reading of the two sides makes them equal."""
    if right.operators and any(_about(value, first) for value in left.values for first in right.numbers[:1]):
        return True  # 5 + 3 = 8 * 2 = 16: wrongly written, rightly meant
    if len(right.numbers) > 1 and right.numbers == left.numbers[: len(right.numbers)] != left.numbers:
        return True  # 8 - 20 - 16 + 12 = (8 - 20) = -12, and so on in pieces
    if rounded and left.operators and right.operators:
        return True  # an estimate
    if len((left.units | right.units) & MEASURES) > 1:
        return True
    if left.inexact != right.inexact and left.whole and right.whole:
        return True  # a root is not a fraction: one of them is not what it seems
    return any(_near(a, b, left, right, rounded) for a in left.values for b in right.values)


def _exact_sum(side: Side, result: Side) -> bool:
    """Whether one side only adds and subtracts, and the other is written with as many decimals: then there is nothing to round."""
    return side.sums and not result.operators and 0 < side.decimals <= result.decimals


def _near(a: Fraction, b: Fraction, left: Side, right: Side, rounded: bool) -> bool:
    pairs = [(a, b), (a, -b)] if a < 0 or b < 0 else [(a, b)]
    if left.percent or right.percent:
        pairs += [(a * 100, b), (a, b * 100)]
    if "cent" in left.units | right.units or left.money != right.money:
        pairs += [(a * 100, b), (a, b * 100)]
    if left.units and right.units and left.units.isdisjoint(right.units):
        pairs += [pair for factor in CONVERSIONS for pair in ((a * factor, b), (a, b * factor))]
    exact = not rounded and ((left.whole and right.whole) or _exact_sum(left, right) or _exact_sum(right, left))
    for x, y in pairs:
        if x == y or ((left.inexact or right.inexact) and abs(x - y) <= max(abs(x), abs(y)) / 10**12):
            return True
        if right.operators and left.whole and right.whole:
            continue  # nothing here is rounded
        gap = abs(x - y)
        written = Fraction(1, 10 ** min(left.decimals if not right.operators and not left.operators else right.decimals, 12))
        if gap <= written / 2 and not (exact and x.denominator == y.denominator == 1):
            return True
        if x.denominator != 1 and gap < 1 and y.denominator == 1:
            return True  # cut to a whole number
        if (not exact) and gap <= max(abs(x), abs(y)) * (Fraction(2, 100) if rounded else Fraction(1, 100)):
            return True
    return False


def _about(value: Fraction, first: Fraction) -> bool:
    """Whether a chain continues with a value, as it is rounded."""
    cut = value.denominator != 1 and first.denominator == 1 and abs(value - first) < 1 <= abs(value)
    return value == first or cut or abs(value - first) <= abs(first) / 1000
