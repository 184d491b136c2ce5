"""A grid: models, benchmarks and seeds, each combination a run over all schemes, in one folder with one table and one page.

A failed run is reported, and the others continue. The same command resumes a stopped grid; a finished run takes seconds.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stepmend.arms import FULL, parse
from stepmend.benchmarks import sources
from stepmend.recipe import Recipe, merge
from stepmend.records import InputError, digest
from stepmend.report import page, summary
from stepmend.rundir import write_text

if TYPE_CHECKING:
    from stepmend.results import Check

STATE = "grid.json"
"""The table, in the grid's folder."""


class Benchmark(BaseModel):
    """A benchmark and its data."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    benchmark: str
    data: str | None = None
    question_field: str | None = None
    answer_field: str | None = None


class Grid(BaseModel):
    """The models, benchmarks and seeds to cross. ``recipe`` has the keys that all runs share."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: list[str] = Field(min_length=1)
    schemes: list[str] = Field(min_length=1)
    benchmarks: list[str | Benchmark] = Field(min_length=1)
    seeds: list[int] = Field(default=[0], min_length=1)
    recipe: dict[str, Any] = {}

    @classmethod
    def read(cls, file: Path) -> "Grid":
        """Read a grid from a YAML file. Raises InputError if it is invalid."""
        try:
            return cls.model_validate(Recipe.from_yaml(file))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "grid"
            allowed = "models, schemes, benchmarks, seeds, recipe"
            raise InputError(f"grid: {file}: {where[:60]}: {first['msg'][:100]}; its keys are {allowed}") from None


class Cell(BaseModel):
    """One run of a grid: its folder's name, and its recipe."""

    model_config = ConfigDict(frozen=True)

    name: str
    recipe: Recipe


def cells(grid: Grid) -> list[Cell]:
    """The runs of a grid, in order. Raises InputError if a recipe is invalid; no model is loaded."""
    from stepmend.quantize import schemes

    if crossed := [key for key in (*Benchmark.model_fields, "model", "schemes", "quantized", "seed") if key in grid.recipe]:
        raise InputError(f"grid: recipe: {crossed[0]} differs between runs; set it by models, schemes, benchmarks or seeds")
    for scheme in grid.schemes:
        schemes.parse(scheme)
    found = []
    for model, benchmark, seed in product(grid.models, grid.benchmarks, grid.seeds):
        of = Benchmark(benchmark=benchmark) if isinstance(benchmark, str) else benchmark
        values = merge(grid.recipe, {"model": model, "schemes": grid.schemes, "seed": seed, **of.model_dump(exclude_none=True)})
        found.append(Cell(name=_name(model, of, seed), recipe=Recipe.make(values)))
    names = [cell.name for cell in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"grid: {twice} comes twice; models, benchmarks and seeds must differ")
    return found


def _name(model: str, benchmark: Benchmark, seed: int) -> str:
    """A descriptive folder name; a digest distinguishes models with the same name in different folders."""
    short = Path(model.removeprefix("builtin:")).name or "model"
    clear = "".join(c if c.isalnum() or c in "-._" else "-" for c in short)[:60]
    return f"{clear}-{digest(model)[:6]}-{benchmark.benchmark}{'-' + digest(benchmark.data)[:6] if benchmark.data else ''}-s{seed}"


def run(grid: Grid, out: Path, one: Callable[[Recipe, Path], Any], say: Callable[[str], None] = lambda line: None) -> list[dict[str, Any]]:
    """Run every cell, and write the table and the page after each.

    Args:
        grid: The grid.
        out: Its folder; each cell has a folder in it.
        one: Runs a recipe in a folder.
        say: Called with a message for every cell.

    Returns:
        A row for every scheme of every cell: see ``rows``.
    """
    found, failed = cells(grid), dict[str, str]()
    if out.exists() and not out.is_dir():
        raise InputError(f"grid: --out {out} is not a folder")
    for number, cell in enumerate(found, 1):
        say(f"[{number}/{len(found)}] {cell.name}")
        start = time.monotonic()
        try:
            one(cell.recipe, out / cell.name)
        except Exception as error:  # whatever ends one cell must not end the others; Ctrl-C does
            failed[cell.name] = " ".join(str(error).split())[:300] or type(error).__name__
            say(f"  failed after {time.monotonic() - start:.0f} s: {failed[cell.name]}")
        write(out, rows(found, out, failed))
    return rows(found, out, failed)


def rows(found: Sequence[Cell], out: Path, failed: Mapping[str, str]) -> list[dict[str, Any]]:
    """A row for every scheme of every cell: accuracies, the paired difference of restored and full precision, the share of the loss
    recovered, and the state (``done``, ``failed``, ``not run``)."""
    table = []
    for cell in found:
        common = {"cell": cell.name, "model": cell.recipe.model, "benchmark": cell.recipe.benchmark, "seed": cell.recipe.seed}
        done = cell.name not in failed and (out / cell.name / "report.html").exists()
        state = {"state": "failed" if cell.name in failed else "done" if done else "not run", "why": failed.get(cell.name)}
        figures = summary.figures(summary.read(out / cell.name)) if done else {}
        table += [{**common, "scheme": scheme, **state, **_figures(figures, scheme)} for scheme in cell.recipe.low_bit]
    return table


def _figures(figures: dict[str, Any], scheme: str) -> dict[str, Any]:
    """The table's figures of a scheme; None if the run has none."""
    arms, of = figures.get("arms", {}), figures.get("schemes", {}).get(scheme, {})
    names = [name for name in arms if parse(name).scheme == scheme and parse(name).round]
    restored = arms[max(names, key=lambda name: parse(name).round)] if names else {}
    recovered = of.get("loss_recovered") or {}
    return {
        "problems": arms.get(FULL, {}).get("n"),
        "full": arms.get(FULL, {}).get("accuracy"),
        "quantized": arms.get(scheme, {}).get("accuracy"),
        "loss_p": of.get("mcnemar_p"),
        "restored": restored.get("accuracy"),
        "against_full": restored.get("against_full"),
        "recovered": recovered if recovered.get("value") is not None else None,
    }


def cost(cell: Cell, check: "Check") -> dict[str, float]:
    """Tokens that a run generates on the test problems, its hours, and its memory in GiB, from a check of the model on this machine.

    Full precision solves the test problems once, and each scheme's model before and after restoring. Raises InputError if the problems
    cannot be read.
    """
    recipe, work, schemes = cell.recipe, check.work, len(cell.recipe.low_bit)
    data = sources.Data(recipe.benchmark, recipe.data, recipe.question_field, recipe.answer_field)
    problems, arms = len(data.measured(recipe.measure.problems, recipe.seed)), 1 + 2 * schemes
    length = min(work.solution, recipe.measure.max_new_tokens or work.solution)
    share = problems * length / (work.problems * work.solution)
    times = {"quantize": 1.0, "solve": arms * share, "locate": (1 + schemes) * share, "restore": float(schemes)}
    spent = sum(check.seconds.get(stage, 0.0) * count for stage, count in times.items())
    return {"tokens": problems * length * arms, "hours": spent / 3600, "GiB": sum(check.memory.values()) / (1 << 30)}


def write(out: Path, table: list[dict[str, Any]]) -> None:
    """Write a grid's table as JSON and as a page."""
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / STATE, json.dumps(table, indent=1) + "\n")
    page.write_blob({"rows": table}, "grid.html.j2", out / "report.html")
