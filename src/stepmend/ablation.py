"""Located bullets compared with controls: did the located steps restore the model?

Every control is an arm. Its checkpoint is measured and then deleted; only its records are kept.
"""

import shutil
from collections.abc import Callable, Sequence

from stepmend.arms import FULL, Arm, Budget
from stepmend.context import Context
from stepmend.curate import controls, rounds
from stepmend.facts import Control, Tuned
from stepmend.keys import Restore
from stepmend.measure import solve as solving
from stepmend.records import Bullet, Problem, digest
from stepmend.restore import checkpoint as restoring
from stepmend.restore import tune


def run(context: Context, names: Sequence[str], seeds: int, budgets: Sequence[Budget]) -> None:
    """Compare located bullets with controls, for every restored scheme; call ``pipeline.run`` first."""
    for scheme in context.recipe.low_bit:
        restored = str(Arm(scheme).restored())
        kept = context.dir.fact(Tuned, restored)
        if (kept and not kept.accepted) or not context.folder(restored).exists():
            context.stages.say(f"  {scheme}: nothing was restored, so the controls are skipped")
            continue
        compare(context, scheme, names, seeds, budgets, context.problems("test"))


def compare(
    context: Context, scheme: str, names: Sequence[str], seeds: int, budgets: Sequence[Budget], test: Sequence[Problem]
) -> None:  # fmt: skip
    """Tune and measure located bullets under every seed, and every control under every seed and budget.

    All are trained without anchors, which would be the same for each and would be most of the training data.
    """
    recipe, bullets = context.recipe.restore, rounds.bullets(context, scheme)
    tuned = context.dir.fact(Tuned, str(Arm(scheme).restored()))
    recipe = recipe.model_copy(update={"validation": 0, "anchors": 0, "steps": len(tuned.losses if tuned else ()) or recipe.steps})
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
    base = FULL if control.variant == "full-tuned" else control.scheme
    of = tune.rate_of(recipe), seed, [b.model_dump() for b in bullets], [p.id for p in test]
    made_by, earlier = (digest("control", context.digest(base), how, *of) for how in (restoring.tuning(recipe), recipe.model_dump()))
    if (done := context.finished(Control, arm, made_by, earlier)) and _is_measured(context, done, test):
        return
    own, tuned = context.recipe.restore, context.dir.fact(Tuned, str(Arm(control.scheme).restored()))
    same = recipe.objective == own.objective and recipe.tune == own.tune
    restoring.restore(context, base, arm, bullets, recipe, seed, rates=tuned.rates if tuned and same else None)
    solving.solve(context, arm, test, "test")
    kept = restoring.tuned(context, arm)
    facts = {"scheme": control.scheme, "control": control.variant, "budget": control.budget, "seed": seed, "steps": recipe.steps}
    facts |= {"seconds": kept.seconds, "tokens": kept.tokens, "bullets": kept.bullets, "checkpoint": kept.checkpoint}
    context.dir.keep(Control.model_validate({"arm": arm, "made_by": made_by, **facts}))
    context.unload_except(FULL)
    shutil.rmtree(context.folder(arm), ignore_errors=True)


def _is_measured(context: Context, control: Control, test: Sequence[Problem]) -> bool:
    """Whether the run holds the test solutions of a control's checkpoint, which is deleted by now; if so, they become current."""
    tuned = context.dir.latest(Tuned, control.arm)
    context.digests[control.arm] = control.checkpoint or (tuned.checkpoint if tuned else "")
    if solving.is_solved(context, control.arm, test):
        solving.solve(context, control.arm, test, "test")
        return True
    del context.digests[control.arm]
    return False
