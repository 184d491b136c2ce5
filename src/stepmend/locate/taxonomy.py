"""The error class of a faulty step, by rules over its equation and full precision's own steps from the same place on.

The rules speak only where they are sure; what they cannot tell is None (LLM judges are for that). Classes: see records.ErrorClass.
"""

import re
from collections.abc import Iterable

from stepmend import grading
from stepmend.locate import equations, steps
from stepmend.locate.steps import Equation
from stepmend.records import ErrorClass, Trace

NUMBER = re.compile(r"\d+(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?")


def classify(question: str, trace: Trace, span: tuple[int, int] | None, chosen: str | None, continuation: str | None) -> ErrorClass | None:
    """``span`` is the faulty step's place in the trace; ``chosen`` and ``continuation`` are full precision's right ones from there on.

    No answer at all is ``degenerate``. Else, of what fits, the first of the design's order (Conceptual, Method, Execution): a number
    that is neither given nor computed, a given one that is never used, or an answer before all is done, is ``contextual_oversight``;
    the right numbers under another operation, or in a wrong order, ``procedural``; the right operation with a wrong result
    ``computational``; an equation that is not written as one, ``symbolic_manipulation``.
    """
    if grading.extract(trace.text, loose=trace.finish == "stop") is None:
        return "degenerate"
    if span is None:
        return None
    faulty = trace.text[slice(*span)]
    false = any(not claim.holds for claim in equations.claims(faulty))
    mine, right = steps.equations(faulty), steps.equations((chosen or "") + (continuation or ""))
    if len(mine) == 1 and right:
        given, results = _numbers(question), {e.result for e in steps.equations(trace.text[: span[0]])}
        known = given | results
        ready = [e for e in right if {e.left, e.right} <= known]
        later = _operands(steps.equations(trace.text[span[1] :]))
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
