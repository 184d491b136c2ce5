"""The stages in order: what ``stepmend run`` does, and where it resumes.

Every stage reads what is kept, does what is missing, and keeps it. A stage's records carry the digest of all their inputs, so
the same command continues if it was stopped, and nothing old is mixed with anything new.
"""

import random
from collections.abc import Mapping, Sequence
from importlib.metadata import version

from stepmend import __version__, grading
from stepmend.arms import AGAIN, FULL, Arm
from stepmend.context import Context
from stepmend.curate import rounds
from stepmend.facts import Card, Gate, Judged, Quantized
from stepmend.locate import run as locating
from stepmend.measure import effects, fitness, margins
from stepmend.measure import solve as solving
from stepmend.quantize import checkpoint as quantizing
from stepmend.quantize import schemes
from stepmend.records import Problem, Trace, digest
from stepmend.restore import checkpoint as restoring
from stepmend.restore import texts

LIBRARIES = ("torch", "transformers", "llmcompressor", "compressed-tensors", "peft", "numpy", "scipy")


def run(context: Context) -> None:
    """All stages, for all schemes."""
    recipe, say = context.recipe, context.stages.say
    keep_card(context)
    _report_aligned_leaks(context)
    test = context.problems("test")
    context.dir.keep_problems([*test, *context.problems("curate")])
    for scheme in context.schemes:
        quantize(context, scheme)
    take(context)
    full = solving.solve(context, FULL, test, "test")
    fit = fitness.fitness((full[p.id] for p in test), solving.outcomes(context, test, FULL))
    for line in fit.warnings(recipe):
        say(f"  {line}")
    if recipe.measure.noise_floor:
        solving.solve(context, AGAIN, test, "test")
    for name in recipe.low_bit:
        context.unload_except(FULL)
        measure(context, name, test, full)
        why = None if recipe.restore.within_noise else fitness.obstacle(fit, lambda name=name: rounds.loss(context, name))
        context.finished(Gate, name, made_by := digest("gate", name, why))
        context.dir.keep(Gate(arm=name, made_by=made_by, why=why))
        if why:
            say(f"  {name}: {why}")
            continue
        restore(context, name, test, full)
    locate_own(context, test, full)
    if context.panel and context.panel.used:  # else what an earlier call has noted stays
        tally = context.panel.tally()
        context.finished(Judged, "", made_by := digest("judged", tally))
        context.dir.keep(Judged.model_validate({"made_by": made_by, "judges": tally}))


def card(context: Context) -> Card:
    """The run card: versions, seeds, digests."""
    return Card(
        versions={"stepmend": __version__, **{name: version(name) for name in LIBRARIES}},
        model=context.recipe.model,
        parent=context.digest(FULL),
        recipe=digest(context.recipe.model_dump()),
        seed=context.recipe.seed,
        prompt=context.prompt,
        grading=grading.VERSION,
        leakage=context.leaks,
    )


def keep_card(context: Context) -> None:
    """Store the run card. Results made with other library versions stay current, so the card lists both versions, and the difference is
    reported."""
    made, kept = card(context), context.dir.fact(Card)
    if kept and kept.versions:
        now = {name: of for name, of in made.versions.items() if kept.versions.get(name) != of}
        later = kept.later if not now or now in kept.later else (*kept.later, now)
        made = made.model_copy(update={"versions": kept.versions, "later": later})
        if now:
            was = ", ".join(f"{name} {kept.versions.get(name, 'unknown')} (now {of})" for name, of in now.items())
            context.stages.say(f"  this run was started with {was}")
    context.dir.keep(made)


def _report_aligned_leaks(context: Context) -> None:
    counts = context.leaks.get("alignment", {"same": 0, "overlap": 0})
    if leaked := counts["same"] + counts["overlap"]:
        context.stages.say(f"  {leaked} alignment problems equal or overlap test problems: run stepmend align again")


def quantize(context: Context, scheme: schemes.Scheme) -> None:
    """The quantized checkpoint of a scheme, calibrated on the parent's own traces."""
    quantizing.quantize(context, scheme, lambda: calibration(context))


