"""The commands that work with models, and those that read a run's results."""

import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from stepmend.cli.common import CONTROLS, DEMO, JUDGE, app, check_keys, check_out, console, say, show, show_figures, show_table, silence
from stepmend.keys import LARGEST
from stepmend.records import InputError

Match = Literal["steps", "tokens", "both"]
Tool = Literal["inspect", "every-eval-ever"]
NAMES = (
    "fp8-dynamic, fp8-block, nvfp4, mxfp4, w4a16, w8a8 and compressed-tensors' other presets; METHOD-PRESET; gptq-w3a16-g128 and the like"
)
SCHEMES = (
    f"A quantization scheme: {NAMES} ('stepmend schemes'). Can be repeated. Default: GPTQ at 4 and 3 bits; plain rounding for the demo."
)
QUANTIZED = (
    "A low-bit checkpoint of the model, restored in its own format: a folder, a hub name or a GGUF file; can be repeated. No scheme is "
    "made by default."
)
SEEDS = "Number of training seeds for located bullets and for each control (default 3)."
ENGINE = "The engine that generates solutions: transformers (default), vllm, or NAME=MODEL@BASE_URL, a server for one arm; can be repeated."
REUSE = "Another run's folder; results with the same inputs are copied from it. Can be repeated. It is not changed."
RAY = "A Ray cluster that generates, scores and locates: local (Ray on this machine), auto, or an address. Records do not change."
WORKER = "With --ray: CPU cores of each worker (default 1). On a cluster with GPUs, each worker has one GPU."
MATCH = "Match controls to located bullets by steps, tokens, or both (default steps)."


@app.command()
def run(
    recipe: Annotated[Path | None, typer.Argument(help="A YAML file of recipe keys. Without one: the demo.")] = None,
    model: Annotated[
        str | None, typer.Option(help="A checkpoint's folder, a hub name, a GGUF file, builtin:qwen2 or builtin:llama.")
    ] = None,
    scheme: Annotated[list[str] | None, typer.Option(help=SCHEMES)] = None,
    quantized: Annotated[list[str] | None, typer.Option(help=QUANTIZED)] = None,
    benchmark: Annotated[str | None, typer.Option(help="The benchmark ('stepmend benchmarks' lists them).")] = None,
    data: Annotated[str | None, typer.Option(help="The benchmark's file, or a folder with train and test; default: the hub.")] = None,
    question_field: Annotated[str | None, typer.Option(help="For files: the field of the question.")] = None,
    answer_field: Annotated[str | None, typer.Option(help="For files: the field of the answer.")] = None,
    out: Annotated[
        Path,
        typer.Option(help="The run's folder; the same command resumes a stopped run; a changed recipe redoes what depends on the change."),
    ] = DEMO,
    assignments: Annotated[list[str] | None, typer.Option("--set", help="Set any recipe key, as in --set restore.steps=100.")] = None,
    engine: Annotated[list[str] | None, typer.Option(help=ENGINE)] = None,
    judge: Annotated[list[str] | None, typer.Option(help=JUDGE)] = None,
    judge_budget: Annotated[
        int | None, typer.Option(min=1, max=LARGEST, help="Token budget of all judges together; once it is spent, no judge is asked.")
    ] = None,
    control: Annotated[str | None, typer.Option("--controls", help=CONTROLS)] = None,
    seeds: Annotated[int | None, typer.Option(min=1, max=LARGEST, help=SEEDS)] = None,
    match: Annotated[Match | None, typer.Option(help=MATCH)] = None,
    reuse: Annotated[list[Path] | None, typer.Option(help=REUSE)] = None,
    ray: Annotated[str | None, typer.Option(metavar="ADDRESS", help=RAY)] = None,
    cpus_per_worker: Annotated[int | None, typer.Option(min=1, max=4096, help=WORKER)] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Use few problems: all stages in under three minutes.")] = False,
) -> None:
    """Run the whole loop on a model, and write a report page.

    Examples: [bold]stepmend run --quick[/]; [bold]stepmend run --model ./my-model --scheme gptq-w4a16-g128 --out runs/mine[/];
    [bold]stepmend run --model ./my-model --quantized ./my-model-awq --out runs/awq[/]
    """
    from stepmend import recipe as recipes

    values: dict[str, Any] = {} if recipe or model or quantized else {"schemes": recipes.ROUNDED}
    values = recipes.Recipe.from_yaml(recipe) if recipe else values
    given: dict[str, Any] = {"model": model, "schemes": scheme or None, "quantized": quantized or None, "benchmark": benchmark}
    given |= {"data": data, "question_field": question_field, "answer_field": answer_field}
    given["locate"] = {key: value for key, value in {"judges": judge or None, "judge_budget": judge_budget}.items() if value is not None}
    given["measure"] = {"engines": engine} if engine else None
    values = recipes.merge(values, {key: value for key, value in given.items() if value is not None})
    values = recipes.override(values, assignments or [])
    made = recipes.Recipe.make(recipes.quick(values) if quick else values)
    if quick and out == DEMO:
        out = Path("runs/quick")
    if cpus_per_worker and ray is None:
        raise InputError("ray: --cpus-per-worker goes with --ray")
    screen = console(stderr=True)
    _run(made, out, screen, control, seeds, match, reuse or (), ray, cpus_per_worker or 1)
    export = f"stepmend restore {out} --export DIR; " if any(out.glob("*-restored*/config.json")) else ""
    say(screen, f"Next: {export}to check the located steps yourself: stepmend audit {out}")


