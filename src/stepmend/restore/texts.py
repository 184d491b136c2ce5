"""Texts for tuning and validation besides bullets: anchors, and the solutions of held-out problems."""

from collections.abc import Iterable, Mapping, Sequence, Set

from stepmend.curate import Solved
from stepmend.keys import Restore
from stepmend.records import Bullet
from stepmend.restore.validation import Solution

Rounds = Iterable[Mapping[str, Solved]]
"""Curate problems as both models solve them, by id, round by round; a round is solved on access."""


def solutions(solved: Solved) -> tuple[Solution, Solution]:
    """A problem's solutions as full precision and as the low-bit model wrote them."""
    first, second = (Solution(solved.problem.id, solved.prompt, trace.tokens) for trace in (solved.full, solved.quantized))
    return first, second


def held_out(rounds: Rounds, held: Set[str]) -> list[Solution]:
    """The solutions of the problems ``held``, as full precision and the low-bit model wrote them."""
    found = list[Solution]()
    for part in rounds if held else ():
        mine = [solved for problem, solved in part.items() if problem in held]
        found += [solution for solved in mine for solution in solutions(solved)]
        if len(found) >= 2 * len(held):
            break
    return found


def anchors(rounds: Rounds, bullets: Sequence[Bullet], held: Set[str], recipe: Restore) -> list[Solution]:
    """Both models' solutions of curate problems, trained on together with the bullets, at most as many as the recipe says.

    The targets are full precision's distributions, not its answers: these should be restored on wrong solutions too. Problems of
    bullets and those ``held`` are left out.
    """
    if recipe.objective != "distill" and "codes" not in recipe.kinds:
        return []
    taken, found = held | {bullet.problem for bullet in bullets}, dict[Solution, None]()
    for part in rounds if recipe.anchors else ():
        free = [solved for problem, solved in part.items() if problem not in taken]
        found |= dict.fromkeys(solution for solved in free for solution in solutions(solved))
        if len(found) >= recipe.anchors:
            break
    return list(found)[: recipe.anchors]
