"""The command that measures stepmend's locators against labels."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from stepmend.cli.common import JUDGE, app, check_out, console, finite, say
from stepmend.keys import LARGEST
from stepmend.records import InputError

bench = typer.Typer(no_args_is_help=True, help="Measure stepmend's own parts against labels.")
app.add_typer(bench, name="bench")

Name = Literal["vote", "equations", "rescue", "margins", "reference", "solution", "judge", "judges"]
LOCATOR = (
    "What to measure: the whole vote, or one locator. equations and judge use the labelled steps, as ProcessBench does; the others, and "
    "equations with --own-steps, split solutions into stepmend's own steps."
)


@bench.command("locate")
def bench_locate(
    data: Annotated[Path, typer.Option(help="The labelled file, or a folder of such files (.json, .jsonl, .parquet).")],
    benchmark: Annotated[Literal["processbench"], typer.Option(help="The format of the labels.")] = "processbench",
    locator: Annotated[Name, typer.Option(help=LOCATOR)] = "equations",
    own_steps: Annotated[bool, typer.Option("--own-steps", help="equations: use stepmend's own steps.")] = False,
    problems: Annotated[Path | None, typer.Option(help="The benchmark's own file or folder, for answers and worked solutions.")] = None,
    model: Annotated[str | None, typer.Option(help="The full-precision checkpoint, for rescue, margins and solution.")] = None,
    quantized: Annotated[str | None, typer.Option(help="The checkpoint that wrote the solutions, for margins.")] = None,
    completer: Annotated[str | None, typer.Option(help="A better model for rescue: a checkpoint, or NAME=MODEL@BASE_URL.")] = None,
    samples: Annotated[int | None, typer.Option(min=1, max=64, help="rescue: continuations per cut; default: as in a run.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=8, max=LARGEST, help="Maximum tokens of a continuation.")] = None,
    slots: Annotated[
        int | None, typer.Option(min=1, max=LARGEST, help="Continuations generated in parallel; default: 32, or what fits on a GPU.")
    ] = None,
    threshold: Annotated[float, typer.Option(min=0, max=1, callback=finite, help="Probability below which the vote names no step.")] = 0.5,
    reliabilities: Annotated[Path | None, typer.Option(help="The locators' reliabilities: a file from --save.")] = None,
    save: Annotated[Path | None, typer.Option(help="Write the reliabilities measured on these labels, for locate.reliabilities.")] = None,
    judge: Annotated[list[str] | None, typer.Option(help=JUDGE)] = None,
    judge_budget: Annotated[
        int | None, typer.Option(min=1, max=LARGEST, help="Token budget of all judges together; once it is spent, no judge is asked.")
    ] = None,
    judge_timeout: Annotated[float, typer.Option(min=1, callback=finite, help="Timeout of a judge's answer, in seconds.")] = 60,
    plain_http: Annotated[bool, typer.Option("--plain-http", help="Allow plain http to judges and completers on other machines.")] = False,
    hide_answer: Annotated[bool, typer.Option("--hide-answer", help="Hide the correct answer from judges; a run shows it.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, max=LARGEST, help="Evaluate a random subset of this many solutions.")] = None,
    answers: Annotated[Path, typer.Option(help="The file of judges' answers; a question is never asked twice.")] = Path(
        "runs/judgements.jsonl"
    ),
    out: Annotated[Path, typer.Option(help="The folder of intermediate results; the same command resumes from it.")] = Path(
        "runs/bench-locate"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Measure a locator, or the whole vote, against human labels of the first wrong step.

    Examples: [bold]stepmend bench locate --data processbench/gsm8k.json[/];
    [bold]stepmend bench locate --data failures.json --problems gsm8k/ --locator vote --model ./full --quantized ./w4 --save rates.json[/]
    """
    from stepmend.locate import bench as benches

    by_labelled_steps = locator in ("judge", "judges") or (locator == "equations" and not own_steps)
    if (locator in ("judge", "judges") and not judge) or (judge and locator not in ("judge", "judges", "vote")):
        raise InputError("bench: --locator judge (or vote) and --judge NAME=MODEL@BASE_URL go together")
    if judge_budget is not None and not judge:
        raise InputError("bench: --judge-budget needs --judge")
    if save:
        check_out(save, [data])
    if save and locator != "vote":
        raise InputError("bench: --save needs --locator vote, which runs every locator")
    solutions = benches.read(data, limit, problems)
    screen = console(stderr=as_json)
    if by_labelled_steps:
        how: dict[str, Any] = {"shown": not hide_answer, "plain_http": plain_http, "timeout": judge_timeout}
        with benches.asking(judge or [], answers, judge_budget, screen, **how) as locate:
            found, notes = locate(solutions)
        figures: dict[str, Any] = benches.figures(solutions, found)
        figures |= {"judges_see_answer": not hide_answer} if judge else {}
        _print(figures, [benches.text(figures), *notes], screen, as_json=as_json)
        return
    locators = _asked(locator, {"model": model, "quantized": quantized})
    settings = {"locators": locators, "samples": samples, "threshold": threshold, "completer": completer}
    settings |= {"judges": judge or (), "judge_budget": judge_budget, "judge_timeout": judge_timeout}
    settings |= {"judges_see_answer": not hide_answer, "plain_http": plain_http}
    _own(solutions, locator, settings, screen, out, save, reliabilities, model, quantized, max_new_tokens, slots, as_json=as_json)


def _asked(locator: Name, given: dict[str, str | None]) -> tuple[str, ...]:
    """The locators to run. Raises InputError if a single locator's model is missing."""
    from stepmend.locate import bench as benches

    if locator == "vote":
        return benches.able(**given, answered=True)
    if missing := [need for need in benches.NEEDS[locator] if need in given and not given[need]]:
        raise InputError(f"bench: --locator {locator} needs {' and '.join('--' + need for need in missing)}")
    return (locator,)


def _own(
    solutions: list[Any], locator: Name, settings: dict[str, Any], screen: Any, out: Path, save: Path | None, reliabilities: Path | None,
    model: str | None, quantized: str | None, max_new_tokens: int | None, slots: int | None, *, as_json: bool,
) -> None:  # fmt: skip
    """Measure by our own steps."""
    from stepmend.locate import labelled, labelling, reliability
    from stepmend.progress import Stages
    from stepmend.recipe import Recipe

    rates = reliability.read(reliabilities) if reliabilities else reliability.DEFAULT
    made = Recipe.make({"locate": settings}).locate
    setup = labelling.Setup(made, model, quantized, rates, max_new_tokens, slots)
    ready, found = labelling.run(solutions, setup, out, Stages(console(stderr=True)))
    if locator != "vote":
        found = [labelled.alone(fault, locator) for fault in found]
    figures = labelled.figures(ready, found) | {"locators": list(made.locators), "judges_see_answer": made.judges_see_answer}
    lines = labelled.text(figures)
    if locator == "vote":
        without = labelled.figures(ready, labelled.without(ready, found, "reference", made.threshold, rates))
        figures["without_reference"] = without
        lines += ["without the benchmark's worked solutions: " + labelled.text(without)[0]]
    if save:
        counts = labelled.save(ready, found, save, shown=made.judges_see_answer, completer=made.completer)
        lines += [f"reliabilities of {', '.join(f'{name} ({n})' for name, n in counts.items())}: {save}"]
    _print(figures, lines, screen, as_json=as_json)


def _print(figures: dict[str, Any], lines: list[str], screen: Any, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(figures, indent=2))
    for line in lines[as_json:]:
        say(screen, line)
