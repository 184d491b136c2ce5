"""The locator ``reference``: it compares a solution's values with those of a worked solution, or of full precision's own correct one.

The first step whose computed value is not among the reference's, while those before it are, is suspicious. Another route to the answer
computes other values and is not a fault, so a value that a later calculation turns into one of the reference's is taken as right, and a
solution that shares no value with the reference before its end is not judged.
"""

import itertools
from collections.abc import Iterator, Sequence

from stepmend import grading
from stepmend.locate import kinds, quantities
from stepmend.locate.quantities import Calculation, same
from stepmend.records import Vote

LOCATOR, OWN = "reference", "solution"
"""By the benchmark's worked solution; and by full precision's own right one, which there is for every regression."""
SUMS, PRODUCTS = frozenset("+-"), frozenset("*/")
MANY = 8
"""Maximum number of operands of a sum for which all partial sums are used as values."""
SHARE = 1.5
"""Up to here a number may be a share, or dollars, of which another text writes the percentage, or the cents."""


def values(found: Sequence[Calculation]) -> frozenset[float]:
    """The values in a correct solution's calculations: results, parts of expressions, and the values of other orders of calculation."""
    return frozenset([*(value for c in found for value in (c.result, *c.parts)), *_distributed(found), *_partial_sums(found)])


def _distributed(found: Sequence[Calculation]) -> Iterator[float]:
    """What another order of the same work computes: ``(a + b) * n`` as ``a * n + b * n``, and the reverse."""
    for inner, outer in itertools.permutations(found, 2):
        if inner.operators <= SUMS and outer.operators and outer.operators <= PRODUCTS:
            factors = [value for value in outer.operands if not same(value, inner.result)]
            if len(factors) == len(outer.operands) - 1 == 1:
                for value in inner.operands:
                    yield value * factors[0]
                    if outer.operators == {"/"} and factors[0]:
                        yield value / factors[0]
    for one, other in itertools.combinations(found, 2):
        if one.operators == other.operators == {"*"} and len(one.operands) == len(other.operands) == 2:
            for (a, n), (b, m) in itertools.product(itertools.permutations(one.operands), itertools.permutations(other.operands)):
                if same(n, m):
                    yield from (a + b, abs(a - b))


def _partial_sums(found: Sequence[Calculation]) -> Iterator[float]:
    """Sums of some operands of a sum: people add in any order."""
    for c in found:
        if c.operators == {"+"} and 2 < len(c.operands) <= MANY:
            for count in range(2, len(c.operands)):
                yield from (sum(some) for some in itertools.combinations(c.operands, count))


def among(value: float, known: Sequence[float] | frozenset[float]) -> bool:
    """Whether a value is one of those known, up to rounding and scale."""
    return any(
        same(value, other) or (value <= SHARE and same(value * 100, other)) or (other <= SHARE and same(value, other * 100))
        for other in known
    )


def locate(solution: str, answer: str, steps: Sequence[str], locator: str = LOCATOR) -> Vote:
    """The first step of a wrong solution that leaves the reference's values; abstains if none does.

    Where that step only carries out what an earlier item of the solution's plan orders, the fault is the item.

    Args:
        solution: A right solution; empty if there is none.
        answer: The right answer, one of the values.
        steps: The steps of the solution to be judged.
        locator: The name to vote under.
    """
    step, evidence = _find(solution, answer, steps)
    return Vote(locator=locator, step=step, evidence=evidence)


def _find(solution: str, answer: str, steps: Sequence[str]) -> tuple[int | None, str]:
    right = quantities.calculations(solution)
    known = values(right)
    made = [(index, c) for index, step in enumerate(steps) for c in quantities.calculations(step)]
    if not known or not made:
        return None, "no right solution with values" if not known else "no calculation to compare"
    wanted = quantities.numbers(answer)[:1]
    known |= {*wanted}
    for place, (index, calculation) in enumerate(made):
        if not among(calculation.result, known) and not _rejoins(calculation.result, made[place + 1 :], known):
            outside = f"{calculation.result:g} is no value of the right solution"
            needed = any(calculation.operators & c.operators for c in right)
            if (calculation.holds or not needed) and (item := kinds.ordered_by(steps, index)) is not None:
                return item, f"orders step {index + 1}, where {outside}"
            return index, outside
    return _stopped(steps, made, wanted) or (None, "every value is that of a right solution")


def _stopped(steps: Sequence[str], made: Sequence[tuple[int, Calculation]], wanted: Sequence[float]) -> tuple[int, str] | None:
    """A solution whose values are all right, and whose answer is one of them, goes wrong where it takes that one for the answer.

    That is the first step after the value's that does not compute anything: what is computed there is right.
    """
    extracted = grading.extract("".join(steps), loose=True)
    computing = {index for index, _ in made}
    for number in quantities.numbers(extracted.answer)[:1] if extracted else []:
        value = next((index for index, c in made if same(c.result, number)), len(steps))
        index = next((index for index in range(value + 1, len(steps)) if index not in computing), None)
        if index is not None and not among(number, wanted):
            return index, f"takes {number:g}, a value on the way, for the answer"
    return None


def _rejoins(value: float, later: Sequence[tuple[int, Calculation]], known: frozenset[float]) -> bool:
    """Whether a later calculation with this value as an operand comes to a value of the reference."""
    return any(any(same(value, operand) for operand in c.operands) and among(c.result, known) for _, c in later)
