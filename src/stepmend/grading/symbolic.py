"""Math-Verify's verdict on a pair of answers, checked numerically. Runs in worker processes, which may be killed at any time."""

import importlib
import logging
import re
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

from stepmend.grading import notation

Verdict = Literal["equal", "different", "parser"]
DIGITS = 60
"""Decimal digits in which expressions are evaluated."""
ROUNDED = 1e-5
"""Relative difference up to which a rounded decimal stands for an exact value."""
EXACT = 1e-40
"""The same for two exact values."""
POINTS = ("0.7310585", "1.6180339", "-0.5671432", "2.2955871", "-1.4513692", "3.1720415", "-2.7182819", "5.4364636")
"""Where expressions with variables are compared."""
LEAST = 4
"""Points at which two expressions must both have values before they are called equal by number alone."""


def symbolic(answer: str, gold: str) -> Verdict:
    """Equal if Math-Verify says so and numerical values do not contradict it, or if the values alone show it; ``parser`` if an answer
    cannot be parsed.

    Math-Verify rounds to six places, so 1/2^60 and 1/2^61 are the same to it; and it knows no sign of a variable, so that
    sqrt(1/n) and 1/sqrt(n) differ. Both are decided by their values.
    """
    from math_verify import verify

    sympy: Any = importlib.import_module("sympy")
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    try:
        right, said = _parsed(notation.latex(gold)), _parsed(notation.latex(answer))
        if not right or not said:
            return "parser"
        agreed = verify(right, said, timeout_seconds=None, raise_on_error=True)
        same = by_number(answer, gold)
        if agreed:
            return "different" if same is False else "equal"
        # An equation is not a value: that of its right side only counts where Math-Verify takes it so.
        values = all(isinstance(one[0], sympy.Expr) for one in (said, right))
        return "equal" if values and same is True else "different"
    except (Exception, RecursionError, MemoryError):
        return "parser"


@lru_cache(maxsize=4096)
def _parsed(text: str) -> list[Any]:
    from math_verify import parse

    return parse(f"\\boxed{{{text}}}", parsing_timeout=None, raise_on_error=True)  # pyright: ignore[reportArgumentType]


def by_number(answer: str, gold: str) -> bool | None:
    """Whether two answers have the same values; None if numbers do not tell. A list must have the order of what is in brackets."""
    sympy: Any = importlib.import_module("sympy")
    texts = [notation.latex(text) for text in (answer, gold)]
    said, right = (_parsed(text)[0] for text in texts)
    lists = [isinstance(one, sympy.FiniteSet) and len(one) > 1 for one in (said, right)]
    brackets = [isinstance(one, sympy.Tuple | sympy.Interval) for one in (said, right)]
    if lists[0] and brackets[1]:
        return _in_order(texts[0], right)
    if lists[1] and brackets[0]:
        return _in_order(texts[1], said)
    equations = [isinstance(one, sympy.Eq) for one in (said, right)]
    if equations[0] != equations[1] and _is_sum((said if equations[0] else right).lhs):
        return False
    return compare(said, right, percent="%" in answer or "%" in gold)


def _is_sum(side: Any) -> bool:
    """Whether the left side of an equation is an expression, and not the name of its right side."""
    sympy: Any = importlib.import_module("sympy")
    return isinstance(side, sympy.Add) and bool(side.free_symbols)


def compare(first: Any, second: Any, *, percent: bool = False) -> bool | None:
    """Whether two expressions have the same values; None if numbers do not tell, as for text, intervals and relations.

    Sets, tuples and matrices are compared member by member; of equations with the same left side, the right ones.
    """
    sympy: Any = importlib.import_module("sympy")
    first, second = _value(first, second), _value(second, first)
    if isinstance(first, sympy.MatrixBase) and isinstance(second, sympy.MatrixBase):
        return _all(list(first), list(second)) if first.shape == second.shape else None
    if isinstance(first, sympy.FiniteSet) and isinstance(second, sympy.FiniteSet):
        return _matched(list(first.args), list(second.args))
    if any(isinstance(first, kind) and isinstance(second, kind) for kind in (sympy.Tuple, sympy.Interval)):
        return _all(first.args, second.args)
    if not isinstance(first, sympy.Expr) or not isinstance(second, sympy.Expr):
        return None
    factors = (1, sympy.Rational(1, 100), 100) if percent else (1,)
    found = [_same(first * factor, second) for factor in factors]
    return True if True in found else False if False in found else None