def _run(
    recipe: Any, out: Path, screen: Any, control: str | None, seeds: int | None, match: Match | None, reuse: Sequence[Path] = (),
    ray: str | None = None, cpus: int = 1,
) -> None:  # fmt: skip
    """Run a recipe, or its missing parts, then the requested controls; show the results."""
    from stepmend.curate import controls

    if control is None and (seeds or match):
        raise InputError(f"controls: {'--seeds' if seeds else '--match'} needs --controls")
    names = controls.parse(control) if control is not None else ()
    controls.check(names, recipe.restore)
    silence()
    from stepmend import api
    from stepmend.progress import Stages

    api.run(
        recipe, out, controls=names, seeds=seeds or 3, match=match or "steps", reuse=reuse, ray=ray, cpus_per_worker=cpus,
        progress=Stages(screen),
    )  # fmt: skip
    show_figures(out, screen)


@app.command()
def restore(
    folder: Annotated[Path, typer.Argument(help="A run's folder.")] = DEMO,
    scheme: Annotated[str | None, typer.Option(help="Which of the run's schemes to export; required if several were restored.")] = None,
    export: Annotated[
        Path | None, typer.Option(help="Copy the restored checkpoint here, with a model card; it must not exist yet.")
    ] = None,
    guard: Annotated[
        bool,
        typer.Option(
            "--guard", help="Refuse to export a model that is worse on any measure, or not shown to be within measure.margin points."
        ),
    ] = False,
    push: Annotated[
        str | None, typer.Option(metavar="NAME", help="Commit what --export writes to this model repository on the hub; private if new.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="With --push: a new repository is public.")] = False,
    base_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="For the model card: the full-precision model's name on the hub; default: the run's.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--license", metavar="ID", help="For the model card: the licence; default: that on the base model's card.")
    ] = None,
    control: Annotated[str | None, typer.Option("--controls", help=CONTROLS)] = None,
    seeds: Annotated[int | None, typer.Option(min=1, max=LARGEST, help=SEEDS)] = None,
    match: Annotated[Match | None, typer.Option(help=MATCH)] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(help="A judge, completer or engine of the run's recipe that may be sent API keys: NAME=MODEL@BASE_URL."),
    ] = None,
) -> None:
    """Finish a run, compare it with controls, export the restored checkpoint, or push it to the hub.

    Examples: [bold]stepmend restore runs/mine --export out/w3 --guard[/]; [bold]stepmend restore runs/mine --controls solved-problems[/];
    [bold]stepmend restore runs/mine --push me/my-model-w3 --guard[/]
    """
    from stepmend.report import card, summary
    from stepmend.report.push import Hub

    recipe = check_keys("restore", folder, judge or ())
    shares = export is not None or push is not None
    alone = {"--guard": guard, "--base-model": base_model, "--license": licence}
    if not shares and (name := next((name for name, given in alone.items() if given), None)):
        raise InputError(f"restore: {name} needs --export DIR or --push NAME")
    if public and push is None:
        raise InputError("restore: --public needs --push NAME")
    if scheme is not None and scheme not in recipe.low_bit:
        raise InputError(f"restore: {folder} has no scheme {scheme!r}; it has {', '.join(recipe.low_bit)}")
    if scheme is not None and not shares:
        raise InputError("restore: --scheme selects the scheme to export, and needs --export DIR or --push NAME")
    if base_model is not None and not card.HUB.fullmatch(base_model):
        raise InputError(f"restore: --base-model {base_model[:120]!r} is not a hub name; use OWNER/NAME")
    if export:
        if export.exists():
            raise InputError(f"export: {export} exists already; choose another folder")
        check_out(export, [])
    hub = Hub(push) if push is not None else None
    screen = console(stderr=True)
    _run(recipe, folder, screen, control, seeds, match)
    if shares:
        found = summary.read(folder)
        restored = [s for s in recipe.low_bit if summary.final(found, s)]
        if scheme is None and len(restored) > 1:
            raise InputError(f"restore: several schemes were restored; choose one with --scheme: {', '.join(restored)}")
        chosen = scheme or (restored or list(recipe.low_bit))[0]
        parent = card.parent_of(found)
        parent = card.Parent(base_model or parent.name, {"license": licence} if licence else parent.licence)
        parent = hub.completed(parent) if hub else parent
        with ExitStack() as stack:
            out = export or Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder, prefix=".push-"))) / "checkpoint"
            card.export(found, folder, chosen, out, guard=guard, parent=parent)
            if export:
                how = "; its README.md says how to load the adapter" if recipe.restore.tune == "lora" else ""
                say(screen, f"\n{export}: the restored checkpoint and its model card; it loads in {summary.loads_in(found, chosen)}{how}")
            if not (parent.name and parent.licence):
                lacks = " and ".join(what for what, of in (("base model", parent.name), ("licence", parent.licence)) if not of)
                say(screen, f"The model card names no {lacks}: --base-model NAME, --license ID")
            if hub:
                say(screen, f"Pushed: {hub.push(out, private=not public)}")


