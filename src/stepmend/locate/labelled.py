"""The whole vote, or one locator, on labelled solutions: ``stepmend bench locate``, without a run's folder, and resumable.

Solutions are split by our own steps. A named step is exact if it holds the middle of the labelled one, and no second calculation.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from stepmend import grading, inputs
from stepmend.grading import verify
from stepmend.locate import calibration, kinds, locators, quantities, reliability, taxonomy
from stepmend.locate.bench import Solution
from stepmend.locate.calibration import Observation
from stepmend.locate.locators import Case
from stepmend.locate.vote import vote
from stepmend.measure import statistics
from stepmend.records import Fault, InputError, Problem, Record, Trace, digest
from stepmend.rundir import append_lines, appending, write_text

T = TypeVar("T", bound=Record)


@dataclass(frozen=True)
class Labelled:
    """A labelled solution as the locators see it, with where the labels lie among our steps.

    Attributes:
        solution: The record.
        problem: Its problem.
        case: Its text as a failed trace, split by our rules.
        truth: Our step that holds the middle of the labelled one; None if none is faulty.
        also: Our steps that hold the middle of another defensible label.
    """

    solution: Solution
    problem: Problem
    case: Case
    truth: int | None
    also: frozenset[int]

    @classmethod
    def of(cls, solution: Solution, prompt: str = "", tokens: tuple[int, ...] = (), full: Trace | None = None) -> "Labelled":
        """``prompt`` and ``tokens`` are the question and the text as the models read them, ``full`` full precision's own solution."""
        problem = _problem(solution)
        finish = "length" if solution.cut_off else "stop"
        trace = Trace(problem=problem.id, arm="labelled", made_by="", text=solution.text, tokens=tokens, finish=finish)
        case = locators.make_case(prompt, trace, full)

        def ours(label: int) -> int:
            found = locators.step_of(case.spans, solution.middle(label))
            assert found is not None
            return found

        truth = None if solution.label is None else ours(solution.label)
        return cls(solution, problem, case, truth, frozenset(map(ours, solution.also)))

    def single(self, step: int) -> bool:
        """Whether a step of ours holds at most one labelled step with a calculation."""
        start, end = self.case.spans[step]
        middles = [self.solution.middle(i) for i, text in enumerate(self.solution.steps) if quantities.calculations(text)]
        return sum(start <= middle < end for middle in middles) <= 1

    def exact(self, step: int | None) -> bool:
        """Whether a named step is the labelled one, and says so to one calculation."""
        return step is not None and step == self.truth and self.single(step)

    def observation(self, fault: Fault) -> Observation:
        """What its fault's votes say, for fitting."""
        return Observation(self.solution.group, tuple(kinds.kinds(self.case.steps)), fault.votes, self.truth)


def _problem(solution: Solution) -> Problem:
    benchmark = solution.benchmark
    return Problem(
        id=f"{benchmark}-{digest(solution.problem, solution.text)}",
        benchmark=benchmark,
        split="curate",
        level="all",
        question=solution.problem,
        answer=solution.answer,
        solution=solution.worked,
    )


class Log:
    """A folder with one append-only file per kind of record; a line that a crash cut is left out, and its content is generated again."""

    def __init__(self, folder: Path) -> None:
        """Raises InputError if there is something else of that name."""
        if folder.exists() and not folder.is_dir():
            raise InputError(f"out: {folder} is a file; a folder is needed")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder

    def load(self, kind: type[T]) -> list[T]:
        """All whole records of a kind."""
        found, file = [], self._file(kind)
        for line in inputs.content(file).splitlines() if file.exists() else []:
            with suppress(ValidationError):
                found.append(kind.model_validate_json(line))
        return found

    def append(self, records: Sequence[Record]) -> None:
        """Write records of one kind after the others, and flush them to disk."""
        if not records:
            return
        file = self._file(type(records[0]))
        torn = file.exists() and file.stat().st_size and not file.read_bytes().endswith(b"\n")
        with appending(file) as stream:
            if torn:
                stream.write(b"\n")  # closes a line that a crash cut
            append_lines(stream, records)

    def _file(self, kind: type[Record]) -> Path:
        return self.folder / f"{kind.__name__.lower()}s.jsonl"


def figures(labelled: Sequence[Labelled], found: Sequence[Fault]) -> dict[str, Any]:
    """How right the named steps are.

    ``exact`` counts named steps that are the labelled one, and ``also`` those and the other defensible ones; ``early`` and ``late`` lie
    before and after the labelled one, and ``alarms`` are solutions without a fault in which a step is named. ``classes`` are right ones
    over those that the labels give, at the named step if it is exact, and at the labelled step whatever was named. ``completions`` and
    ``tokens`` are rescue's cost.
    """
    pairs = list(zip(labelled, found, strict=True))
    faulty = [(one, fault) for one, fault in pairs if one.truth is not None]
    named = [(one, fault) for one, fault in faulty if fault.step is not None]
    classed = [(one, fault) for one, fault in named if one.solution.error_class and one.exact(fault.step)]
    return {
        "n": len(pairs),
        "faulty": len(faulty),
        "named": len(named),
        "exact": sum(one.exact(fault.step) for one, fault in named),
        "also": sum(one.exact(fault.step) or fault.step in one.also for one, fault in named),
        "early": sum(_before(fault.step, one.truth) for one, fault in named),
        "late": sum(_before(one.truth, fault.step) for one, fault in named),
        "alarms": sum(fault.step is not None for one, fault in pairs if one.truth is None),
        "outcomes": {name: sum(fault.outcome == name for fault in found) for name in ("located", "abstained", "misread", "unrescuable")},
        "classes": {
            "labelled_step": _classes([(one, at_label(one)) for one, _ in faulty]),
            "exact_step": _classes([(one, fault.error_class) for one, fault in classed]),
            "given": sum(fault.error_class is not None for _, fault in named),
        },
        "completions": sum(fault.spent[0] for fault in found),
        "tokens": sum(fault.spent[1] for fault in found),
    }


