"""Training and held-out data for the arms of benchmarks/real.py.

For Qwen2.5-Coder-0.5B-Instruct in rtn-w4a16-g128 they come from the recorded run (STEPMEND_DATA/real). Every other model and scheme has a
separate run directory, which an interrupted benchmark resumes. A model that solves next to nothing has no regressions
to curate from: there whole solutions of full precision stand in for bullets.
"""

import os
import random
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rich.console import Console

from stepmend import Bullet, Problem, Trace, pipeline
from stepmend.arms import FULL
from stepmend.benchmarks import sources
from stepmend.context import Context
from stepmend.curate import Solved, rounds
from stepmend.keys import Restore
from stepmend.measure import solve as solving
from stepmend.models import chat, load
from stepmend.progress import Stages
from stepmend.quantize import run as quantizer
from stepmend.quantize import schemes
from stepmend.recipe import Recipe
from stepmend.records import Fault, Grade
from stepmend.restore.texts import solutions
from stepmend.restore.validation import Solution

CALIBRATION = 64
"""Own traces that GPTQ is calibrated on: the product's number."""


@dataclass(frozen=True)
class Model:
    """A model of this benchmark.

    Attributes:
        schemes: The schemes that it is measured in.
        new_tokens: Tokens at most of a solution, by benchmark.
        located: Whether bullets come from located faults; else whole solutions of full precision stand in for them.
        curated: Training problems, the first ones, that bullets are curated from (behind the held-out ones, in a run of our own).
        bullets: Whole solutions that stand in for bullets.
        measured: Problems on whose solutions KL divergence is measured.
    """

    schemes: tuple[str, ...]
    new_tokens: dict[str, int]
    located: bool = True
    curated: int = 1400
    bullets: int = 64
    measured: int = 16


MODELS: dict[str, Model] = {
    "qwen2.5-coder-0.5b": Model(("rtn-w4a16-g128", "gptq-w3a16-g128", "awq-w4a16-g128"), {"gsm8k": 400, "math": 1024}),
    "qwen2.5-coder-1.5b": Model(("rtn-w4a16-g128",), {"gsm8k": 400, "math": 1024}),
    "smollm2-135m": Model(("rtn-w4a16-g64",), {"gsm8k": 256}, located=False, bullets=48, measured=32),
    "builtin:qwen2": Model(("rtn-w3a16-g128",), {"story": 180}, curated=450, measured=8),
}
RECORDED = ("qwen2.5-coder-0.5b", "rtn-w4a16-g128")
"""The model and scheme of the recorded run."""


@dataclass(frozen=True)
class Material:
    """Training, validation and KL data shared by all arms of a model and scheme; no test problems.

    Attributes:
        low: The quantized checkpoint.
        bullets: What is taught.
        anchors: Both models' solutions, right or wrong, of problems without bullets (where bullets are located).
        held_out: Both models' solutions that rates and states are chosen on.
        measured: Both models' solutions on which KL divergence is measured; nothing is chosen on them.
        generic: Whole traces of full precision, chosen by nothing but that they are right (where bullets are located).
        solved: Problems that both models solve, in random order, for controls without anchors; none where bullets are not located.
    """

    low: Path
    bullets: list[Bullet]
    anchors: list[Solution]
    held_out: list[Solution]
    measured: list[Solution]
    generic: list[Bullet]
    solved: list[Solved]

    def texts(self, tokenizer: Any, limit: int) -> list[str]:
        """The texts that codes are solved on in our arms, up to ``limit`` tokens: bullets and anchors in turn, as ``tune`` takes them."""
        own = [bullet.prompt + bullet.chosen + bullet.continuation + tokenizer.eos_token for bullet in self.bullets]
        others = [solution.prompt + tokenizer.decode(solution.tokens) for solution in self.anchors]
        kept, tokens = [], 0
        for text in (text for pair in zip_longest(own, others) for text in pair if text):
            tokens += len(chat.encode(tokenizer, text))
            if kept and tokens > limit:
                break
            kept.append(text)
        return kept

    def calibration(self, tokenizer: Any) -> list[str]:
        """Full precision's own traces, as the product calibrates on them."""
        return [one.prompt + one.chosen + tokenizer.eos_token for one in self.generic[:CALIBRATION]]


