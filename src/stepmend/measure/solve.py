"""Every arm solves the same problems; its solutions are graded while others are generated, and kept as they end."""

from collections.abc import Iterator, Mapping, Sequence

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


def solve(context: Context, arm: str, problems: Sequence[Problem], split: str) -> Mapping[str, Trace]:
    """The traces of one arm on problems, by problem id, read when they are asked for; graded while others are generated, and kept."""
    texts, ids = [context.prompt_of(problem) for problem in problems], [problem.id for problem in problems]
    size, made_by = _inputs(context, arm, texts, ids)
    graded_by = digest("grade", made_by, grading.VERSION)
    context.dir.announce(f"{arm}: traces, {split}", made_by)
    context.dir.announce(f"{arm}: grades, {split}", graded_by)
    done = context.dir.of(Trace, made_by)
    grades = Grades(context.dir, context.verifier, graded_by, problems)
    with context.stages.stage(f"{arm}: solve {split}", len(problems), "problems", len(done)) as tick, grades:
        grades.add(done[problem] for problem in ids if problem in done and problem not in grades.done)
        had = {i for i, problem in enumerate(ids) if problem in done}
        if len(had) < len(problems):
            with Keeper[Trace](lambda fresh: (context.dir.append(fresh), grades.add(fresh))) as keep:
                shard = Shard(engine=context.spec(arm, size), arm=arm, made_by=made_by, texts=texts, ids=ids, done=frozenset(had))
                for trace in context.executor(arm, tick).map(write, [shard]):
                    keep(trace)
                    tick(1)
    context.dir.settle(Trace, made_by, ids)
    context.graded |= {(arm, grade.problem): grade for grade in grades.settled()}
    return done


class Shard(BaseModel):
    """Problems that one engine solves: texts and ids of all of a stage, and the indices of those that are ``done``, or others' to do.

    Every shard of a stage knows all its texts, so that an engine cuts them into the same batches, and draws the same samples.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: Spec
    arm: str
    made_by: str
    texts: Sequence[str]
    ids: Sequence[str]
    done: frozenset[int] = frozenset()


def write(shard: Shard, open_engine: Open) -> Iterator[Trace]:
    """The traces of a shard, as they end."""
    arm, made_by = shard.arm, shard.made_by
    for i, c in open_engine(shard.engine).generate(shard.texts, done=shard.done):
        yield Trace(problem=shard.ids[i], arm=arm, made_by=made_by, text=c.text, tokens=c.tokens, finish=c.finish)


def is_solved(context: Context, arm: str, problems: Sequence[Problem]) -> bool:
    """Whether the run holds the traces of all these problems, as the arm's checkpoint would make them."""
    texts, ids = [context.prompt_of(problem) for problem in problems], [problem.id for problem in problems]
    done = context.dir.of(Trace, _inputs(context, arm, texts, ids)[1])
    return all(problem in done for problem in ids)


def _inputs(context: Context, arm: str, texts: Sequence[str], ids: Sequence[str]) -> tuple[int, str]:
    """The number of slots that an arm solves in, and the digest of all that decides its traces."""
    size = max(1, min(context.batch_size, len(texts)) * 2 // 3) if arm == AGAIN else context.batch_size
    return size, digest(
        "solve", arm, context.digest(arm), *context.where(), texts, context.max_new_tokens, size, ids, *context.written_by(arm)
    )  # fmt: skip


def outcomes(context: Context, problems: Sequence[Problem], arm: str) -> statistics.Outcomes:
    """Right or not, in the order of the problems; an unscored trace is not right."""
    return np.array([context.graded[arm, problem.id].outcome == "correct" for problem in problems], dtype=bool)


def regressions(context: Context, arm: str, problems: Sequence[Problem]) -> list[Problem]:
    """Problems that full precision solves and the arm does not."""
    full, other = outcomes(context, problems, FULL), outcomes(context, problems, arm)
    return [problem for problem, lost in zip(problems, full & ~other, strict=True) if lost]