def _before(one: int | None, other: int | None) -> bool:
    return one is not None and other is not None and one < other


def at_label(one: Labelled) -> str | None:
    """The class that the rules give the labelled step, with the worked solution and full precision's own."""
    if one.truth is None:
        return None
    right = one.case.full.text if one.case.full else None
    return taxonomy.classify(one.problem, one.case.trace, one.case.spans[one.truth], right, None, worked=True)


def _classes(pairs: Sequence[tuple[Labelled, str | None]]) -> dict[str, int]:
    with_label = [(one.solution.error_class, mine) for one, mine in pairs if one.solution.error_class]
    return {
        "right": sum(label == mine for label, mine in with_label),
        "given": sum(m is not None for _, m in with_label),
        "n": len(with_label),
    }


def alone(fault: Fault, locator: str) -> Fault:
    """A fault as one locator's vote has it, whatever its reliability."""
    own = next((v for v in fault.votes if v.locator == locator), None)
    return fault.model_copy(update={"step": own.step if own else None, "confidence": own.confidence if own else None})


def without(
    labelled: Sequence[Labelled], found: Sequence[Fault], locator: str, threshold: float, rates: reliability.Reliabilities
) -> list[Fault]:
    """The faults as the vote has them where one locator says nothing."""
    changed = []
    for one, fault in zip(labelled, found, strict=True):
        votes = [v for v in fault.votes if v.locator != locator]
        table = rates.table(one.problem.benchmark, kinds.written(one.case.trace.text))
        step, confidence = vote(votes, kinds.kinds(one.case.steps), table, threshold)
        changed.append(fault.model_copy(update={"step": step, "confidence": confidence}))
    return changed


def text(of: dict[str, Any]) -> list[str]:
    """The figures in words, with Wilson's 95 % intervals."""
    classes = of["classes"]["labelled_step"]
    lines = [
        f"{of['faulty']} faulty solutions: a step named in {share(of['named'], of['faulty'])}; "
        f"of those exact {share(of['exact'], of['named'])}, "
        f"defensible {share(of['also'], of['named'])}; {of['early']} earlier, {of['late']} later",
        f"{of['n'] - of['faulty']} right solutions: a step named in {of['alarms']}",
        f"error classes at the labelled step: {share(classes['right'], classes['n'])} right, {classes['given']} given",
    ]
    if of["completions"]:
        lines.append(f"rescue: {of['completions']:,} completions of {of['tokens']:,} tokens")
    return lines


def share(count: int, total: int) -> str:
    """``12 of 20: 60.0 % (38.7 to 78.1)``: a share with Wilson's 95 % interval."""
    if not total:
        return f"{count} of 0"
    of = statistics.proportion(count, total)
    percents = [f"{100 * (value or 0):.1f}" for value in (of.value, of.low, of.high)]
    return f"{count} of {total}: {percents[0]} % ({percents[1]} to {percents[2]})"


def save(labelled: Sequence[Labelled], found: Sequence[Fault], file: Path, *, shown: bool, completer: str | None) -> dict[str, int]:
    """Measure the reliabilities on these labels and write them to a file; its tables of other benchmarks are kept.

    Returns:
        The number of solutions that each written table is based on.
    """
    groups: dict[str, list[Observation]] = {}
    for one, fault in zip(labelled, found, strict=True):
        written = kinds.written(one.case.trace.text)
        for name in {one.problem.benchmark, reliability.ANY}:
            groups.setdefault(f"{name}/{written}", []).append(one.observation(fault))
    fitted = {name: calibration.fit(of) for name, of in sorted(groups.items())}
    before = reliability.read(file).tables if file.exists() else {}
    rates = reliability.Reliabilities(judges_see_answer=shown, completer=completer, tables={**before, **fitted})
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, rates.model_dump_json(indent=2) + "\n")
    return {name: len(of) for name, of in groups.items()}


def arrive(verifier: verify.Verifier) -> Callable[[Sequence[tuple[Problem, str, bool]]], Sequence[bool]]:
    """Which whole solutions end at the right answer; by benchmark, for answers of one are compared in one way."""

    def right(asked: Sequence[tuple[Problem, str, bool]]) -> list[bool]:
        found = [False] * len(asked)
        for benchmark in {problem.benchmark for problem, _, _ in asked}:
            mine = [i for i, (problem, _, _) in enumerate(asked) if problem.benchmark == benchmark]
            for i, good in zip(mine, grading.arrived([asked[i] for i in mine], verifier), strict=True):
                found[i] = good
        return found

    return right
