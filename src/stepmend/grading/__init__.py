"""Grading of traces: extract the answer, decide equality. What cannot be graded is unscored, with a reason, and never silently wrong."""

from collections.abc import Sequence
from typing import Any

from stepmend.grading import verify
from stepmend.grading.extract import VERSION, Extracted, answer_of, bare, boxed, extract
from stepmend.records import Grade, Problem, Trace

__all__ = ["VERSION", "Extracted", "answer_of", "arrived", "bare", "boxed", "extract", "gold_of", "grade_all", "judge", "kind_of"]

NUMERIC = frozenset({"story", "gsm8k", "aime", "aime25"})
"""Benchmarks whose answers are numbers."""

OUTCOMES: dict[verify.Verdict, tuple[str, str | None]] = {
    "equal": ("correct", None),
    "different": ("wrong", None),
    "timeout": ("unscored", "timeout"),
    "parser": ("unscored", "parser"),
}
"""Verdict on an answer -> outcome of the trace, and the reason if it is unscored."""


def kind_of(benchmark: str) -> verify.Kind:
    """What the answers of a benchmark are."""
    return "number" if benchmark in NUMERIC else "math"


def gold_of(text: str) -> str:
    """The answer in a gold text: that of a worked solution (``\\boxed{}``, ``####``), or else the text itself."""
    found = extract(text, loose=False, whole=True)
    return found.answer if found else text.strip()


def judge(
    found: Sequence[Extracted | None], gold: Sequence[str], kind: verify.Kind, verifier: verify.Verifier
) -> list[tuple[str, str | None]]:
    """(outcome, reason) of extracted answers against gold ones, in order; None is ``unscored (no_answer)``."""
    asked = [i for i, answer in enumerate(found) if answer is not None]
    verdicts = dict(zip(asked, verifier.decide([(found[i].answer, gold[i]) for i in asked], kind), strict=True))  # pyright: ignore
    return [OUTCOMES[verdicts[i]] if i in verdicts else ("unscored", "no_answer") for i in range(len(found))]


def arrived(asked: Sequence[tuple[Problem, str, bool]], verifier: verify.Verifier) -> list[bool]:
    """For many (problem, whole solution, whether it is finished): whether each ends at the correct answer; all of one benchmark."""
    found = [extract(text, loose=finished) for _, text, finished in asked]
    kind = kind_of(asked[0][0].benchmark) if asked else "math"
    judged = judge(found, [problem.answer for problem, _, _ in asked], kind, verifier)
    return [outcome == "correct" for outcome, _ in judged]


def grade_all(traces: Sequence[Trace], problems: Sequence[Problem], made_by: str | Sequence[str], verifier: verify.Verifier) -> list[Grade]:
    """The grades of traces of these problems. A trace without an answer is unscored (``truncated`` if it was cut off).

    ``made_by`` is the digest of all inputs of a grade: one for all, or one each.
    """
    found = [extract(trace.said, loose=trace.finish == "stop") for trace in traces]
    digests = [made_by] * len(traces) if isinstance(made_by, str) else made_by
    kind = kind_of(problems[0].benchmark) if problems else "math"
    judged = judge(found, [problem.answer for problem in problems], kind, verifier)
    return [_grade(trace, answer, *verdict, by) for trace, answer, verdict, by in zip(traces, found, judged, digests, strict=True)]


def _grade(trace: Trace, found: Extracted | None, outcome: Any, reason: str | None, made_by: str) -> Grade:
    if reason == "no_answer" and trace.finish == "length":
        reason = "truncated"
    return Grade(
        problem=trace.problem,
        arm=trace.arm,
        made_by=made_by,
        sample=trace.sample,
        outcome=outcome,
        extracted=found.answer if found else None,
        form=found.form if found else None,
        reason=reason,
    )
