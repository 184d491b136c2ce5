"""Blame in a run: module scores at curate faults, and test problems solved again with the blamed modules in full precision."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from stepmend import formats
from stepmend.arms import FULL, Arm
from stepmend.blame import modules as holding
from stepmend.blame import scores as scoring
from stepmend.blame.scores import PLAIN, Mark
from stepmend.context import Context
from stepmend.curate import rounds
from stepmend.engines.local import LocalEngine
from stepmend.facts import Blamed, BlamedModule, Rescue
from stepmend.locate import run as locating
from stepmend.measure import solve as solving
from stepmend.measure import statistics
from stepmend.models import chat
from stepmend.progress import Tick, silent
from stepmend.records import Blame, Fault, InputError, Problem, Trace, digest

VERSION = 1
SHARES = (1, 2, 5, 10, 20)
"""Percent of the weights that are put back."""
CHOSEN_ON = (5, 10)
"""Shares at which measures are compared on curate faults."""
SEEDS = 5
"""Random choices of modules, for each share."""
OTHERS = 200
"""Maximum number of problems other than regressions that are solved again, to count new losses."""


@dataclass(frozen=True)
class Pair:
    """Full precision and a low-bit model in memory, and the modules in which they differ."""

    full: LocalEngine
    low: LocalEngine
    modules: tuple[holding.Module, ...]

    @classmethod
    def of(cls, full: LocalEngine, low: LocalEngine, folder: str, what: str) -> "Pair":
        """Raises InputError for a low-bit checkpoint that differs in more than the rounding of linear layers' weights."""
        low_bit = formats.detect(folder)
        assert low_bit is not None
        found = holding.modules_of(low.model, low_bit)
        holding.check(full.model, low.model, low_bit, found, what)
        return cls(full, low, tuple(found))

    @cached_property
    def errors(self) -> dict[str, tuple[float, float]]:
        """Each module's squared rounding error, and that over its squared weights."""
        return holding.errors(self.full.model, self.low.model, self.modules)

    def frontiers(self, marks: Sequence[Mark], chosen: Sequence[str]) -> list[bool]:
        """At which frontiers full precision's token comes first, with the chosen modules in full precision."""
        rows = [[*mark.row, mark.token] for mark in marks]
        with holding.restored(self.full.model, self.low.model, chosen):
            read = self.low.score(rows, [len(mark.row) for mark in marks], [[mark.token] for mark in marks])
        return [one.margins[0] > 0 for one in read]

    def best(self, held: Sequence[dict[str, tuple[float, ...]]], marks: Sequence[Mark], tick: Tick = silent) -> tuple[str, dict[str, int]]:
        """The measure that corrects most frontiers of held-out faults, and the counts by measure. Faults are split in two halves, each
        evaluated with the other's scores; the plain measure if none is better.
        """
        halves, counts = [range(i, len(marks), 2) for i in (0, 1)], dict[str, int]()
        for measure, score_FK in scoring.measures(held).items():
            counts[measure] = 0
            for mine, other in (halves, halves[::-1]):
                values = dict(zip(self.names, score_FK[list(mine)].sum(0).tolist(), strict=True))
                for share in CHOSEN_ON:
                    chosen = holding.fill(self.modules, holding.by_density(self.modules, values), share / 100)
                    counts[measure] += sum(self.frontiers([marks[i] for i in other], chosen)) if len(other) else 0
            tick(1)
        return max(counts, key=lambda name: (counts[name], name == PLAIN)), counts

    @property
    def names(self) -> list[str]:
        return [module.name for module in self.modules]


def marks_of(context: Context, problems: Mapping[str, Problem], faults: Sequence[Fault], traces: Mapping[str, Trace]) -> list[Mark]:
    """The frontiers of faults, in order; those without one are left out."""
    located = [(problems[fault.problem], fault.frontier) for fault in faults if fault.frontier is not None]
    rows = [(*chat.encode(context.tokenizer, context.prompt_of(p)), *traces[p.id].tokens[:place]) for p, place in located]
    if not rows:
        return []
    read = context.engine(FULL).score([[*row, row[-1]] for row in rows], [len(row) for row in rows])
    return [Mark(p.id, row, one.tokens[0]) for (p, _), row, one in zip(located, rows, read, strict=True)]


def blame(context: Context, scheme: str, *, seeds: int = SEEDS, others: int = OTHERS) -> tuple[Blamed, tuple[holding.Module, ...]]:
    """Score every module at the faults of curate problems, then rescue test problems with the worst of them in full precision.

    Raises InputError if the scheme rounds more than weights, or no fault of a curate problem has a frontier.
    """
    marks = list[Mark]()
    for part, faults in rounds.with_faults(context, scheme):
        problems, traces = {p: s.problem for p, s in part.items()}, {p: s.quantized for p, s in part.items()}
        marks += marks_of(context, problems, faults, traces)
    if not marks:
        raise InputError(f"blame: {scheme} has no located fault with a frontier among the curate problems; raise curate.problems")
    pair = Pair.of(context.engine(FULL), context.engine(scheme), str(context.folder(scheme)), scheme)
    blamed = score(context, scheme, pair, marks)
    rescue(context, scheme, pair, blamed, seeds, others)
    return blamed, pair.modules


