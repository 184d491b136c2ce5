"""Every arm solves the same problems; solutions are saved as they end, and graded while others are generated.


With sampling (``measure.temperature``), every problem has ``measure.samples`` solutions. The n-th solution of a problem does not depend on
their number: more can be generated later, and existing ones are kept.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from stepmend import grading
from stepmend.arms import AGAIN, FULL
from stepmend.context import Context
from stepmend.engines.named import Spec
from stepmend.executors.base import Open
from stepmend.keeping import Grades, Keeper
from stepmend.measure import statistics
from stepmend.records import Problem, Trace, digest

APART = 1 << 20
"""Offset of the noise floor's seed from the recipe's."""


class Solutions(Mapping[str, Trace]):
    """An arm's first solution of every problem, by problem id; ``samples`` are all of them, sample by sample."""

    def __init__(self, samples: Sequence[Mapping[str, Trace]]) -> None:
        self.samples = samples

    def __getitem__(self, problem: str) -> Trace:
        return self.samples[0][problem]

    def __iter__(self) -> Iterator[str]:
        return iter(self.samples[0])

    def __len__(self) -> int:
        return len(self.samples[0])


class _Chosen(Mapping[str, Trace]):
    """One solution of every problem, by its number, read on access."""

    def __init__(self, of: Solutions, numbers: Mapping[str, int]) -> None:
        self.of, self.numbers = of, numbers

    def __getitem__(self, problem: str) -> Trace:
        return self.of.samples[self.numbers[problem]][problem]

    def __iter__(self) -> Iterator[str]:
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)


def solve(context: Context, arm: str, problems: Sequence[Problem], split: str, *, samples: int | None = None) -> Solutions:
    """The solutions of one arm, read on access; missing ones are generated, graded and saved.

    ``samples`` is their number per problem; None is the recipe's.
    """
    texts, ids = [context.prompt_of(problem) for problem in problems], [problem.id for problem in problems]
    size, digests = _inputs(context, arm, texts, ids, samples)
    graded_by = [digest("grade", made_by, grading.VERSION) for made_by in digests]
    for n, (made_by, by) in enumerate(zip(digests, graded_by, strict=True)):
        number = f", sample {n + 1}" if n else ""
        context.dir.announce(f"{arm}: traces, {split}{number}", made_by)
        context.dir.announce(f"{arm}: grades, {split}{number}", by)
    done = [context.dir.of(Trace, made_by) for made_by in digests]
    grades = Grades(context.dir, context.verifier, graded_by, problems)
    asked = [(n, problem) for n in range(len(digests)) for problem in ids]
    had = {i for i, (n, problem) in enumerate(asked) if problem in done[n]}
    what = "problems" if len(digests) == 1 else "solutions"
    with context.stages.stage(f"{arm}: solve {split}", len(asked), what, len(had)) as tick, grades:
        grades.add(done[n][problem] for n, problem in asked if problem in done[n] and (n, problem) not in grades.done)
        if len(had) < len(asked):
            with Keeper[Trace](lambda fresh: (context.dir.append(fresh), grades.add(fresh))) as keep:
                shard = Shard(
                    engine=context.spec(arm, size), arm=arm, made_by=digests, texts=texts, ids=ids, done=frozenset(had),
                    opening=context.form.opening, **_drawn(context, arm),
                )  # fmt: skip
                for trace in context.executor(arm, tick).map(write, [shard]):
                    keep(trace)
                    tick(1)
    for made_by in digests:
        context.dir.settle(Trace, made_by, ids)
    settled = grades.settled()
    context.graded |= {(arm, grade.problem): grade for grade in settled if not grade.sample}
    context.drawn |= {(arm, grade.problem, grade.sample): grade for grade in settled if grade.sample}
    return Solutions(done)


