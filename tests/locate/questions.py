"""A question to a judge, and what a judge may answer."""

import json

from stepmend.locate.judges import Question

SECRET = "sk-test-Zq8nothing-to-see-here"


def question(number: int, steps: int = 4) -> Question:
    return Question(f"Problem {number}: what is it?", str(number), tuple(f"Step {k}: so it goes\n" for k in range(steps)))


def said(step: int | None, error_class: str | None = None, reason: str = "because") -> str:
    """A judge's answer; the step is numbered from 1."""
    return json.dumps({"first_faulty_step": step, "error_class": error_class, "reason": reason})
