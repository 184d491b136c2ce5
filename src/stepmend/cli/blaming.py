"""The command that finds the modules of a low-bit model that caused its faults."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from stepmend.cli.common import DEMO, app, check_keys, console, finite, say, show_figures, silence
from stepmend.keys import LARGEST

BUDGET = "Mean bits per weight of the proposal, scales included; default: 0.375 more than the scheme's."


@app.command()
def blame(
    folder: Annotated[Path, typer.Argument(help="A run's folder.")] = DEMO,
    scheme: Annotated[str | None, typer.Option(help="Which of the run's schemes; default: each that has faults.")] = None,
    budget: Annotated[float | None, typer.Option(callback=finite, help=BUDGET)] = None,
    seeds: Annotated[int, typer.Option(min=1, max=LARGEST, help="Number of random choices of modules per share of the weights.")] = 5,
    others: Annotated[int, typer.Option(min=0, max=LARGEST, help="Number of solved problems to solve again, to count new losses.")] = 200,
    judge: Annotated[
        list[str] | None, typer.Option(help="A judge or completer of the run's recipe that may be sent API keys: NAME=MODEL@BASE_URL.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Find the modules that caused a run's faults, test returning the worst to full precision, and propose mixed precision.

    Examples: [bold]stepmend blame runs/demo[/]; [bold]stepmend blame runs/mine --scheme gptq-w3a16-g128 --budget 3.5[/]
    """
    check_keys("blame", folder, judge or ())
    silence()
    from stepmend import api
    from stepmend.progress import Stages
    from stepmend.report import summary
    from stepmend.report.sections.blame import blamed

    screen = console(stderr=True)
    api.blame(folder, scheme, budget=budget, seeds=seeds, others=others, progress=Stages(screen))
    found = summary.read(folder)
    if as_json:
        print(json.dumps({name: asdict(of) for name in found.recipe.low_bit if (of := blamed(found, name))}, indent=2))
        return
    show_figures(folder, screen)
    offered = sorted((folder / "blame").glob("*/recipe.yaml"))
    then = f"llm-compressor's oneshot takes {offered[0]}" if offered else f"stepmend blame {folder} --budget BITS proposes another size"
    say(screen, f"Next: {then}")
