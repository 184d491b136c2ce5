"""From a trace to a grade: extract the answer, decide equality."""

import re
from decimal import Decimal, InvalidOperation
from typing import Any

from stepmend.records import Grade, Problem, Trace

VERSION = "boxed-1"
"""Names the rules below; part of every grade's digest."""


def extract(text: str) -> str | None:
    """What stands in the last complete ``\\boxed{…}`` of a text, braces balanced; None where there is none."""
    for match in reversed(list(re.finditer(r"\\boxed\s*\{", text))):
        depth = 1
        for index in range(match.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[index], 0)
            if depth == 0:
                return text[match.end() : index].strip()
    return None


def equal(answer: str, gold: str) -> bool:
    """Whether two answers are the same plain number, or else the same text."""
    try:
        return Decimal(answer.replace(",", "")) == Decimal(gold.replace(",", ""))
    except InvalidOperation:
        return answer == gold


def grade(trace: Trace, problem: Problem, made_by: str) -> Grade:
    """The grade of a trace. A trace without an answer is unscored (``truncated`` where it was cut off), never silently wrong."""
    answer = extract(trace.text)
    common: dict[str, Any] = {"problem": trace.problem, "arm": trace.arm, "made_by": made_by}
    if answer is None:
        return Grade(**common, outcome="unscored", reason="truncated" if trace.finish == "length" else "no_answer")
    return Grade(**common, outcome="correct" if equal(answer, problem.answer) else "wrong", extracted=answer)
