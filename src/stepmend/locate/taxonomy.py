"""The error class of a faulty step, by rules over its equations and full precision's own step at the same place.

The rules speak only where they are sure; what they cannot tell is None (LLM judges are for that). Classes: see records.ErrorClass.
"""

from stepmend import grading
from stepmend.locate import equations, steps
from stepmend.records import ErrorClass, Trace


def classify(trace: Trace, faulty: str, chosen: str | None, continuation: str | None) -> ErrorClass | None:
    """``faulty`` is the step as the trace has it; ``chosen`` and ``continuation`` are full precision's from the same prefix.

    No answer at all is ``degenerate``. A false equation is ``computational``. The chosen operands under another operation or order,
    or a step that belongs later, is ``procedural``. Another quantity, or an answer given too early, is ``contextual_oversight``.
    """
    if grading.extract(trace.text, loose=trace.finish == "stop") is None:
        return "degenerate"
    mine = steps.equations(faulty)
    if any(not claim.holds for claim in equations.claims(faulty)):
        return "computational"
    if chosen is None:
        return None
    theirs = steps.equations(chosen)
    if not mine or not theirs:
        return "contextual_oversight" if mine or theirs or "\\boxed" in faulty else None
    if sorted((mine[0].left, mine[0].right)) == sorted((theirs[0].left, theirs[0].right)):
        return "procedural"
    return "procedural" if mine[0] in steps.equations(continuation or "") else "contextual_oversight"
