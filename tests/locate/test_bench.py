"""Locators against labels in ProcessBench's form."""

import json

import pytest
from typer.testing import CliRunner

from stepmend import InputError
from stepmend.cli import app
from stepmend.locate import bench

ROWS = [
    {"problem": "p", "steps": ["2 + 2 = 5", "so 5"], "label": 0},
    {"problem": "p", "steps": ["2 + 2 = 4", "4 + 1 = 6"], "label": 0},
    {"problem": "p", "steps": ["it is 4", "so 4"], "label": 1},
    {"problem": "p", "steps": ["2 + 2 = 4"], "label": -1},
    {"problem": "p", "steps": ["3 + 3 = 7"], "label": -1},
]


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_the_figures_by_hand(tmp_path):
    solutions = bench.read(write(tmp_path / "a.jsonl", ROWS))
    of = bench.figures(solutions, [bench.first_false(s.steps) for s in solutions])
    assert of["n"] == 5
    assert of["accuracy_wrong"] == pytest.approx(1 / 3)
    assert of["accuracy_right"] == pytest.approx(1 / 2)
    assert of["f1"] == pytest.approx(0.4)
    assert (of["fired"], of["precision"]) == (3, pytest.approx(1 / 3))


def test_other_defensible_steps_are_steps_of_the_solution(tmp_path):
    (one,) = bench.read(write(tmp_path / "a.jsonl", [ROWS[0] | {"also": [1, 0, -1, 2, "1"], "answer": "4", "solution": "2 + 2 = 4"}]))
    assert (one.label, one.also, one.answer, one.worked) == (0, (1, 0), "4", "2 + 2 = 4")


def test_an_abstention_is_no_right_answer():
    solutions = [bench.Solution("p", ("a", "b"), label) for label in (1, None)]
    of = bench.figures(solutions, [bench.ABSTAINED] * 2)
    assert (of["accuracy_wrong"], of["accuracy_right"], of["f1"], of["fired"], of["precision"]) == (0, 0, 0, 0, None)


def test_only_right_solutions_have_no_f1():
    of = bench.figures([bench.Solution("p", ("a",), None)], [None])
    assert (of["accuracy_wrong"], of["accuracy_right"], of["f1"]) == (None, 1.0, None)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"problem": "p", "steps": ["a"]}, "label"),
        ({"problem": "p", "steps": ["a"], "label": 1}, "label 1; a step's index"),
        ({"problem": "p", "steps": ["a"], "label": True}, "label True"),
        ({"problem": "p", "steps": "a", "label": 0}, "a list of texts"),
        ({"problem": "p", "steps": [], "label": -1}, "a list of texts"),
    ],
)
def test_what_is_no_labelled_solution_is_one_line(tmp_path, row, said):
    with pytest.raises(InputError, match="record 2") as caught:
        bench.read(write(tmp_path / "a.jsonl", [ROWS[0], row]))
    assert said in str(caught.value)


def test_the_command_on_a_folder(tmp_path):
    write(tmp_path / "a.jsonl", ROWS)
    write(tmp_path / "b.jsonl", ROWS)
    done = CliRunner().invoke(app, ["bench", "locate", "--data", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout)
    assert list(figures) == ["n", "accuracy_wrong", "accuracy_right", "f1", "fired", "precision"]
    assert figures["n"] == 10


def test_real_labels(shared_data):
    """The share of labelled faults, and of right solutions left alone, that the equations are known for."""
    solutions = bench.read(shared_data / "processbench" / "gsm8k.json")
    of = bench.figures(solutions, [bench.first_false(s.steps) for s in solutions])
    assert of["precision"] >= 0.9
    assert of["accuracy_wrong"] >= 0.096
    assert of["accuracy_right"] >= 0.995