class Shard(BaseModel):
    """Problems that one engine solves: texts and ids of all of a stage, and the indices of solutions that are ``done``, or others' to do.

    ``made_by`` holds the digest of every sample; the solutions are those of all problems, sample by sample. Every shard of a stage knows
    all its texts, so that an engine cuts them into the same batches, and draws the same samples. Traces keep ``opening``, the start of
    a thought that the texts end in.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: Spec
    arm: str
    made_by: Sequence[str]
    texts: Sequence[str]
    ids: Sequence[str]
    done: frozenset[int] = frozenset()
    opening: str = ""
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


def write(shard: Shard, open_engine: Open) -> Iterator[Trace]:
    """The traces of a shard, as they end."""
    texts, drawn = list(shard.texts) * len(shard.made_by), {"temperature": shard.temperature, "top_p": shard.top_p, "seed": shard.seed}
    for i, c in open_engine(shard.engine).generate(texts, done=shard.done, **drawn):
        n, problem = divmod(i, len(shard.ids))
        made: dict[str, Any] = {"problem": shard.ids[problem], "arm": shard.arm, "made_by": shard.made_by[n]}
        yield Trace(**made, sample=n, opening=shard.opening, text=c.text, tokens=c.tokens, finish=c.finish)


def is_solved(context: Context, arm: str, problems: Sequence[Problem]) -> bool:
    """Whether the run holds all solutions of these problems, as the arm's checkpoint would make them."""
    texts, ids = [context.prompt_of(problem) for problem in problems], [problem.id for problem in problems]
    done = [context.dir.of(Trace, made_by) for made_by in _inputs(context, arm, texts, ids)[1]]
    return all(problem in of for of in done for problem in ids)


def _inputs(
    context: Context, arm: str, texts: Sequence[str], ids: Sequence[str], samples: int | None = None
) -> tuple[int, list[str]]:  # fmt: skip
    """The number of slots that an arm solves in, and of every sample the digest of all its inputs."""
    measure = context.recipe.measure
    size = max(1, min(context.batch_size, len(texts)) * 2 // 3) if arm == AGAIN else context.batch_size
    opening = [context.form.opening] if context.form.opening else []
    of = arm, context.digest(arm), *context.where(), texts, context.max_new_tokens, size, ids, *opening, *context.written_by(arm)
    if not measure.temperature:
        return size, [digest("solve", *of)]
    drawn = _drawn(context, arm)
    return size, [digest("solve", *of, drawn, n) for n in range(samples or measure.samples)]


def _drawn(context: Context, arm: str) -> dict[str, Any]:
    """How solutions are drawn, if they are; those of the noise floor by other random numbers."""
    measure = context.recipe.measure
    if not measure.temperature:
        return {}
    return {"temperature": measure.temperature, "top_p": measure.top_p, "seed": context.recipe.seed + APART * (arm == AGAIN)}


def outcomes(context: Context, problems: Sequence[Problem], arm: str) -> statistics.Samples:
    """Right or not, in the order of the problems, [problems]; of several solutions each, [problems, samples]. Unscored is not right."""
    samples = [[_is_right(context, arm, p.id, n) for p in problems] for n in range(context.recipe.measure.samples)]
    return np.array(samples[0] if len(samples) == 1 else samples, dtype=bool).T


def _is_right(context: Context, arm: str, problem: str, number: int) -> bool:
    grade = context.drawn[arm, problem, number] if number else context.graded[arm, problem]
    return grade.outcome == "correct"


def solved(context: Context, problems: Sequence[Problem], arm: str) -> statistics.Outcomes:
    """Whether an arm solves each problem, that is, most of its solutions are correct."""
    return statistics.majority(outcomes(context, problems, arm))


def regressions(context: Context, arm: str, problems: Sequence[Problem]) -> list[Problem]:
    """Problems that full precision solves and the arm does not."""
    full, other = solved(context, problems, FULL), solved(context, problems, arm)
    return [problem for problem, lost in zip(problems, full & ~other, strict=True) if lost]


def shown(context: Context, arm: str, traces: Mapping[str, Trace], *, right: bool) -> Mapping[str, Trace]:
    """Of each problem's solutions in ``traces``, which ``solve`` gave, the first that is right, or that is not; else the first one."""
    if not isinstance(traces, Solutions) or len(traces.samples) == 1:
        return traces

    def number(problem: str) -> int:
        fitting = (n for n in range(len(traces.samples)) if _is_right(context, arm, problem, n) == right)
        return next(fitting, 0)

    return _Chosen(traces, {problem: number(problem) for problem in traces})
