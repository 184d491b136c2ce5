"""Shared by all commands: the typer app, consoles, and checks before any work."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from stepmend.keys import LARGEST
from stepmend.progress import visible
from stepmend.records import InputError

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from stepmend.recipe import Recipe

Kind = Literal["math", "number"]
DEMO = Path("runs/demo")
WIDE = 400
"""Columns of an output that is not a terminal, where nothing should be wrapped."""
CONTROLS = (
    "Controls to compare located bullets with, separated by commas: random-step, shuffled-step, whole-response, whole-trace, "
    "solved-problems, sft-chosen, full-tuned."
)
JUDGE = "An LLM judge, NAME=MODEL@BASE_URL; can be repeated. API keys: STEPMEND_JUDGE_KEY_NAME or OPENAI_API_KEY in the environment."


def finite(value: float | None) -> float | None:
    """What a number must be: finite and bounded. Raises typer.BadParameter if it is not."""
    if value is not None and not abs(value) <= LARGEST:  # and so no NaN
        raise typer.BadParameter(f"{value} is not a number up to {LARGEST:,}")
    return value


def check_out(out: Path, inputs: list[Path]) -> None:
    """Before any work: whether a single file can be written there. Raises InputError if it cannot, or would replace an input."""
    if not out.name:
        raise InputError(f"out: {str(out)!r} is not a file name")
    if out.exists() and not out.is_file():
        raise InputError(f"out: {out} is not a regular file; choose another name")
    if out.resolve() in {file.resolve() for file in inputs}:
        raise InputError(f"out: {out} is an input; choose another name")
    parent = next(folder for folder in out.resolve().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"out: cannot write into {parent}")


def check_keys(verb: str, folder: Path, named: Sequence[str]) -> "Recipe":
    """The recipe of a run that a command finishes before its own work.

    Raises InputError if the folder holds no run, or its recipe sends keys to an address that the user has not ``named``.
    """
    from stepmend.locate import judges
    from stepmend.recipe import Recipe

    if not (folder / "recipe.json").exists():
        raise InputError(f"{verb}: {folder} holds no run (there is no recipe.json); 'stepmend run --out {folder}' makes one")
    recipe = Recipe.from_json(folder / "recipe.json")
    servers = [spec for spec in (recipe.locate.completer, *recipe.measure.engines) if spec and "@" in spec]
    if name := judges.unknown((*recipe.locate.judges, *servers), named):
        raise InputError(
            f"{verb}: {folder} has an address for {name} in its recipe; to allow sending it an API key, repeat it: "
            f"--judge {name}=MODEL@BASE_URL"
        )
    return recipe


def console(*, stderr: bool = False) -> "Console":
    """A console as wide as its terminal; without a terminal, as wide as COLUMNS, or else wide enough for any line."""
    from rich.console import Console

    made = Console(stderr=stderr)
    return made if made.is_terminal or "COLUMNS" in os.environ else Console(stderr=stderr, width=WIDE)


def say(screen: "Console", text: str) -> None:
    """Print text without interpreting markup in paths or model output."""
    screen.print(visible(text), highlight=False, markup=False, soft_wrap=not screen.is_terminal)


def show_table(screen: "Console", table: "Table") -> None:
    """Print a table. If it is too wide, print each row as a list with one value per line."""
    from rich.measure import Measurement
    from rich.padding import Padding
    from rich.text import Text

    if Measurement.get(screen, screen.options.update(max_width=WIDE), table).maximum <= screen.width:
        screen.print(table)
        return

    def plain(cell: Any) -> Text:
        return Text(visible(Text.from_markup(str(cell)).plain))

    if table.title:
        screen.print(plain(table.title))
    headers = [column.header for column in table.columns]
    for name, *values in zip(*(column.cells for column in table.columns), strict=True):
        screen.print(plain(name), style="bold")
        for header, value in zip(headers[1:], values, strict=True):
            if value:
                screen.print(Padding(plain(f"{header}: {value}"), (0, 0, 0, 2), expand=False))


def show(folder: Path, screen: "Console") -> None:
    """Write a run's page, and print its figures."""
    from stepmend.report import page, summary

    page.write(summary.read(folder), folder / "report.html")
    show_figures(folder, screen)


def show_figures(folder: Path, screen: "Console") -> None:
    """Print a run's table, and the notices and sentences below it."""
    from stepmend.report import summary, terminal

    found = summary.read(folder)
    show_table(screen, terminal.table(found))
    for line in terminal.lines(found):
        say(screen, line)
    say(screen, f"\nThe page: {folder / 'report.html'}")


def silence() -> None:
    """The libraries' own progress bars and advice, which would break ours."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import tqdm
    except ModuleNotFoundError:  # it comes with the libraries of the extra: without them there is nothing to silence
        return

    start = tqdm.tqdm.__init__

    def silent(self: Any, *arguments: Any, **options: Any) -> None:
        start(self, *arguments, **{**options, "disable": True})

    tqdm.tqdm.__init__ = silent
