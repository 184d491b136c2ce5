"""What counts of a run's records, as reports need it: records of every arm, by problem and sample."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from stepmend.arms import FULL, Arm
from stepmend.facts import Facts, Tuned
from stepmend.measure import statistics
from stepmend.recipe import Recipe
from stepmend.records import Bullet, Fault, Grade, InputError, Made, Problem, Trace
from stepmend.store import manifest
from stepmend.store.folder import check_files, file_of, read_facts
from stepmend.store.log import Log, MadeLog

T = TypeVar("T", bound=Made)


@dataclass(frozen=True)
class Found:
    """All that counts of what a run kept; records of an arm by problem id, ``test`` the held-out problems.

    ``traces`` and ``grades`` are those of each problem's first solution; ``drawn`` those of the further ones, sample by sample.
    """

    recipe: Recipe
    facts: Facts
    problems: dict[str, Problem]
    traces: dict[str, Mapping[str, Trace]]
    grades: dict[str, Mapping[str, Grade]]
    faults: dict[str, Mapping[str, Fault]]
    bullets: dict[str, list[Bullet]]
    drawn: Mapping[str, Sequence[tuple[Mapping[str, Trace], Mapping[str, Grade]]]] = field(default_factory=dict)

    @property
    def test(self) -> list[Problem]:
        return [problem for problem in self.problems.values() if problem.split == "test"]

    @property
    def arms(self) -> list[str]:
        """Arms that were measured, in the order of the recipe: full, then each scheme and its restored twins, round by round."""
        order = [FULL, *(name for scheme in self.recipe.low_bit for name in (scheme, *self.restored(scheme)))]
        solved = {arm: self.solved(arm) for arm in order}
        refused = {arm for arm in order if (tuned := self.facts.get(Tuned, arm)) and not tuned.accepted}  # the quantized model, unchanged
        return [arm for arm in order if self.test and arm not in refused and all(p.id in solved[arm] for p in self.test)]

    @property
    def measured(self) -> list[str]:
        """The schemes of the recipe whose quantized arm was measured."""
        return [scheme for scheme in self.recipe.low_bit if scheme in self.arms]

    @property
    def levels(self) -> list[str]:
        """The levels of the held-out problems, where there are several: one alone says the same as all."""
        found = list(dict.fromkeys(p.level for p in self.test))
        return found if len(found) > 1 else []

    def restored(self, scheme: str) -> list[str]:
        """The restored arms that the recipe asks for, one a round."""
        return [str(Arm(scheme).restored(number)) for number in range(1, self.recipe.restore.rounds + 1)]

    @property
    def samples(self) -> int:
        """Solutions of each problem."""
        return self.recipe.measure.samples

    def solved(self, arm: str) -> Set[str]:
        """The problems of which an arm has all its solutions."""
        parts = [(self.traces.get(arm, {}), self.grades.get(arm, {})), *self.drawn.get(arm, ())]
        found = [traces.keys() & grades.keys() for traces, grades in parts[: self.samples]]
        return set[str]().union(*found[:1]).intersection(*found) if len(found) == self.samples else set()

    def outcomes(self, arm: str, level: str | None = None, subject: str | None = None) -> statistics.Samples:
        """Right or not on the held-out problems, of one level or subject or of all: [problems], or [problems, samples] of several."""
        chosen = [p for p in self.test if level in (None, p.level) and subject in (None, p.subject)]
        columns = [[self.grade(arm, p.id, n).outcome == "correct" for p in chosen] for n in range(self.samples)]
        return np.array(columns[0] if len(columns) == 1 else columns, dtype=bool).T

    def solves(self, arm: str, problem: str) -> bool:
        """Whether most of an arm's solutions of a problem are right."""
        right = [self.grade(arm, problem, n).outcome == "correct" for n in range(self.samples)]
        return 2 * sum(right) > len(right)

    def grade(self, arm: str, problem: str, number: int = 0) -> Grade:
        """The grade of an arm's solution of a problem."""
        return (self.drawn[arm][number - 1][1] if number else self.grades[arm])[problem]

    def solution(self, arm: str, problem: str, number: int = 0) -> tuple[Trace, Grade]:
        """An arm's solution of a problem, with its grade."""
        traces = self.drawn[arm][number - 1][0] if number else self.traces[arm]
        return traces[problem], self.grade(arm, problem, number)

    def trace(self, arm: str, problem: str, number: int = 0) -> Trace | None:
        """An arm's solution of any problem, curate problems included; None where the run has none."""
        drawn = self.drawn.get(arm, ())
        traces = self.traces.get(arm, {}) if not number else drawn[number - 1][0] if number <= len(drawn) else {}
        return traces.get(problem)

    def first(self, arm: str, problem: str, *, right: bool) -> tuple[Trace, Grade]:
        """The first of an arm's solutions of a problem that is right, or that is not; else the first of all."""
        found = (self.solution(arm, problem, n) for n in range(self.samples))
        return next((one for one in found if (one[1].outcome == "correct") == right), self.solution(arm, problem))

    def solutions(
        self, arm: str, problems: Sequence[Problem] | None = None, number: int | None = None
    ) -> list[tuple[Problem, Trace, Grade]]:
        """An arm's solutions of these problems, or of all held-out ones: those of one number, or all, problem by problem."""
        chosen, numbers = self.test if problems is None else problems, range(self.samples) if number is None else [number]
        return [(problem, *self.solution(arm, problem.id, n)) for problem in chosen for n in numbers]


