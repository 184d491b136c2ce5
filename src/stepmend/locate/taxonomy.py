"""The error class of a faulty step, by rules over its calculations and those of a right solution: the reference's, or full precision's.

The rules give a class only if they are certain, otherwise None (LLM judges may then decide). Classes: see records.ErrorClass.
"""

import re
import zlib
from collections.abc import Iterable, Sequence

from stepmend import grading
from stepmend.locate import equations, kinds, quantities, reference, steps
from stepmend.locate.quantities import Calculation, same
from stepmend.locate.steps import Equation
from stepmend.records import ErrorClass, Problem, Trace

VERSION = "taxonomy-2"
NUMBER = re.compile(r"\d+(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?")
LOOP = 0.25
"""A text that compresses to less than this share of its length repeats itself."""
ENOUGH, NEAR = 200, 500
"""Characters that a text needs for that to mean something, and in which the loop must have started."""


def classify(
    problem: Problem, trace: Trace, span: tuple[int, int] | None, chosen: str | None, continuation: str | None, *, worked: bool = False
) -> ErrorClass | None:
    """The class of the faulty step, or None if no rule is sure.

    Args:
        problem: The question.
        trace: The failed trace.
        span: The faulty step's place in it; None if there is no step to name.
        chosen: Full precision's right step from there on.
        continuation: What follows that.
        worked: Whether the problem's worked solution may be examined; else the right calculations are full precision's.

    No answer is ``degenerate`` if no step is named, or if the text from the step on loops.
    """
    answered = grading.extract(trace.text, loose=trace.finish == "stop") is not None
    if not answered and (span is None or _loops(trace.text[span[0] :])):
        return "degenerate"
    if span is None:
        return None
    if kinds.written(trace.text) == "steps":
        return _of_format(problem.question, trace.text, span, (chosen or "") + (continuation or ""))
    solutions = [problem.solution] if worked else []
    solutions += [trace.text[: span[0]] + chosen + (continuation or "")] if chosen else []
    return _of_free(problem.question, trace.text, span, [right for text in solutions if (right := quantities.calculations(text))])


def _loops(text: str) -> bool:
    near = text[:NEAR]
    return len(near) >= ENOUGH and len(zlib.compress(near.encode())) < LOOP * len(near)


def _of_free(question: str, text: str, span: tuple[int, int], solutions: Sequence[Sequence[Calculation]]) -> ErrorClass | None:
    """The class of a step of free text, given the calculations of one or more correct solutions.

    A calculation that does not hold is ``computational``. An operation that the right solutions use on none of these operands, or another
    one on operands that belong together, is ``procedural``, and so is the item of a plan that orders what one of them does not need. What
    is left takes a number that is neither given nor computed, or the wrong one of those, leaves one out, or stops on the way:
    ``contextual_oversight``.
    """
    faulty = text[slice(*span)]
    made = quantities.calculations(faulty)
    if any(not c.holds for c in made) or any(not claim.holds for claim in equations.claims(faulty)):
        return "computational"
    if not solutions:
        return None
    if not made:
        ordered = next((sign for sign, command in kinds.COMMANDS.items() if command.match(kinds.body(faulty))), None)
        needed = all(any(ordered in c.operators for c in right) for right in solutions)
        return "procedural" if ordered and not needed else "contextual_oversight"
    right = [c for solution in solutions for c in solution]
    known = [*quantities.numbers(question), *quantities.worded(question), *_results(text[: span[0]])]
    suspicious = next((c for c in made if not reference.among(c.result, [r.result for r in right])), made[0])
    if any(_alike(suspicious, c) and suspicious.operators != c.operators for c in right):
        return "procedural"
    if not all(reference.among(operand, known) or operand in SMALL for operand in suspicious.operands):
        return "contextual_oversight"
    used = [c.operators for c in right if any(reference.among(operand, c.operands) for operand in suspicious.operands)]
    return "contextual_oversight" if any(suspicious.operators & signs for signs in used) else "procedural"


SMALL = (1, 2, 100)
"""Numbers that a calculation may use although they are not given."""


def _results(text: str) -> list[float]:
    return [c.result for c in quantities.calculations(text)]


def _alike(one: Calculation, other: Calculation) -> bool:
    """Whether two calculations have the same operands, in any order."""
    return len(one.operands) == len(other.operands) and all(
        same(a, b) for a, b in zip(sorted(one.operands), sorted(other.operands), strict=True)
    )


def _of_format(question: str, text: str, span: tuple[int, int], right_text: str) -> ErrorClass | None:
    """The class of a step in the step format, whose steps are equations of two operands.

    Of what fits, the first of the design's order (Conceptual, Method, Execution): a number that is neither given nor computed, a given
    one that is never used, or an answer before all is done, is ``contextual_oversight``; the right numbers under another operation, or
    in a wrong order, ``procedural``; the right operation with a wrong result ``computational``; an equation that is not written as
    one, ``symbolic_manipulation``.
    """
    faulty = text[slice(*span)]
    false = any(not claim.holds for claim in equations.claims(faulty))
    mine, right = steps.equations(faulty), steps.equations(right_text)
    if len(mine) == 1 and right:
        given, results = _numbers(question), {e.result for e in steps.equations(text[: span[0]])}
        known = given | results
        ready = [e for e in right if {e.left, e.right} <= known]
        later = _operands(steps.equations(text[span[1] :]))
        skipped = (_operands(ready) & given) - results - _operands(mine)
        return _of_equation(mine[0], ready, known, overlooked=bool(skipped) and not skipped & later, false=false)
    if false:
        return "computational"
    if not right:
        return None
    if "\\boxed" in faulty:
        return "contextual_oversight"
    return "symbolic_manipulation" if not mine and re.search(r"\d\s*[-+*/=]|[-+*/=]\s*\d", faulty) else None


def _of_equation(mine: Equation, ready: Iterable[Equation], known: set[float], *, overlooked: bool, false: bool) -> ErrorClass | None:
    """The class of a step that is one equation; ``ready`` are right steps that could be taken at its place."""
    alike = [e for e in ready if sorted((e.left, e.right)) == sorted((mine.left, mine.right))]
    if any(e.op == mine.op and (e.left == mine.left or e.op in "+*") for e in alike):
        return "computational" if false else None
    if alike:
        return "procedural"
    if not {mine.left, mine.right} <= known or overlooked:
        return "contextual_oversight"
    return "procedural"


def _numbers(text: str) -> set[float]:
    return {float(found.replace(",", "")) for found in NUMBER.findall(text)}


def _operands(of: Iterable[Equation]) -> set[float]:
    return {operand for e in of for operand in (e.left, e.right)}
