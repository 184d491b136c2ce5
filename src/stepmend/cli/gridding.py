"""The command that runs a grid of models, benchmarks and seeds."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from stepmend.cli.common import app, console, say, show_table, silence
from stepmend.cli.running import RAY, WORKER
from stepmend.records import InputError


@app.command()
def grid(
    file: Annotated[
        Path, typer.Argument(help="A YAML file with models, schemes, benchmarks, seeds, and recipe: keys that all runs share.")
    ],
    out: Annotated[Path, typer.Option(help="The grid's folder. The same command resumes a stopped grid.")] = Path("runs/grid"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs with their tokens, hours and memory, and run nothing.")] = False,
    ray: Annotated[str | None, typer.Option(metavar="ADDRESS", help=RAY)] = None,
    cpus_per_worker: Annotated[int | None, typer.Option(min=1, max=4096, help=WORKER)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
) -> None:
    """Run every model with every benchmark and seed, over all schemes: one folder, one table, one page.

    A failed run is reported, and the others continue; the exit code is then 1.

    Example: [bold]stepmend grid grid.yaml --out runs/grid --dry-run[/]
    """
    from stepmend import grid as grids

    crossed = grids.Grid.read(file)
    found = grids.cells(crossed)
    if cpus_per_worker and ray is None:
        raise InputError("ray: --cpus-per-worker goes with --ray")
    silence()
    if dry_run:
        _dry(found, as_json)
        return
    from stepmend import api
    from stepmend.executors.ray import Ray
    from stepmend.progress import Stages

    screen = console(stderr=True)
    stages = Stages(screen)
    with ExitStack() as stack:
        cluster = stack.enter_context(Ray(ray, cpus_per_worker or 1, stages.say)) if ray is not None else None
        rows = grids.run(crossed, out, lambda recipe, folder: api.run(recipe, folder, ray=cluster, progress=stages), stages.say)
    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        _show(rows, out)
    if any(row["state"] == "failed" for row in rows):
        raise typer.Exit(1)


def _dry(found: list[Any], as_json: bool) -> None:
    """List the runs of a grid with their cost on this machine; a model that would be refused is marked."""
    from rich.table import Table

    from stepmend import api
    from stepmend import grid as grids

    checked: dict[str, Any] = {}
    rows = []
    for cell in found:
        model = cell.recipe.model
        try:
            checked[model] = checked.get(model) or api.check(model, cell.recipe.schemes)
            rows.append({"cell": cell.name, **grids.cost(cell, checked[model])})
        except InputError as error:
            rows.append({"cell": cell.name, "why": str(error)})
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table("run", "tokens", "hours", "memory")
    for row in rows:
        table.add_row(row["cell"], *(["refused", "", ""] if "why" in row else _cost(row)))
    show_table(console(), table)
    _say_why(rows)
    hours, tokens = (sum(row.get(name, 0.0) for row in rows) for name in ("hours", "tokens"))
    refused = sum("why" in row for row in rows)
    say(console(), f"{len(rows)} runs, {tokens:,.0f} tokens, {hours:,.2g} hours on this machine, one after another; {refused} refused")


def _cost(row: dict[str, Any]) -> list[str]:
    return [f"{row['tokens']:,.0f}", f"{row['hours']:.2f}", f"{row['GiB']:.1f} GiB"]


def _say_why(rows: list[dict[str, Any]]) -> None:
    """Print a line for every run that was refused or failed."""
    for name, why in {row["cell"]: row.get("why") for row in rows}.items():
        if why:
            say(console(), f"{name}: {why}")


def _show(rows: list[dict[str, Any]], out: Path) -> None:
    """Print the table and the page's path."""
    from rich.table import Table

    from stepmend.report.summary import percent

    table = Table("run", "scheme", "full", "quantized", "restored")
    for row in rows:
        shares = ["" if row[name] is None else percent(row[name]) for name in ("full", "quantized", "restored")]
        table.add_row(row["cell"], row["scheme"], *(shares if row["state"] == "done" else [row["state"], "", ""]))
    show_table(console(), table)
    _say_why(rows)
    say(console(), f"The page: {out / 'report.html'}")
