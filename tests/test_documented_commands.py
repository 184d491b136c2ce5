"""Every command and recipe that README and guides show: its options exist, its values are allowed; what is cheap is run."""

import csv
import json
import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from stepmend import grid
from stepmend.cli import app
from stepmend.quantize import schemes
from stepmend.recipe import Recipe, merge, override
from tests.logs.test_logs import LM_EVAL

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(file for name in ("*.md", "guides/*.md") for file in (ROOT / "docs").glob(name))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"\s+#\s.*$")
LEFT_OUT = "…"
"""Stands for arguments that are not shown."""
SPOKEN = re.compile(r"`stepmend ([^`]+)`")


def blocks(language: str) -> list[tuple[str, str]]:
    """The code blocks of a language, each with its page."""
    return [(page.name, text) for page in PAGES for found, text in BLOCK.findall(page.read_text()) if found == language]


def commands() -> list[tuple[str, tuple[str, ...]]]:
    """The arguments of every command of a line of its own, with its page."""
    lines = [(page, COMMENT.sub("", line)) for page, text in blocks("") for line in text.splitlines()]
    found = [(page, shlex.split(line)) for page, line in lines if line.startswith("stepmend ")]
    return [(page, tuple(word for word in words[1:] if word != LEFT_OUT)) for page, words in found]


def parsed(arguments: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """A verb and its parameters, as the command line's own parser reads them; nothing is run."""
    command: Any = typer.main.get_command(app)
    context, rest = command.make_context("stepmend", list(arguments)), list(arguments)
    while hasattr(command, "commands"):
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)
    return context.command_path, context.params


@pytest.mark.parametrize(("page", "arguments"), commands(), ids=lambda value: value if isinstance(value, str) else " ".join(value))
def test_every_command_is_one(page, arguments):
    verb, given = parsed(arguments)
    for name in [*(given.get("scheme") or ())] if "run" in verb or "check" in verb else []:
        schemes.parse(name)
    if verb.endswith(" run"):
        judged = {"locate": {"judges": given["judge"] or (), "judge_budget": given["judge_budget"]}}
        Recipe.make(merge(judged, override({}, given["assignments"] or [])))


def test_commands_are_found_and_wrong_ones_are_seen():
    found = commands()
    assert {"README.md", "quickstart.md", "viewers.md", "judges.md"} <= {page for page, _ in found}
    assert len(found) > 40
    for wrong in (("run", "--modell", "x"), ("export", "runs/mine", "--to", "paper"), ("bench", "locate"), ("mend",)):
        with pytest.raises(Exception, match=r"[Nn]o such|not one of|Missing"):
            parsed(wrong)


def test_every_verb_that_is_spoken_of_is_one():
    verbs = set(typer.main.get_command(app).commands)  # pyright: ignore[reportAttributeAccessIssue]
    spoken = {words.split()[0] for page in PAGES for words in SPOKEN.findall(page.read_text()) if not words.startswith("-")}
    assert spoken <= verbs
    assert {"compare", "check"} <= spoken


def test_every_recipe_that_is_shown_is_one():
    recipes = [text for _, text in blocks("yaml") if text.startswith("# recipe.yaml")]
    assert len(recipes) == 2
    for text in recipes:
        made = Recipe.make(yaml.safe_load(text))
        assert [schemes.parse(name).name for name in made.schemes] == [*made.schemes]


def test_the_grid_that_is_shown_is_one():
    (text,) = [text for _, text in blocks("yaml") if text.startswith("models:")]
    assert len(grid.cells(grid.Grid.model_validate(yaml.safe_load(text)))) == 8


@pytest.mark.parametrize("page", [page for page in [*PAGES, ROOT / "CONTRIBUTING.md"] if page.parent == ROOT], ids=lambda page: page.name)
def test_every_file_that_is_named_is_there(page):
    text = page.read_text()
    named = re.findall(r"`((?:src|tests|docs|benchmarks|examples)/[\w./]+)`", text) + re.findall(r"\]\(([\w./]+)\)", text)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.fixture
def files(tmp_path, monkeypatch) -> Path:
    """The files that the cheap commands name."""
    for name in ("full", "w4"):
        (tmp_path / name).mkdir()
        rows = [{**LM_EVAL, "doc_id": i, "doc_hash": str(i), "exact_match": float(i % (3 if name == "full" else 2) > 0)} for i in range(9)]
        (tmp_path / name / "samples_gsm8k_….jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        with (tmp_path / f"{name}.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows([["name", "ok", "why"], *([i, i % 2 == 0, "stop"] for i in range(8))])
    (tmp_path / "solutions.jsonl").write_text(json.dumps({"solution": "so \\boxed{4}", "answer": "4"}) + "\n")
    (tmp_path / "processbench").mkdir()
    labelled = [{"problem": "1 + 1?", "steps": ["1 + 1 = 3."], "label": 0}]
    (tmp_path / "processbench" / "gsm8k.json").write_text(json.dumps(labelled))
    monkeypatch.chdir(tmp_path)
    return tmp_path


CHEAP = [arguments for _, arguments in commands() if arguments[0] in ("schemes", "benchmarks", "grade", "compare")]
CHEAP += [arguments for _, arguments in commands() if arguments == ("bench", "locate", "--data", "processbench/gsm8k.json")]


@pytest.mark.parametrize("arguments", sorted(set(CHEAP)), ids=" ".join)
def test_what_is_cheap_runs(files, capsys, arguments):
    assert not app(list(arguments), standalone_mode=False)
    said = capsys.readouterr().out
    assert said.strip()
    assert all((files / name).exists() for option, name in pairwise(arguments) if option == "--out")