def read(folder: Path) -> Found:
    """Read a run's folder. Raises InputError where it holds no run, or none that has measured anything yet."""
    if not (folder / "recipe.json").exists():
        raise InputError(f"run: {folder} holds no run (there is no recipe.json); 'stepmend run --out {folder}' makes one")
    check_files(folder, "run")
    try:
        found = _read(folder)
    except (ValueError, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"run: {folder} is damaged ({' '.join(str(error).split())[:120]}); 'stepmend run' makes it again") from None
    if FULL not in found.arms:
        raise InputError(f"run: {folder} has not measured anything yet, or is damaged; 'stepmend run --out {folder}' continues it")
    return found


def _read(folder: Path) -> Found:
    stages = manifest.read(folder)
    counts = None if stages is None else frozenset(stages.values())
    facts = [fact for fact in read_facts(folder, keep=False) if counts is None or fact.get("made_by", "") in counts | {""}]
    traces, grades = _by_sample(folder, Trace, counts), _by_sample(folder, Grade, counts)
    drawn = {arm: list(zip(traces[arm][1:], grades.get(arm, [])[1:], strict=False)) for arm in traces}
    first = {arm: of[0] for arm, of in grades.items()}
    return Found(
        Recipe.from_json(folder / "recipe.json"),
        Facts(facts),
        {problem.id: problem for problem in Log(file_of(folder, Problem), Problem, keep=False)},
        {arm: of[0] for arm, of in traces.items()},
        first,
        _unsolved(_by_arm(folder, Fault, counts), first),
        {arm: list(of.values()) for arm, of in _by_arm(folder, Bullet, counts).items()},
        drawn,
    )


def _by_arm(folder: Path, kind: type[T], counts: Set[str] | None) -> dict[str, Mapping[str, T]]:
    """Records by arm and problem, those of the digests that count; all of an earlier version's run, of which the last ones count."""
    log, digests = MadeLog(file_of(folder, kind), kind, keep=False), dict[str, list[str]]()
    for made_by, arm in log.digests.items():
        if counts is None or made_by in counts:
            digests.setdefault(arm, []).append(made_by)
    return {arm: log.of(*of) for arm, of in digests.items()}


def _by_sample(folder: Path, kind: type[T], counts: Set[str] | None) -> dict[str, list[Mapping[str, T]]]:
    """Records by arm, sample and problem, of the digests that count; a digest is of one sample."""
    log, digests = MadeLog(file_of(folder, kind), kind, keep=False), dict[str, dict[int, list[str]]]()
    for made_by, arm in log.digests.items():
        if counts is None or made_by in counts:
            sample = next((record.sample for record in log.of(made_by).values()), 0)
            digests.setdefault(arm, {}).setdefault(sample, []).append(made_by)
    return {arm: [log.of(*of.get(n, ())) for n in range(max(of) + 1)] for arm, of in digests.items()}


def _unsolved(faults: Mapping[str, Mapping[str, Fault]], grades: Mapping[str, Mapping[str, Grade]]) -> dict[str, Mapping[str, Fault]]:
    """Without the faults that a model of another checkpoint under the same name no longer has."""
    right = {arm: {p for p, grade in of.items() if grade.outcome == "correct"} for arm, of in grades.items()}
    return {arm: {p: fault for p, fault in of.items() if fault.sample or p not in right.get(arm, ())} for arm, of in faults.items()}