def calibration(context: Context) -> list[str]:
    """The texts that schemes are calibrated on: full precision's own solutions of calibration problems."""
    problems = context.problems("calibration")
    traces = solving.solve(context, FULL, problems, "calibration", samples=1)
    return [context.prompt_of(p) + traces[p.id].text + context.tokenizer.eos_token for p in problems]


def take(context: Context) -> None:
    """Register the given checkpoints: store their facts like those of checkpoints made here, and print warnings."""
    for name, one in context.given.items():
        context.stages.say(f"  {name}: {one.low_bit.name}, {one.holds()}")
        for warning in one.warnings:
            context.stages.say(f"  {name}: warning: {warning}")
        checkpoint = context.digest(name)
        made_by = digest("given", context.digest(FULL), name, checkpoint)
        if not context.finished(Quantized, name, made_by):
            context.dir.keep(Quantized(arm=name, made_by=made_by, checkpoint=checkpoint, **one.facts()))
        context.made(name, checkpoint)


def measure(context: Context, scheme: str, test: Sequence[Problem], full: Mapping[str, Trace]) -> None:
    """What a quantized model solves of the test problems, its margins, and the faults of its regressions."""
    quantized = solving.solve(context, scheme, test, "test")
    margins.damage(context, scheme, test, full)
    right, wrong = solving.shown(context, FULL, full, right=True), solving.shown(context, scheme, quantized, right=False)
    locating.locate(context, scheme, solving.regressions(context, scheme, test), right, wrong, "test")


def restore(context: Context, scheme: str, test: Sequence[Problem], full: Mapping[str, Trace]) -> None:
    """Bullets, the restored model, and its measurement, for the recipe's number of rounds."""
    recipe, held, bullets, arm = context.recipe, rounds.held(context), [], scheme
    for number in range(1, recipe.restore.rounds + 1):
        fresh = rounds.bullets(context, arm)
        if not fresh:
            context.stages.say(f"  {arm}: no regression was found among the curate problems; nothing to restore")
            return
        bullets = [*fresh, *bullets][: recipe.curate.bullets]
        base, arm = arm, str(Arm(scheme).restored(number))
        held_out = texts.held_out(rounds.rounds(context, base), held)
        anchors = texts.anchors(rounds.rounds(context, scheme), bullets, held, recipe.restore)
        restoring.restore(context, base, arm, bullets, recipe.restore, recipe.seed, anchors=anchors, held_out=held_out)
        if not accepted(context, base, arm):
            return
        restored = solving.solve(context, arm, test, "test")
        right, wrong = solving.shown(context, FULL, full, right=True), solving.shown(context, arm, restored, right=False)
        locating.locate(context, arm, solving.regressions(context, arm, test), right, wrong, "test")
        both = solving.solved(context, test, FULL) & solving.solved(context, test, scheme)
        effects.effects(context, scheme, arm, both, test, right)


def accepted(context: Context, base: str, arm: str) -> bool:
    """Whether the restored checkpoint is better on held-out problems, and has no more abnormal endings there.

    Where it is not, its folder holds the quantized checkpoint, unchanged, and the run says so.
    """
    ids = rounds.held(context)
    held = [problem for problem in context.problems("curate") if problem.id in ids]
    if held and restoring.kept(context, arm):
        before, after = (solving.solve(context, one, held, "held out") for one in (base, arm))
        restoring.judge(context, base, arm, before, after)
    if restoring.kept(context, arm):
        return True
    context.stages.say(f"  {arm}: {restoring.refused(context, arm)}; the quantized model is returned unchanged")
    return False


def locate_own(context: Context, problems: Sequence[Problem], full: Mapping[str, Trace]) -> None:
    """Faults of full precision's own failures, a fixed random part of them if they are many.

    Full precision is its own completer, with sampled rescue, because there is no better model.
    """
    failed = [problem for problem, right in zip(problems, solving.solved(context, problems, FULL), strict=True) if not right]
    count = min(len(failed), context.recipe.locate.own_failures)
    drawn = sorted(random.Random(context.recipe.seed).sample(range(len(failed)), count))
    wrong = solving.shown(context, FULL, full, right=False)
    locating.locate(context, FULL, [failed[i] for i in drawn], wrong, wrong, "own failures")
