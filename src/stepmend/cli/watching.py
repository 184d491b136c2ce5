"""The command that shows the progress of a running loop. It only reads the run's folder."""

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stepmend.cli.common import DEMO, app, console, say
from stepmend.records import InputError

if TYPE_CHECKING:
    from rich.console import Console, Group

    from stepmend.store.progress import Progress

REFRESH = 1.0
"""Seconds between two refreshes."""


@app.command()
def watch(folder: Annotated[Path, typer.Argument(help="A run's folder.")] = DEMO) -> None:
    """Show the progress of a run that another process works on, until it ends. Ctrl-C stops watching, not the run.

    Example: [bold]stepmend watch runs/mine[/]
    """
    from stepmend.store import progress

    if not (folder / "recipe.json").is_file():
        raise InputError(f"watch: {folder} holds no run (there is no recipe.json); 'stepmend run --out {folder}' starts one")
    screen = console()
    if progress.is_running(folder):
        try:
            show = _on_terminal if screen.is_terminal else _in_lines
            show(folder, screen)
        except KeyboardInterrupt:
            say(screen, f"{folder}: no longer watched; the run continues")
            return
    say(screen, _end(folder, progress.read(folder)))


def _on_terminal(folder: Path, screen: "Console") -> None:
    """Show stage, bar, rate, time left and the last messages, refreshed in place."""
    from rich.live import Live

    from stepmend.store import progress

    with Live(console=screen, transient=True, auto_refresh=False) as live:
        while progress.is_running(folder):
            live.update(panel(folder, progress.read(folder)), refresh=True)
            time.sleep(REFRESH)


def _in_lines(folder: Path, screen: "Console") -> None:
    """Print a line immediately, and then one every 30 s."""
    from stepmend.progress import EVERY
    from stepmend.store import progress

    said = float("-inf")
    while progress.is_running(folder):
        if time.monotonic() - said >= EVERY:
            said = time.monotonic()
            found = progress.read(folder)
            say(screen, str(found.update) if found and found.update.stage else f"{folder}: running; no stage has started yet")
        time.sleep(REFRESH)


def panel(folder: Path, found: "Progress | None") -> "Group":
    """What a terminal shows of a running loop: each value on a line that fits 40 columns, and the last messages below."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    from stepmend.progress import clock, visible

    if found is None or not found.update.stage:
        return Group(Text(visible(f"{folder}: running; no stage has started yet")))
    waited = max(time.time() - found.written, 0.0)
    update = replace(found.update, seconds=found.update.seconds + waited)
    done = filter(None, (f"{update.done}/{update.total} {update.unit}", update.left and f"{update.left} left"))
    speed = filter(None, (f"{clock(update.seconds)} in this stage", update.rate))
    return Group(
        Text(visible(f"{folder}: running"), style="bold"),
        Text(visible(update.stage)),
        Padding(ProgressBar(total=max(update.total, 1), completed=update.done, width=36)),  # a bar alone ends no line
        Text(visible(", ".join(done))),
        Text(visible(", ".join(speed))),
        *(Text(visible(line), style="dim") for line in found.lines),
    )


def _end(folder: Path, found: "Progress | None") -> str:
    """The last line: how the run ended, and what to do next."""
    state = found.state if found else None
    if state == "finished":
        return f"{folder}: finished; its figures: stepmend report {folder}"
    if state is None:
        return f"{folder}: not running, and no progress is recorded; its figures: stepmend report {folder}"
    stage = f" at {found.update}" if found and found.update.stage else ""
    ended = "failed" if state == "failed" else "stopped"
    return f"{folder}: {ended}{stage}; the command that started it continues it"
