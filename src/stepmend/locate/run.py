"""Faults of an arm's failures: read from the run, or located and saved."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stepmend import grading
from stepmend.arms import FULL
from stepmend.context import Context
from stepmend.engines.base import Completion
from stepmend.keeping import Keeper
from stepmend.keys import HOW, Chat
from stepmend.locate import completers, faults, judges, locators, steps
from stepmend.models import load
from stepmend.progress import Tick, silent
from stepmend.records import Continuation, Fault, Problem, Trace, digest

CHUNK = 256
"""Failures per chunk."""


def locate(
    context: Context, arm: str, lost: Sequence[Problem], full: Mapping[str, Trace], traces: Mapping[str, Trace], split: str
) -> list[Fault]:
    """The faults of an arm's failures, in order. Those that the run holds already are not located again."""
    made_by = _made_by(context, arm, lost, full, traces, worked=(worked := split.startswith("curate")))
    context.dir.announce(f"{arm}: faults, {split}", made_by)
    done = dict(context.dir.of(Fault, made_by))
    quantized = arm if arm != FULL and context.scores(FULL, arm) else None
    with context.stages.stage(f"{arm}: locate {split}", len(lost), "failures", len(done)) as tick:
        for start in range(0, len(lost), CHUNK):
            chunk = lost[start : start + CHUNK]
            cases = {p.id: locators.make_case(context.prompt_of(p), traces[p.id], full[p.id]) for p in chunk}
            done = {**done, **_judged_again(context, [p for p in chunk if p.id in done], cases, done)}
            done = {problem: fault for problem, fault in done.items() if fault}
            missing = [p for p in chunk if p.id not in done]
            if missing:
                with Keeper[Continuation](context.dir.append) as keep:
                    by = locator(context, keep, tick)
                    scorer = context.scorer(quantized) if quantized else None
                    found = by.locate(missing, [cases[p.id] for p in missing], scorer, made_by, worked=worked, alone=arm == FULL)
                context.dir.append(found)
                done |= {fault.problem: fault for fault in found}
                tick(len(missing))
    context.dir.drop(Continuation)
    return [done[problem.id] for problem in lost]


def _judged_again(
    context: Context, problems: Sequence[Problem], cases: Mapping[str, locators.Case], done: Mapping[str, Fault]
) -> dict[str, Fault | None]:
    """Of faults that a judge gave no answer on: those whose votes have changed now; None if the step moves with them."""
    asked = [p for p in problems if context.panel and any(map(judges.Verdict.is_open, done[p.id].votes))]
    if not asked:
        return {}
    found = locator(context).judged_again(asked, [cases[p.id] for p in asked], [done[p.id] for p in asked])
    changed = {p.id: fault for p, fault in zip(asked, found, strict=True) if fault != done[p.id]}
    context.dir.append([fault for fault in changed.values() if fault])
    return changed


def locator(context: Context, keep: Callable[[Continuation], None] = lambda continuation: None, tick: Tick = silent) -> faults.Locator:
    """What locates, with this run's models, judges and grading; full precision's continuations are kept until all is located."""
    known = {c.key: Completion(c.text, c.tokens, c.finish) for c in context.dir.load(Continuation)}
    return faults.Locator(
        context.settings,
        context.generator(FULL, context.batch_size, tick),
        context.tokenizer,
        lambda asked: grading.arrived(asked, context.verifier),
        context.panel,
        context.recipe.seed,
        context.completer,
        context.rates,
        known,
        lambda key, c: keep(Continuation(key=key, text=c.text, tokens=c.tokens, finish=c.finish)),
        context.form.opening,
        bool(context.recipe.measure.temperature),
    )


def _made_by(
    context: Context, arm: str, lost: Sequence[Problem], full: Mapping[str, Trace], traces: Mapping[str, Trace], *, worked: bool
) -> str:
    """The digest of all inputs of these faults."""
    texts = [(traces[p.id].text, full[p.id].text, p.solution if worked else "") for p in lost]
    sizes = context.max_new_tokens, context.batch_size
    *others, settings = how(context)
    of = context.digest(FULL), context.digest(arm), *context.where(), settings, [p.id for p in lost], texts, *sizes
    asked = [context.prompt] if context.recipe.chat != Chat() else []
    return digest("locate", *others, *of, *asked, *context.drawing, *context.written_by(FULL))


def how(context: Context) -> tuple[Any, ...]:
    """The inputs of faults besides models and texts: versions, seed, completer, rates, judges, and last the recipe's settings."""
    rates, settings = context.rates.model_dump_json(), context.settings.model_dump(exclude=HOW)
    thoughts = [steps.OF_THOUGHTS] if context.form.thinks else []
    return faults.VERSION, grading.VERSION, context.recipe.seed, _completer_digest(context), rates, judges.PROMPT, *thoughts, settings


def _completer_digest(context: Context) -> str:
    """What names the completer's content; empty if full precision completes."""
    spec = context.settings.completer
    return "" if not spec else spec if completers.is_server(spec) else load.checkpoint_digest(load.locate(spec))