def whole(solved: Solved) -> Bullet:
    """Full precision's whole solution as what is taught."""
    text = solved.full.text
    return Bullet(
        problem=solved.problem.id, arm=solved.quantized.arm, made_by="generic", prompt=solved.prompt, prefix="", chosen=text,
        rejected=solved.quantized.text, continuation="", rejected_rest="", solution=text, place=(0, len(text)), step=0, error_class=None,
    )  # fmt: skip


def shuffled(found: Iterable[Solved], name: str) -> list[Solved]:
    """In an order that is the same each time."""
    order = list(found)
    random.Random(name).shuffle(order)
    return order


def data_of(benchmark: str) -> sources.Data:
    """The benchmark's files under STEPMEND_DATA, where it is not a generated one."""
    return sources.Data(benchmark, None if benchmark == "story" else str(Path(os.environ["STEPMEND_DATA"]) / benchmark))


class Recorded:
    """The recorded run: problems, bullets, and the solutions and outcomes of full precision and of the quantized model."""

    def __init__(self, model: str) -> None:
        file = Path(os.environ["STEPMEND_DATA"]) / "real/qwen2.5-coder-0.5b-gsm8k-run.tgz"
        with tarfile.open(file) as archive:
            lines = {Path(m.name).name: archive.extractfile(m).read().splitlines() for m in archive if m.name.endswith(".jsonl")}  # pyright: ignore
        self.problems = [Problem.model_validate_json(line) for line in lines["problems.jsonl"]]
        self.bullets = [Bullet.model_validate_json(line) for line in lines["bullets.jsonl"]]
        self.traces = {(t.arm, t.problem): t for t in map(Trace.model_validate_json, lines["traces.jsonl"])}
        self.grades = {(g.arm, g.problem): g for g in map(Grade.model_validate_json, lines["grades.jsonl"])}
        self.faults = [Fault.model_validate_json(line) for line in lines["faults.jsonl"]]
        self.test = [p for p in self.problems if p.split == "test"]
        self.train = [p for p in self.problems if p.split != "test"]
        self.tokenizer = load.load_tokenizer(model)

    def solved(self, problems: Sequence[Problem]) -> list[Solved]:
        """Problems with both models' solutions."""
        scheme = RECORDED[1]
        return [
            Solved(p, chat.render(self.tokenizer, "steps-1", p.question), self.traces[FULL, p.id], self.traces[scheme, p.id])
            for p in problems
        ]

    def right(self, arm: str, problem: Problem) -> bool:
        return self.grades[arm, problem.id].outcome == "correct"


def recorded(model: str, work: Path, validation: int) -> Material:
    """Data from the recorded run. The quantized checkpoint is created if it does not exist."""
    (name, scheme), low = RECORDED, work / "quantized"
    if not low.exists():
        quantizer.quantize(model, schemes.parse(scheme), [], low)
    run, sizes = Recorded(model), MODELS[name]
    pool = run.train[: sizes.curated]
    full = [solved for solved in run.solved(pool) if run.right(FULL, solved.problem)]
    both = [solved for solved in full if run.right(scheme, solved.problem)]
    held_out = run.solved(run.train[sizes.curated : sizes.curated + validation])
    return assembled(low, run.bullets, run.solved(pool), both, full, held_out, run.solved(run.train[-sizes.measured :]))


