"""The Python API: the commands of the command line as functions. Each returns a typed result; there is no state between calls.

``progress`` is called with an ``Update`` at the start of each stage, after each batch, and for each message between stages. Errors that the
caller can correct are ``InputError``; a missing library of the extra ``run`` is a ``ModuleNotFoundError``.
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stepmend import recipe as recipes
from stepmend.progress import Listener, Stages
from stepmend.records import InputError
from stepmend.results import Check, Comparison, Graded, Grades, Located, Location, RunResult

if TYPE_CHECKING:
    from stepmend.executors.ray import Ray
    from stepmend.logs import Fields
    from stepmend.models.timing import Work
    from stepmend.recipe import Recipe

TOKENS, BATCH, TEXTS = 400, 8, 900
"""Tokens per solution, texts per step and texts read by the teacher that memory is estimated for: the default recipe on typical
solutions."""

__all__ = ["check", "compare", "grade", "locate", "run"]


def run(
    recipe: "Recipe | Mapping[str, Any] | str | Path | None" = None,
    out: str | Path = "runs/demo",
    *,
    quick: bool = False,
    controls: Sequence[str] = (),
    seeds: int = 3,
    match: Literal["steps", "tokens", "both"] = "steps",
    reuse: Sequence[str | Path] = (),
    ray: "str | Ray | None" = None,
    cpus_per_worker: int = 1,
    progress: Listener | Stages | None = None,
) -> RunResult:
    """Run the whole loop on a model: ``stepmend run``. The same call resumes a run that was stopped.

    Args:
        recipe: A recipe, its plain values, or a YAML file of them; None is the demo on the built-in reasoner.
        out: The run's folder.
        quick: Use few problems: all stages, but figures that prove nothing. Not with a ``Recipe`` object.
        controls: What to compare located bullets with; ``stepmend.curate.controls.CONTROLS`` lists them.
        seeds: Seeds of located bullets and of every control.
        match: Whether controls match located bullets in steps, in tokens, or in one comparison for each.
        reuse: Folders of other runs. Their traces, grades, faults, bullets and checkpoints with the same inputs are copied. They are not
            changed.
        ray: A Ray cluster that generates, scores and locates: its address, ``auto``, ``local`` for Ray on this machine, or a connected
            ``executors.ray.Ray``. The records are those of a run without it.
        cpus_per_worker: CPU cores of each worker, if the cluster has no GPUs.
        progress: Called with every ``Update``.

    Raises:
        InputError: The recipe, the model, the folder or the cluster is invalid. Raised before any work.
    """
    from stepmend.curate import controls as of_controls

    if match not in ("steps", "tokens", "both"):
        raise InputError(f"controls: match = {str(match)[:40]!r}; allowed: steps, tokens, both")
    if seeds < 1:
        raise InputError(f"controls: seeds = {seeds}; at least one is needed")
    made = _recipe(recipe, quick=quick)
    names = of_controls.parse(",".join(controls)) if controls else ()
    of_controls.check(names, made.restore)
    from stepmend import ablation, pipeline
    from stepmend.context import Context
    from stepmend.executors.ray import Ray
    from stepmend.report import page, summary

    folder, stages = Path(out), _stages(progress)
    with ExitStack() as stack:
        cluster = stack.enter_context(Ray(ray, cpus_per_worker, stages.say)) if isinstance(ray, str) else ray
        context = stack.enter_context(Context(made, folder, stages, [Path(other) for other in reuse], cluster))
        pipeline.run(context)
        if names:
            ablation.run(context, names, seeds, ("steps", "tokens") if match == "both" else (match,))
    found = summary.read(folder)
    page.write(found, folder / "report.html")
    return RunResult.of(folder, found)


def blame(
    out: str | Path,
    scheme: str | None = None,
    *,
    budget: float | None = None,
    seeds: int = 5,
    others: int = 200,
    progress: Listener | Stages | None = None,
) -> RunResult:
    """Which modules caused a run's faults, the effect of returning them to full precision, and a mixed-precision proposal: ``stepmend
    blame``. The run is finished first.

    Args:
        out: The run's folder.
        scheme: Which of its schemes; None: each that has faults.
        budget: Mean bits per weight of the proposal, scales included; None: 0.375 more than the scheme's.
        seeds: Number of random choices of modules per share of the weights.
        others: Maximum number of problems other than regressions that are solved again, to count new losses.
        progress: Called with every ``Update``.

    Raises:
        InputError: The folder contains no run with faults, or the scheme or budget is invalid.
    """
    from stepmend.report import page, summary

    folder = Path(out)
    named = _blamed_schemes(folder, scheme)
    from stepmend import pipeline
    from stepmend.blame import proposal
    from stepmend.blame import run as blaming
    from stepmend.context import Context
    from stepmend.models import load
    from stepmend.quantize import schemes
    from stepmend.report.sections.blame import mixed

    recipe = recipes.Recipe.from_json(folder / "recipe.json")
    for name in named:
        if budget is not None and name in recipe.schemes:
            proposal.check_budget(load.locate(recipe.model), name, budget)
    with Context(recipe, folder, _stages(progress)) as context:
        pipeline.run(context)
        for name in named:
            try:
                fact, modules = blaming.blame(context, name, seeds=seeds, others=others)
            except InputError as error:
                if len(named) == 1:
                    raise
                context.stages.say(f"  {error}")
                continue
            if name in recipe.schemes and proposal.widened(schemes.parse(name)):
                proposal.compare(context, name, modules, fact, budget, lambda context=context: pipeline.calibration(context))
        found = summary.read(folder)
        for name in named:
            proposal.offer(context.parent, name, mixed(found, name), folder / proposal.FOLDER)
    page.write(found, folder / "report.html")
    return RunResult.of(folder, found)


def _blamed_schemes(folder: Path, scheme: str | None) -> list[str]:
    """The schemes whose modules are scored. Raises InputError if the folder contains no run, or none with faults."""
    from stepmend.report import summary

    if not (folder / "recipe.json").exists():
        raise InputError(f"blame: {folder} holds no run (there is no recipe.json); 'stepmend run --out {folder}' makes one")
    found = summary.read(folder)
    names = found.recipe.low_bit
    if scheme is not None and scheme not in names:
        raise InputError(f"blame: {folder} has no scheme {scheme!r}; it has {', '.join(names)}")
    able = [name for name in names if any(fault.frontier is not None for fault in found.faults.get(name, {}).values())]
    if scheme is not None and scheme not in able:
        raise InputError(f"blame: {scheme} has no located fault with a frontier in {folder}; it needs the locator margins, and regressions")
    if not able:
        raise InputError(f"blame: {folder} has no located fault with a frontier; it needs the locator margins, and regressions")
    return able if scheme is None else [scheme]


def _recipe(given: "Recipe | Mapping[str, Any] | str | Path | None", *, quick: bool) -> "Recipe":
    if isinstance(given, recipes.Recipe):
        if quick:
            raise InputError("run: quick needs a recipe's values or file; for a Recipe object use Recipe.make(recipe.quick(values))")
        return given
    if given is None:
        values: dict[str, Any] = {"schemes": recipes.ROUNDED}
    else:
        values = dict(given) if isinstance(given, Mapping) else recipes.Recipe.from_yaml(Path(given))
    return recipes.Recipe.make(recipes.quick(values) if quick else values)


def _stages(progress: Listener | Stages | None) -> Stages:
    return progress if isinstance(progress, Stages) else Stages(listener=progress)


def check(model: str, schemes: Sequence[str] = (), quantized: Sequence[str] = ()) -> Check:
    """What would be quantized and tuned, what would be left alone and why, and estimates of memory and time: ``stepmend check``.

    Loads no weights, except scales and a few rows of a low-bit checkpoint.

    Args:
        model: A full-precision checkpoint: a folder, a hub name, builtin:qwen2 or builtin:llama.
        schemes: Schemes to check the model for; the default recipe's if neither these nor ``quantized`` are given.
        quantized: Low-bit checkpoints of the model, to be restored: folders or hub names.

    Raises:
        InputError: A run of this model with these schemes would be refused.
    """
    from stepmend.quantize import schemes as table

    named = {"schemes": [*schemes]} if schemes or quantized else {}
    recipe = recipes.Recipe.make({"model": model, "quantized": [*quantized], **named})  # which refuses what a run refuses
    parsed = [table.parse(name) for name in recipe.schemes]
    import torch

    from stepmend.models import check as checking
    from stepmend.models import load, timing
    from stepmend.quantize import given
    from stepmend.quantize import run as quantizer

    folder = load.locate(model, whole=False)
    looked = [given.look(folder, model, path) for path in quantized]
    layers, *_ = [quantizer.preflight(folder, one) for one in parsed] + [list(one.layers) for one in looked]
    load.load_tokenizer(folder)
    config = load.config_of(folder)
    made = load.skeleton(config)
    device, dtype = load.placement(folder)
    dtype = torch.float32 if dtype == "auto" else dtype
    work = _work(config, device, builtin=model.startswith(load.BUILTIN))
    start = time.perf_counter()
    speed = timing.probe(made, work.slots, device, dtype)
    probed = time.perf_counter() - start
    seconds = timing.stages(timing.size_of(made, layers), speed, work, device, {one.method for one in parsed})
    scaled = {one: quantizer.scaled(made, one) for one in parsed if one.method in table.SCALED}
    return Check(
        family=config.model_type,
        parameters=sum(p.numel() for p in made.parameters()),
        device=device,
        dtype=str(dtype).removeprefix("torch."),
        schemes=tuple(one.name for one in parsed),
        given={one.name: one.facts() for one in looked},
        layers=tuple(layers),
        scaled={one.name: len({name for _, names in pairs for name in names}) for one, pairs in scaled.items()},
        memory=checking.memory(made, layers, TEXTS, BATCH, TOKENS, dtype.itemsize),
        seconds={stage: value for stage, value in seconds.items() if parsed or stage != "quantize"},
        work=work,
        summary=checking.summary(layers),
        probed=probed,
    )


def _work(config: Any, device: str, *, builtin: bool) -> "Work":
    """What the default recipe does with a model."""
    from stepmend.engines import budget
    from stepmend.models import timing

    if builtin:  # story problems, three levels, solutions of three or four lines
        return timing.Work(slots=150, problems=900, prompt=64, solution=64, continuations=4)
    return timing.Work(slots=budget.slots_for(config, 1024, device))


def compare(*logs: str | Path, names: Sequence[str] = (), margin: float = 1.0, fields: "Fields | None" = None) -> Comparison:
    """Compare logs of other tools, paired by problem: ``stepmend compare``. Needs no model and no torch.

    Args:
        logs: Logs, full precision first: of lm-eval, lighteval, Inspect and others, tables, or folders of subtasks' logs.
        names: A short name for each arm; default: the file names.
        margin: Non-inferiority margin, in points of accuracy.
        fields: Which fields of plain tables, and which metric of logs, to read; with ``arm``, one table holds several arms.

    Raises:
        InputError: A log cannot be read, or the arms cannot be paired.
    """
    from stepmend.logs import Fields, read_all
    from stepmend.measure import compare as comparing

    if not 0 <= margin <= 100:  # no number is within it either
        raise InputError(f"compare: margin = {margin}; 0 to 100 points are possible")
    files, fields = [Path(log) for log in logs], fields or Fields()
    if len(files) < 2 and not fields.arm:
        raise InputError("compare: two logs or more are needed, full precision first; or one table with an arm field (--arm-field)")
    if names and not fields.arm and (len(names) != len(files) or len(set(names)) < len(names)):
        raise InputError(f"compare: {len(names)} names for {len(files)} logs; one for each is needed, all different")
    if len({file.resolve() for file in files}) < len(files):
        raise InputError("compare: one log is given twice")
    arms = [(log, file.resolve().parent.name) for file in files for log in read_all(file, fields)]
    if len(arms) < 2 or (names and (len(names) != len(arms) or len(set(names)) < len(names))):
        raise InputError(
            f"compare: {len(arms)} arm(s) and {len(names)} --name; two arms or more are needed, and one name for each, or none"
        )
    found = comparing.named([log for log, _ in arms], names, [folder for _, folder in arms])
    return Comparison(tuple(comparing.compare(found, margin)))


def grade(
    solutions: str | Path | Sequence[Mapping[str, Any]],
    answer_field: str,
    gold_field: str,
    *,
    finish_field: str | None = None,
    kind: Literal["math", "number"] = "math",
    marked_only: bool = False,
) -> Grades:
    """Grade solutions against gold answers: ``stepmend grade``. Needs no model and no torch.

    Args:
        solutions: A file, one solution a record (.jsonl, .json, .csv or .parquet), or the records themselves.
        answer_field: The field of the solution or answer; ``a.b`` is field b inside a.
        gold_field: The field of the right answer, or of a worked solution that ends in it.
        finish_field: The field of the finish reason; by default the first common field name that is present.
        kind: The kind of answers: any mathematics, or numbers with or without units.
        marked_only: Count only answers that are boxed or marked as such.

    Raises:
        InputError: The file cannot be read, a field is missing, or there is no gold answer at all.
    """
    from stepmend.grading import files

    how: dict[str, Any] = {"finish_field": finish_field, "kind": kind, "loose": not marked_only}
    if isinstance(solutions, str | Path):
        graded = files.grade_file(Path(solutions), answer_field, gold_field, **how)
    else:
        if not solutions:
            raise InputError("grade: no solutions are given; one or more are needed")
        graded = files.grade_rows([dict(row) for row in solutions], "solutions", answer_field, gold_field, **how)
    return Grades(tuple(Graded(**record) for record in graded))


def locate(
    solutions: str | Path | Sequence[Mapping[str, Any]],
    *,
    model: str | None = None,
    quantized: str | None = None,
    locators: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    progress: Listener | Stages | None = None,
) -> Located:
    """The first faulty step of each wrong solution, by a vote of locators.

    Args:
        solutions: A file or records with ``problem``, ``solution``, and if known ``answer`` (the correct one) and ``worked`` (a worked
            solution).
        model: The full-precision checkpoint, for rescue and solution, which need right answers, and for margins.
        quantized: The checkpoint that wrote the solutions, for margins.
        locators: The locators to use; default: all whose requirements are met.
        settings: Other keys of a recipe's ``locate``, such as ``samples`` or ``judges``.
        out: Folder of intermediate results, from which the same call resumes; None keeps none.
        progress: Called with every ``Update``.

    Raises:
        InputError: A field of a record, or a requirement of a locator, is missing.
    """
    from stepmend.locate import bench, reliability

    given = bench.unlabelled(Path(solutions) if isinstance(solutions, str | Path) else solutions)
    answered = all(solution.answer for solution in given)
    named = tuple(locators) or bench.able(model=model, quantized=quantized, answered=answered)
    if "margins" in named and not (model and quantized):
        raise InputError("locate: margins needs both checkpoints, model and quantized")
    made = recipes.Recipe.make({"locate": {**(settings or {}), "locators": named}}).locate
    rates = reliability.read(Path(made.reliabilities)) if made.reliabilities else reliability.DEFAULT
    from stepmend.locate import labelling

    with ExitStack() as stack:
        folder = Path(out or stack.enter_context(tempfile.TemporaryDirectory()))
        ready, found = labelling.run(given, labelling.Setup(made, model, quantized, rates), folder, _stages(progress))
    return Located(tuple(Location(one.problem.question, tuple(one.case.steps), fault) for one, fault in zip(ready, found, strict=True)))
