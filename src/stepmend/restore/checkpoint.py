"""A restored checkpoint in a run: made where the run does not hold it, and accepted if it is better on held-out problems."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from stepmend.context import Context
from stepmend.facts import Endings, Tuned
from stepmend.formats.tensors import copy
from stepmend.grading.visible import visible
from stepmend.keys import Restore
from stepmend.measure import behaviour, statistics
from stepmend.measure.solve import Solutions
from stepmend.models import load
from stepmend.records import Bullet, Trace, digest
from stepmend.restore import tune
from stepmend.restore.validation import Solution
from stepmend.rundir import make_folder


def restore(
    context: Context, base: str, arm: str, bullets: Sequence[Bullet], recipe: Restore, seed: int, *, anchors: Sequence[Solution] = (),
    held_out: Sequence[Solution] = (), rates: dict[str, float] | None = None,
) -> None:  # fmt: skip
    """The checkpoint of ``arm``: that of ``base``, restored on bullets; without ``held_out`` at the rates given, and in any case."""
    out, texts = context.folder(arm), [(one.problem, one.tokens) for one in (*anchors, *held_out)]
    of = tune.rate_of(recipe), rates, seed, [b.model_dump() for b in bullets], texts
    made_by, earlier = (digest("restore", tune.VERSION, context.digest(base), how, *of) for how in (tuning(recipe), recipe.model_dump()))
    record = context.finished(Tuned, arm, made_by, earlier)
    if record and context.holds(arm, record.checkpoint):
        return
    context.unload_except()  # memory is needed
    given: dict[str, Any] = {"seed": seed, "anchors": anchors, "held_out": held_out, "rates": rates, "say": context.stages.say}
    with context.stages.stage(f"{arm}: tune ({len(bullets)} bullets)", recipe.steps, "steps") as tick:
        start = time.perf_counter()
        done = tune.restore(context.parent, context.folder(base), list(bullets), recipe, out, tick=tick, **given)
    if done.chosen_change is not None and done.chosen_change < 0:
        context.stages.say(f"  {arm}: the chosen steps lost {-done.chosen_change:.3f} nats per token; raise restore.keep_chosen")
    facts = asdict(done) | {"losses": [round(loss, 5) for loss in done.losses], "bullets": len(bullets), "anchors": len(anchors)}
    facts |= {"arm": arm, "made_by": record.made_by if record else made_by, "seconds": time.perf_counter() - start}
    context.made(arm, checkpoint := load.checkpoint_digest(out))
    context.dir.keep(Tuned.model_validate(facts | {"checkpoint": checkpoint}))


def tuning(recipe: Restore) -> dict[str, Any]:
    """The keys of the recipe that decide how one checkpoint is restored."""
    return recipe.model_dump(exclude={"rounds", "within_noise"})


def tuned(context: Context, arm: str) -> Tuned:
    """What was kept of the restoring of an arm, which is finished."""
    fact = context.dir.fact(Tuned, arm)
    assert fact is not None
    return fact


def kept(context: Context, arm: str) -> bool:
    """Whether tuning ended in a state that is better on held-out problems."""
    return tuned(context, arm).accepted


def judge(context: Context, base: str, arm: str, before: Mapping[str, Trace], after: Mapping[str, Trace]) -> None:
    """Undo a restoration after which more held-out solutions are cut off or loop: its folder then holds the checkpoint of ``base``.

    ``before`` and ``after`` are both arms' solutions of held-out problems. All abnormal endings are tested together, and each kind that
    occurs by itself, with Holm's adjustment over the kinds.
    """
    counts = _paired(before, after, odd)
    found = {name: _paired(before, after, of) for name, of in ABNORMAL.items() if _any(before, of) or _any(after, of)}
    adjusted = statistics.holm([pair.p for pair in found.values()])
    kinds = {name: (of.only_first, of.only_second, p) for (name, of), p in zip(found.items(), adjusted, strict=True)}
    tests = [(counts.only_first, counts.only_second, counts.p), *kinds.values()]
    worse = any(p < 0.05 and lost > gained for lost, gained, p in tests)
    changed: dict[str, Any] = {
        "endings": Endings(lost=counts.only_first, gained=counts.only_second, p=counts.p, n=counts.n, kinds=kinds if worse else {})
    }
    if worse:
        make_folder(context.folder(arm), lambda part: copy(context.folder(base), part))
        context.made(arm, checkpoint := load.checkpoint_digest(context.folder(arm)))
        changed |= {"kept": False, "checkpoint": checkpoint}
    context.dir.keep(tuned(context, arm).model_copy(update=changed))


def odd(trace: Trace) -> bool:
    """Whether a solution was cut off, loops at its end, or is a thought without an end."""
    return any(of(trace) for of in ABNORMAL.values())


ABNORMAL: dict[str, Callable[[Trace], bool]] = {
    "cut off": lambda trace: trace.finish == "length",
    "in a loop": lambda trace: behaviour.loops(trace.text),
    "in an unclosed thought": lambda trace: not visible(trace.said).whole,
}
"""Odd endings, by their names in words."""


def _samples(of: Mapping[str, Trace]) -> Sequence[Mapping[str, Trace]]:
    return of.samples if isinstance(of, Solutions) else [of]


def _paired(before: Mapping[str, Trace], after: Mapping[str, Trace], of: Callable[[Trace], bool]) -> statistics.Paired:
    """Problems that do not end so, in both arms; of several solutions each, by most of them."""
    both = ([[not of(traces[p]) for p in before] for traces in _samples(arm)] for arm in (before, after))
    return statistics.paired(*(np.array(rows[0] if len(rows) == 1 else rows).T for rows in both))


def _any(traces: Mapping[str, Trace], of: Callable[[Trace], bool]) -> bool:
    return any(of(one) for samples in _samples(traces) for one in samples.values())


def refused(context: Context, arm: str) -> str:
    """Why a restored checkpoint was not accepted, from what was noted of it."""
    if of := tuned(context, arm).endings:  # counted only where KL was better
        return f"more held-out solutions are {of.words}"
    return "no state was better on held-out problems"
