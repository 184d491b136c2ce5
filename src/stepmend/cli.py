"""The verbs: parse, call, print. What a user can put right is one line on standard error and exit code 2."""

import errno
import json
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from stepmend import __version__
from stepmend.records import InputError

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)

bench = typer.Typer(no_args_is_help=True, help="Measure stepmend's own parts against labels.")
app.add_typer(bench, name="bench")

if TYPE_CHECKING:
    from rich.console import Console

Kind = Literal["math", "number"]
EXTRA = "needs {module}, which is not installed; install it with: pip install 'stepmend[run]'"
HEAVY = frozenset("torch transformers llmcompressor compressed_tensors datasets peft openai".split())  # noqa: SIM905
DEMO = Path("runs/demo")
JUDGE = "An LLM judge, NAME=MODEL@BASE_URL; may be given again. Keys: STEPMEND_JUDGE_KEY_NAME or OPENAI_API_KEY in the environment."
USAGE_ERRORS: Any = typer.BadParameter.__base__
"""What a wrong option or argument raises; typer has no public name for it."""
PATH_ERRORS = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP}
)


def main() -> None:
    """The entry point: runs a verb, and turns what a user can put right into one line and exit code 2."""
    warnings.simplefilter("default" if os.environ.get("STEPMEND_DEBUG") else "ignore")
    warnings.showwarning = lambda message, *rest: print(f"stepmend: {message}", file=sys.stderr)
    warnings.filterwarnings("always", module="stepmend")
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    try:
        sys.exit(app(standalone_mode=False))
    except InputError as error:
        _stop(str(error))
    except USAGE_ERRORS as error:
        _stop(f"{error.format_message()} ('stepmend --help' and 'stepmend VERB --help' teach)")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in HEAVY:
            raise
        _stop(EXTRA.format(module=error.name))
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            where = error.filename or "a file"
            _stop(f"{where}: {error.strerror}; nothing was left half-written: make room and run the same command again")
        if error.errno not in PATH_ERRORS:
            raise
        _stop(f"{error.filename}: {error.strerror}")
    except (typer.Abort, KeyboardInterrupt):
        print("\nstepmend: stopped; the same command continues where it was", file=sys.stderr)
        sys.exit(130)


def _check_out(out: Path, inputs: list[Path]) -> None:
    """Before any work: whether a single file can be written there. Raises InputError where it cannot, or would replace an input."""
    if not out.name:
        raise InputError(f"out: {str(out)!r} names no file")
    if out.exists() and not out.is_file():
        raise InputError(f"out: {out} is no regular file; choose another name")
    if out.resolve() in {file.resolve() for file in inputs}:
        raise InputError(f"out: {out} is an input; choose another name")
    parent = next(folder for folder in out.resolve().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"out: cannot write into {parent}")


def _stop(message: str) -> None:
    print("stepmend: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


def _console(*, stderr: bool = False) -> "Console":
    """A console that is wide enough for our tables where no terminal says how wide it is."""
    from rich.console import Console

    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=110)


def _version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def _top(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False) -> None:
    """Find the step at which a quantized model starts to reason wrongly, and mend the model there.

    [bold]stepmend run[/] takes a model through quantize → measure → locate → curate → restore → report.
    """


