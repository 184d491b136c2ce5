"""One held-out problem of each error class: every arm's solution, with the fault, the votes on it, and each token's margin."""

from dataclasses import dataclass

from stepmend.arms import FULL
from stepmend.locate import steps
from stepmend.records import Fault
from stepmend.report.summary import Found, final


@dataclass(frozen=True)
class Token:
    """A token of a step, or the part of it that is in the step."""

    text: str
    margin: float
    frontier: bool


@dataclass(frozen=True)
class Step:
    """A step of a solution; ``tokens`` only in a solution that failed."""

    text: str
    faulty: bool
    tokens: list[Token]


@dataclass(frozen=True)
class Column:
    """One arm's solution."""

    arm: str
    outcome: str
    reason: str | None
    extracted: str | None
    steps: list[Step]


@dataclass(frozen=True)
class Vote:
    """A locator's vote, the step counted from 1."""

    locator: str
    step: int | None
    evidence: str


@dataclass(frozen=True)
class Example:
    """A problem of an error class; ``reference`` is what full precision writes at the frontier."""

    error_class: str
    question: str
    answer: str
    level: str
    votes: list[Vote]
    chosen: str | None
    reference: str | None
    columns: list[Column]


@dataclass(frozen=True)
class Examples:
    """One scheme's problems."""

    scheme: str
    examples: list[Example]


def figures(found: Found) -> list[Examples]:
    """Every scheme that was measured."""
    return [Examples(scheme, _examples(found, scheme)) for scheme in found.measured]


def _examples(found: Found, scheme: str) -> list[Example]:
    """One problem of each class: one that was restored where there is one, else one that was not."""
    restored, test = final(found, scheme), {p.id for p in found.test}
    faults = [f for f in found.faults.get(scheme, {}).values() if f.problem in test]
    rescued = {f.problem for f in faults if restored and found.solves(restored, f.problem)}
    chosen: dict[str, Fault] = {}
    for fault in sorted(faults, key=lambda f: f.problem not in rescued):
        chosen.setdefault(fault.error_class or "not classified", fault)
    arms = [FULL, scheme, *([restored] if restored else [])]
    return [_example(found, name, fault, arms) for name, fault in sorted(chosen.items())]


def _example(found: Found, name: str, fault: Fault, arms: list[str]) -> Example:
    problem = found.problems[fault.problem]
    return Example(
        name,
        question=problem.question,
        answer=problem.answer,
        level=problem.level,
        votes=[Vote(v.locator, None if v.step is None else v.step + 1, v.evidence) for v in fault.votes],
        chosen=fault.chosen,
        reference=fault.reference,
        columns=[_column(found, arm, fault) for arm in arms],
    )


def _column(found: Found, arm: str, fault: Fault) -> Column:
    """One arm's solution: its steps; in the arm that failed, tokens with their margins and the fault marked."""
    faulty = fault if arm == fault.arm else found.faults.get(arm, {}).get(fault.problem)
    solution = found.solution(arm, fault.problem, faulty.sample) if faulty else found.first(arm, fault.problem, right=True)
    trace, grade = solution
    rows = []
    for begin, end in steps.split(trace.text):
        marked = faulty is not None and faulty.span is not None and begin <= faulty.span[0] < end  # as today's rules cut it
        tokens = _tokens(trace.text, faulty, begin, end) if faulty is not None and faulty.token_ends else []
        rows.append(Step(trace.text[begin:end], marked, tokens))
    return Column(arm, grade.outcome, grade.reason, grade.extracted, rows)


def _tokens(text: str, fault: Fault, begin: int, end: int) -> list[Token]:
    """The tokens of one step; of a token that two steps share, each has its part."""
    found, last = [], 0
    for index, stop in enumerate(fault.token_ends):
        if last < end and max(begin, last) < stop:
            found.append(Token(text[max(begin, last) : min(stop, end)], fault.margins[index], index == fault.frontier))
        last = stop
    return found