def assembled(
    low: Path, bullets: list[Bullet], pool: Sequence[Solved], both: Sequence[Solved], full: Sequence[Solved], held_out: Sequence[Solved],
    measured: Sequence[Solved],
) -> Material:  # fmt: skip
    """Material of located bullets.

    Args:
        low: the quantized checkpoint.
        bullets: the located ones.
        pool: all curate problems.
        both: those that both models solve.
        full: those that full precision solves.
        held_out: problems that choose.
        measured: problems that measure.
    """
    taken = {bullet.problem for bullet in bullets} | {solved.problem.id for solved in held_out}
    free = [solved for solved in pool if solved.problem.id not in taken]
    anchors = list(dict.fromkeys(_both(free)))[: Restore().anchors]
    generic = [whole(solved) for solved in shuffled(full, "generic")]
    solved = [solved for solved in both if solved.problem.id not in taken]
    return Material(low, bullets, anchors, _both(held_out), _both(measured), generic, shuffled(solved, "solved"))


def _both(found: Iterable[Solved]) -> list[Solution]:
    return [solution for solved in found for solution in solutions(solved)]


def recipe_of(sizes: Model, model: str, scheme: str, benchmark: str, validation: int) -> Recipe:
    """The recipe of a stepmend run that produces bullets."""
    data = data_of(benchmark).path
    curated = {"problems": sizes.curated + validation, "round": sizes.curated + validation, "bullets": 332}
    values = {"model": model, "schemes": [scheme], "benchmark": benchmark, "data": data}
    measure = {"max_new_tokens": sizes.new_tokens[benchmark], "noise_floor": False}
    return Recipe.make({**values, "measure": measure, "curate": curated, "restore": {"validation": validation}})


def of_run(sizes: Model, model: str, scheme: str, benchmark: str, work: Path, validation: int) -> Material:
    """Data from a new run: both models solve training problems, and faults are located, as in ``stepmend run``."""
    recipe = recipe_of(sizes, model, scheme, benchmark, validation)
    with Context(recipe, work / "run", Stages(Console(stderr=True))) as context:
        pipeline.quantize(context, schemes.parse(scheme))
        pool, held = context.problems("curate"), min(validation, len(context.problems("curate")) // 4)
        solve = partial(_solved, context, scheme)
        measured = solve(context.problems("train")[: sizes.measured], "measured")
        if not sizes.located:
            return stand_ins(context.folder(scheme), sizes.bullets, pool, held, measured, solve, partial(_alone, context))
        bullets = rounds.bullets(context, scheme)
        found = [solved for part in rounds.rounds(context, scheme) for solved in part.values()]
        problems = [solved.problem for solved in found]
        right = {arm: solving.outcomes(context, problems, arm) for arm in (FULL, scheme)}
        first = {problem.id for problem in pool[:held]}
        rest = [(solved, *flags) for solved, *flags in zip(found, *right.values(), strict=True) if solved.problem.id not in first]
        free = [solved for solved, *_ in rest]
        full = [solved for solved, good, _ in rest if good]
        both = [solved for solved, good, low in rest if good and low]
        return assembled(context.folder(scheme), bullets, free, both, full, [one for one in found if one.problem.id in first], measured)


def _solved(context: Context, scheme: str, problems: Sequence[Problem], label: str) -> list[Solved]:
    full, low = (solving.solve(context, arm, problems, label) for arm in (FULL, scheme))
    return [Solved(p, context.prompt_of(p), full[p.id], low[p.id]) for p in problems]


def _alone(context: Context, problems: Sequence[Problem], label: str) -> list[Solved]:
    """By full precision alone, whose solution stands for the other's too."""
    full = solving.solve(context, FULL, problems, label)
    return [Solved(p, context.prompt_of(p), full[p.id], full[p.id]) for p in problems]


def stand_ins(
    low: Path, count: int, pool: Sequence[Problem], held: int, measured: Sequence[Solved], solve: Callable[..., list[Solved]],
    alone: Callable[..., list[Solved]],
) -> Material:  # fmt: skip
    """Material of a model without located faults: whole solutions that full precision ended itself; both models' as anchors."""
    held_out, rest = solve(pool[:held], "held out"), pool[held:]
    anchors, others = _both(solve(rest[:count], "anchors")), rest[count : 5 * count]
    generic = [whole(solved) for solved in alone(others, "generic") if solved.full.finish == "stop"][: 3 * count]
    return Material(low, generic[:count], anchors, _both(held_out), _both(measured), generic, [])