@app.command()
def run(
    recipe: Annotated[Path | None, typer.Argument(help="A YAML file of recipe keys. Without one: the demo.")] = None,
    model: Annotated[str | None, typer.Option(help="A checkpoint's folder, a hub name, builtin:qwen2 or builtin:llama.")] = None,
    scheme: Annotated[list[str] | None, typer.Option(help="How to quantize; may be given again ('stepmend schemes' lists them).")] = None,
    benchmark: Annotated[str | None, typer.Option(help="Where problems come from ('stepmend benchmarks' lists them).")] = None,
    data: Annotated[str | None, typer.Option(help="The benchmark's file, or a folder with train and test; default: the hub.")] = None,
    question_field: Annotated[str | None, typer.Option(help="Files: the field of the question.")] = None,
    answer_field: Annotated[str | None, typer.Option(help="Files: the field of the answer.")] = None,
    out: Annotated[Path, typer.Option(help="The run's folder; the same command continues a run that was stopped.")] = DEMO,
    assignments: Annotated[list[str] | None, typer.Option("--set", help="Any recipe key, as in --set restore.steps=100.")] = None,
    judge: Annotated[list[str] | None, typer.Option(help=JUDGE)] = None,
    judge_budget: Annotated[int | None, typer.Option(help="Tokens after which no judge is asked any more.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few problems: the same stages in under three minutes.")] = False,
) -> None:
    """Take a model through the whole loop, and show it on one page.

    Examples: [bold]stepmend run --quick[/]; [bold]stepmend run --model ./my-model --scheme gptq-w4a16-g128 --out runs/mine[/]
    """
    from stepmend import recipe as recipes

    values = recipes.QUICK if quick else {}
    values = recipes.merge(values, recipes.Recipe.from_yaml(recipe)) if recipe else values
    given: dict[str, Any] = {"model": model, "schemes": scheme or None, "benchmark": benchmark, "data": data}
    given |= {"question_field": question_field, "answer_field": answer_field}
    given["locate"] = {key: value for key, value in {"judges": judge or None, "judge_budget": judge_budget}.items() if value is not None}
    values = recipes.merge(values, {key: value for key, value in given.items() if value is not None})
    made = recipes.Recipe.make(recipes.override(values, assignments or []))
    if quick and out == DEMO:
        out = Path("runs/quick")
    _silence()

    from stepmend.loop import Loop
    from stepmend.progress import Stages

    console = _console(stderr=True)
    with Loop(made, out, Stages(console)) as loop:
        loop.run()
    _show(out, console)
    console.print(f"Next: stepmend report {out} --json; to check the located steps yourself: stepmend audit {out}", highlight=False)


