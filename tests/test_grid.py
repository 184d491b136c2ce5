"""A grid crosses what it names; a cell that fails is told and the others go on; the same command continues."""

import json
from pathlib import Path

import pytest

from stepmend import grid as grids
from stepmend.records import InputError
from tests.command import stepmend

SMALL = """
models: [builtin:qwen2, {broken}]
schemes: [rtn-w3a16]
benchmarks: [story]
seeds: [0]
recipe:
  measure: {{problems: 6, max_new_tokens: 60, noise_floor: false}}
  curate: {{problems: 12, round: 12, bullets: 4}}
  restore: {{steps: 2, validation: 0}}
"""


def read(tmp_path, text):
    file = tmp_path / "grid.yaml"
    file.write_text(text)
    return grids.Grid.read(file)


def test_cells_are_all_combinations_in_order_and_their_folders_differ(tmp_path):
    text = "models: [builtin:qwen2, builtin:llama]\nschemes: [rtn-w4a16-g128]\nbenchmarks: [story, {benchmark: gsm8k, data: x}]\n"
    found = grids.cells(read(tmp_path, text + "seeds: [0, 3]\n"))
    assert [(c.recipe.model, c.recipe.benchmark, c.recipe.seed) for c in found] == [
        (f"builtin:{model}", benchmark, seed) for model in ("qwen2", "llama") for benchmark in ("story", "gsm8k") for seed in (0, 3)
    ]
    assert len({c.name for c in found}) == 8
    assert found[2].recipe.data == "x"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("models: []\nschemes: [w4a16]\nbenchmarks: [story]", "models"),
        ("models: [builtin:qwen2]\nschemes: [w4a16]\nbenchmark: [story]", "benchmarks"),
        ("models: [builtin:qwen2]\nschemes: [w4a16]\nbenchmarks: [nothing]", "nothing"),
        ("models: [builtin:qwen2]\nschemes: [rtn-w9a16]\nbenchmarks: [story]", "w9a16"),
        ("models: [builtin:qwen2, builtin:qwen2]\nschemes: [w4a16]\nbenchmarks: [story]", "comes twice"),
        ("models: [builtin:qwen2]\nschemes: [w4a16]\nbenchmarks: [story]\nrecipe: {restore: {stpes: 3}}", "stpes"),
        ("models: [builtin:qwen2]\nschemes: [w4a16]\nbenchmarks: [story]\nrecipe: {model: x}", "recipe: model differs between runs"),
        ("models: [builtin:qwen2]\nschemes: [w4a16]\nbenchmarks: [story]\nseeds: [-1]", "seed"),
        ("just words", "mapping"),
    ],
)
def test_a_grid_that_will_not_do_is_one_line_before_any_work(tmp_path, text, says):
    with pytest.raises(InputError, match=says):
        grids.cells(read(tmp_path, text))


def test_an_output_that_is_a_file_is_refused_before_any_work(tmp_path):
    grid = read(tmp_path, "models: [builtin:qwen2]\nschemes: [w4a16]\nbenchmarks: [story]\n")
    with pytest.raises(InputError, match=r"--out .*grid.yaml is not a folder"):
        grids.run(grid, tmp_path / "grid.yaml", lambda recipe, folder: pytest.fail("was run"))


def test_a_failed_cell_is_told_and_the_others_go_on_and_the_same_command_continues(tmp_path):
    broken = tmp_path / "no-model"
    broken.mkdir()
    file, out = tmp_path / "grid.yaml", tmp_path / "grid"
    file.write_text(SMALL.format(broken=broken))
    done = stepmend("grid", file, "--out", out, "--json")
    assert done.returncode == 1, done.stderr
    rows = json.loads(done.stdout)
    assert [(row["seed"], row["state"]) for row in rows] == [(0, "done"), (0, "failed")]
    assert rows == json.loads((out / grids.STATE).read_text())
    assert all(row["full"] is not None and row["problems"] == 18 for row in rows[:1])
    assert "config.json" in rows[1]["why"]
    page = (out / "report.html").read_text()
    assert f'<a href="{rows[0]["cell"]}/report.html">' in page and " failed: " in page
    traces = {folder: (folder / "traces.jsonl").read_bytes() for folder in Path(out).iterdir() if (folder / "traces.jsonl").exists()}
    assert len(traces) == 1
    again = stepmend("grid", file, "--out", out, "--json")
    assert json.loads(again.stdout) == rows
    assert traces == {folder: (folder / "traces.jsonl").read_bytes() for folder in traces}


def test_a_dry_run_says_what_each_cell_takes_and_writes_nothing(tmp_path):
    file, out = tmp_path / "grid.yaml", tmp_path / "grid"
    file.write_text(SMALL.format(broken=tmp_path / "none"))
    done = stepmend("grid", file, "--out", out, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [row.keys() >= {"tokens", "hours", "GiB"} for row in rows] == [True, False]
    assert rows[0]["tokens"] == 18 * 60 * 3 and rows[0]["hours"] > 0 and "why" in rows[1]
    assert not out.exists()
    shown = stepmend("grid", file, "--out", out, "--dry-run")
    assert "2 runs" in shown.stdout and "1 refused" in shown.stdout