def score(context: Context, scheme: str, pair: Pair, marks: Sequence[Mark]) -> Blamed:
    """The scores of all modules at these frontiers; each fault's are kept as they come."""
    checkpoints, texts = (context.digest(FULL), context.digest(scheme)), [(mark.row, mark.token) for mark in marks]
    made_by = digest("blame", VERSION, *checkpoints, *context.where(), texts)
    context.dir.announce(f"{scheme}: blame", made_by)
    done = context.dir.of(Blame, made_by)
    with context.stages.stage(f"{scheme}: blame", len(marks), "faults", len(done)) as tick:
        for mark in marks:
            if mark.problem not in done:
                found = scoring.scores(pair.full.model, pair.low.model, pair.modules, mark)
                context.dir.append([Blame(problem=mark.problem, arm=scheme, made_by=made_by, scores=found)])
                tick(1)
    held = context.dir.of(Blame, made_by)
    if kept := context.finished(Blamed, scheme, digest("blamed", made_by)):
        return kept
    with context.stages.stage(f"{scheme}: choose the measure", 6, "measures") as tick:
        fact = blamed_of(pair, [held[mark.problem].scores for mark in marks], marks, tick=tick)
    context.dir.keep(fact := fact.model_copy(update={"arm": scheme, "made_by": digest("blamed", made_by)}))
    return fact


def blamed_of(
    pair: Pair, held: Sequence[dict[str, tuple[float, ...]]], marks: Sequence[Mark], measure: str | None = None, tick: Tick = silent
) -> Blamed:
    """The modules' mean scores over all frontiers, by the given measure or else the best one."""
    measure, tried = (measure, {}) if measure else pair.best(held, marks, tick)
    score_FK = scoring.measures(held)[measure]
    rows = []
    for index, module in enumerate(pair.modules):
        of, (error, relative) = statistics.mean(score_FK[:, index]), pair.errors[module.name]
        place: dict[str, Any] = {"name": module.name, "layer": module.layer, "part": module.part}
        place |= {"weights": module.weights, "bits": module.bits, "error": error, "relative": relative}
        rows.append(BlamedModule(score=of.value or 0.0, low=of.low or 0.0, high=of.high or 0.0, **place))
    return Blamed(measure=measure, faults=len(held), tried=tried, modules=tuple(rows))


def choices(pair: Pair, blamed: Blamed, seeds: int) -> Iterator[tuple[str, int | None, list[str]]]:
    """Ways to choose modules: the name, the seed of a random one, and the order in which modules are taken."""
    modules, rows = pair.modules, {row.name: row for row in blamed.modules}
    yield "blame", None, holding.by_density(modules, {name: row.score for name, row in rows.items()})
    yield "error", None, holding.by_density(modules, {name: row.error for name, row in rows.items()})
    yield "relative", None, sorted(rows, key=lambda name: -rows[name].relative)
    for seed in range(seeds):
        order = list(pair.names)
        random.Random(f"blame {seed}").shuffle(order)
        yield "random", seed, order


def rescue(context: Context, scheme: str, pair: Pair, blamed: Blamed, seeds: int, others: int) -> None:
    """Solve the regressions, and some other test problems, with every choice of modules at every share."""
    test = context.problems("test")
    traces = {arm: solving.solve(context, arm, test, "test") for arm in (FULL, scheme)}
    lost = solving.regressions(context, scheme, test)
    faults = locating.locate(context, scheme, lost, traces[FULL], traces[scheme], "test")
    kept = [p for p, right in zip(test, solving.outcomes(context, test, scheme), strict=True) if right]
    drawn = sorted(random.Random("blame").sample(range(len(kept)), min(others, len(kept))))
    marks = marks_of(context, {p.id: p for p in lost}, faults, traces[scheme])
    problems = [*lost, *(kept[i] for i in drawn)]
    for share in SHARES:
        if not holding.fill(pair.modules, pair.names, share / 100):
            context.stages.say(f"  {scheme}: no module is as small as {share} % of the weights")
            continue
        for choice, seed, order in choices(pair, blamed, seeds):
            chosen = holding.fill(pair.modules, order, share / 100)
            arm = str(Arm(scheme, variant=f"{choice}-{share}", seed=seed))
            fact = Rescue(
                arm=arm, scheme=scheme, choice=choice, share=share, seed=seed, modules=tuple(chosen), frontiers=(0, 0),
                weights=sum(module.weights for module in pair.modules if module.name in chosen),
                regressions=tuple(p.id for p in lost), others=tuple(p.id for p in problems[len(lost) :]),
            )  # fmt: skip
            measure(context, pair, fact, problems, marks)


def measure(context: Context, pair: Pair, fact: Rescue, problems: Sequence[Problem], marks: Sequence[Mark]) -> None:
    """Solve the problems with one choice of modules in full precision, and count the frontiers that come back."""
    of = context.digest(FULL), context.digest(fact.scheme), *context.where(), sorted(fact.modules)
    context.digests[fact.arm] = digest("rescued", *of)  # no checkpoint holds this model: it is named by what it is made of
    made_by = digest("rescue", context.digests[fact.arm], [p.id for p in problems], [mark.row for mark in marks])
    context.engines[fact.arm] = pair.low
    try:
        with holding.restored(pair.full.model, pair.low.model, fact.modules):
            solving.solve(context, fact.arm, problems, "rescue")
        if not context.finished(Rescue, fact.arm, made_by):
            back = pair.frontiers(marks, fact.modules) if marks else []
            context.dir.keep(fact.model_copy(update={"made_by": made_by, "frontiers": (int(np.sum(back)), len(back))}))
    finally:
        context.release(fact.arm)
