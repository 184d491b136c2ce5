"""Curate problems, round by round: solved by both models, until their faults make enough bullets."""

from collections.abc import Iterator

from stepmend import curate, grading
from stepmend.arms import FULL
from stepmend.context import Context
from stepmend.curate import Solved
from stepmend.facts import Curated
from stepmend.locate import faults
from stepmend.locate import run as locating
from stepmend.measure import solve as solving
from stepmend.measure import statistics
from stepmend.records import Bullet, Fault, digest


def rounds(context: Context, arm: str) -> Iterator[dict[str, Solved]]:
    """The curate problems as full precision and an arm solve them, round by round."""
    pool, size = context.problems("curate"), context.recipe.curate.round
    for start in range(0, len(pool), size):
        part = pool[start : start + size]
        label = f"curate {start + 1}-{start + len(part)}"
        full, low = solving.solve(context, FULL, part, label), solving.solve(context, arm, part, label)
        full, low = solving.shown(context, FULL, full, right=True), solving.shown(context, arm, low, right=False)
        yield {p.id: Solved(p, context.prompt_of(p), full[p.id], low[p.id]) for p in part}


def loss(context: Context, scheme: str) -> statistics.Paired:
    """Full precision paired with the quantized model on the first round of curate problems: what decides whether it is restored."""
    part = [solved.problem for solved in next(rounds(context, scheme)).values()]
    return statistics.paired(*(solving.outcomes(context, part, arm) for arm in (FULL, scheme)))


def both_solved(context: Context, scheme: str) -> Iterator[Solved]:
    """Curate problems that full precision and the low-bit model both solve, in order."""
    for part in rounds(context, scheme):
        problems = [solved.problem for solved in part.values()]
        both = solving.solved(context, problems, FULL) & solving.solved(context, problems, scheme)
        yield from (part[p.id] for p, right in zip(problems, both, strict=True) if right)


def held(context: Context) -> set[str]:
    """Ids of the curate problems that are held out for validation: the first ones, of which no bullet is made."""
    pool, count = context.problems("curate"), context.recipe.restore.validation
    return {problem.id for problem in pool[: min(count, len(pool) // 4)]}


def bullets(context: Context, arm: str) -> list[Bullet]:
    """Bullets at the faults of an arm on curate problems, which are solved round by round until there are enough."""
    recipe, held_out = context.recipe, held(context)
    made_by = _made_by(context, arm, held_out)
    earlier = digest(
        "curate", grading.VERSION, faults.VERSION, arm, context.digest(FULL), context.digest(arm), context.prompt,
        recipe.model_dump(exclude={"measure": {"margin"}}), context.problem_ids("test"),
    )  # fmt: skip
    if kept := context.finished(Curated, arm, made_by, earlier):
        found = context.dir.load(Bullet, made_by := kept.made_by)
        if len(found) == kept.bullets:
            return found
    solved: dict[str, Solved] = {}
    located: list[Fault] = []
    found: list[Bullet] = []
    for part, fresh in located_rounds(context, arm, held_out):
        solved, located = solved | part, [*located, *fresh]
        found = curate.curate(solved, located, limit=recipe.curate.bullets, made_by=made_by)
        if len(found) == recipe.curate.bullets:
            break
    have = context.dir.of(Bullet, made_by)
    context.dir.append([bullet for bullet in found if bullet.problem not in have])
    context.dir.settle(Bullet, made_by, [bullet.problem for bullet in found])
    context.dir.keep(Curated(arm=arm, made_by=made_by, bullets=len(found), problems=len(solved)))
    return found


def located_rounds(context: Context, arm: str, held_out: set[str]) -> Iterator[tuple[dict[str, Solved], list[Fault]]]:
    """Round by round: curate problems as full precision and an arm solve them, and the arm's faults on those that are not held out."""
    start = 1
    for part in rounds(context, arm):
        full, low = {p: s.full for p, s in part.items()}, {p: s.quantized for p, s in part.items()}
        lost = solving.regressions(context, arm, [s.problem for s in part.values() if s.problem.id not in held_out])
        yield part, locating.locate(context, arm, lost, full, low, f"curate {start}-{start + len(part) - 1}")
        start += len(part)


def with_faults(context: Context, arm: str) -> Iterator[tuple[dict[str, Solved], list[Fault]]]:
    """The rounds that an arm's bullets come from, with their faults; bullets are made first if there are none."""
    bullets(context, arm)
    kept = context.dir.fact(Curated, arm)
    left = kept.problems if kept else 0
    for part, found in located_rounds(context, arm, held(context)):
        yield part, found
        left -= len(part)
        if left <= 0:
            return


def _made_by(context: Context, arm: str, held_out: set[str]) -> str:
    """The digest of all inputs of the bullets at an arm's faults."""
    curated = context.recipe.curate.model_dump(include={"bullets", "round"})
    problems = [*map(context.problem_ids, ("curate", "test"))], sorted(held_out)
    of = arm, context.digest(FULL), context.digest(arm), *context.where(), context.prompt, context.max_new_tokens, context.batch_size
    return digest("curate", locating.how(context), of, curated, problems, *context.drawing, *context.written_by(FULL, arm))