@app.command()
def align(
    model: Annotated[str, typer.Argument(help="A full-precision checkpoint: a folder, a hub name, builtin:qwen2 or builtin:llama.")],
    out: Annotated[Path, typer.Argument(help="The folder of the aligned checkpoint; it must not exist yet.")],
    benchmark: Annotated[str, typer.Option(help="The benchmark of training and held-out problems.")] = "story",
    data: Annotated[str | None, typer.Option(help="That benchmark's folder; default: the hub.")] = None,
    problems: Annotated[int, typer.Option(min=8, max=LARGEST, help="Number of training problems to sample.")] = 300,
    samples: Annotated[int, typer.Option(min=1, max=LARGEST, help="Samples per problem.")] = 4,
    held_out: Annotated[int, typer.Option(min=1, max=LARGEST, help="Number of held-out problems, solved before and after.")] = 300,
    steps: Annotated[int, typer.Option(min=1, max=LARGEST, help="Optimizer steps.")] = 100,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST)] = 0,
) -> None:
    """Train a model on its own correct answers in the step format: it learns the format and no new mathematics.

    Example: [bold]stepmend align Qwen/Qwen2.5-0.5B-Instruct out/aligned --benchmark gsm8k[/]; then stepmend run --model out/aligned
    """
    from stepmend.benchmarks import sources

    if benchmark not in sources.NAMES:
        raise InputError(f"benchmark: {benchmark!r}; allowed: {', '.join(sources.NAMES)}")
    silence()
    from stepmend.curate import leakage
    from stepmend.progress import Stages
    from stepmend.restore import align as aligning

    screen = console(stderr=True)
    source = sources.Data(benchmark, data)
    test, train = source.problems("test", held_out, seed), source.problems("train", problems, seed)
    index = leakage.Index([*source.measured(None, seed), *test])  # what a run of this model will report

    def leaks(problem: Any) -> bool:
        return (hit := index.check(problem)) is not None and hit.kind != "near"

    stages = Stages(screen)
    done = aligning.align(model, out, train=train, test=test, leaks=leaks, samples=samples, steps=steps, seed=seed, stages=stages)
    for line in aligning.lines(done):
        say(screen, line)
    say(screen, f"{out}\nNext: stepmend run --model {out} --benchmark {benchmark} --out runs/mine")


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A run's folder.")] = DEMO,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Print a run's figures and rewrite its report page. Needs no model."""
    from stepmend.report import summary

    if as_json:
        print(json.dumps(summary.figures(summary.read(folder)), indent=2))
        return
    show(folder, console())


@app.command()
def export(
    tool: Annotated[Tool, typer.Option("--to", help="The output format.")],
    folder: Annotated[Path, typer.Argument(help="A run's folder.")] = DEMO,
    out: Annotated[
        Path | None,
        typer.Option(help="The folder of the logs; it must not exist yet. Default: next to the run's folder, named after the format."),
    ] = None,
) -> None:
    """Write a run's solutions as logs for other viewers, one per arm. Needs no model.

    Example: [bold]stepmend export runs/demo --to inspect[/]; for checkpoints there is [bold]stepmend restore --export[/]
    """
    from stepmend.report import export as exporting
    from stepmend.report import summary

    run = folder if folder.name else folder.resolve()
    out = out or run.with_name(f"{run.name}-{tool}")
    if not out.exists():
        check_out(out, [])
    logs = exporting.write(summary.read(folder), folder, tool, out)
    screen = console()
    say(screen, "\n".join(map(str, logs)))
    if len(logs) > 1:
        say(screen, f"Next: stepmend compare {logs[0]} {logs[1]}")


@app.command()
def audit(
    folder: Annotated[Path, typer.Argument(help="A run's folder.")] = DEMO,
    sample: Annotated[int, typer.Option(min=1, max=LARGEST, help="Number of failed solutions to label, drawn at random.")] = 50,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST, help="Random seed of the sample.")] = 0,
    score: Annotated[Path | None, typer.Option(help="Labels saved by the page: print how well the pipeline agrees with them.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --score: print the figures as one JSON object.")] = False,
) -> None:
    """Write a page for labelling first faulty steps without seeing the locators' votes; then score the pipeline on those labels.

    Examples: [bold]stepmend audit runs/demo[/]; [bold]stepmend audit runs/demo --score audit-labels.json[/]
    """
    from stepmend.report import audit as auditing
    from stepmend.report import summary

    found, screen = summary.read(folder), console()
    if score is None:
        if as_json:
            raise InputError("audit: --json needs --score")
        count = auditing.write(found, sample, seed, folder / "audit.html")
        then = f"Open it, label, save; then: stepmend audit {folder} --score audit-labels.json"
        say(screen, f"{folder / 'audit.html'}: {count} failed solutions\n{then}")
        return
    figures = auditing.score(found, score)
    if as_json:
        print(json.dumps(figures, indent=2))
        return
    for line in auditing.lines(figures):
        say(screen, line)


@app.command()
def schemes() -> None:
    """List the schemes: name, bits, group size, calibration data, and where each loads."""
    from rich.table import Table

    from stepmend.quantize import schemes as table

    shown = Table("scheme", "weights", "acts", "group", "KV", "calibrated on", "loads in", title="stepmend quantize MODEL SCHEME OUT")
    shown.columns[0].no_wrap = True
    for s in table.listing():
        shown.add_row(
            s.name,
            f"{s.of.kind.rstrip('48')}{s.weight_bits}{'' if s.symmetric else ' + zeros'}",
            f"{s.of.activations.rstrip('48')}{s.activation_bits}" if s.activation_bits < 16 else "–",
            s.of.scales or str(s.group or "a row"),
            "fp8" if s.kv_bits else "–",
            "own traces" if s.calibrated else "–",
            s.loads,
        )
    screen = console()
    show_table(screen, shown)
    for name, text in table.METHODS.items():
        say(screen, f"{name}: {text}")


@app.command()
def benchmarks() -> None:
    """List the benchmarks: name, splits with their counts, kind of answer, licence, where from."""
    from rich.table import Table

    from stepmend.benchmarks import sources

    shown = Table("benchmark", "problems", "answers", "licence", "from", title="stepmend run --benchmark NAME [--data PATH]")
    shown.columns[0].no_wrap = True
    for row in sources.listing():
        shown.add_row(*row)
    screen = console()
    show_table(screen, shown)
    say(
        screen,
        "Reported: test. Used for tuning: train, split by the question's digest into calibration (10 %), curate (50 %) and train (40 %).",
    )


@app.command()
def quantize(
    model: Annotated[str, typer.Argument(help="A full-precision checkpoint: a folder, a hub name, builtin:qwen2 or builtin:llama.")],
    scheme: Annotated[str, typer.Argument(help=f"{NAMES}; 'stepmend schemes' lists all.")],
    out: Annotated[Path, typer.Argument(help="The folder of the quantized checkpoint; it must not exist yet.")],
    samples: Annotated[int, typer.Option(min=8, max=LARGEST, help="Number of calibration problems, solved by the model itself.")] = 64,
    benchmark: Annotated[str, typer.Option(help="The benchmark of calibration problems.")] = "story",
    data: Annotated[str | None, typer.Option(help="That benchmark's folder; default: the hub.")] = None,
) -> None:
    """Quantize a model with llm-compressor, calibrated on its own traces of calibration problems.

    Example: [bold]stepmend quantize builtin:qwen2 gptq-w3a16-g128 out/w3[/]
    """
    from stepmend.quantize import schemes as table

    parsed = table.parse(scheme)
    if out.exists():
        raise InputError(f"out: {out} exists already; choose another folder")
    check_out(out, [])
    silence()
    from stepmend.benchmarks import sources
    from stepmend.quantize import checkpoint

    if benchmark not in sources.NAMES:
        raise InputError(f"benchmark: {benchmark!r}; allowed: {', '.join(sources.NAMES)}")
    checkpoint.alone(model, parsed, out, samples, sources.Data(benchmark, data))
    print(f"{out}: {scheme}\nNext: stepmend run --model {model} --scheme {scheme} --out runs/{scheme}")