def _all(first: Sequence[Any], second: Sequence[Any]) -> bool | None:
    """Whether members agree one by one."""
    if len(first) != len(second):
        return None
    found = [compare(a, b) for a, b in zip(first, second, strict=True)]
    return False if False in found else None if None in found else True


def _matched(first: list[Any], second: list[Any]) -> bool | None:
    """Whether the members of two sets can be paired; False if one of them has no partner for sure."""
    if len(first) != len(second):
        return None
    left, sure = list(second), True
    for member in first:
        found = [compare(member, other) for other in left]
        if True in found:
            left.pop(found.index(True))
        elif None not in found:
            return False
        else:
            sure = False
    return True if sure else None


def _in_order(listed: str, bracketed: Any) -> bool | None:
    """Whether what a text lists are the members of a point or the ends of an interval, in order."""
    parts = [part for part in re.split(r",|\\text\s?\{\s?and\s?\}|\band\b", listed.strip("{}\\ ")) if part.strip("\\ {}")]
    members = [bracketed.start, bracketed.end] if hasattr(bracketed, "start") else list(bracketed.args)
    found = [_parsed(part) for part in parts]
    return _all([one[0] for one in found], members) or False if all(found) and len(found) == len(members) else False


def _value(one: Any, other: Any) -> Any:
    """Of an equation the right side, if the other is not an equation or has the same left side."""
    sympy: Any = importlib.import_module("sympy")
    if not isinstance(one, sympy.Eq):
        return one
    if not isinstance(other, sympy.Eq) or (other.lhs == one.lhs and isinstance(one.lhs, sympy.Symbol)):
        return one.rhs
    return one


def _same(first: Any, second: Any) -> bool | None:
    """Whether two expressions have the same value at every point at which both are real."""
    sympy: Any = importlib.import_module("sympy")
    exact = not (first.has(sympy.Float) or second.has(sympy.Float))
    symbols = sorted(first.free_symbols | second.free_symbols, key=str)
    if any(one.has(sympy.oo, -sympy.oo, sympy.zoo, sympy.nan) for one in (first, second)):
        return None
    if not symbols:
        return _near(_number(first, {}), _number(second, {}), exact)
    met = 0
    for shift in range(len(POINTS)):
        place = {s: sympy.Rational(POINTS[(shift + 3 * index) % len(POINTS)]) + index for index, s in enumerate(symbols)}
        values = [_number(one, place) for one in (first, second)]
        real = [value is not None and abs(sympy.im(value)) < EXACT for value in values]
        if not any(real):
            continue
        if not all(real):
            return None
        if not _near(values[0], values[1], exact):
            return False
        met += 1
    return True if met >= LEAST else None


def _number(expression: Any, place: dict[Any, Any]) -> Any:
    sympy: Any = importlib.import_module("sympy")
    if any(_is_imaginary(power, place) for power in expression.atoms(sympy.Pow)):
        return None
    value = sympy.N(expression.subs(place) if place else expression, DIGITS)
    return value if value.is_number and value.is_finite else None


def _is_imaginary(power: Any, place: dict[Any, Any]) -> bool:
    """Whether a power is an even root of a negative number, at a place of its variables."""
    if not place or not power.exp.is_Rational or power.exp.q % 2:
        return False
    base = power.base.subs(place).evalf(20)
    return bool(base.is_real and base < 0)


def _near(first: Any, second: Any, exact: bool) -> bool | None:
    if first is None or second is None:
        return None
    size = max(abs(first), abs(second))
    if size == 0 or (min(abs(first), abs(second)) == 0 and size < EXACT):
        return True
    return bool(abs(first - second) <= (EXACT if exact else ROUNDED) * size)