def _show(folder: Path, console: "Console") -> None:
    """Write a run's page, and print its table and what a reader of it must be told."""
    from stepmend.report import page, regularities, summary

    found = summary.read(folder)
    page.write(found, folder / "report.html")
    console.print(summary.table(found))
    for line in [*summary.notices(found), *regularities.sentences(found)]:
        console.print(line, highlight=False, soft_wrap=not console.is_terminal)
    console.print(f"\nThe page: {folder / 'report.html'}", highlight=False)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A run's folder.")] = DEMO,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Print a run's figures and write its page anew. Needs no model."""
    from stepmend.report import summary

    if as_json:
        print(json.dumps(summary.figures(summary.read(folder)), indent=2))
        return
    _show(folder, _console())


@app.command()
def grade(
    file: Annotated[Path, typer.Argument(help="Solutions, one a record: .jsonl, .json (a list), .csv or .parquet.")],
    answer_field: Annotated[str, typer.Option(help="The field of the solution or answer; a.b is field b inside a.")],
    gold_field: Annotated[str, typer.Option(help="The field of the right answer, or of a worked solution that ends in it.")],
    kind: Annotated[Kind, typer.Option(help="What answers are: any mathematics, or numbers with or without units.")] = "math",
    strict: Annotated[bool, typer.Option("--marked-only", help="An answer that is not boxed or marked as such is none.")] = False,
    out: Annotated[Path | None, typer.Option(help="Keep each record's grade, extracted answer and reason in this JSONL file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as one JSON object.")] = False,
) -> None:
    """Grade solutions against gold answers: correct, wrong, or unscored with a reason. Needs no model.

    Example: [bold]stepmend grade solutions.jsonl --answer-field solution --gold-field answer --out grades.jsonl[/]
    """
    if out:
        _check_out(out, [file])
    from stepmend.grading import files

    graded = files.grade_file(file, answer_field, gold_field, kind=kind, loose=not strict)
    if out:
        files.write(graded, out)
    counts = files.counts(graded)
    if as_json:
        print(json.dumps(counts, indent=2))
        return
    console = _console()
    for name in ("correct", "wrong", "unscored"):
        share = f"{100 * counts[name] / counts['n']:5.1f} %"
        console.print(f"{name:9} {counts[name]:6} {share}   in the asked format: {counts['strict'][name]}", highlight=False)
    for reason, count in counts["reasons"].items():
        console.print(f"  {reason}: {count}", highlight=False)
    keep = "--out FILE keeps every grade" if not out else f"the grades: {out}"
    console.print(f"n = {counts['n']}; {keep}", highlight=False)


@app.command()
def compare(
    logs: Annotated[list[Path], typer.Argument(help="Two or more logs, full precision first: lm-eval, lighteval, Inspect, CSV, JSONL.")],
    id_field: Annotated[str | None, typer.Option(help="Plain tables: the field that names the problem.")] = None,
    correct_field: Annotated[str | None, typer.Option(help="Plain tables: the field that says right or wrong.")] = None,
    answer_field: Annotated[str | None, typer.Option(help="Plain tables: the solution or answer, to be graded …")] = None,
    gold_field: Annotated[str | None, typer.Option(help="… against this field.")] = None,
    metric: Annotated[str | None, typer.Option(help="Logs with several metrics: the one that says right or wrong.")] = None,
    filter_name: Annotated[str | None, typer.Option("--filter", help="lm-eval logs with several filters: the one to read.")] = None,
    kind: Annotated[Kind, typer.Option(help="What graded answers are.")] = "math",
    name: Annotated[list[str] | None, typer.Option(help="A short name for each log, in their order; given once a log.")] = None,
    out: Annotated[Path, typer.Option(help="The page.")] = Path("runs/compare.html"),
    as_json: Annotated[bool, typer.Option("--json", help="Print every pair's figures as one JSON list.")] = False,
) -> None:
    """Compare arms that other tools measured, paired by problem. Needs no model.

    Example: [bold]stepmend compare full/samples_gsm8k_….jsonl w4/samples_gsm8k_….jsonl[/]
    """
    if len(logs) < 2:
        raise InputError("compare: two logs or more are needed, full precision first")
    if name and (len(name) != len(logs) or len(set(name)) < len(name)):
        raise InputError(f"compare: {len(name)} --name for {len(logs)} logs; one for each is needed, all different")
    _check_out(out, logs)
    if len({file.resolve() for file in logs}) < len(logs):
        raise InputError("compare: one log is given twice")
    from stepmend.measure import compare as comparing
    from stepmend.measure.logs import Fields, read
    from stepmend.report import compared

    fields = Fields(id_field, correct_field, answer_field, gold_field, metric, filter_name, kind)
    found = comparing.named([read(file, fields) for file in logs], name or [], [file.resolve().parent.name for file in logs])
    pairs = comparing.compare(found)
    compared.write(pairs, out)
    if as_json:
        print(json.dumps([pair.figures() for pair in pairs], indent=2))
        return
    console = _console()
    console.print(compared.table(pairs))
    for line in compared.notices(pairs):
        console.print(line, highlight=False, markup=False)
    console.print(f"\nThe page: {out}", highlight=False)


@app.command()
def audit(
    folder: Annotated[Path, typer.Argument(help="A run's folder.")] = DEMO,
    sample: Annotated[int, typer.Option(min=1, help="Failed solutions to label, drawn at random.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw.")] = 0,
    score: Annotated[Path | None, typer.Option(help="Labels that the page has saved: print how far the pipeline agrees.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --score: print the figures as one JSON object.")] = False,
) -> None:
    """Write a page on which a person labels first faulty steps, blind to the locators; then score the pipeline on those labels.

    Examples: [bold]stepmend audit runs/demo[/]; [bold]stepmend audit runs/demo --score audit-labels.json[/]
    """
    from stepmend.report import audit as auditing
    from stepmend.report import summary

    found, console = summary.read(folder), _console()
    if score is None:
        if as_json:
            raise InputError("audit: --json goes with --score")
        count = auditing.write(found, sample, seed, folder / "audit.html")
        then = f"Open it, label, save; then: stepmend audit {folder} --score audit-labels.json"
        console.print(f"{folder / 'audit.html'}: {count} failed solutions\n{then}", highlight=False)
        return
    figures = auditing.score(found, score)
    if as_json:
        print(json.dumps(figures, indent=2))
        return
    for line in auditing.lines(figures):
        console.print(line, highlight=False)


@bench.command("locate")
def bench_locate(
    data: Annotated[Path, typer.Option(help="The benchmark's file, or a folder of such files (.json, .jsonl, .parquet).")],
    benchmark: Annotated[Literal["processbench"], typer.Option(help="What is labelled.")] = "processbench",
    locator: Annotated[Literal["equations", "judge"], typer.Option(help="What is measured.")] = "equations",
    judge: Annotated[list[str] | None, typer.Option(help=JUDGE)] = None,
    judge_budget: Annotated[int | None, typer.Option(min=1, help="Tokens after which no judge is asked any more.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="So many solutions only, drawn at random.")] = None,
    answers: Annotated[Path, typer.Option(help="Where judges' answers are kept; nothing is asked twice.")] = Path("runs/judgements.jsonl"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Measure a locator against human labels of the first wrong step: accuracy on wrong and on right solutions, and F1.

    Example: [bold]stepmend bench locate --data processbench/gsm8k.json --locator judge --judge small=Qwen/Qwen3-8B@http://localhost:8000/v1[/]
    """
    from stepmend.locate import bench as benches

    if (locator == "judge") != bool(judge):
        raise InputError("bench: --locator judge and --judge NAME=MODEL@BASE_URL go together")
    solutions = benches.read(data, limit)
    console = _console(stderr=as_json)
    with benches.asking(judge or [], answers, judge_budget, console) as locate:
        found, notes = locate(solutions)
    figures = benches.figures(solutions, found)
    if as_json:
        print(json.dumps(figures, indent=2))
    for line in notes if as_json else [benches.text(figures), *notes]:
        console.print(line, highlight=False, soft_wrap=not console.is_terminal)


