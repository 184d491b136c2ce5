"""The examples run: the scripts, and the notebook cell by cell, on small files and the built-in reasoner."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def output(script: str, *arguments: object, cwd: Path) -> list[str]:
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_every_example_is_tried():
    assert {file.name for file in EXAMPLES.iterdir() if file.suffix in (".py", ".ipynb")} == {
        "grade_and_compare.py",
        "locate_steps.py",
        "whole_loop.py",
        "tour.ipynb",
    }


def test_grades_and_a_comparison(tmp_path):
    first, *lines = output("grade_and_compare.py", cwd=tmp_path)
    assert first == "40 % of 5 solutions are correct"
    assert [line.split()[0] for line in lines[:5]] == ["wrong", "wrong", "correct", "correct", "unscored"]
    assert "against full" in lines[5] or "between w3 and full" in lines[5]


def test_steps_are_located_with_and_without_a_model(capsys):
    runpy.run_path(str(EXAMPLES / "locate_steps.py"), run_name="__main__")
    said = capsys.readouterr().out
    without, with_one = said.split("with builtin:qwen2:")
    assert without.count("located") == 1
    assert with_one.count("located") == 2
    assert "located: step 8, procedural" in with_one and "'rescue': 8" in with_one


@pytest.mark.slow
def test_the_whole_loop(tmp_path):
    said = output("whole_loop.py", tmp_path / "run", cwd=tmp_path)
    assert said[-1] == f"The page: {tmp_path / 'run' / 'report.html'}"
    assert (tmp_path / "run" / "report.html").exists()
    assert any(line.startswith("full: solve test: ") for line in said)


def test_the_notebooks_cells_run_in_order(monkeypatch, capsys):
    monkeypatch.chdir(EXAMPLES)
    cells = json.loads((EXAMPLES / "tour.ipynb").read_text())["cells"]
    names: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [], "outputs are not kept"
            exec("".join(cell["source"]), names)
    said = capsys.readouterr().out
    assert "locate: 0/2 solutions" in said and "solutions/s" in said
    assert "gptq is offered as" in said
