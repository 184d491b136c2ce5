"""Located bullets against controls: whether it was the located steps that restored a model.

Every control is an arm. Its checkpoint is measured and then removed: what is kept of it is its records.
"""

import shutil
from collections.abc import Callable, Sequence

from stepmend.arms import FULL, Arm, Budget
from stepmend.context import Context
from stepmend.curate import controls, rounds
from stepmend.measure import solve as solving
from stepmend.recipe import Restore
from stepmend.records import Bullet, Problem, digest
from stepmend.restore import checkpoint as restoring
from stepmend.restore import tune


def run(context: Context, names: Sequence[str], seeds: int, budgets: Sequence[Budget]) -> None:
    """Located bullets against controls, for every scheme that was restored; ``pipeline.run`` comes first."""
    for scheme in context.recipe.low_bit:
        restored = str(Arm(scheme).restored())
        kept = context.dir.notes().get(f"restore-{restored}", {}).get("kept", True)
        if not kept or not context.folder(restored).exists():
            context.stages.say(f"  {scheme}: nothing was restored, so there is nothing to control")
            continue
        compare(context, scheme, names, seeds, budgets, context.problems("test"))


def compare(
    context: Context, scheme: str, names: Sequence[str], seeds: int, budgets: Sequence[Budget], test: Sequence[Problem]
) -> None:  # fmt: skip
    """Tune and measure located bullets under every seed, and every control under every seed and budget.

    All are taught without anchors, which would be the same texts for each and most of what it is taught.
    """
    recipe, bullets = context.recipe.restore, rounds.bullets(context, scheme)
    facts = context.dir.notes().get(f"restore-{Arm(scheme).restored()}", {})
    recipe = recipe.model_copy(update={"validation": 0, "anchors": 0, "steps": len(facts.get("losses", [])) or recipe.steps})
    target = tune.tokens_of(context.tokenizer, bullets, recipe)
    for seed in range(seeds):
        measure(context, Arm(scheme, variant="located", budget="steps", seed=seed), recipe, lambda seed: bullets, test)
    for name in names:
        changed = controls.recipe_of(name, recipe)

        def made(seed: int, name: str = name) -> list[Bullet]:
            return controls.bullets_of(name, bullets, rounds.both_solved(context, scheme), recipe, seed)

        for budget in budgets:
            recipes = [changed] * seeds
            if budget == "tokens":
                own = [tune.tokens_of(context.tokenizer, made(seed), changed) for seed in range(seeds)]
                recipes = [changed.model_copy(update={"steps": max(1, round(changed.steps * target / each))}) for each in own]
                if "steps" in budgets and recipes == [changed] * seeds:
                    continue  # equal steps were equal tokens already
            for seed, matched in enumerate(recipes):
                measure(context, Arm(scheme, variant=name, budget=budget, seed=seed), matched, made, test)


def measure(context: Context, control: Arm, recipe: Restore, made: Callable[[int], list[Bullet]], test: Sequence[Problem]) -> None:
    """Tune and measure one control; ``made`` gives the bullets of a seed."""
    assert control.seed is not None
    arm, seed, bullets = str(control), control.seed, made(control.seed)
    note, base = f"control-{arm}", FULL if control.variant == "full-tuned" else control.scheme
    made_by = digest(
        "control", context.digest(base), recipe.model_dump(), tune.rate_of(recipe), seed, [b.model_dump() for b in bullets],
        [p.id for p in test],
    )  # fmt: skip
    if context.finished(note, made_by):
        return
    own = context.recipe.restore
    rates = context.dir.notes().get(f"restore-{Arm(control.scheme).restored()}", {}).get("rates")
    same = recipe.objective == own.objective and recipe.tune == own.tune
    restoring.restore(context, base, arm, bullets, recipe, seed, rates=rates if same else None)
    solving.solve(context, arm, test, "test")
    kept = context.dir.notes()[f"restore-{arm}"]
    facts = {key: kept[key] for key in ("seconds", "tokens", "bullets")}
    told = {"scheme": control.scheme, "control": control.variant, "budget": control.budget, "seed": seed, "steps": recipe.steps}
    context.dir.note(note, made_by=made_by, **told, **facts)
    context.keep(FULL)
    shutil.rmtree(context.folder(arm), ignore_errors=True)
