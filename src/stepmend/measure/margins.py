"""Both models' margins of full precision's own tokens, and the effect of quantization on them."""

from collections.abc import Mapping, Sequence

from stepmend.arms import FULL
from stepmend.context import Context
from stepmend.facts import Damage
from stepmend.locate import locators
from stepmend.measure import damage as damages
from stepmend.records import Problem, Trace, digest

READ = 256
"""Solutions per pass when margins are computed."""


def damage(context: Context, arm: str, problems: Sequence[Problem], full: Mapping[str, Trace]) -> None:
    """The effect of quantization on the margins of full precision's own tokens, over all its traces of these problems."""
    if not context.scores(FULL, arm):
        context.stages.say(f"  {arm}: margins are skipped: the engine of full precision or of this arm cannot score")
        return
    made_by = digest(
        "damage",
        context.digest(FULL),
        context.digest(arm),
        *context.where(),
        context.prompt,
        context.max_new_tokens,
        [p.id for p in problems],
        *context.drawing,
    )
    if context.finished(Damage, arm, made_by):
        return
    found, kinds = [], []
    with context.stages.stage(f"{arm}: margins", len(problems), "solutions") as tick:
        for start in range(0, len(problems), READ):
            part = problems[start : start + READ]
            prompts, traces = [context.prompt_of(p) for p in part], [full[p.id] for p in part]
            found += locators.margins_of(prompts, traces, context.scorer(FULL), context.scorer(arm))
            kinds += [[damages.kind(context.tokenizer.decode([token])) for token in trace.tokens] for trace in traces]
            tick(len(part))
    figures = damages.damage([m.full for m in found], [m.quantized for m in found], kinds)
    context.dir.keep(Damage(arm=arm, made_by=made_by, **figures))
