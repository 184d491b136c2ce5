"""The Python API: typed results that agree with the command line's, and nothing loaded before it is needed."""

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import stepmend
from stepmend import api, results
from stepmend.progress import Stages
from tests import command
from tests.report.test_export import a_run

ROWS = [
    {"id": 1, "out": "so \\boxed{1}", "gold": "1", "ok": True},
    {"id": 2, "out": "so \\boxed{3}", "gold": "2", "ok": False},
    {"id": 3, "out": "nobody can tell", "gold": "3", "ok": False},
]
SUM = {
    "problem": "Tom has 3 apples and buys 4. How many has he?",
    "solution": "He starts with 3.\nNow he has 3 + 4 = 8.\nIt is 8.",
    "answer": "7",
}


def kept(file: Path, rows: list[dict]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def printed(*arguments: object) -> Any:
    done = command.stepmend(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_importing_the_package_loads_next_to_nothing():
    loaded = "import stepmend, sys; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout.split()
    assert [name for name in modules if name.startswith("stepmend")] == ["stepmend"]
    assert not {"torch", "transformers", "numpy", "pydantic", "rich", "typer"} & {*modules}


def test_the_stub_lists_what_is_loaded():
    listed = [line.split(" as ")[1] for line in Path(stepmend.__file__).with_suffix(".pyi").read_text().splitlines() if " as " in line]
    assert sorted(listed) == sorted([*stepmend.PUBLIC, *stepmend.CALLED])
    assert {"run", "locate", "Recipe"} <= {*dir(stepmend)}
    assert all(getattr(stepmend, name) is getattr(sys.modules[f"stepmend.{home}"], name) for name, home in stepmend.PUBLIC.items())
    with pytest.raises(AttributeError, match="no attribute 'mend'"):
        stepmend.mend  # noqa: B018


def test_grades_of_a_file_and_of_records_are_the_command_lines(tmp_path):
    file = kept(tmp_path / "a.jsonl", ROWS)
    grades = stepmend.grade(file, "out", "gold")
    assert stepmend.grade(ROWS, "out", "gold") == grades
    assert [one.outcome for one in grades.records] == ["correct", "wrong", "unscored"]
    assert grades.accuracy == pytest.approx(1 / 3)
    assert grades.figures() == printed("grade", file, "--answer-field", "out", "--gold-field", "gold")
    assert grades.to_pandas()["extracted"].tolist()[:2] == ["1", "3"]
    with pytest.raises(FrozenInstanceError):
        grades.records[0].outcome = "wrong"  # pyright: ignore[reportAttributeAccessIssue]


def test_a_comparison_is_the_command_lines(tmp_path):
    first = kept(tmp_path / "full.jsonl", [{**row, "ok": True} for row in ROWS])
    second = kept(tmp_path / "w3.jsonl", ROWS)
    found = stepmend.compare(first, second, fields=stepmend.Fields(correct="ok"), names=("full", "3 bits"))
    assert [(pair.first.name, pair.second.name) for pair in found.pairs] == [("full", "3 bits")]
    page = tmp_path / "page.html"
    asked = ("compare", first, second, "--correct-field", "ok", "--name", "full", "--name", "3 bits", "--out", page)
    assert found.figures() == printed(*asked)
    by_command = page.read_bytes()
    found.write(page)
    assert page.read_bytes() == by_command
    (row,) = found.to_pandas().to_dict("records")
    assert (row["second"], row["only_first"], row["value"]) == ("3 bits", 2, pytest.approx(-2 / 3))
    assert any("3 bits" in line for line in found.notices())


def test_a_faulty_step_is_located_and_progress_is_told(tmp_path):
    told: list[stepmend.Update] = []
    located = stepmend.locate([SUM, {**SUM, "solution": "3 + 4 = 7.\nIt is 7."}], progress=told.append)
    wrong, right = located.solutions
    assert (wrong.step, wrong.text, wrong.fault.error_class) == (1, "Now he has 3 + 4 = 8.\n", "computational")
    assert "".join(wrong.steps) == SUM["solution"]
    assert (right.step, right.text) == (None, None)
    assert located.figures()["n"] == 2
    assert told[0] == stepmend.Update("locate", 0, 2, "solutions") and told[-1] == stepmend.Update("locate", 2, 2, "solutions")
    frame = located.to_pandas()
    assert frame["votes"].tolist() == [{"equations": 1}, {}]
    assert stepmend.locate is sys.modules["stepmend.locate"]  # a package that can be called
    assert api.locate(kept(tmp_path / "a.jsonl", [SUM]), out=tmp_path / "kept").solutions == (wrong,)
    assert (tmp_path / "kept" / "faults.jsonl").exists()


def test_stages_tell_every_line_and_every_batch():
    told: list[stepmend.Update] = []
    stages = Stages(listener=told.append)
    with stages.stage("solve", 10, "problems", 4) as tick:
        tick(0, 50)
        tick(6, 70)
    stages.say("  nothing is left")
    assert told == [
        stepmend.Update("solve", 4, 10, "problems"),
        stepmend.Update("solve", 4, 10, "problems", 50),
        stepmend.Update("solve", 10, 10, "problems", 120),
        stepmend.Update(line="nothing is left"),
    ]


def test_a_check_has_a_row_a_layer():
    found = stepmend.check("builtin:qwen2", ["rtn-w4a16-g128"])
    figures = json.loads(json.dumps(found.figures()))
    assert (figures["family"], figures["schemes"], figures["tuned"]) == ("qwen2", ["rtn-w4a16-g128"], found.summary["tuned"])
    assert {"quantize", "solve", "locate", "restore"} == {*found.seconds}
    frame = found.to_pandas()
    assert frame["quantized"].sum() == found.summary["quantized"] > 0
    assert frame["numbers"].sum() == found.summary["numbers"]
    assert frame.loc[~frame["quantized"], "why"].ne("").all()


def test_a_runs_figures_are_the_command_lines(tmp_path):
    folder = a_run(tmp_path / "run")
    result = stepmend.RunResult.read(folder)
    figures = printed("report", folder)
    assert {arm.name: arm.accuracy for arm in result.arms} == {name: of["accuracy"] for name, of in figures["arms"].items()}
    full, low = result.arms
    assert full.against_full is None and low.against_full is not None
    assert {**figures["arms"][low.name]["against_full"]} == asdict(low.against_full)
    (scheme,) = result.schemes
    assert asdict(scheme.loss_recovered) == figures["schemes"][scheme.name]["loss_recovered"]
    frame = result.to_pandas()
    assert frame["name"].tolist() == [full.name, low.name]
    assert frame["against_full_value"].tolist()[1] == low.against_full.value
    assert result.page == folder / "report.html"
    with pytest.raises(stepmend.InputError, match="holds no run"):
        stepmend.RunResult.read(tmp_path)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: stepmend.run({"steps": 3}), "unknown key steps"),
        (lambda: stepmend.run("nowhere.yaml"), "nowhere.yaml"),
        (lambda: stepmend.run({}, controls=["lottery"]), "unknown lottery; allowed"),
        (lambda: stepmend.run(stepmend.Recipe(), quick=True), "quick needs"),
        (lambda: stepmend.run({}, controls=["random-step"], match="equal"), "match = 'equal'; allowed: steps, tokens, both"),  # type: ignore
        (lambda: stepmend.run({}, controls=["random-step"], seeds=0), "seeds = 0; at least one"),
        (lambda: stepmend.check("builtin:qwen2", ["gptq-w9a16"]), "gptq-w9a16"),
        (lambda: stepmend.check("builtin:qwen2", ["rtn-w3a16"] * 2), "a scheme is listed twice"),
        (lambda: stepmend.check("builtin:qwen2", quantized=["."]), "quantized"),
        (lambda: stepmend.check("builtin:qwen2", quantized=["a/x", "b/x"]), "two folders have the same name"),
        (lambda: stepmend.compare("a.csv", "b.csv", margin=-5), "margin = -5; 0 to 100"),
        (lambda: stepmend.compare("a.csv", "b.csv", margin=float("nan")), "margin = nan; 0 to 100"),
        (lambda: stepmend.locate([SUM], locators=["margins"], model="builtin:qwen2"), "margins needs both checkpoints"),
        (lambda: stepmend.compare("a.csv"), "two logs or more"),
        (lambda: stepmend.compare("a.csv", "a.csv"), "one log is given twice"),
        (lambda: stepmend.compare("a.csv", "b.csv", names=["a"]), "1 names for 2 logs"),
        (lambda: stepmend.grade([], "out", "gold"), "no solutions are given"),
        (lambda: stepmend.grade(ROWS, "text", "gold"), "no field 'text'"),
        (lambda: stepmend.locate([]), "no solutions are given"),
        (lambda: stepmend.locate([{"problem": "1 + 1?"}]), "solutions, record 1: no field 'solution'"),
        (lambda: stepmend.locate([{**SUM, "solution": " "}]), "solution is empty"),
        (lambda: stepmend.locate([SUM], locators=["rescue"]), "rescue needs --model"),
        (lambda: stepmend.locate([SUM], locators=["fortune"]), "locate.locators"),
        (lambda: stepmend.locate([SUM], settings={"threshold": 7}), "locate.threshold = 7"),
    ],
)
def test_what_a_caller_can_put_right_is_one_line(tmp_path, monkeypatch, call, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(stepmend.InputError) as raised:
        call()
    assert said in str(raised.value) and len(str(raised.value).splitlines()) == 1
    assert not any(tmp_path.iterdir())


def test_without_pandas_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(stepmend.InputError, match=r"pip install 'stepmend\[pandas\]'"):
        results.frame([{"a": 1}])


def test_a_table_has_a_row_a_record():
    assert results.frame([{"a": 1, "b": None}, {"a": 2, "b": "x"}]).equals(pd.DataFrame({"a": [1, 2], "b": [None, "x"]}))
