"""Every arm solves the same problems; its solutions are graded while others are generated, and kept as they end."""

from collections.abc import Sequence

import numpy as np

from stepmend import grading
from stepmend.arms import AGAIN, FULL
from stepmend.context import Context
from stepmend.keeping import Grades, Keeper
from stepmend.measure import statistics
from stepmend.records import Problem, Trace, digest


def solve(context: Context, arm: str, problems: Sequence[Problem], split: str) -> dict[str, Trace]:
    """The traces of one arm on problems, by problem id, graded while others are generated; kept as they end."""
    texts, ids = [context.prompt_of(problem) for problem in problems], [problem.id for problem in problems]
    size = max(1, min(context.batch_size, len(problems)) * 2 // 3) if arm == AGAIN else context.batch_size
    made_by = digest("solve", arm, context.digest(arm), *context.where(), texts, context.max_new_tokens, size, ids)
    done = {trace.problem: trace for trace in context.dir.load(Trace, made_by)}
    grades = Grades(context.dir, context.verifier, digest("grade", made_by, grading.VERSION), problems)
    with context.stages.stage(f"{arm}: solve {split}", len(problems), "problems", len(done)) as tick, grades:
        grades.add(list(done.values()))
        if len(done) < len(problems):
            with Keeper[Trace](lambda fresh: (context.dir.append(fresh), grades.add(fresh))) as keep:
                had = {i for i, problem in enumerate(ids) if problem in done}
                for i, c in context.generator(arm, size, tick).stream(texts, done=had):
                    trace = Trace(problem=ids[i], arm=arm, made_by=made_by, text=c.text, tokens=c.tokens, finish=c.finish)
                    done[trace.problem] = trace
                    keep(trace)
                    tick(1)
    context.dir.settle(Trace, made_by, ids)
    context.graded |= {(arm, grade.problem): grade for grade in grades.settled()}
    return {problem: done[problem] for problem in ids}


def outcomes(context: Context, problems: Sequence[Problem], arm: str) -> statistics.Outcomes:
    """Right or not, in the order of the problems; an unscored trace is not right."""
    return np.array([context.graded[arm, problem.id].outcome == "correct" for problem in problems], dtype=bool)


def regressions(context: Context, arm: str, problems: Sequence[Problem]) -> list[Problem]:
    """Problems that full precision solves and the arm does not."""
    full, other = outcomes(context, problems, FULL), outcomes(context, problems, arm)
    return [problem for problem, lost in zip(problems, full & ~other, strict=True) if lost]