@app.command()
def schemes() -> None:
    """List the schemes: name, bits, group, what calibrates it, where it loads."""
    from rich.table import Table

    from stepmend.quantize import schemes as table

    shown = Table("scheme", "weights", "acts", "group", "KV", "calibrated on", "loads in", title="stepmend quantize MODEL SCHEME OUT")
    shown.columns[0].no_wrap = True
    for s in table.listing():
        shown.add_row(
            s.name,
            f"int{s.weight_bits}{'' if s.symmetric else ' + zeros'}",
            "int8" if s.activation_bits == 8 else "–",
            str(s.group or "a row"),
            "fp8" if s.kv_bits else "–",
            "own traces" if s.calibrated else "–",
            s.loads,
        )
    console = _console()
    console.print(shown)
    for name, text in table.METHODS.items():
        console.print(f"{name}: {text}", highlight=False)


@app.command()
def benchmarks() -> None:
    """List the benchmarks: name, splits with their counts, kind of answer, licence, where from."""
    from rich.table import Table

    from stepmend.benchmarks import sources

    shown = Table("benchmark", "problems", "answers", "licence", "from", title="stepmend run --benchmark NAME [--data PATH]")
    shown.columns[0].no_wrap = True
    for row in sources.listing():
        shown.add_row(*row)
    console = _console()
    console.print(shown)
    console.print("Reported: test. Tuned on: parts of train (calibration 10 %, curate 50 %, train 40 %), by the question's digest.")


@app.command()
def quantize(
    model: Annotated[str, typer.Argument(help="A full-precision checkpoint: a folder, a hub name, builtin:qwen2 or builtin:llama.")],
    scheme: Annotated[str, typer.Argument(help="For instance gptq-w4a16-g128; 'stepmend schemes' lists them.")],
    out: Annotated[Path, typer.Argument(help="The folder of the quantized checkpoint; it must not exist yet.")],
    samples: Annotated[int, typer.Option(min=8, help="Calibration problems, solved by the model itself.")] = 64,
    benchmark: Annotated[str, typer.Option(help="Where calibration problems come from.")] = "story",
    data: Annotated[str | None, typer.Option(help="That benchmark's folder; default: the hub.")] = None,
) -> None:
    """Quantize a model with llm-compressor, calibrated on its own traces of calibration problems.

    Example: [bold]stepmend quantize builtin:qwen2 gptq-w3a16-g128 out/w3[/]
    """
    from stepmend.quantize import schemes as table

    parsed = table.parse(scheme)
    if out.exists():
        raise InputError(f"out: {out} exists already; choose another folder")
    _check_out(out, [])
    _silence()
    from stepmend import loop
    from stepmend.benchmarks import sources

    if benchmark not in sources.NAMES:
        raise InputError(f"benchmark: {benchmark!r}; allowed: {', '.join(sources.NAMES)}")
    loop.quantize_alone(model, parsed, out, samples, sources.Data(benchmark, data))
    print(f"{out}: {scheme}\nNext: stepmend run --model {model} --scheme {scheme} --out runs/{scheme}")


def _silence() -> None:
    """The libraries' own progress bars and advice, which would break ours."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import tqdm

    begin = tqdm.tqdm.__init__

    def silent(self: Any, *arguments: Any, **options: Any) -> None:
        begin(self, *arguments, **{**options, "disable": True})

    tqdm.tqdm.__init__ = silent


if __name__ == "__main__":
    main()
