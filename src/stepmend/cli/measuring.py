"""The commands that measure without a model: grades, and other tools' logs."""

import json
from pathlib import Path
from typing import Annotated

import typer

from stepmend.cli.common import Kind, app, check_out, console, finite, say, show_table

FINISH = (
    "The field that says how a text finished (stop, length …); one that the limit cut off has no loose and no early answer. Without it, "
    "finish_reason or stop_reason is read where it is there."
)


@app.command()
def grade(
    file: Annotated[Path, typer.Argument(help="Solutions, one per record: .jsonl, .json (a list), .csv or .parquet.")],
    answer_field: Annotated[str, typer.Option(help="The field of the solution or answer; a.b is field b inside a.")],
    gold_field: Annotated[str, typer.Option(help="The field of the right answer, or of a worked solution that ends in it.")],
    finish_field: Annotated[str | None, typer.Option(help=FINISH)] = None,
    kind: Annotated[Kind, typer.Option(help="What answers are: any mathematics, or numbers with or without units.")] = "math",
    strict: Annotated[bool, typer.Option("--marked-only", help="Count only answers that are boxed or marked as such.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write each record's grade, extracted answer and reason to this JSONL file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as one JSON object.")] = False,
) -> None:
    """Grade solutions against gold answers: correct, wrong, or unscored with a reason. Needs no model.

    Example: [bold]stepmend grade solutions.jsonl --answer-field solution --gold-field answer --out grades.jsonl[/]
    """
    if out:
        check_out(out, [file])
    from stepmend import api

    graded = api.grade(file, answer_field, gold_field, finish_field=finish_field, kind=kind, marked_only=strict)
    if out:
        graded.write(out)
    counts = graded.figures()
    if as_json:
        print(json.dumps(counts, indent=2))
        return
    screen = console()
    if counts["broken"]:
        say(screen, f"This run is broken: {counts['broken']}. Its accuracy is not meaningful.")
    for name in ("correct", "wrong", "unscored"):
        share = f"{100 * counts[name] / counts['n']:5.1f} %"
        say(screen, f"{name:9} {counts[name]:6} {share}   in the requested format: {counts['strict'][name]}")
    for reason, count in counts["reasons"].items():
        say(screen, f"  {reason}: {count}")
    for name, said in (("loops", "texts that loop"), ("cut_off", "texts that the limit cut off")):
        if counts[name]:
            say(screen, f"{said}: {counts[name]}")
    keep = "--out FILE keeps every grade" if not out else f"the grades: {out}"
    say(screen, f"n = {counts['n']}; {keep}")


@app.command()
def compare(
    logs: Annotated[
        list[Path],
        typer.Argument(
            help="Logs, full precision first: lm-eval, lighteval, Inspect, HELM, llama-eval, every_eval_ever, CSV, JSON, Parquet; "
            "or folders of subtasks' logs."
        ),
    ],
    id_field: Annotated[str | None, typer.Option(help="Plain tables: the field that names the problem.")] = None,
    correct_field: Annotated[str | None, typer.Option(help="Plain tables: the field that says right or wrong.")] = None,
    answer_field: Annotated[str | None, typer.Option(help="Plain tables: the solution or answer, to be graded …")] = None,
    gold_field: Annotated[str | None, typer.Option(help="… against this field.")] = None,
    metric: Annotated[str | None, typer.Option(help="Logs with several metrics: the one that says right or wrong.")] = None,
    filter_name: Annotated[str | None, typer.Option("--filter", help="lm-eval logs with several filters: the one to read.")] = None,
    finish_field: Annotated[str | None, typer.Option(help=FINISH)] = None,
    arm_field: Annotated[str | None, typer.Option(help="Plain tables that hold several arms: the field that names the arm.")] = None,
    sample_field: Annotated[
        str | None, typer.Option(help="Plain tables with several samples per problem: the field of the sample number.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(callback=finite, help="Partial scores: the smallest score that counts as correct.")
    ] = None,
    kind: Annotated[Kind, typer.Option(help="The kind of the graded answers.")] = "math",
    name: Annotated[list[str] | None, typer.Option(help="A short name for each log, in the same order; once per log.")] = None,
    margin: Annotated[float, typer.Option(min=0, max=100, help="Non-inferiority margin, in points of accuracy.")] = 1.0,
    out: Annotated[Path, typer.Option(help="The HTML page to write.")] = Path("runs/compare.html"),
    as_json: Annotated[bool, typer.Option("--json", help="Print every pair's figures as one JSON list.")] = False,
) -> None:
    """Compare logs of other tools, paired by problem. Needs no model.

    Example: [bold]stepmend compare full/samples_gsm8k_….jsonl w4/samples_gsm8k_….jsonl[/]
    """
    check_out(out, logs)
    from stepmend import api
    from stepmend.logs import Fields
    from stepmend.report import compared

    fields = Fields(
        id_field, correct_field, answer_field, gold_field, metric, filter_name, kind, finish_field, arm_field, sample_field, threshold
    )
    found = api.compare(*logs, names=name or (), margin=margin, fields=fields)
    pairs = found.pairs
    found.write(out)
    if as_json:
        print(json.dumps(found.figures(), indent=2))
        return
    screen = console()
    for line in compared.warnings(pairs):
        say(screen, line)
    show_table(screen, compared.table(pairs))
    if endings := compared.ending_table(pairs):
        show_table(screen, endings)
    for line in compared.conclusions(pairs):
        say(screen, line)
    say(screen, f"\nThe page: {out}")
